"""Who teaches whom: a choice beside the method. One file a scheme, which owns its checks, its teachers and its loss.

The files are found by their names, so a new scheme is a new file here and nothing else. Importing this package imports
no torch; a scheme's module is imported when it is asked for.
"""

import importlib
import pkgutil

from gkd_core.errors import GkdError, unknown
from gkd_core.schemes.base import DistillationSpec, Scheme

__all__ = ["DEFAULT", "DistillationSpec", "Scheme", "get", "mean_of_teachers", "names", "reading"]

DEFAULT = "single"
_MEAN = "ensemble"
OLD_NAMES = {"multi_teacher": _MEAN}
"""Names of earlier versions that params.yaml may still use."""


def names() -> tuple[str, ...]:
    """Every scheme, the default first."""
    found = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")
    return (DEFAULT, *(name for name in found if name != DEFAULT))


def get(name: str) -> Scheme:
    """A scheme by name.

    Raises:
        GkdError: there is none of this name.
    """
    if name not in names():
        raise GkdError(unknown("distill.scheme", name, names()))
    scheme: Scheme = importlib.import_module(f"{__name__}.{name}").SCHEME
    return scheme


def reading(parameter: str) -> list[str]:
    """The schemes that read a parameter of another section."""
    return [name for name in names() if parameter in get(name).reads]


def mean_of_teachers(teachers: int) -> str:
    """The scheme in which so many teachers answer by the mean of their probabilities."""
    return DEFAULT if teachers == 1 else _MEAN
