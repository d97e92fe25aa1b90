"""The options of methods and schemes in `params.yaml`: types and limits."""

from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from gkd_core import methods, schemes
from gkd_core.config.schema import MethodConfig, can_train
from gkd_core.mistakes import Mistake, mistakes


def check(section: Any, at: tuple[str, ...]) -> Iterator[Mistake]:
    """What is wrong with the options of all methods, the chosen one or not, and with τ.

    The module of a loss, and torch with it, is imported only if one of its options or τ is given. Where torch is not
    installed nothing is checked: nothing can be trained there.

    Args:
        section: `distill`, or `teacher.assistant_distill`, as it stands in the file.
        at: its place there.
    """
    if not isinstance(section, dict) or not can_train():
        return
    options = section.get("options")
    given = {
        method: {name: value for name, value in chosen.items() if value is not None}
        for method, chosen in (options.items() if isinstance(options, dict) else ())
        if isinstance(chosen, dict) and methods.is_method(method)
    }
    method, temperature = section.get("method", MethodConfig.model_fields["method"].default), section.get("temperature")
    checked = {each: chosen for each, chosen in given.items() if chosen}
    if methods.is_method(method) and methods.METHODS[method].own is not None:  # its options may have no defaults
        both = isinstance(temperature, (int, float)) and "temperature" in methods.hyperparameters(method)
        checked[method] = ({"temperature": temperature} if both else {}) | given.get(method, {})
    for each, chosen in checked.items():
        yield from methods.wrong_hyperparameters(each, chosen, (*at, "options", each))
    if temperature is None or not methods.is_method(method):
        return
    if "temperature" not in methods.hyperparameters(method):
        yield Mistake(
            (*at, "temperature"),
            f"{'.'.join(at)}.temperature is {temperature}, but method {method} has no temperature: set it to null",
        )
    elif given.get(method, {}).get("temperature", temperature) != temperature:
        yield Mistake(
            at,
            f"{'.'.join(at)}.temperature ({temperature}) and {'.'.join(at)}.options.{method}.temperature "
            f"({given[method]['temperature']}) contradict each other: give one",
            contradiction=True,
        )


def check_scheme(distill: Any) -> Iterator[Mistake]:
    """What is wrong with the options of all schemes, the chosen one or not; only those given import their module.

    Args:
        distill: the section as it stands in the file.
    """
    options = distill.get("scheme_options") if isinstance(distill, dict) and can_train() else None
    for name, chosen in options.items() if isinstance(options, dict) else ():
        if chosen and name in schemes.names() and isinstance(chosen, dict):
            model = schemes.get(name).options
            try:
                model.model_validate(chosen)
            except ValidationError as error:
                yield from mistakes(error, model, at=("distill", "scheme_options", name))
