"""From a YAML file, or a mapping, and the command line's overrides to checked `Params`."""

import math
import re
import reprlib
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from gkd_core.config.checks import contradictions
from gkd_core.config.schema import Params, whole
from gkd_core.errors import GkdError, unknown


class _Loader(yaml.SafeLoader):
    """YAML 1.2's floats (PyYAML alone reads `1e-4` as text, DVC and everybody else as a number), and no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, Any] = {}
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                first = seen.setdefault(key.value, key.start_mark)
                if first is not key.start_mark:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value} stands there twice", first)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"), list("-+0123456789.")
)


LARGEST_YAML = 1 << 17  # characters
MOST_VALUES = 20_000  # with every alias written out


def _yaml(text: str) -> Any:
    """Plain values only: a SafeLoader builds no objects.

    Raises:
        yaml.YAMLError: it is no YAML, or aliases or nesting would make more of it than anybody writes.
    """
    try:
        if len(text) > LARGEST_YAML:
            raise yaml.YAMLError(f"it has {len(text)} characters, far more than parameters need")
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            if _values(node, {}) > MOST_VALUES:
                raise yaml.YAMLError("its aliases make an endless amount of it")
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError:
        raise
    except Exception as error:  # PyYAML's constructors raise ValueError, KeyError, AttributeError, RecursionError, …
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else f"a value is not valid: {error}"
        raise yaml.YAMLError(reason) from None


def _values(node: yaml.Node, counted: dict[int, float]) -> float:
    """How many values there are below a node with every alias written out; infinite where one contains itself."""
    if id(node) not in counted:
        counted[id(node)] = math.inf  # met again below itself
        inner = [*node.value] if isinstance(node, yaml.SequenceNode) else []
        if isinstance(node, yaml.MappingNode):
            inner = [part for pair in node.value for part in pair]
        counted[id(node)] = 1 + sum(_values(part, counted) for part in inner)
    return counted[id(node)]


def load_params(path: Path = Path("params.yaml"), overrides: list[str] | tuple[str, ...] = ()) -> Params:
    """Read params.yaml and apply `section.key=value` overrides (values are YAML).

    Raises:
        GkdError: the file is missing or not YAML, an override has no `=`, or the content is not valid.
    """
    content = read_sections(path)
    for override in overrides:
        _apply(content, override)
    return parse_params(content, str(path))


def read_sections(
    path: Path, *, holds: str = "sections (data, teacher, …)", option: str = "--params"
) -> dict[str, Any]:
    """The mapping in a YAML file, as it stands there.

    Args:
        holds, option: what the file must hold, and the option that names it, in the user's words for the error.
    Raises:
        GkdError: the file is missing, not YAML, or no mapping.
    """
    try:
        content = _yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise GkdError(f"{path} does not exist: run from the project's folder, or pass {option} FILE") from None
    except OSError as error:
        raise GkdError(f"{path} cannot be read ({error.strerror}): pass {option} FILE") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        place = f", line {where.line + 1}, column {where.column + 1}" if where else ""
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        raise GkdError(f"{path}{place} is not valid YAML: {reason}") from None
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise GkdError(f"{path} must hold {holds}, not a {type(content).__name__}")
    return content


def params_from_dict(
    content: dict[str, Any], overrides: list[str] | tuple[str, ...] = (), where: str = "params"
) -> Params:
    """The configuration from a mapping that went through JSON, as an argument of a pipeline does: 15 came out as 15.0.

    Raises:
        GkdError: an override has no `=`, or the content is not valid.
    """
    content = whole(content)
    for override in overrides:
        _apply(content, override)
    return parse_params(content, where)


def params_of_sections(sections: dict[str, Any]) -> Params:
    """A part of a configuration that was validated as a whole before; the other sections have their defaults.

    What sections say against each other is not checked again: a step that reads `distill` alone must not be refused
    for a teacher it was not told of.

    Raises:
        GkdError: a section is not valid in itself.
    """
    found = {}
    for name, content in whole(sections).items():
        try:
            found[name] = Params.model_fields[name].annotation.model_validate(content)  # type: ignore[union-attr]
        except ValidationError as error:
            raise GkdError(f"params: {name}.{sentence(error, Params.model_fields[name].annotation)}") from None
    return Params.model_construct(**found)


def parse_params(content: dict[str, Any], where: str = "params") -> Params:
    """Validate a dict as `Params`.

    Raises:
        GkdError: the first thing that is wrong, in one sentence.
    """
    try:
        params = Params.model_validate(content)
    except ValidationError as error:
        raise GkdError(f"{where}: {sentence(error)}") from None
    for contradiction in contradictions(params):
        raise GkdError(f"{where}: {contradiction}")
    return params


def _apply(content: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise GkdError(f"--set {override!r} is not of the form section.key=value")
    *parents, last = path.split(".")
    for parent in parents:
        child = content.get(parent)
        if child is None:
            child = content[parent] = {}
        if not isinstance(child, dict):
            raise GkdError(f"--set {override!r}: {parent} is a value, not a section")
        content = child
    try:
        content[last] = _yaml(text)
    except yaml.YAMLError:
        raise GkdError(f"--set {override!r}: the value is not YAML") from None


def sentence(error: ValidationError, root: Any = Params, what: str = "parameter") -> str:
    """The first error as one sentence: dotted name, what is wrong, what is known.

    Args:
        root: the model that was validated.
        what: what its keys are called.
    """
    first = error.errors()[0]
    location = [
        part for part in first["loc"] if not (isinstance(part, str) and part.startswith(("function-", "literal")))
    ]
    name = ".".join(str(part) for part in location)
    if first["type"] == "extra_forbidden":
        model = root
        for part in location[:-1]:  # a number is a place in a list
            model = _inner(model) if isinstance(part, int) else _inner(model.model_fields[part].annotation)
        prefix = "".join(f"{part}." for part in location[:-1])
        return unknown(what, name, [prefix + field for field in model.model_fields])
    if first["type"] == "value_error":
        message = str(first["ctx"]["error"])
        parent = ".".join(str(part) for part in location[:-1])
        # A field's own validator starts its sentence with the field's name; put the section before it.
        if parent and message.startswith(str(location[-1])):
            return f"{parent}.{message}"
        return message if not name else f"{name}: {message}"
    if first["type"] == "missing":
        return f"{name} is missing"
    message = first["msg"][0].lower() + first["msg"][1:]
    return f"{name} is {reprlib.repr(first['input'])}: {message}"


def _inner(annotation: Any) -> Any:
    """The model in `Model`, `list[Model]`, `dict[str, Model]`, `Model | None` or an annotated one of these."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for found in map(_inner, get_args(annotation)) if found is not None), None)
