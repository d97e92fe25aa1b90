"""What a search tries: parameters by the keys that `--set` takes, each with a range, choices, or one value.

distill.method: {choices: [kd, gompertz]}
train.learning_rate: {low: 0.02, high: 0.5, log: true}
distill.options.gompertz.weight_kd: {low: 0.1, high: 2}    # drawn where the method is gompertz
distill.curve.c: {low: 0.2, high: 1, when: {distill.method: gompertz}}
train.epochs: 15
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, product
from typing import Any, Protocol

from gkd_core.config.contenders import MISPLACED, SECTIONS, Contender, alone, merged
from gkd_core.config.load import RENAMED, parse_yaml, validate
from gkd_core.config.schema import Params, whole
from gkd_core.errors import GkdError, unknown
from gkd_core.methods import METHODS, is_method
from gkd_core.mistakes import Mistake, warn_renamed
from gkd_core.plugins import unknown_name
from gkd_core.schemes import names as scheme_names

RANGE, CHOICES, WHEN = ("low", "high", "log", "step"), "choices", "when"
DIGITS = 4  # of a number that is drawn: more tells no settings apart
MOST_COMBINED = 500  # combinations of choices that are checked before anything is trained

Scalar = str | int | float | bool | None


class Trial(Protocol):
    """What draws: Optuna's trial."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float: ...

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int: ...

    def suggest_categorical(self, name: str, choices: Sequence[Scalar]) -> Scalar: ...


@dataclass(frozen=True)
class Parameter:
    """One line of a space.

    Attributes:
        key: as `--set` takes it.
        choices: what it may be; one value is fixed, none is a range.
        low, high: ends of a range, both included.
        log: drawn by its logarithm.
        step: distance of the values of a range; None is any number.
        integer: whole numbers only.
        when: key → values; only where another parameter has one of these is this one drawn.
    """

    key: str
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float | None = None
    integer: bool = False
    when: tuple[tuple[str, tuple[Any, ...]], ...] = ()

    @property
    def fixed(self) -> bool:
        return len(self.choices) == 1

    def draw(self, trial: Trial) -> Any:
        """A value; the trial knows the same parameter by the same name and kind at every call."""
        if self.fixed:
            return self.choices[0]
        if self.choices:
            # A database keeps numbers and text: a list goes there as JSON.
            by_label = {_label(choice): choice for choice in self.choices}
            return by_label[trial.suggest_categorical(self.key, list(by_label))]
        if self.integer:
            step = 1 if self.step is None else int(self.step)
            return trial.suggest_int(self.key, int(self.low), int(self.high), step=step, log=self.log)
        drawn = trial.suggest_float(self.key, self.low, self.high, step=self.step, log=self.log)
        return min(max(float(f"{drawn:.{DIGITS}g}"), self.low), self.high)

    def examples(self) -> list[Any]:
        """All choices, or both ends."""
        return list(self.choices) or [self._typed(self.low), self._typed(self.high)]

    def _typed(self, value: float) -> float:
        return int(value) if self.integer else value

    def written(self) -> Any:
        """As YAML has it."""
        if self.fixed and not self.when and not isinstance(self.choices[0], dict):
            return self.choices[0]
        if self.choices:
            content: dict[str, Any] = {CHOICES: list(self.choices)}
        else:
            content = {"low": self._typed(self.low), "high": self._typed(self.high)}
            content |= {"log": True} if self.log else {}
            content |= {} if self.step is None else {"step": self._typed(self.step)}
        return content | ({WHEN: {key: list(values) for key, values in self.when}} if self.when else {})


@dataclass(frozen=True)
class Space:
    """All that is drawn and fixed, in the order of drawing.

    Attributes:
        parameters: whoever is asked for in a `when` stands before who asks.
        base: what all settings have in common, as params.yaml has it.
    """

    parameters: tuple[Parameter, ...]
    base: Params

    def __getitem__(self, key: str) -> Parameter:
        return next(each for each in self.parameters if each.key == key)

    def has(self, key: str) -> bool:
        """Whether there is such a parameter."""
        return any(each.key == key for each in self.parameters)

    def fixed(self, key: str) -> Any:
        """The one value of a parameter; None where it has several, or is not there."""
        return self[key].choices[0] if self.has(key) and self[key].fixed else None

    @property
    def drawn(self) -> list[Parameter]:
        """Those that are not fixed."""
        return [each for each in self.parameters if not each.fixed]

    def draw(self, trial: Trial) -> dict[str, Any]:
        """Key → value, of one setting."""
        values: dict[str, Any] = {}
        for parameter in self.parameters:
            if self._asked(parameter, values):
                values[parameter.key] = parameter.draw(trial)
        return values

    def settle(self, values: Mapping[str, Any]) -> tuple[Params | None, list[Mistake]]:
        """The whole configuration with these values, or what is wrong with it."""
        sections = alone(sections_of(values), self.base)
        return validate(merged(self.content, sections), sections)

    @property
    def content(self) -> dict[str, Any]:
        """What all settings have in common, as params.yaml would have it."""
        return self.base.model_dump(mode="json", exclude_unset=True)

    def fixed_to(self, key: str, value: Any) -> "Space":
        """The part of the space in which a parameter has this value; what is never drawn there is left out."""
        fixed = [replace(each, choices=(value,)) if each.key == key else each for each in self.parameters]
        kept = [each for each in fixed if all(other != key or value in wanted for other, wanted in each.when)]
        return Space(tuple(kept), self.base)

    def studies(self, each: str | None = None, name: str | None = None, option: str = "") -> "dict[str, Space]":
        """Title → what is drawn in it: one study, or one for each choice of a parameter.

        Args:
            each: key of that parameter.
            name: of the one study.
            option: what stands before the names of these arguments where the user wrote them ("--").
        Raises:
            GkdError: the parameter is not there, or has no choices.
        """
        if each is None:
            several = self.has("distill.method") and not self["distill.method"].fixed
            method = self.fixed("distill.method") or self.base.distill.method
            return {name or ("searched" if several else f"{method}, searched"): self}
        if not self.has(each):
            if known := [one.key for one in self.parameters if len(one.choices) > 1]:
                raise GkdError(unknown(f"{option}each", each, known))
            raise GkdError(
                f"{option}each {each!r} is none of the space, and no parameter there has choices: give one, such as "
                "distill.method: {choices: [kd, gompertz]}"
            )
        if len(self[each].choices) < 2:
            raise GkdError(f"{option}each {each} takes a parameter with choices: write {each}: {{choices: […]}}")
        return {f"{choice}, searched": self.fixed_to(each, choice) for choice in self[each].choices}

    def written(self) -> dict[str, Any]:
        """As YAML has it."""
        return {each.key: each.written() for each in self.parameters}

    def _asked(self, parameter: Parameter, values: Mapping[str, Any]) -> bool:
        return all(key in values and values[key] in wanted for key, wanted in parameter.when)

    def combinations(self) -> Iterator[dict[str, Any]]:
        """Settings in which every choice meets every other, numbers at their lower, then at their upper ends."""
        several = [each for each in self.parameters if each.choices]
        ranges = [each for each in self.parameters if not each.choices]
        for chosen in product(*(each.choices for each in several)):
            for end in (0, 1) if ranges else (0,):
                values = {each.key: value for each, value in zip(several, chosen, strict=True)}
                values |= {each.key: each.examples()[end] for each in ranges}
                found: dict[str, Any] = {}
                for each in self.parameters:
                    if self._asked(each, found):
                        found[each.key] = values[each.key]
                yield found


def parse_space(text: str, where: str) -> dict[str, Any]:
    """The mapping in a file, to be looked at by `read_space`.

    Raises:
        GkdError: it is no YAML, or no mapping.
    """
    content = parse_yaml(text, where)
    if not isinstance(content, dict) or not content:
        shown = f"a {type(content).__name__}" if content else "nothing"
        raise GkdError(
            f"{where} must hold parameters (train.learning_rate: {{low: 0.02, high: 0.5, log: true}}), not {shown}"
        )
    return content


def read_space(content: Mapping[str, Any], base: Params, where: str = "space") -> Space:
    """The space, with everything in it looked at.

    Args:
        content: of a space file.
        base: what all settings have in common.
        where: it is from, for the error.
    Raises:
        GkdError: everything that is wrong, a sentence a line.
    """
    wrong: list[str] = []
    found: dict[str, Parameter] = {}
    for given, what in whole(dict(content)).items():
        key = _new_name(str(given))
        if key in found:
            wrong.append(f"{key} stands there twice, once by its old name: leave one out")
            continue
        parameter, sentences = _parameter(key, what)
        wrong += sentences
        if parameter is not None and not sentences:
            found[key] = parameter
    if wrong:  # conditions may ask for lines that could not be read: what the others say by themselves is told too
        wrong += _unfit(Space(tuple(found.values()), base))
    else:
        ordered, wrong = _ordered(found, base)
        space = Space(tuple(ordered), base)
        wrong = wrong or _shared_temperature(space) or list(_unfit(space))
        if not wrong:
            space = Space(tuple(_with_kinds(space)), base)
            wrong = list(_contradictions(space))
        if not wrong and not space.drawn:
            wrong = ["every parameter has one value, so there is nothing to search: give one a range or choices"]
        if not wrong:
            return space
    raise GkdError("\n".join(f"{where}: {sentence}" for sentence in dict.fromkeys(wrong)))


def sections_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as nested sections.

    >>> sections_of({"train.epochs": 3, "train.augment.flip": True})
    {'train': {'epochs': 3, 'augment': {'flip': True}}}
    """
    sections: dict[str, Any] = {}
    for key, value in values.items():
        *parents, last = key.split(".")
        section = sections
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value
    return sections


def _label(choice: Any) -> Scalar:
    return choice if choice is None or isinstance(choice, str | int | float | bool) else json.dumps(choice)


def _new_name(key: str) -> str:
    for old, new in RENAMED.items():
        if f"{key}.".startswith(f"{old}."):
            warn_renamed(old, new)
            key = new + key.removeprefix(old)
    return key


def _parameter(key: str, what: Any) -> tuple[Parameter | None, list[str]]:
    """One line, and what is wrong with how it is written."""
    section, dot, rest = key.partition(".")
    if not dot or not rest or section not in SECTIONS:
        if section in SECTIONS and isinstance(what, dict) and what:
            inner = str(next(iter(what)))
            return None, [f"{key} is a section: write a line a parameter, such as {key}.{inner}: …"]
        if key in MISPLACED:
            return None, [f"{key!r} is no key: write {MISPLACED[key]}"]
        reason = f"a search moves only what is in {', '.join(SECTIONS)}, such as train.learning_rate"
        return None, [f"{key!r} cannot be searched: {reason}"]
    if key == "train.seed":
        return None, ["train.seed cannot be searched: every setting has the seeds of --seeds"]
    if not isinstance(what, dict):
        return Parameter(key, (what,)), []
    keys = {CHOICES, WHEN, *RANGE}
    wrong = [f"{key}: {unknown('key', str(name), [*RANGE, CHOICES, WHEN])}" for name in what if name not in keys]
    if wrong:
        return None, wrong
    when, wrong = _when(key, what.get(WHEN))
    if CHOICES in what:
        for name in RANGE:
            if name in what:
                wrong.append(f"{key}: choices and {name} are both given: leave one of them out")
        choices = what[CHOICES]
        if not isinstance(choices, list) or not choices:
            wrong.append(f"{key}: choices is {choices!r}: give a list of one or more")
            choices = []
        labels = [json.dumps(choice, sort_keys=True, default=str) for choice in choices]
        wrong += [f"{key}: choices has {choice} twice" for choice in sorted({x for x in labels if labels.count(x) > 1})]
        return Parameter(key, tuple(choices), when=when), wrong
    missing = [name for name in ("low", "high") if name not in what]
    if missing:
        wrong.append(
            f"{key}: {' and '.join(missing)} is missing: give {{low: …, high: …}}, {{choices: […]}} or a value"
        )
        return None, wrong
    for name in ("low", "high", "step"):
        value = what.get(name)
        if name in what and (isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value)):
            wrong.append(f"{key}: {name} is {value!r}: give a number")
    log = what.get("log", False)
    if not isinstance(log, bool):
        wrong.append(f"{key}: log is {log!r}: give true or false")
    if wrong:
        return None, wrong
    low, high, step = what["low"], what["high"], what.get("step")
    if low >= high:
        wrong.append(f"{key}: low ({low:g}) must be below high ({high:g}); for one value write {key}: {low:g}")
    if log and low <= 0:
        wrong.append(f"{key}: log is true but low is {low:g}: a logarithm needs low above 0")
    if step is not None and log:
        wrong.append(f"{key}: log and step are both given: leave one of them out")
    if step is not None and not 0 < step <= high - low:
        wrong.append(f"{key}: step is {step:g}: give more than 0 and at most high − low ({high - low:g})")
    return Parameter(key, (), low, high, log, step, when=when), wrong


def _when(key: str, given: Any) -> tuple[tuple[tuple[str, tuple[Any, ...]], ...], list[str]]:
    """A condition, together with the one that an option of a method or a scheme has by itself."""
    found: dict[str, tuple[Any, ...]] = {}
    wrong = []
    if given is not None and (not isinstance(given, dict) or not given):
        wrong.append(f"{key}: when is {given!r}: give another parameter and its value, when: {{distill.method: kd}}")
    elif given is not None:
        found = {str(name): tuple(value) if isinstance(value, list) else (value,) for name, value in given.items()}
        wrong += [f"{key}: when asks for {name} in an empty list: name values" for name in found if not found[name]]
    owners: list[tuple[str, str, Iterable[str]]] = [
        ("distill.method", "distill.options", METHODS),
        ("distill.scheme", "distill.scheme_options", scheme_names()),
    ]
    for chooser, options, known in owners:
        if key.startswith(f"{options}."):
            owner = key.removeprefix(f"{options}.").partition(".")[0]
            if owner not in known and not (known is METHODS and is_method(owner)):
                say = unknown_name if known is METHODS else unknown
                wrong.append(say(f"{options}: {chooser.rpartition('.')[2]}", owner, known))
            elif owner not in found.setdefault(chooser, (owner,)):
                wrong.append(
                    f"{key} is read where {chooser} is {owner} alone, but when asks for another: leave that out"
                )
    return tuple(found.items()), wrong


def _ordered(found: Mapping[str, Parameter], base: Params) -> tuple[list[Parameter], list[str]]:
    """Whoever others ask for before them, else in the order of the file; and conditions that can never be met.

    A method or scheme that is no part of the space is the one that all have in common.
    """
    common = {"distill.method": base.distill.method, "distill.scheme": base.distill.scheme}
    wrong: list[str] = []
    ordered: dict[str, Parameter] = {}

    def place(parameter: Parameter, asked_by: tuple[str, ...]) -> None:
        if parameter.key in asked_by:
            wrong.append(f"{parameter.key}: its condition asks, round a circle, for itself: leave one of them out")
            return
        asked = [(key, values) for key, values in parameter.when if key in found or common.get(key) not in values]
        for key, values in asked:
            if key in common and key not in found:
                wrong.append(
                    f"{parameter.key} is drawn where {key} is {values[0]!r}, but it is {common[key]!r}: add a line "
                    f"{key}: {values[0]}, or leave {parameter.key} out"
                )
                continue
            if key not in found:
                wrong.append(f"{parameter.key}: when: {unknown('parameter', key, dict.fromkeys([*found, *common]))}")
                continue
            other = found[key]
            if not other.choices:
                wrong.append(f"{parameter.key}: when asks for {key}, which is a range: ask for one with choices")
            for value in values:
                if other.choices and value not in other.choices:
                    wrong.append(
                        f"{parameter.key} is drawn where {key} is {value!r}, which it never is: add {value!r} to the "
                        f"choices of {key}, or leave {parameter.key} out"
                    )
            place(other, (*asked_by, parameter.key))
        ordered.setdefault(parameter.key, replace(parameter, when=tuple(asked)))

    for parameter in found.values():
        place(parameter, ())
    return list(ordered.values()), wrong


def _shared_temperature(space: Space) -> list[str]:
    """Why one τ is not for all, where several methods would have it."""
    temperature = space.base.distill.temperature
    keys = {each.key: each for each in space.parameters}
    methods = keys["distill.method"].choices if "distill.method" in keys else ()
    if temperature is None or len(methods) < 2 or "distill.temperature" in keys:
        return []
    return [
        f"distill.temperature is {temperature:g} in the parameters, but several methods are searched, each with its "
        "own: set it to null, or search it"
    ]


def _unfit(space: Space) -> Iterator[str]:
    """Keys that are none, and values that no training could have, each looked at by itself."""
    for place, parameter in enumerate(space.parameters):
        for value in parameter.examples():
            _, found = space.settle(_before(space, place) | {parameter.key: value})
            at = tuple(parameter.key.split("."))
            for mistake in found:
                if not mistake.contradiction and mistake.place[: len(at)] == at[: len(mistake.place)]:
                    yield mistake.sentence


def _before(space: Space, place: int) -> dict[str, Any]:
    """Values under which a parameter is drawn: of those before it, what its condition names."""
    wanted = dict(space.parameters[place].when)
    values: dict[str, Any] = {}
    for other in reversed(space.parameters[:place]):
        if other.key in wanted:
            wanted = dict(other.when) | wanted
            values[other.key] = wanted[other.key][0]
    return dict(reversed(values.items()))


def _with_kinds(space: Space) -> Iterator[Parameter]:
    """The parameters, with what is no whole number where only whole ones are taken.

    A range that is written in whole numbers is one of whole numbers where the configuration refuses what lies between.
    """
    for place, each in enumerate(space.parameters):
        ends = [each.low, each.high, *([] if each.step is None else [each.step])]
        if each.choices or not all(isinstance(end, int) for end in ends):
            yield each if each.choices else replace(each, low=float(each.low), high=float(each.high))
            continue
        at = tuple(each.key.split("."))
        _, found = space.settle(_before(space, place) | {each.key: each.low + 0.5})
        integer = any(mistake.place == at and not mistake.contradiction for mistake in found)
        yield replace(each, integer=True) if integer else replace(each, low=float(each.low), high=float(each.high))


def _contradictions(space: Space) -> Iterator[str]:
    """What the choices say against each other, and against the rest of the configuration."""
    for values in islice(space.combinations(), MOST_COMBINED):
        _, found = space.settle(values)
        for mistake in found:
            named = [f"{each.key} {_shown(values[each.key])}" for each in space.drawn if each.key in values]
            yield f"with {', '.join(named)}: {mistake.sentence}"
            return


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else json.dumps(value) if isinstance(value, list) else str(value)


def contender(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What was chosen, as an entry of a file of contenders."""
    return {"name": name, **sections_of(values)}


def settings_of(params: Params) -> str:
    """Digits of a digest of what a setting is, the seed aside; see `Contender.settings`."""
    return Contender("", params).settings
