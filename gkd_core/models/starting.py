"""The weights that a network starts from: published ones, a file's, or those of a network of ours.

Every tensor must fit the network but those of the classification layer. That layer is new for the data's classes,
unless the weights know all of these classes by name: then its rows are picked out of theirs.
"""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from gkd_core.errors import GkdError, unknown
from gkd_core.files import file_digest
from gkd_core.models import published
from gkd_core.models.classifier import Classifier
from gkd_core.models.network import Network, NetworkSpec, Preprocessing, load_network, read_spec
from gkd_core.models.registry import TIMM, TOPOLOGICAL, TORCHVISION, is_built_here, torchvision_name
from gkd_core.models.state_dicts import FILES, OWN, as_ours, first_line, misfit, read_state, refuse_not_finite
from gkd_core.records import read_teacher

log = logging.getLogger(__name__)

Head = Literal["auto", "new", "keep"]
HEADS: tuple[str, ...] = ("auto", "new", "keep")
DEFAULT = "pretrained"
HUB = "hf-hub:"
REGISTRY = "models:/"


@dataclass(frozen=True)
class StartingWeights:
    """Weights found on this machine.

    Attributes:
        source: as the user named them.
        path: the file, or the folder of a network of ours.
        name: the architecture that they are for.
        stem: of it, "auto" where it has but one.
        preprocessing: that belongs to them; None: they do not say.
        classes: names of their outputs, in order; None: they do not say.
        timm: timm's `PretrainedCfg` of them, for a network of timm's.
        published: the name under which they are published; empty for a file or a folder.
        licence: of them, where their publisher tells it.
    """

    source: str
    path: Path
    name: str
    stem: str = "auto"
    preprocessing: Preprocessing | None = None
    classes: tuple[str, ...] | None = None
    timm: Any = None
    published: str = ""
    licence: str = ""

    @property
    def crop(self) -> str:
        """How squares were made of the pictures that these weights learned from, as `data.crop` calls it."""
        crop: str = getattr(self.timm, "crop_mode", None) or "center"
        return crop

    @property
    def digest(self) -> str:
        """sha256 of the file."""
        return file_digest(self.path / "model.safetensors" if self.path.is_dir() else self.path)


def find_weights(source: str | Path, name: str, *, option: str = "") -> StartingWeights:
    """Weights for a network, fetched where they are published and in no cache yet.

    Args:
        source: `pretrained` (the network's published default), the name of weights that torchvision publishes for it, a
            tag of timm's, `hf-hub:OWNER/NAME` (of a timm network), a file (.safetensors, .pth), or a folder of ours.
        name: the architecture, as `create_model` knows it.
        option: stands before the names of arguments in errors.
    Raises:
        GkdError: there are no such weights, they are of another architecture, or they cannot be fetched.
    """
    given = str(source)
    if (here := _of_here(given, name, option)) is not None:
        return here
    if name.startswith(TIMM):
        return _of_timm(given, name, option)
    return _of_torchvision(given, name.removeprefix(TORCHVISION), option)


def refuse_unknown_weights(source: str | Path, name: str, *, option: str = "") -> None:
    """`find_weights` as far as it comes without a network: nothing is fetched.

    Raises:
        GkdError: there are no such weights, or they are of another architecture.
    """
    given = str(source)
    if _of_here(given, name, option) is not None or given.startswith(HUB):
        return
    if name.startswith(TIMM):
        _timm_tag(given, name, option)
    else:
        _torchvision_member(given, name.removeprefix(TORCHVISION), option)


def _of_here(given: str, name: str, option: str) -> StartingWeights | None:
    """Weights in a file or a folder; None where it must be the name of published ones.

    Raises:
        GkdError: it is neither.
    """
    path = Path(given)
    if given.startswith(REGISTRY):
        raise GkdError(
            f"{option}weights {given!r} are in a registry, which the steps read and the library does not: download "
            "them and give the folder"
        )
    if given != DEFAULT and path.is_dir():
        return _of_folder(path, name.partition(".")[0] if name.startswith(TIMM) else name, option)
    if given != DEFAULT and path.is_file():
        return _of_file(path, name)
    if path.suffix in FILES or os.sep in given.removeprefix(HUB).partition("/")[2] or given.startswith((".", os.sep)):
        raise GkdError(
            f"{option}weights {given!r} do not exist: give {DEFAULT}, a name of published weights, a file "
            f"({', '.join(FILES)}), or a folder of a network"
        )
    if not name.startswith(TIMM) and (is_built_here(name) or name.startswith(TOPOLOGICAL)):
        raise GkdError(
            f"{option}weights are {given!r}, but nobody publishes weights of {name}: give a file or a folder of such a "
            "network, or take one of torchvision or timm"
        )
    return None


def start_from(network: Network, weights: StartingWeights, head: str = "auto", *, option: str = "") -> None:
    """Give a fresh network these weights.

    Args:
        network: its classification layer is drawn anew where it is to be new.
        head: "new", "keep" (the weights' own layer, its rows picked by the names of the classes), or "auto": keep where
            the weights know every class.
        option: stands before the names of arguments in errors.
    Raises:
        GkdError: a tensor does not fit, or the weights lack classes that are to be kept; they are named.
    """
    if head not in HEADS:
        raise GkdError(unknown(f"{option}head", head, HEADS))
    classifier = network.classifier
    expected, own = classifier.state_dict(), head_tensors(classifier)
    state = _tensors(weights, network.spec, classifier, option)
    if faults := misfit(state, expected, own):
        raise GkdError(_unfit(weights, network.spec, faults, option))
    rows = _rows(weights, network.spec, head, {key: state[key] for key in own if key in state}, option)
    if rows is None:
        classifier.renew_head()
        state |= {key: expected[key] for key in own}
    else:
        state |= {key: state[key][rows] for key in own}
        if faults := misfit(state, expected):
            raise GkdError(_unfit(weights, network.spec, faults, option))
    refuse_not_finite(state, str(weights.path))
    classifier.load_state_dict(state)
    network.pretrained = True
    network.weights_digest = weights.digest
    log.info(
        "%s starts from the weights %s; its classification layer is %s",
        network.name,
        weights.source,
        "new" if rows is None else "theirs",
    )


def head_tensors(classifier: Classifier) -> list[str]:
    """Names of the tensors of the classification layer; the first dimension of each counts the classes."""
    layers = classifier.head_layers
    return [name for name in classifier.state_dict() if name.rpartition(".")[0] in layers]


def _of_folder(folder: Path, name: str, option: str) -> StartingWeights:
    if (folder / "teacher.json").is_file():
        networks = read_teacher(folder)["networks"]
        if len(networks) != 1:
            raise GkdError(
                f"{option}weights {str(folder)!r} hold {len(networks)} networks ({', '.join(networks)}): give the "
                "folder of one of them"
            )
        folder = folder / networks[0]
    elif not (folder / "model.json").is_file():
        raise GkdError(
            f"{option}weights {str(folder)!r} hold neither a network (model.json) nor a teacher (teacher.json): give a "
            "folder that the teacher or the distill step wrote, or a file"
        )
    spec = read_spec(folder)
    if spec.name != name:
        raise GkdError(
            f"{option}weights {str(folder)!r} are of a {spec.name}, and {option}name is {name}: set it to {spec.name}, "
            "or give other weights"
        )
    return StartingWeights(str(folder), folder, name, _stem(spec), spec.preprocessing, spec.classes)


def _stem(spec: NetworkSpec) -> str:
    """Of a network that exists: what "auto" stood for."""
    from gkd_core.models.torchvision import CIFAR_STEM_UP_TO

    if spec.stem != "auto" or is_built_here(spec.name) or spec.name.startswith((TIMM, TOPOLOGICAL)):
        return spec.stem
    return "cifar" if spec.image_size <= CIFAR_STEM_UP_TO else "imagenet"


def _of_file(path: Path, name: str) -> StartingWeights:
    """A file names neither classes nor preprocessing; the latter is taken to be that of the published weights."""
    if name.startswith(TIMM):
        from gkd_core.models import timm

        known = timm.published(name)
        return StartingWeights(str(path), path, name, "auto", published.timm_preprocessing(known), None, known)
    if is_built_here(name) or name.startswith(TOPOLOGICAL):
        return StartingWeights(str(path), path, name)
    preprocessing = published.torchvision_default(name.removeprefix(TORCHVISION))
    return StartingWeights(str(path), path, name, "imagenet", preprocessing)


def _torchvision_member(given: str, model: str, option: str) -> Any:
    """The entry of torchvision's enumeration.

    Raises:
        GkdError: there is none of this name.
    """
    members = published.torchvision_members(model)
    wanted = "DEFAULT" if given == DEFAULT else given.rpartition(".")[2]
    enum = given.rpartition(".")[0]
    if wanted not in members or enum not in ("", type(members[wanted]).__name__):
        known = [DEFAULT, *(str(each) for each in dict.fromkeys(members.values()))]
        raise GkdError(unknown(f"{option}weights of {model}", given, known))
    return members[wanted]


def _of_torchvision(given: str, model: str, option: str) -> StartingWeights:
    weights = _torchvision_member(given, model, option)
    _, path = published.fetch_torchvision(weights)
    categories = weights.meta["categories"]
    return StartingWeights(
        str(weights),
        path,
        torchvision_name(model),
        "imagenet",
        published.torchvision_preprocessing(model, weights),
        None if categories is None else tuple(categories),
        published=str(weights),
        licence=weights.meta.get("license", ""),
    )


def _timm_tag(given: str, name: str, option: str) -> str:
    """The tag under which timm publishes weights of a network; empty where it has no name.

    Raises:
        GkdError: there is no such tag, or the network's name asks for another.
    """
    from gkd_core.models import timm

    plain, tag = timm.split(name)
    wanted = tag if given == DEFAULT else given.removeprefix(plain + ".")
    known = timm.tags(plain)
    if not known or (wanted and wanted not in known):
        choices = [DEFAULT, *known] if known else ["none that timm publishes"]
        raise GkdError(unknown(f"{option}weights of timm:{plain}", given, choices))
    if tag and wanted != tag:
        raise GkdError(
            f"{option}name {name} asks for the weights {tag}, and {option}weights is {given}: leave one of them out"
        )
    return wanted or known[0]


def _of_timm(given: str, name: str, option: str) -> StartingWeights:
    from gkd_core.models import timm

    plain, wanted = timm.split(name)
    if given.startswith(HUB):
        found, architecture = published.hub_settings(given.removeprefix(HUB))
        if architecture != plain:
            raise GkdError(
                f"{option}weights {given} are of timm:{architecture}, and {option}name is {name}: set it to "
                f"timm:{architecture}, or give other weights"
            )
        classes = tuple(found.label_names) if found.label_names else None
    else:
        wanted = _timm_tag(given, name, option)
        found = timm.published(f"{plain}.{wanted}" if wanted else plain)
        classes = published.imagenet_classes() if found.num_classes == published.IMAGENET_1K else None
    path = published.timm_file(found)
    known_as = given if given.startswith(HUB) else f"timm:{plain}.{wanted}".rstrip(".")
    preprocessing = published.timm_preprocessing(found)
    licence = found.license or ""
    return StartingWeights(given, path, name, "auto", preprocessing, classes, found, known_as, licence)


def _tensors(weights: StartingWeights, spec: NetworkSpec, classifier: Classifier, option: str) -> dict[str, Tensor]:
    """By our names; the classification layer as the weights have it, if they have one."""
    expected = classifier.state_dict()
    if weights.path.is_dir():
        return dict(load_network(weights.path).classifier.state_dict())
    state = read_state(weights.path, f"{option}weights")
    if weights.timm is not None and not all(key.startswith(OWN) for key in state):
        from gkd_core.models import timm

        try:
            return timm.tensors(state, weights.timm, spec.name, spec.in_channels, spec.image_size)
        except Exception as error:  # timm's conversions raise whatever a foreign file makes them
            unlike = {key: value for key, value in expected.items() if key not in head_tensors(classifier)}
            faults = misfit(as_ours(state, expected), unlike) or first_line(error)
            raise GkdError(_unfit(weights, spec, faults, option)) from None
    if spec.name.removeprefix(TORCHVISION).startswith("vit_"):
        state = published.torchvision_positions(state, expected, spec.image_size)
    return as_ours(state, expected)


def _rows(
    weights: StartingWeights, spec: NetworkSpec, head: str, layer: Mapping[str, Tensor], option: str
) -> list[int] | None:
    """Which rows of the weights' classification layer are the network's classes; None: it is to be new."""
    wanted, known = spec.classes, weights.classes
    if head == "new" or (head == "auto" and (known is None or not set(wanted) <= set(known))):
        return None
    outputs = len(next(iter(layer.values()))) if layer else 0
    if known is None:
        if outputs != len(wanted):
            raise GkdError(
                f"{option}head is keep, but the weights {weights.source} have {outputs} outputs, whose classes they do "
                f"not name, and there are {len(wanted)} classes: set {option}head to new"
            )
        log.warning(
            "the weights %s name no classes; as they have %d outputs, these are taken for the classes, in their order",
            weights.source,
            outputs,
        )
        return list(range(outputs))
    missing = [name for name in wanted if name not in known]
    if missing:
        raise GkdError(
            f"{option}head is keep, but of the {len(wanted)} classes the weights {weights.source} do not know "
            f"{', '.join(map(repr, missing[:5]))}{' and others' if len(missing) > 5 else ''}: set {option}head to new, "
            "or rename the classes"
        )
    return [known.index(name) for name in wanted]


def _unfit(weights: StartingWeights, spec: NetworkSpec, faults: str, option: str) -> str:
    return (
        f"the weights {weights.path} do not fit network {spec.name} with {spec.in_channels}-channel images of "
        f"{spec.image_size} pixels ({faults}): give weights of this network, or set {option}name"
        + (f" and {option}stem" if not spec.name.startswith(TIMM) else "")
        + " to those that they were trained with"
    )
