"""Files and folders of this machine that parameters name: looked at before a run makes anything.

The step that reads one may come hours later, behind trainings that its absence makes worthless. What lies elsewhere (a
registry, an address, published weights) is not asked for here, only its name is looked at.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from components.graph import STEPS, Step, addresses
from gkd_core.config.schema import can_train
from gkd_core.data.sources.address import is_address
from gkd_core.errors import GkdError

if TYPE_CHECKING:
    from gkd_core.config import Params

WEIGHT_FILES = (".safetensors", ".pth", ".pt")
PUBLISHED = "pretrained"

# By parameter: what it must be, and what to do about one that is not there.
WANTED = {
    "teacher.source": (
        "file or folder",
        "give a folder of a trained network, a state-dict file, models:/NAME@ALIAS or torchvision:WEIGHTS",
    ),
    "evaluate.frontier": ("folder", "make it with `gkd frontier` and name it then, correct it, or set it to null"),
    "gate.deploy_bench": (
        "file",
        "run `gkd bench deploy` on the target, copy its file and name it then, correct it, or set it to null",
    ),
    "decide.unknown": ("folder", "name one of pictures that are none of the classes, or set it to null"),
}
ONLY_HERE = ("evaluate.frontier", "gate.deploy_bench", "decide.unknown")  # no step fetches these
WEIGHTS = ("file or folder", f"give {PUBLISHED}, a name of published weights, or a file or folder that is there")


def local_path(name: str, address: str) -> Path | None:
    """What a parameter names as a path here; None of what lies elsewhere, and of the name of published weights.

    Args:
        name: of the parameter.
    """
    elsewhere = re.match(r"[A-Za-z][\w+.-]*:", address) is not None
    if elsewhere and name not in ONLY_HERE:
        return None
    path = Path(address)
    if name.endswith(".weights"):
        return path if address != PUBLISHED and (may_be_file(address) or path.exists()) else None
    return path


def may_be_file(weights: str) -> bool:
    """Whether weights are written as a file or a folder is, not as the name of published ones."""
    return "/" in weights or weights.endswith(WEIGHT_FILES)


def refuse_missing(
    params: "Params", steps: Sequence[Step] = STEPS, *, made: Callable[[Path], bool] = lambda path: False
) -> None:
    """See that all is there, and is what its step reads, as far as that can be told from it alone.

    Args:
        params: of the whole run.
        steps: those of it.
        made: whether what lies at a path comes there while it runs, so that it may be missing now.
    Raises:
        GkdError: something is not, a sentence each.
    """
    named = {name: address for step in steps for name, address in addresses(params, step).items()}
    wrong = [sentence for name, address in named.items() if (sentence := _fault(name, address, params, made))]
    if wrong:
        raise GkdError("\n".join(wrong))


def _fault(name: str, address: str, params: "Params", made: Callable[[Path], bool]) -> str | None:
    path = local_path(name, address)
    if path is not None and (sentence := missing(name, address)):
        return None if made(path) else sentence
    try:
        _read(name, address, path, params)
    except GkdError as error:
        return str(error) if str(error).startswith(name.rpartition(".")[0]) else f"{name}: {error}"
    return None


def missing(name: str, address: str) -> str | None:
    """That a parameter's file or folder is not here, as a sentence; None where it is, or lies elsewhere."""
    path = local_path(name, address)
    kind, instead = WANTED.get(name, WEIGHTS)
    there = {"file": Path.is_file, "folder": Path.is_dir}.get(kind, Path.exists)
    if path is None or there(path):
        return None
    if is_address(address):
        return f"{name} is {address}, but only a {kind} here is read: fetch it and name that, or set {name} to null"
    return f"{name} is {address}, but there is no {kind} {path.absolute()}: {instead}"


def _read(name: str, address: str, path: Path | None, params: "Params") -> None:
    """What its step reads of it first, where that is quick.

    Raises:
        GkdError: it is something else, or damaged; or nobody publishes weights of this name.
    """
    if name == "evaluate.frontier" and path is not None:
        from gkd_core.evaluation.frontier import Frontier

        Frontier.read(path)
    elif name == "gate.deploy_bench" and path is not None:
        from gkd_core.evaluation.deploy_bench import read_bench

        read_bench(path)
    elif name == "decide.unknown" and path is not None:
        from gkd_core.data.unknown import refuse_without_pictures

        refuse_without_pictures(path)
    elif name.endswith(".weights") and not address.startswith("models:/") and can_train():
        from gkd_core.models.registry import TOPOLOGICAL
        from gkd_core.models.starting import refuse_unknown_weights

        section, teacher = name.removesuffix("weights"), params.teacher
        network = params.student.name if section == "student." else teacher.name
        if section.startswith("teacher.members."):
            network = teacher.members[int(section.split(".")[2])].name
        elif section == "teacher." and teacher.topological:
            network = TOPOLOGICAL + network
        refuse_unknown_weights(address, network, option=section)
