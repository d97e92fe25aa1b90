"""torchvision's classification networks in our output form, with their ImageNet stem or a CIFAR stem.

The networks stay torchvision's, under the attribute `network`; `LAYOUTS` says in which order their parts run and where
the head begins. Stages are found by one rule for all: a stage ends before each part that halves the map, and the last
four are given (at 1/4, 1/8, 1/16 and 1/32 of the image's side with an ImageNet stem). So ResNets give the outputs of
their four layers. AlexNet, which halves less often, has three.

The CIFAR stem leaves out the first two halvings, as is usual for ResNets (a 3×3 convolution without stride, no
pooling): a 32×32 image ends at 4×4. Where one layer does both (the 4×4 patches of ConvNeXt and Swin, AlexNet's first
convolution) that one becomes a 3×3 convolution without stride. VGG's stem is not strided; it leaves out only those
poolings that would halve a single pixel. Vision transformers take smaller patches, about eight along a side.
"""

import math
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models

from gkd_core.errors import GkdError
from gkd_core.models.classifier import Classifier, Output, StagedClassifier

CIFAR_STEM_UP_TO = 64  # pixels, for stem "auto"
MAXVIT_MULTIPLE = 224  # pixels: windows of 7 on a map of 1/32

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "@relu": functional.relu,
    "@mean": lambda x: x.mean((2, 3)),
    "@flatten": lambda x: x.flatten(1),
}


@dataclass(frozen=True)
class Layout:
    """The parts of a network in the order they run: names of its submodules, `x.*` for the children of x, `@` for a
    function that is no module.

    Attributes:
        body: up to what the head sees.
        head: from there to the logits; the final linear layer comes last.
    """

    body: str
    head: str


LAYOUTS: dict[type[nn.Module], Layout] = {
    models.AlexNet: Layout("features.*", "avgpool @flatten classifier.*"),
    models.ConvNeXt: Layout("features.*", "avgpool classifier.*"),
    models.DenseNet: Layout("features.* @relu", "@mean classifier"),
    models.EfficientNet: Layout("features.*", "avgpool @flatten classifier.*"),
    models.GoogLeNet: Layout(
        "conv1 maxpool1 conv2 conv3 maxpool2 inception3a inception3b maxpool3 inception4a inception4b inception4c "
        "inception4d inception4e maxpool4 inception5a inception5b",
        "avgpool @flatten dropout fc",
    ),
    models.Inception3: Layout(
        "Conv2d_1a_3x3 Conv2d_2a_3x3 Conv2d_2b_3x3 maxpool1 Conv2d_3b_1x1 Conv2d_4a_3x3 maxpool2 Mixed_5b Mixed_5c "
        "Mixed_5d Mixed_6a Mixed_6b Mixed_6c Mixed_6d Mixed_6e Mixed_7a Mixed_7b Mixed_7c",
        "avgpool @flatten dropout fc",
    ),
    models.MaxVit: Layout("stem blocks.*", "classifier.*"),
    models.MNASNet: Layout("layers.*", "@mean classifier.*"),
    models.MobileNetV2: Layout("features.*", "@mean classifier.*"),
    models.MobileNetV3: Layout("features.*", "avgpool @flatten classifier.*"),
    models.RegNet: Layout("stem trunk_output.*", "avgpool @flatten fc"),
    models.ResNet: Layout("conv1 bn1 relu maxpool layer1 layer2 layer3 layer4", "avgpool @flatten fc"),
    models.ShuffleNetV2: Layout("conv1 maxpool stage2 stage3 stage4 conv5", "@mean fc"),
    models.SqueezeNet: Layout("features.*", "classifier.* @flatten"),
    models.SwinTransformer: Layout("features.* norm permute", "avgpool @flatten head"),
    models.VGG: Layout("features.*", "avgpool @flatten classifier.*"),
}


class TorchvisionClassifier(StagedClassifier):
    """A torchvision network cut into stages and a head.

    Args:
        network: as torchvision built it; its CIFAR stem, if any, is put in afterwards, so that the stages do not depend
            on the stem.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        for module in network.modules():
            # A layer that works in place would overwrite a stage or the embedding after it was handed out.
            if hasattr(module, "inplace"):
                module.inplace = False  # type: ignore[assignment]
        self.network = network
        layout = LAYOUTS[type(network)]
        self.body = _expand(network, layout.body)
        head = _expand(network, layout.head)
        # Dropout goes with the linear layer after it: the embedding is what enters both.
        cut = len(head) - 1
        if isinstance(_part(network, head[cut - 1]), nn.Dropout):
            cut -= 1
        self.neck, self.final = head[:cut], head[cut:]
        halving = [i for i, name in enumerate(self.body) if _stride(_part(network, name)) > 1]
        if isinstance(_part(network, self.body[-1]), nn.MaxPool2d):
            halving.pop()  # what a pooling at the very end makes is a stage already
        ends = [i - 1 for i in halving if i > 0]
        self.ends = (*ends, len(self.body) - 1)[-4:]
        self.channels_last = isinstance(network, models.SwinTransformer)

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """At most four feature maps."""
        stages = []
        x = images
        for i, name in enumerate(self.body):
            x = self._run(name, x)
            if i in self.ends:
                swap = self.channels_last and i != self.ends[-1]  # the last one has been brought to channels first
                stages.append(x.permute(0, 3, 1, 2) if swap else x)
        return tuple(stages)

    def embed(self, last_stage: Tensor) -> Tensor:
        """[B, D], what enters the last linear layer and the dropout before it."""
        x = last_stage
        for name in self.neck:
            x = self._run(name, x)
        return x

    def classify(self, embedding: Tensor) -> Tensor:
        """Dropout, where the network has it, and the last linear layer."""
        x = embedding
        for name in self.final:
            x = self._run(name, x)
        return x

    @property
    def pooled_linear(self) -> nn.Linear | None:
        """The last layer where only global average pooling stands before it (no dropout either), else None."""
        if self.neck not in (("avgpool", "@flatten"), ("@mean",)):
            return None
        layer = _part(self.network, self.final[0])
        return layer if isinstance(layer, nn.Linear) else None

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As in `nn.Module`; also takes a state dict of MNASNet without the version that safetensors cannot keep."""
        if isinstance(self.network, models.MNASNet) and not hasattr(state_dict, "_metadata"):
            state_dict = OrderedDict(state_dict)
            state_dict._metadata = self.state_dict()._metadata  # type: ignore[attr-defined]
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def _run(self, name: str, x: Tensor) -> Tensor:
        function = FUNCTIONS.get(name)
        result: Tensor = self.network.get_submodule(name)(x) if function is None else function(x)
        return result


class SqueezeNetClassifier(TorchvisionClassifier):
    """SqueezeNet classifies every pixel and then averages: the embedding is the pooled last stage, beside the way."""

    def forward(self, images: Tensor) -> Output:
        """Normalised images [B, C, H, W] → `Output`."""
        stages = self.features(images)
        return Output(self.head(stages[-1]), stages, stages[-1].mean((2, 3)))

    def head(self, last_stage: Tensor) -> Tensor:
        """Logits [B, C] from the last stage [B, 512, H, W] alone."""
        return self.classify(super().embed(last_stage))


class VisionTransformerClassifier(Classifier):
    """A vision transformer: its head sees tokens, of which the class token is the embedding.

    Stages are the patch tokens as a grid at four depths, evenly spaced, the last one after the final norm.
    """

    def __init__(self, network: models.VisionTransformer) -> None:
        super().__init__()
        self.network = network
        depth = len(network.encoder.layers)
        self.ends = tuple(depth * (place + 1) // 4 - 1 for place in range(4))

    def forward(self, images: Tensor) -> Output:
        """Normalised images [B, C, H, W] → `Output`."""
        encoder = self.network.encoder
        patches = self.network.conv_proj(images)
        grid = (patches.shape[2], patches.shape[3])
        token = self.network.class_token.expand(images.shape[0], -1, -1)
        x = encoder.dropout(torch.cat([token, patches.flatten(2).transpose(1, 2)], 1) + encoder.pos_embedding)
        depths = []
        for i, layer in enumerate(encoder.layers):
            x = layer(x)
            if i in self.ends:
                depths.append(x)
        depths[-1] = x = encoder.ln(x)
        stages = tuple(each[:, 1:].transpose(1, 2).unflatten(2, grid) for each in depths)
        return Output(self.network.heads(x[:, 0]), stages, x[:, 0], x.transpose(1, 2))

    def head(self, last_stage: Tensor) -> Tensor:
        """Logits [B, C] from the tokens [B, D, N] alone."""
        logits: Tensor = self.network.heads(last_stage[:, :, 0])
        return logits


def build(name: str, num_classes: int, *, in_channels: int, image_size: int, stem: str) -> Classifier:
    """A torchvision network by torchvision's name, freshly initialised.

    Args:
        stem: "imagenet", "cifar", or "auto" (cifar up to 64 pixels).
    Raises:
        GkdError: the network does not take images of this size; one that it takes is named.
    """
    if stem == "auto":
        stem = "cifar" if image_size <= CIFAR_STEM_UP_TO else "imagenet"
    options: dict[str, Any] = {"weights": None, "num_classes": num_classes}
    if name.startswith("vit_"):
        return _vision_transformer(name, options, in_channels, image_size, stem)
    if name in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": True}
    if name == "maxvit_t":
        # It is built for one size of map in each block: the CIFAR stem's maps are four times an ImageNet stem's.
        excess = 4 if stem == "cifar" else 1
        _need_multiple(name, image_size, MAXVIT_MULTIPLE // excess, stem)
        options |= {"input_size": (image_size * excess, image_size * excess)}
    network = models.get_model(name, **options)
    kind = SqueezeNetClassifier if isinstance(network, models.SqueezeNet) else TorchvisionClassifier
    classifier = kind(network)
    first = next(path for path, module in network.named_modules() if isinstance(module, nn.Conv2d))
    if stem == "cifar":
        _leave_out_halvings(network, classifier.body, image_size)
        kernel = network.get_submodule(first).kernel_size[0]
        if kernel > 3:
            _replace_convolution(network, first, kernel_size=3, stride=1, padding=1)
        elif kernel == 3:
            network.get_submodule(first).padding = (1, 1)
    if in_channels != 3:
        _replace_convolution(network, first, in_channels=in_channels)
    if not _takes(classifier, in_channels, image_size):
        doubled = (image_size * 2**k for k in range(1, 10))
        enough = next(size for size in doubled if _takes(classifier, in_channels, size))
        candidates = range(image_size + 1, enough + 1)
        smallest = candidates[bisect_left(candidates, True, key=lambda size: _takes(classifier, in_channels, size))]
        raise GkdError(
            f"network {name} with the {stem} stem needs images of at least {smallest}×{smallest} pixels, not "
            f"{image_size}×{image_size}: set image_size, or choose another network"
        )
    return classifier


def _takes(classifier: Classifier, in_channels: int, image_size: int) -> bool:
    """Whether a forward pass works, tried without memory or arithmetic."""
    tensors = {**dict(classifier.named_parameters()), **dict(classifier.named_buffers())}
    shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    images = torch.empty(1, in_channels, image_size, image_size, device="meta")
    training = classifier.training
    try:
        with torch.no_grad():
            torch.func.functional_call(classifier.eval(), shapes, (images,))
    except RuntimeError:
        return False
    finally:
        classifier.train(training)
    return True


def _vision_transformer(
    name: str, options: dict[str, Any], in_channels: int, image_size: int, stem: str
) -> VisionTransformerClassifier:
    native = int(name.rsplit("_", 1)[1])
    patch = native
    if stem == "cifar":
        patch = max(p for p in range(1, max(1, image_size // 8) + 1) if image_size % p == 0)
    _need_multiple(name, image_size, patch, stem)
    # Built for as many patches as there will be, so that the position embedding has the right length.
    network = models.get_model(name, image_size=image_size // patch * native, **options)
    if patch != native or in_channels != 3:
        _replace_convolution(network, "conv_proj", in_channels=in_channels, kernel_size=patch, stride=patch)
    network.patch_size, network.image_size = patch, image_size
    return VisionTransformerClassifier(network)


def _need_multiple(name: str, image_size: int, multiple: int, stem: str) -> None:
    if image_size % multiple:
        raise GkdError(
            f"network {name} with the {stem} stem takes images whose side is a multiple of {multiple} pixels, not "
            f"{image_size}: set image_size, or choose another network"
        )


def _leave_out_halvings(network: nn.Module, body: tuple[str, ...], image_size: int) -> None:
    """Take strides away from the front until the map is four times as large (VGG: until a pixel is left at the end)."""
    halving = [name for name in body if _stride(_part(network, name)) > 1]
    excess = 4
    if isinstance(network, models.VGG):
        excess = 2 ** max(0, len(halving) - int(math.log2(image_size)))
    for name in halving:
        if excess == 1:
            return
        part = network.get_submodule(name)
        excess //= _stride(part)
        if isinstance(part, nn.MaxPool2d):
            network.set_submodule(name, nn.Identity())
        for module in part.modules():
            if isinstance(module, nn.Conv2d | nn.AvgPool2d):
                module.stride = (1, 1)


def _replace_convolution(network: nn.Module, path: str, **changes: Any) -> None:
    """Put a convolution in the place of another that differs in `changes` only; drawn as ResNets draw theirs."""
    old = network.get_submodule(path)
    assert isinstance(old, nn.Conv2d)
    options: dict[str, Any] = {
        "in_channels": old.in_channels,
        "out_channels": old.out_channels,
        "kernel_size": old.kernel_size,
        "stride": old.stride,
        "padding": old.padding,
        "bias": old.bias is not None,
    }
    new = nn.Conv2d(**(options | changes))
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    network.set_submodule(path, new)


def _expand(network: nn.Module, names: str) -> tuple[str, ...]:
    expanded: list[str] = []
    for name in names.split():
        if name.endswith(".*"):
            parent = name[:-2]
            expanded += [f"{parent}.{child}" for child, _ in network.get_submodule(parent).named_children()]
        else:
            expanded.append(name)
    return tuple(expanded)


def _part(network: nn.Module, name: str) -> nn.Module | None:
    return None if name in FUNCTIONS else network.get_submodule(name)


def _stride(part: nn.Module | None) -> int:
    """The largest stride in a part of a network."""
    if part is None:
        return 1
    strides = [1]
    for module in part.modules():
        if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
            stride = module.stride
            strides.append(stride if isinstance(stride, int) else stride[0])
        elif type(module).__name__ in ("PatchMerging", "PatchMergingV2"):
            strides.append(2)
    return max(strides)
