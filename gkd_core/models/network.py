"""A network as it is kept and used: an architecture, its weights, its classes, and the preprocessing it expects.

The currency between all parts is an image batch in [0, 1]; each network resizes, converts and normalises for itself,
so a teacher with its own resolution and statistics stands beside a student with others.
"""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional

from gkd_core.errors import GkdError
from gkd_core.files import Shape, expect_shape, read_json, write_bytes, write_json
from gkd_core.models.classifier import Classifier, Output
from gkd_core.models.registry import create_classifier
from gkd_core.models.wrap import WRAPPED, WrappedClassifier

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, what Pillow's "L" mode uses
LARGEST_SIDE = 4096  # pixels; some networks hold a value for every place in the image
INTERPOLATIONS = ("bilinear", "bicubic")
WHEN_LEFT_OUT = {"interpolation": "bilinear", "crop_fraction": 1.0}


class Preprocessing(NamedTuple):
    """How a network wants its images; see `NetworkSpec`."""

    channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"
    crop_fraction: float = 1.0


@dataclass(frozen=True)
class NetworkSpec:
    """All that `model.json` holds.

    Attributes:
        name: architecture, as `create_classifier` knows it.
        stem: "auto", "cifar" or "imagenet".
        classes: class names in the order of the logits.
        in_channels: 1 or 3.
        image_size: side of the square input in pixels.
        mean, std: per channel, for images in [0, 1].
        interpolation: how images are brought to this size, "bilinear" or "bicubic"; both with antialiasing.
        crop_fraction: part of the resized image's side that the network sees, its middle.
        stages, head: names of layers, for a wrapped module only (see `gkd_core.models.wrap`).
    """

    name: str
    stem: str
    classes: tuple[str, ...]
    in_channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    stages: tuple[str, ...] = ()
    head: str = ""
    interpolation: str = "bilinear"
    crop_fraction: float = 1.0

    @property
    def preprocessing(self) -> Preprocessing:
        """What the network does to its images."""
        return Preprocessing(
            self.in_channels, self.image_size, self.mean, self.std, self.interpolation, self.crop_fraction
        )

    def fault(self) -> str | None:
        """Why no network can be like this, or None."""
        faults = {
            f"in_channels is {self.in_channels}": self.in_channels not in (1, 3),
            f"image_size is {self.image_size}": not 1 <= self.image_size <= LARGEST_SIDE,
            "mean and std are not one for each channel": {len(self.mean), len(self.std)} != {self.in_channels},
            "std is not above 0": min(self.std, default=0) <= 0,
            f"interpolation is {self.interpolation!r}": self.interpolation not in INTERPOLATIONS,
            f"crop_fraction is {self.crop_fraction}": not 0.1 <= self.crop_fraction <= 1,
            "there are no classes, or two of one name": not self.classes or len(set(self.classes)) != len(self.classes),
        }
        return next((fault for fault, there in faults.items() if there), None)


def expect_network(given: object, what: str) -> "Network":
    """The same.

    Args:
        what: the caller calls it, for the error.
    Raises:
        GkdError: it is something else.
    """
    if isinstance(given, Network):
        return given
    shown = repr(given) if isinstance(given, str) else f"a {type(given).__name__}"
    raise GkdError(f"{what} is {shown}, not a network of gkd's: give one from create_model, load_model or wrap")


class Network(nn.Module):
    """Images in [0, 1] in, `Output` out; preprocessing inside.

    Args:
        spec: what to build.
        classes: class names whose logits are wanted, in order; null takes all of the network's own.
        classifier: what gives the logits; null builds the architecture `spec.name`, freshly initialised.
    Attributes:
        pretrained: its weights were learnt before, so training them is fine-tuning.
        weights_digest: sha256 of the file of weights that it started from; empty where it started from random ones.
    Raises:
        GkdError: a wanted class is not among the network's.
    """

    pretrained = False
    weights_digest = ""
    mean: Tensor
    std: Tensor
    luma: Tensor
    columns: Tensor | None

    def __init__(
        self, spec: NetworkSpec, classes: tuple[str, ...] | None = None, classifier: Classifier | None = None
    ) -> None:
        super().__init__()
        self.spec = spec
        self.classifier = classifier or create_classifier(
            spec.name, len(spec.classes), in_channels=spec.in_channels, image_size=spec.image_size, stem=spec.stem
        )
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("luma", torch.tensor(LUMA).view(1, 3, 1, 1), persistent=False)
        self.select_classes(classes)

    def sibling(self, seed: int) -> "Network":
        """A network like this one before its training, by another seed.

        All its weights are random; or, where this one's were learnt before, its head's alone, and the others the same.

        Raises:
            GkdError: it wraps a module with a layer that cannot draw its weights anew.
        """
        torch.manual_seed(seed)
        wrapped = self.spec.name.startswith(WRAPPED)  # what a plugin registered is built by its name again
        again = self.classifier.untrained() if wrapped and isinstance(self.classifier, WrappedClassifier) else None
        other = Network(self.spec, self.classes, again)
        if self.pretrained:
            head = tuple(f"{layer}." for layer in self.classifier.head_layers)
            below = {name: v for name, v in self.classifier.state_dict().items() if not name.startswith(head)}
            other.classifier.load_state_dict(below, strict=False)
            other.classifier.renew_head()
            other.pretrained, other.weights_digest = True, self.weights_digest
        return other

    def select_classes(self, classes: tuple[str, ...] | None) -> None:
        """Give logits for these classes only, in this order (null: all, in the network's own).

        Raises:
            GkdError: the network does not know one of them.
        """
        wanted = self.spec.classes if classes is None else classes
        columns = None
        if wanted != self.spec.classes:
            position = {name: i for i, name in enumerate(self.spec.classes)}
            missing = [name for name in wanted if name not in position]
            if missing:
                raise GkdError(
                    f"the network {self.spec.name} has {len(self.spec.classes)} classes, and of the data's "
                    f"{len(wanted)} it does not know {', '.join(map(repr, missing[:5]))}"
                    f"{' and others' if len(missing) > 5 else ''}{_spelt_differently(missing, self.spec.classes)}: "
                    "train a teacher for this data, or rename its classes"
                )
            columns = torch.tensor([position[name] for name in wanted], device=self.mean.device)
        self.classes = wanted
        self.register_buffer("columns", columns, persistent=False)

    @property
    def name(self) -> str:
        """The architecture's."""
        return self.spec.name

    @property
    def num_classes(self) -> int:
        """How many logits it gives."""
        return len(self.classes)

    def preprocess(self, images: Tensor) -> Tensor:
        """[B, C, H, W] in [0, 1], any size, grey or colour → normalised [B, in_channels, size, size]."""
        if images.shape[1] == 1 and self.spec.in_channels == 3:
            images = images.expand(-1, 3, -1, -1)
        elif images.shape[1] == 3 and self.spec.in_channels == 1:
            images = (images * self.luma).sum(1, keepdim=True)
        size = self.spec.image_size
        resized = int(size / self.spec.crop_fraction + 1e-6)  # rounded down, as torchvision and timm do
        if images.shape[2:] != (resized, resized):
            images = functional.interpolate(images, (resized, resized), mode=self.spec.interpolation, antialias=True)
            if self.spec.interpolation == "bicubic":
                images = images.clamp(0, 1)  # it overshoots at edges
        if resized > size:
            start = (resized - size) // 2
            images = images[:, :, start : start + size, start : start + size]
        return (images - self.mean) / self.std

    @property
    def topology_size(self) -> int:
        """Length of the rows of persistence features that `forward` wants, 0 for none."""
        return self.classifier.topology_size

    def forward(self, images: Tensor, topology: Tensor | None = None) -> Output:
        """[B, C, H, W] in [0, 1] → `Output`, logits in the order of `classes`.

        `topology` [B, F], the images' persistence features where the data has them, is for a topological network; all
        others pass it over.
        """
        extra = (topology,) if self.topology_size else ()
        output: Output = self.classifier(self.preprocess(images), *extra)
        return output._replace(logits=self._select(output.logits))

    def head(self, last_stage: Tensor) -> Tensor:
        """Logits [B, C] from the last stage alone, in the order of `classes`."""
        return self._select(self.classifier.head(last_stage))

    def pooled_linear_weight(self) -> tuple[Tensor, Tensor | None] | None:
        """Weight [C, D] and bias [C] of a global-average-pool + linear head, in the order of `classes`, else None."""
        layer = self.classifier.pooled_linear
        if layer is None:
            return None
        if self.columns is None:
            return layer.weight, layer.bias
        return layer.weight[self.columns], None if layer.bias is None else layer.bias[self.columns]

    def _select(self, logits: Tensor) -> Tensor:
        return logits if self.columns is None else logits[:, self.columns]

    def stage_shapes(self) -> tuple[tuple[int, int, int], ...]:
        """(C_i, H_i, W_i) of every stage, found by one forward pass in eval mode; the mode is left as it was."""
        return tuple((s.shape[1], s.shape[2], s.shape[3]) for s in self._probe().stages)

    def last_stage_shape(self) -> tuple[int, ...]:
        """(C, H, W) or, of tokens, (C, N) of what the head sees, found in the same way; empty where it has neither."""
        output = self._probe()
        return tuple(output.last_stage.shape[1:]) if output.stages or output.tokens is not None else ()

    def embedding_size(self) -> int:
        """D of the embedding, found in the same way."""
        return self._probe().embedding.shape[1]

    @torch.no_grad()
    def _probe(self) -> Output:
        modes = {module: module.training for module in self.modules()}
        self.eval()
        size = self.spec.image_size
        images = torch.zeros(1, self.spec.in_channels, size, size, device=self.mean.device)
        output: Output = self(images, images.new_zeros(1, self.topology_size))
        for module, mode in modes.items():
            module.training = mode
        return output


def _spelt_differently(missing: list[str], known: tuple[str, ...]) -> str:
    """A hint where a class is known under another spelling: case, spaces, underscores."""
    spellings = {_plain(name): name for name in known}
    pairs = [(name, spellings[_plain(name)]) for name in missing if _plain(name) in spellings]
    return "" if not pairs else f" (it has {pairs[0][1]!r}, not {pairs[0][0]!r})"


def _plain(name: str) -> str:
    return name.casefold().replace("_", " ").replace("-", " ").strip()


def save_network(network: Network, folder: Path) -> None:
    """Write model.safetensors and model.json into an existing folder; the same weights give the same bytes."""
    weights = {name: value.detach().cpu().contiguous() for name, value in network.classifier.state_dict().items()}
    write_bytes(folder / "model.safetensors", save(weights))
    content = asdict(network.spec)
    if not network.spec.head:
        del content["stages"], content["head"]
    content = {key: value for key, value in content.items() if WHEN_LEFT_OUT.get(key, ...) != value}
    write_json(folder / "model.json", json.loads(json.dumps(content)))


def load_network(folder: Path, classes: tuple[str, ...] | None = None, *, module: nn.Module | None = None) -> Network:
    """Read back what `save_network` wrote.

    Args:
        classes: class names whose logits are wanted, as in `Network`.
        module: of a wrapped network, one built as the one that was saved; it takes the weights.
    Raises:
        GkdError: files missing or damaged, weights that do not fit, classes that do not match, a wrapped network
            without its module.
    """
    spec = read_spec(folder)
    if spec.name.startswith(WRAPPED) != (module is not None):
        raise GkdError(
            f"{folder} holds {spec.name}, whose architecture gkd knows: load it without a module"
            if module is not None
            else f"{folder} holds the weights of a module of your own ({spec.name.removeprefix(WRAPPED)}), and only "
            "you can build it: give load_model one as module="
        )
    path = folder / "model.safetensors"
    try:
        with safe_open(path, framework="pt") as stored:  # the header alone: a file of another network is not read
            shapes = {name: stored.get_slice(name).get_shape() for name in stored.keys()}  # noqa: SIM118
        if not any(shape[:1] == [len(spec.classes)] for shape in shapes.values()):
            raise ValueError(f"it has no layer for {len(spec.classes)} classes")
        classifier = None
        if module is not None:
            classifier = WrappedClassifier(module, spec.stages, spec.head, spec.in_channels, spec.image_size)
        network = Network(spec, classes, classifier)
        weights = load_file(path)
        for name, value in network.classifier.state_dict().items():
            if name in weights and weights[name].dtype != value.dtype:
                raise ValueError(f"{name} is {weights[name].dtype}, not {value.dtype}")
        network.classifier.load_state_dict(weights)
        network.pretrained = True
    except GkdError:
        raise
    except FileNotFoundError:
        raise GkdError(f"the network folder {folder} has no model.safetensors: run the step that makes it") from None
    except Exception as error:  # safetensors has no common base for its errors; torch raises RuntimeError
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise GkdError(f"{path} is damaged or does not fit {spec.name} ({reason}): make it again") from None
    return network


def read_spec(folder: Path) -> NetworkSpec:
    """What model.json says.

    Raises:
        GkdError: it is missing or damaged, or describes no network that can be.
    """
    path = folder / "model.json"
    numbers: Shape = {"in_channels": int, "image_size": int, "mean": [float], "std": [float]}
    content = read_json(path, "the network folder", shape={"name": str, "stem": str, "classes": [str], **numbers})
    if str(content["name"]).startswith(WRAPPED):
        expect_shape(path, content, {"stages": [str], "head": str})
    optional: Shape = {"interpolation": str, "crop_fraction": float}
    expect_shape(path, content, {key: kind for key, kind in optional.items() if key in content})
    known = {part.name for part in fields(NetworkSpec)}
    if strangers := sorted(set(content) - known):
        raise GkdError(f"{path} does not describe a network ({strangers[0]!r} is no part of one): make it again")
    given: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in content.items()}
    spec = NetworkSpec(**given)
    if fault := spec.fault():
        raise GkdError(f"{path} does not describe a network ({fault}): make it again")
    return spec
