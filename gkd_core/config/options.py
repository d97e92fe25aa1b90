"""The options of methods and schemes in `params.yaml`: types, limits, and old names."""

import importlib.util
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from gkd_core import methods, schemes
from gkd_core.config.schema import MethodConfig
from gkd_core.mistakes import Mistake, mistakes, unknown_key

RENAMED: dict[str, dict[str, str]] = {
    "kd": {"alpha": "weight"},
    "dkd": {"alpha": "weight_target", "beta": "weight_non_target"},
    "dist": {"beta": "weight_inter", "gamma": "weight_intra"},
    "self-distillation": {"alpha": "weight"},
}
"""Method → {old name: name}. params.yaml may still use the old one."""


def can_train() -> bool:
    """Whether torch is installed, which methods and schemes need to be looked at."""
    return importlib.util.find_spec("torch") is not None


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
        if method in methods.METHODS and isinstance(chosen, dict)
    }
    for method, chosen in given.items():
        if chosen:
            yield from _check_method(method, chosen, (*at, "options", method))
    method = section.get("method", MethodConfig.model_fields["method"].default)
    temperature = section.get("temperature")
    if temperature is None or method not in methods.METHODS:
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


def _check_method(method: str, given: dict[str, Any], at: tuple[str, ...]) -> Iterator[Mistake]:
    model = methods.options_model(method)
    for name in given:
        if name not in model.model_fields:
            place = (*at, str(name))
            yield Mistake(place, unknown_key(place, model.model_fields, "option", RENAMED.get(method)))
    try:
        model.model_validate({name: value for name, value in given.items() if name in model.model_fields})
    except ValidationError as error:
        yield from mistakes(error, model, at=at)
