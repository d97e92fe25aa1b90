"""Networks from elsewhere: a folder of ours, a state-dict file, or torchvision's published weights.

Such a network keeps its own resolution, statistics and classes; `Network.select_classes` matches those to the data's
by name.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from gkd_core.data.prepared import PreparedData
from gkd_core.errors import GkdError
from gkd_core.models.create import describe
from gkd_core.models.network import Network, NetworkSpec, load_network
from gkd_core.models.published import fetch_torchvision, torchvision_preprocessing, torchvision_weights
from gkd_core.models.registry import TOPOLOGICAL, TORCHVISION, refuse_unknown_name, torchvision_name
from gkd_core.models.starting import head_tensors
from gkd_core.models.state_dicts import FILES, as_ours, misfit, read_state, refuse_not_finite, tensors_in
from gkd_core.records import read_teacher

log = logging.getLogger(__name__)


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
    if isinstance(source, Mapping):
        state, where = tensors_in(source, "the state dict"), "it"
    else:
        state, where = _read(source, option), str(source)
    if name is None:
        raise GkdError(f"a state dict does not say what network it belongs to: give {option}name")
    refuse_unknown_name(name.removeprefix(TOPOLOGICAL))
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


def _read(source: str | Path, option: str) -> dict[str, Tensor]:
    path = Path(source)
    if not path.is_file():
        raise GkdError(
            f"{option}source {str(source)!r} does not exist: give a folder of a trained network, a state-dict file "
            f"({', '.join(FILES)}), {'models:/NAME@ALIAS, ' if option else ''}or torchvision:WEIGHTS"
        )
    return read_state(path, f"{option}source")


def _load(network: Network, state: dict[str, Tensor], where: str, *, classes_given: bool, option: str) -> None:
    """Put the weights in, or say in one sentence why they do not fit."""
    spec = network.spec
    expected = network.classifier.state_dict()
    state = as_ours(state, expected)

    counted = [len(state[key]) for key in head_tensors(network.classifier) if key in state and state[key].dim()]
    outputs = counted[0] if counted else len(spec.classes)
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
    if faults := misfit(state, expected):
        raise GkdError(
            f"the weights in {where} do not fit network {spec.name} with {spec.in_channels}-channel images of "
            f"{spec.image_size} pixels and stem {spec.stem} ({faults}): set {option}name, {option}stem, "
            f"{option}image_size, and {option}mean and std with a number for each channel, as they were trained"
        )
    refuse_not_finite(state, where)
    network.classifier.load_state_dict(state)
    network.pretrained = True


def _published(name: str, classes: Sequence[str] | None, option: str) -> Network:
    if classes is not None:
        raise GkdError(f"{option}classes describes a state-dict file, but {name} carries its own: leave it out")
    model, weights = torchvision_weights(name)
    if weights.meta["categories"] is None:
        raise GkdError(f"torchvision weights {name} are features without classes: choose others of {model}")
    preprocessing = torchvision_preprocessing(model, weights)
    spec = NetworkSpec(
        name=torchvision_name(model),
        stem="imagenet",
        classes=tuple(weights.meta["categories"]),
        in_channels=3,
        image_size=preprocessing.image_size,
        mean=preprocessing.mean,
        std=preprocessing.std,
    )
    network = Network(spec)
    state, path = fetch_torchvision(weights)
    _load(network, state, str(path), classes_given=True, option=option)
    return network
