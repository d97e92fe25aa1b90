"""From a YAML file, or a mapping, and the command line's overrides to checked `Params`; all mistakes told at once."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from gkd_core import methods, plugins, schemes
from gkd_core.config import options
from gkd_core.config.checks import contradictions, unread, untrainable
from gkd_core.config.schema import Params, Section, is_module, whole
from gkd_core.errors import GkdError
from gkd_core.mistakes import Mistake, mistakes, warn_renamed
from gkd_core.yaml_text import load_yaml

METHOD_SECTIONS = ("distill", "teacher.assistant_distill")

RENAMED = {
    "references.kd_alpha": "references.kd_weight",
    "distill.arrangement": "distill.scheme",
    "distill.arrangement_options": "distill.scheme_options",
    **{f"distill.scheme_options.{old}": f"distill.scheme_options.{new}" for old, new in schemes.OLD_NAMES.items()},
} | {
    f"{section}.options.{method}.{old}": f"{section}.options.{method}.{new}"
    for section in METHOD_SECTIONS
    for method, names in methods.RENAMED.items()
    for old, new in names.items()
}
"""Old key → key. A file may still use the old one."""


T = TypeVar("T", bound=Section)


def read_sections(
    path: Path, *, holds: str = "sections (data, teacher, …)", option: str = "--params"
) -> dict[str, Any]:
    """The mapping in a YAML file, as it stands there.

    Args:
        holds, option: what the file must hold, and the option that names it, in the user's words for the error.
    Raises:
        GkdError: the file is missing, not YAML, or no mapping.
    """
    content = parse_yaml(read_text(path, option), str(path))
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise GkdError(f"{path} must hold {holds}, not a {type(content).__name__}")
    return content


def read_text(path: Path, option: str) -> str:
    """The text of a file that the user names.

    Args:
        option: the option that names it, for the error.
    Raises:
        GkdError: it is missing, or no text in UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        begin = ", or begin a project with `gkd init FOLDER`" if option == "--params" else ""
        raise GkdError(f"{path} does not exist: run from the project's folder, or pass {option} FILE{begin}") from None
    except OSError as error:
        raise GkdError(f"{path} cannot be read ({error.strerror}): pass {option} FILE") from None
    except UnicodeDecodeError as error:
        raise GkdError(f"{path} is not valid YAML: {error}") from None


def parse_yaml(text: str, where: str) -> Any:
    """The content of a YAML file, as it stands there.

    Args:
        where: the text is from, for the error.
    Raises:
        GkdError: it is no YAML.
    """
    try:
        return load_yaml(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        raise GkdError(f"{where}{place} is not valid YAML: {reason}") from None


def load_params(path: Path = Path("params.yaml"), overrides: Sequence[str] = ()) -> Params:
    """Read params.yaml and apply `section.key=value` overrides (values are YAML).

    Raises:
        GkdError: the file is missing or not YAML, or as `parse_params`.
    """
    return parse_params(read_sections(path), overrides, str(path))


def override(key: str, value: str | Path) -> str:
    """`section.key=value` for a text that YAML might take for something else, such as `2024` or `photos #1`."""
    return f"{key}={json.dumps(str(value), ensure_ascii=False)}"


def parse_params(content: dict[str, Any], overrides: Sequence[str] = (), where: str = "params") -> Params:
    """The configuration from a mapping, which may have gone through JSON: 15 came out as 15.0.

    Args:
        overrides: `section.key=value`.
        where: the mapping is from, for the error.
    Raises:
        GkdError: everything that is wrong, a sentence a line.
    """
    content = whole(content)
    wrong = [f"{where}: {sentence}" for sentence in use_new_names(content)]
    given: dict[tuple[str, ...], str] = {}
    for override in overrides:
        try:
            place = _apply(content, override)
            given.pop(place, None)  # what is given twice is given by the last
            given[place] = f"--set {override}"
        except GkdError as error:
            wrong.append(str(error))
    wrong += [f"{where}: {sentence}" for sentence in use_new_names(content)]  # an override may be a whole section
    params, found = validate(content)
    wrong += [f"{_source(mistake, given, where)}: {mistake.sentence}" for mistake in found]
    if params is None or wrong:
        raise GkdError("\n".join(wrong))
    return params


def params_of_sections(sections: dict[str, Any]) -> Params:
    """A part of a configuration that was validated as a whole before; the other sections have their defaults.

    What sections say against each other is not checked again: a step that reads `distill` alone must not be refused
    for a teacher it was not told of.

    Raises:
        GkdError: a section is not valid in itself.
    """
    content = whole(sections)
    use_new_names(content)
    _load_plugins(content)
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        raise GkdError("\n".join(f"params: {found.sentence}" for found in mistakes(error, Params))) from None


def parse_section(section: type[T], content: dict[str, Any], name: str) -> T:
    """One section by itself, as a caller of the library gives it.

    Args:
        name: of the section, for the error.
    Raises:
        GkdError: something is wrong, a sentence each.
    """
    try:
        parsed = section.model_validate(content)
    except ValidationError as error:
        raise GkdError("\n".join(found.sentence for found in mistakes(error, section, at=(name,)))) from None
    if wrong := list(unread(parsed, (name,))):
        raise GkdError("\n".join(found.sentence for found in wrong))
    return parsed


def validate(content: dict[str, Any], own: dict[str, Any] | None = None) -> tuple[Params | None, list[Mistake]]:
    """The configuration, or what is wrong with it.

    Args:
        own: the part of the content that must not be written for nothing; None is all of it.
    """
    try:
        _load_plugins(content)
    except GkdError as error:  # what they would have registered is unknown: nothing else is told
        return None, [Mistake(("plugins",), str(error))]
    teacher = content.get("teacher")
    found = [*options.check(content.get("distill"), ("distill",)), *options.check_scheme(content.get("distill"))]
    if isinstance(teacher, dict):
        found += options.check(teacher.get("assistant_distill"), ("teacher", "assistant_distill"))
    try:
        params = Params.model_validate(content)
    except ValidationError as error:
        return None, [*mistakes(error, Params), *found]
    if not found:  # what sections say against each other is asked of sections that are valid
        found += [Mistake((), sentence, contradiction=True) for sentence in contradictions(params)]
        found += [mistake for mistake in unread(params) if own is None or _holds(own, mistake)]
        found += untrainable(params)
    return params, found


def load_plugins(path: Path) -> None:
    """Import the plugins that a file of parameters names, and look at nothing else in it.

    Raises:
        GkdError: the file is missing or not YAML, or a plugin is not there or fails.
    """
    content = read_sections(path)
    try:
        _load_plugins(content)
    except GkdError as error:
        raise GkdError(f"{path}: {error}") from None


def _load_plugins(content: dict[str, Any]) -> None:
    """Import what the user's own configuration names; what is no list of names the schema refuses."""
    named = content.get("plugins")
    names = named if isinstance(named, list) else []
    plugins.load(name for name in names if isinstance(name, str) and is_module(name))


def _holds(content: Any, unread: Mistake) -> bool:
    """Whether the key that an unread mistake begins with (`train: momentum is given but …`) stands in the content."""
    key = unread.sentence.removeprefix(f"{'.'.join(unread.place)}: ").split()[0]
    for part in (*unread.place, *key.split(".")):
        if not isinstance(content, dict) or part not in content:
            return False
        content = content[part]
    return True


def _source(mistake: Mistake, given: dict[tuple[str, ...], str], where: str) -> str:
    """Where a mistake comes from: the file, or the overrides that wrote the value, or one of those in contradiction."""
    if mistake.contradiction:
        size = len(mistake.place)
        part = [
            text
            for path, text in given.items()
            if path[:size] == mistake.place
            and re.search(rf"(?<![\w.])({'|'.join(_names(path, size))})(?!\w)", mistake.sentence)
        ]
        return " with ".join([where, *part])
    for path, text in reversed(given.items()):  # the last that wrote it
        if all(a == b for a, b in zip(path, mistake.place, strict=False)):
            return text
    return where


def _names(path: tuple[str, ...], size: int) -> list[str]:
    """What a sentence about a section of so many parts may call a key in it: with the section's name or without."""
    return [re.escape(".".join(part)) for part in (path, path[size:])]


def _apply(content: dict[str, Any], override: str) -> tuple[str, ...]:
    """Put one override into the content; its place there."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise GkdError(f"--set {override!r} is not of the form section.key=value")
    try:
        value = whole(load_yaml(text))
    except yaml.YAMLError:
        raise GkdError(f"--set {override!r}: the value is not YAML") from None
    for old, new in RENAMED.items():
        if f"{key}.".startswith(f"{old}."):
            warn_renamed(old, new)
            key = new + key.removeprefix(old)
    place = tuple(key.split("."))
    for parent in place[:-1]:
        child = content.get(parent)
        if child is None:
            child = content[parent] = {}
        if not isinstance(child, dict):
            raise GkdError(f"--set {override!r}: {parent} is a value, not a section")
        content = child
    content[place[-1]] = value
    return place


def use_new_names(content: dict[str, Any]) -> list[str]:
    """Rename the keys that have old names; the sentences about those that stand there by both names."""
    twice = []
    for old, new in RENAMED.items():
        *parents, key = old.split(".")
        section: Any = content
        for parent in parents:
            section = section.get(parent) if isinstance(section, dict) else None
        if isinstance(section, dict) and key in section:
            value, name = section.pop(key), new.rpartition(".")[2]
            if name in section:
                twice.append(f"{old} is the old name of {new}, and both are given: leave {old} out")
            else:
                warn_renamed(old, new)
                section[name] = value
    distill = content.get("distill")
    if isinstance(distill, dict) and isinstance(scheme := distill.get("scheme"), str) and scheme in schemes.OLD_NAMES:
        warn_renamed(f"scheme {scheme}", schemes.OLD_NAMES[scheme])
        distill["scheme"] = schemes.OLD_NAMES[scheme]
    return twice
