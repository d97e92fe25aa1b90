"""What pydantic finds wrong, all of it, as sentences that name the key as the user wrote it."""

import inspect
import reprlib
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from gkd_core.errors import unknown

GUESSED = {
    "prepare": "data",
    "baseline": "references",
    "kd": "references",
    "deploy": "export",
    "report": "evaluate",
    "register": "gate",
    "registration": "gate",
    "mlflow": "tracking",
}
"""Steps, and folders that they write, whose names are no sections → the section that says what is done there."""


@dataclass(frozen=True)
class Mistake:
    """One thing that is wrong.

    Attributes:
        place: the key it is about, or the section whose keys contradict each other.
        sentence: what, where, and how to fix it.
        contradiction: several keys are part of it.
    """

    place: tuple[str, ...]
    sentence: str
    contradiction: bool = False


class ContradictionsError(ValueError):
    """What a validator raises for several sentences at once, where pydantic takes one exception a model."""

    def __init__(self, sentences: list[str]) -> None:
        super().__init__("; ".join(sentences))
        self.sentences = sentences


def mistakes(
    error: ValidationError, model: type[BaseModel], *, at: tuple[str, ...] = (), what: str = "parameter"
) -> Iterator[Mistake]:
    """Every error of a validation.

    Args:
        model: what was validated.
        at: the place in the user's file of what was validated.
        what: what its keys are called.
    """
    for found in error.errors():
        # Pydantic also names the validators and types it went through, and says that it is a mapping's key.
        passed = ("function-", "literal", "[key]")
        inside = [p for p in found["loc"] if not (isinstance(p, str) and p.startswith(passed))]
        place = (*at, *map(str, inside))
        name = ".".join(place)
        match found["type"]:
            case "extra_forbidden":
                yield Mistake(place, _unknown_key(place, model, inside, found["input"], what))
            case "value_error" if isinstance(found["ctx"]["error"], ContradictionsError):
                for sentence in found["ctx"]["error"].sentences:
                    yield Mistake(place, f"{name}: {sentence}" if name else sentence, contradiction=True)
            case "value_error":
                sentence = str(found["ctx"]["error"])
                # A field's own validator may start its sentence with the field's name; put the section before it.
                starts = bool(place) and sentence.startswith(place[-1])
                yield Mistake(place, ".".join([*place[:-1], sentence]) if starts else f"{name}: {sentence}")
            case "missing":
                yield Mistake(place, f"{name} is missing")
            case "model_type" | "dict_type":
                keys = _fields(model, inside) if found["type"] == "model_type" else []
                section = f"{{{keys[0] if keys else 'key'}: …}}"
                section = section if not place or place[-1].isdigit() else f"{place[-1]}: {section}"
                yield Mistake(place, f"{name} is {reprlib.repr(found['input'])}: it must be a section ({section})")
            case _:
                message = found["msg"][0].lower() + found["msg"][1:]
                yield Mistake(place, f"{name} is {reprlib.repr(found['input'])}: {message}")


def unknown_key(
    place: tuple[str, ...], known: Iterable[str], what: str = "parameter", renamed: Mapping[str, str] | None = None
) -> str:
    """`unknown` for a key that a section does not have."""
    *section, key = place
    return unknown(what, key, known, section=".".join([*section, ""]), renamed=renamed)


def _unknown_key(place: tuple[str, ...], model: type[BaseModel], inside: list[Any], given: Any, what: str) -> str:
    """`unknown_key`, which also knows what people call a section by its step or its folder, and a key in it.

    Args:
        inside: the key's place in the model.
        given: its value.
    """
    known = _fields(model, inside[:-1])
    section = GUESSED.get(inside[0]) if len(inside) == 1 else None
    if section not in known:
        return unknown_key(place, known, what)
    keys = _fields(model, [section])
    inner = next((key for key in given if key in keys), None) if isinstance(given, dict) else None
    wrong, right = (inside[0], section) if inner is None else (f"{inside[0]}.{inner}", f"{section}.{inner}")
    return unknown(what, wrong, known, renamed={wrong: right})


def warn_renamed(old: str, new: str) -> None:
    """Say that a name is read, but not for ever; the line that is shown is the caller's of the library."""
    frame, level = inspect.currentframe(), 1
    while frame is not None and f"{frame.f_globals.get('__name__')}.".startswith("gkd_core."):
        frame, level = frame.f_back, level + 1
    message = f"{old} is called {new} now: the old name will not be read for ever"
    warnings.warn(message, FutureWarning, stacklevel=level)


def _fields(model: Any, place: list[Any]) -> list[str]:
    """The keys of the section at a place in a model."""
    for part in place:
        if part in model.model_fields:  # else a place in a list, or a key of a dict
            model = section_of(model.model_fields[part].annotation)
    return list(model.model_fields)


def section_of(annotation: Any) -> Any:
    """The model in `Model`, `list[Model]`, `dict[str, Model]`, `Model | None` or an annotated one of these."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for found in map(section_of, get_args(annotation)) if found is not None), None)
