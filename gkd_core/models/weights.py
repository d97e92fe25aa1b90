"""Networks from elsewhere: a folder of ours, a state-dict file, or torchvision's published weights.

Such a network keeps its own resolution, statistics and classes; `Network.select_classes` matches those to the data's
by name.
"""

import contextlib
import difflib
import logging
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from gkd_core.data.prepared import PreparedData
from gkd_core.errors import GkdError, unknown
from gkd_core.models.create import describe
from gkd_core.models.network import Network, NetworkSpec, load_network
from gkd_core.models.registry import TORCHVISION, torchvision_name
from gkd_core.records import read_teacher

log = logging.getLogger(__name__)

FILES = (".pt", ".pth", ".safetensors")
INSIDE = ("state_dict", "model", "model_state_dict")
"""Keys under which training scripts keep the state dict in their checkpoints."""

PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before every name."""

OWN = "network."
"""What our form of a torchvision network puts before torchvision's names."""


def load_model(
    source: str | Path | Mapping[str, Tensor],
    *,
    name: str | None = None,
    classes: Sequence[str] | None = None,
    data: PreparedData | None = None,
    stem: str = "auto",
    image_size: int | None = None,
    channels: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    module: nn.Module | None = None,
) -> Network:
    """A trained network from wherever it is. It keeps its own resolution, statistics and classes.

    A folder, and weights that torchvision publishes, say everything about themselves; `name`, `classes` and what
    follows them describe a state dict.

    Args:
        source: a folder of a network or a teacher that gkd wrote; a state-dict file (.pt, .pth, .safetensors), or its
            content; or `torchvision:WEIGHTS`, e.g. `torchvision:ResNet18_Weights.IMAGENET1K_V1`.
        name: the architecture, as `create_model` knows it.
        classes: class names in the order of the outputs; None takes the data's if there are as many outputs, and logs
            it.
        data: what it will be used on: the network then gives logits for these classes, in their order, matched by
            name; and for whatever is not given here.
        stem: of a torchvision network.
        image_size: side in pixels of the images that it was trained on.
        channels: 1 or 3, likewise.
        mean: per channel, of those images in [0, 1].
        std: likewise.
        module: for a folder with the weights of a module that was wrapped: one built like it; it takes the weights.
    Raises:
        GkdError: the source does not exist, is damaged, holds something else or does not fit; it does not know one of
            the data's classes.

    Example:
        >>> weights = create_model("resnet8", classes=["cat", "dog"]).classifier.state_dict()
        >>> load_model(weights, name="resnet8", classes=["cat", "dog"], image_size=32).classes
        ('cat', 'dog')
    """
    given: dict[str, Any] = {"image_size": image_size, "channels": channels, "mean": mean, "std": std}
    return read_network(source, name=name, classes=classes, data=data, stem=stem, module=module, **given)


def read_network(
    source: str | Path | Mapping[str, Tensor],
    *,
    name: str | None,
    classes: Sequence[str] | None,
    data: PreparedData | None,
    stem: str,
    module: nn.Module | None = None,
    option: str = "",
    **preprocessing: Any,
) -> Network:
    """`load_model` for a step: `option` stands before the names of its arguments in errors ("teacher.")."""
    if not isinstance(source, Mapping):
        if str(source).startswith(TORCHVISION):
            network = _published(str(source).removeprefix(TORCHVISION), classes, option)
        elif Path(source).is_dir():
            network = _folder(Path(source), classes, module, option)
        else:
            network = None
        if network is not None:
            if data is not None:
                network.select_classes(data.info.classes)
            return network
    state, where = (_tensors(source, "the state dict"), "it") if isinstance(source, Mapping) else _read(source, option)
    if name is None:
        raise GkdError(f"a state dict does not say what network it belongs to: give {option}name")
    spec = describe(name, stem=stem, classes=classes, data=data, option=option, **preprocessing)
    network = Network(spec)
    _load(network, state, where, classes_given=classes is not None, option=option)
    if classes is None:
        log.warning(
            "%s names no classes; as it has %d outputs, they are taken to be the data's, in the data's order "
            "(%sclasses says otherwise)",
            where,
            len(spec.classes),
            option,
        )
    if data is not None:
        network.select_classes(data.info.classes)
    return network


def _folder(folder: Path, classes: Sequence[str] | None, module: nn.Module | None, option: str) -> Network:
    if classes is not None:
        raise GkdError(f"{option}classes describes a state-dict file, but {folder} carries its own: leave it out")
    if (folder / "teacher.json").is_file():
        networks = read_teacher(folder)["networks"]
        if len(networks) != 1:
            raise GkdError(
                f"the teacher folder {folder} holds {len(networks)} networks ({', '.join(networks)}): give the folder "
                f"of one of them as {option}source"
            )
        folder = folder / networks[0]
    elif not (folder / "model.json").is_file():
        raise GkdError(
            f"{option}source {str(folder)!r} holds neither a network (model.json) nor a teacher (teacher.json): give "
            "a folder that the teacher or the distill step wrote"
        )
    return load_network(folder, module=module)


def _read(source: str | Path, option: str) -> tuple[dict[str, Tensor], str]:
    """The tensors of a state-dict file by name, and the file's; nothing but tensors is ever unpickled."""
    path = Path(source)
    if not path.is_file():
        raise GkdError(
            f"{option}source {str(source)!r} does not exist: give a folder of a trained network, a state-dict file "
            f"({', '.join(FILES)}), {'models:/NAME@ALIAS, ' if option else ''}or torchvision:WEIGHTS"
        )
    if path.suffix not in FILES:
        raise GkdError(f"{option}source {str(source)!r} is no state-dict file: its name must end in {', '.join(FILES)}")
    try:
        content: Any
        if path.suffix == ".safetensors":
            content = safetensors.torch.load_file(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about pickle protocols; what matters is raised
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # neither library has a common base for what a damaged file makes it raise
        if "weights_only" in str(error) and "GLOBAL" in str(error):
            raise GkdError(
                f"{path} holds Python objects other than tensors, which are never loaded because they can run code: "
                "save it again with torch.save(model.state_dict(), FILE)"
            ) from None
        # What torch says of a file that it cannot read advises to load it unsafely.
        reason = _first_line(error) if path.suffix == ".safetensors" else "nothing that torch.save wrote"
        raise GkdError(
            f"{path} is damaged or no state-dict file ({reason}): save it again with "
            "torch.save(model.state_dict(), FILE)"
        ) from None
    return _tensors(content, str(path)), str(path)


def _tensors(content: Any, where: str) -> dict[str, Tensor]:
    if isinstance(content, Mapping):
        content = next((content[key] for key in INSIDE if isinstance(content.get(key), Mapping)), content)
    state = dict(content) if isinstance(content, Mapping) else {}
    if not state or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()):
        raise GkdError(
            f"{where} holds no state dict (tensors by name, alone or under {', '.join(map(repr, INSIDE))}): save it "
            "again with torch.save(model.state_dict(), FILE)"
        )
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _load(network: Network, state: dict[str, Tensor], where: str, *, classes_given: bool, option: str) -> None:
    """Put the weights in, or say in one sentence why they do not fit."""
    spec = network.spec
    expected = network.classifier.state_dict()
    if all(key.startswith(OWN) for key in expected) and not all(key.startswith(OWN) for key in state):
        state = {OWN + _modern(key): value for key, value in state.items() if not _auxiliary(key)}
    for key in expected:
        # Files from before PyTorch 0.4.1 have no such counters, and nothing here reads them.
        if key.endswith("num_batches_tracked"):
            state.setdefault(key, torch.zeros((), dtype=torch.long))

    *_, last = expected  # of the last layer, in every network: its first dimension counts the classes
    outputs = len(state[last]) if last in state and state[last].dim() else len(spec.classes)
    if outputs != len(spec.classes):
        if classes_given:
            raise GkdError(
                f"{where} holds a network with {outputs} outputs, but {option}classes names {len(spec.classes)}: name "
                "one class for each output, in order"
            )
        raise GkdError(
            f"{where} holds a network with {outputs} outputs and the data has {len(spec.classes)} classes: say which "
            f"output is which class with {option}classes (names in the order of the outputs)"
        )
    faults = [f"{key} is missing" for key in expected if key not in state]
    faults += [f"{key} is not part of it" for key in state if key not in expected]
    faults += [
        f"{key} has shape {list(state[key].shape)} instead of {list(value.shape)}"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    if faults:
        shown = "; ".join(fault.removeprefix(OWN) for fault in faults[:3])
        more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise GkdError(
            f"the weights in {where} do not fit network {spec.name} with {spec.in_channels}-channel images of "
            f"{spec.image_size} pixels and stem {spec.stem} ({shown}{more}): set {option}name, {option}stem, "
            f"{option}image_size, and {option}mean and std with a number for each channel, as they were trained"
        )
    broken = [key for key, value in state.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if broken:
        raise GkdError(f"{where} holds weights that are no finite numbers ({broken[0]}): take another checkpoint")
    network.classifier.load_state_dict(state)
    network.pretrained = True


def _auxiliary(key: str) -> bool:
    """GoogLeNet's and Inception's second heads, which only their own training uses."""
    return key.startswith(("aux1.", "aux2.", "AuxLogits."))


def _modern(key: str) -> str:
    """DenseNet's names as they are since 2017: torchvision's files still have the older ones (`norm.1` for `norm1`)."""
    return re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.", r"\1\2.", key)


def _published(name: str, classes: Sequence[str] | None, option: str) -> Network:
    from torchvision import models

    if classes is not None:
        raise GkdError(f"{option}classes describes a state-dict file, but {name} carries its own: leave it out")
    known: dict[str, tuple[str, Any]] = {}
    for model in models.list_models(module=models):
        for member, weights in models.get_model_weights(model).__members__.items():
            known[f"{type(weights).__name__}.{member}"] = model, weights
    if name not in known:
        near = difflib.get_close_matches(name, known, n=5, cutoff=0.4)
        raise GkdError(unknown("torchvision weights", name, [*near, "those listed in torchvision's documentation"]))
    model, weights = known[name]
    if weights.meta["categories"] is None:
        raise GkdError(f"torchvision weights {name} are features without classes: choose others of {model}")
    transforms = weights.transforms()
    mean, std = tuple(transforms.mean), tuple(transforms.std)
    if model in ("googlenet", "inception_v3"):
        # torchvision renormalises inside these two from ImageNet's statistics to (x − ½) / ½.
        mean = std = (0.5, 0.5, 0.5)
    spec = NetworkSpec(
        name=torchvision_name(model),
        stem="imagenet",
        classes=tuple(weights.meta["categories"]),
        in_channels=3,
        image_size=transforms.crop_size[0],
        mean=mean,
        std=std,
    )
    network = Network(spec)
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    try:
        with contextlib.redirect_stdout(sys.stderr):  # the last line on stdout is for results
            content = weights.get_state_dict(
                progress=sys.stderr.isatty(), check_hash=True, map_location="cpu", weights_only=True
            )
    except Exception as error:
        if path.exists():
            raise GkdError(f"{path} is damaged ({_first_line(error)}): delete it, and it is fetched again") from None
        raise GkdError(
            f"cannot fetch {weights.url} ({_first_line(error)}): try again, or put that file at {path} yourself"
        ) from None
    _load(network, _tensors(content, str(path)), str(path), classes_given=True, option=option)
    return network


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
