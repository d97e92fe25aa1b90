"""Plugins: modules of other packages that register methods, networks and augmentations when they are imported.

One is found in two ways: params.yaml names it (`plugins: [my_package.losses]`), or an installed package offers it as an
entry point of the group `gkd.plugins`. Entry points are imported only where somebody asks for a name that is not gkd's
own, or for a list of all. What a folder of a network says imports nothing: whoever reads it names the plugin, or
imports it.

Importing a plugin runs its code. This module imports no torch, and nothing by itself.
"""

import contextlib
import importlib
import importlib.metadata
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

from gkd_core.errors import GkdError, unknown
from gkd_core.files import file_digest, json_digest

GROUP = "gkd.plugins"
"""Of the entry points; the value of each is a module."""

Kind = Literal["method", "network", "augmentation"]
Name = tuple[Kind, str]
"""What a configuration or a training uses, perhaps of a plugin."""

T = TypeVar("T")

_NAME = re.compile(r"[A-Za-z0-9][\w.+-]{0,99}", re.ASCII)
_owners: dict[Name, str] = {}  # the module that registered each
_undo: dict[str, list[Callable[[], object]]] = {}  # by module: how its names are taken back
_digests: dict[str, str] = {}
_installed: list[str] | None = None  # modules of entry points, once they were imported


def caller(depth: int = 2) -> str:
    """Name of the module that called the function that asks."""
    return str(sys._getframe(depth).f_globals.get("__name__", "__main__"))


def claim(kind: Kind, name: str, entry: T, registry: MutableMapping[str, T], owner: str, *, builtin: bool) -> None:
    """Put an entry under its name. A module that is run again, as a notebook's cell is, replaces its own.

    Args:
        owner: module that registers it.
        builtin: gkd itself has something of this name.
    Raises:
        GkdError: the name is taken, or is none.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise GkdError(
            f"{kind} {name!r} of {owner} has no name that params.yaml could use: take letters, digits, '.', '-', '_'"
        )
    if builtin:
        raise GkdError(f"{kind} {name!r} of {owner} has the name of one of gkd's own: give it another")
    other = _owners.get((kind, name), owner)
    if other != owner:
        raise GkdError(
            f"{kind} {name!r} is registered by two plugins, {other} and {owner}: rename one, or leave one of them out"
        )
    registry[name] = entry
    _owners[kind, name] = owner
    _undo.setdefault(owner, []).append(lambda: (registry.pop(name, None), _owners.pop((kind, name), None)))
    _digests.pop(package_of(owner), None)


def release(module: str) -> None:
    """Take back what a module registered."""
    for undo in _undo.pop(module, ()):
        undo()


def load(modules: Iterable[str]) -> None:
    """Import plugins by the names of their modules, as Python finds them, then in the current folder.

    Raises:
        GkdError: one is not there, or fails when it is imported; the sentence names it.
    """
    for module in modules:
        _import(module, f"plugin {module}", _import_module)


def load_installed() -> list[str]:
    """Import the plugins that installed packages offer; their modules. They are looked for once in a process.

    Raises:
        GkdError: one fails when it is imported; the sentence names it and its package.
    """
    global _installed
    if _installed is None:
        found = []
        for point in importlib.metadata.entry_points(group=GROUP):
            package = f" of the package {point.dist.name}" if point.dist is not None else ""
            module = point.value.partition(":")[0].strip()
            _import(module, f"plugin {point.value}{package}", partial(_import_entry_point, point))
            found.append(module)
        _installed = found
    return list(_installed)


def owner(kind: Kind, name: str) -> str | None:
    """The module that registered a name; None of what is gkd's own, or is not there."""
    return _owners.get((kind, name))


def named(kind: Kind, name: str) -> str:
    """For a sentence about what a plugin registered: `method gap of my_package.losses`."""
    return f"{kind} {name} of {owner(kind, name)}"


@contextlib.contextmanager
def in_words(kind: Kind, name: str) -> Iterator[None]:
    """A block that runs what a plugin registered: a failure in it becomes one sentence that names the plugin.

    What is gkd's own fails as it would outside, and so does what is not the plugin's fault: want of memory, and other
    processes that are gone.

    Raises:
        GkdError: it failed.
    """
    try:
        yield
    except GkdError:
        raise
    except Exception as error:  # whatever somebody's code raises
        if owner(kind, name) is None or _comes_from_outside(error):
            raise
        said = f"{type(error).__name__}: {_first_line(error)}"
        raise GkdError(f"{named(kind, name)} fails ({said}): correct it") from error


def registered(kind: Kind) -> Iterator[tuple[str, str]]:
    """(name, module) of everything of a kind that plugins registered."""
    return ((name, module) for (each, name), module in _owners.items() if each == kind)


def loaded() -> list[str]:
    """Modules that registered something here, for a process that is started from here to `load`."""
    return sorted({module for module in _owners.values() if module != "__main__"})


def unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """`unknown` of a method, a network or an augmentation, of which plugins may bring more."""
    if modules := loaded():
        more = f"none of the plugins that are loaded ({', '.join(modules)}) brings it"
    else:
        more = "one of your own is known where `plugins` names its module, or it was imported (docs/plugins.md)"
    return f"{unknown(what, name, known)}; {more}"


def modules_of(names: Iterable[Name]) -> list[str]:
    """The plugins' modules that registered these names, in order; what is gkd's own has none."""
    return sorted({_owners[name] for name in names if name in _owners})


def lineage(names: Iterable[Name]) -> str:
    """The plugins that these names are of, each with the sha256 of its sources: `my_package@sha256:…, other@sha256:…`.

    Empty where all are gkd's own. It stands in training.json, manifest.json, the ONNX file and MLflow's tag
    `gkd.plugins`.
    """
    packages = sorted({package_of(module) for module in modules_of(names)})
    return ", ".join(f"{package}@sha256:{sources_sha256(package)}" for package in packages)


def package_of(module: str) -> str:
    """What a plugin's digest is taken over: its outermost package with an `__init__.py`, or the module itself.

    >>> package_of("gkd_core.losses.kd")
    'gkd_core'
    """
    parts = module.split(".")
    for end in range(1, len(parts)):
        package = ".".join(parts[:end])
        if getattr(sys.modules.get(package), "__file__", None):  # a namespace package has none, and many owners
            return package
    return module


def sources(package: str) -> dict[str, Path]:
    """The files of a plugin by their place in it, byte code and hidden ones left out; empty for what has no file, such
    as a notebook.
    """
    loaded = sys.modules.get(package)
    file = getattr(loaded, "__file__", None)
    if not file:
        return {}
    path = Path(file)
    if not hasattr(loaded, "__path__"):
        return {path.name: path}
    files = ((each.relative_to(path.parent), each) for each in path.parent.rglob("*") if each.is_file())
    return {
        place.as_posix(): each
        for place, each in sorted(files)
        if each.suffix != ".pyc" and not any(part == "__pycache__" or part.startswith(".") for part in place.parts)
    }


def sources_sha256(package: str) -> str:
    """sha256 over a plugin's files, by their places in it: the same wherever it is installed."""
    if package not in _digests:
        _digests[package] = json_digest({place: file_digest(file) for place, file in sources(package).items()})
    return _digests[package]


def _import(module: str, what: str, load: Callable[[str], object]) -> None:
    """Import one. What it registered is taken back if it fails half-way, so that it can be tried again."""
    try:
        load(module)
    except (Exception, SystemExit) as error:
        for failed in [each for each in _undo if each not in sys.modules]:
            release(failed)
        absent = isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}.")
        if absent:
            raise GkdError(
                f"{what} is not there: install the package that holds it where gkd runs (an image must hold it), or "
                "correct its name"
            ) from None
        said = _first_line(error)
        reason = said if isinstance(error, GkdError) else f"{type(error).__name__}: {said}"
        raise GkdError(f"{what} cannot be imported ({reason}): correct it, or do without it") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def _comes_from_outside(error: Exception) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, of an accelerator
        return True
    if "DefaultCPUAllocator" in str(error):  # torch's on the CPU is a plain RuntimeError
        return True
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(str(frame.f_globals.get("__name__")).startswith("torch.distributed") for frame in frames)


def _import_entry_point(point: importlib.metadata.EntryPoint, _: str) -> None:
    if not point.pattern.match(point.value):
        raise GkdError("its entry point is no name of a module")
    point.load()


def _import_module(module: str) -> None:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        here = str(Path.cwd())
        if not f"{module}.".startswith(f"{error.name}.") or here in sys.path:
            raise
        sys.path.append(here)  # the command `gkd` does not look there; behind all else, so that it hides nothing
        importlib.invalidate_caches()
        importlib.import_module(module)
