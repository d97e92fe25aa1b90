"""YAML as everybody else reads it, and text that everybody reads back as it was.

PyYAML knows YAML 1.1. DVC, Kubernetes and Argo know 1.2, for which `1e-4`, `12e34567` (infinite) and `08` are numbers
too. So `1e-4` is read as a number, and a text that is a number in either is written in quotes: of all texts of eight
hexadecimal digits one in 27 is.
"""

import re
from typing import Any

import yaml

_FLOAT = re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$")
_WHOLE = re.compile(r"^[-+]?([0-9]+|0o[0-7]+)$")


class Loader(yaml.SafeLoader):
    """Plain values only, YAML 1.2's floats too, and no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, Any] = {}
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                first = seen.setdefault(key.value, key.start_mark)
                if first is not key.start_mark:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value} stands there twice", first)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes what a reader of YAML 1.2 would take for a number."""


class _FastDumper(yaml.CSafeDumper):
    """The same by libyaml: breaks long lines elsewhere."""


for _kind in (Loader, _Dumper, _FastDumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
for _kind in (_Dumper, _FastDumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:int", _WHOLE, list("-+0123456789"))


def load_yaml(text: str) -> Any:
    """The content of a text.

    Raises:
        yaml.YAMLError: it is no YAML, has a key twice, or a value that is none (2026-99-99).
    """
    try:
        return yaml.load(text, Loader)  # noqa: S506  # a SafeLoader
    except yaml.YAMLError:
        raise
    except Exception as error:  # of 2026-99-99, say, PyYAML raises ValueError; of others KeyError, RecursionError, …
        raise yaml.YAMLError(f"a value is not valid: {error}") from None


def dump_yaml(content: Any, **layout: Any) -> str:
    """A document, its keys in their order.

    >>> print(dump_yaml({"seed": 3, "run": "12e34567", "rate": 1e-05, "name": "Grün"}), end="")
    seed: 3
    run: '12e34567'
    rate: 1.0e-05
    name: Grün

    Args:
        layout: of `yaml.dump`: `width`, `default_flow_style`, ….
    """
    return str(yaml.dump(content, Dumper=_Dumper, **{"sort_keys": False, "allow_unicode": True, **layout}))


def dump_documents(documents: list[Any]) -> str:
    """Documents, their keys sorted, in ASCII."""
    return str(yaml.dump_all(documents, Dumper=_FastDumper, sort_keys=True))
