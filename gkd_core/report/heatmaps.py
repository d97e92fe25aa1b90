"""Where in a picture a network sees what speaks for a class: Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391), by
captum.

For a network that ends in feature maps, of the last stage. What a transformer's head sees are tokens: where it looks at
all of them, those of the patches, laid out as their grid; where it looks at the class token alone, on which the other
tokens of the last layer have no influence any more, what enters the last block's attention, as is usual. The weights
are means of gradients over the places, so a map is as coarse as the stage it is made of.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from gkd_core.data.prepared import DatasetInfo, Split
from gkd_core.decision import NONE_OF_THESE, Decision
from gkd_core.errors import GkdError
from gkd_core.models.ensemble import Ensemble
from gkd_core.models.network import Network
from gkd_core.models.topological import TopologicalClassifier
from gkd_core.report.choice import Answers
from gkd_core.report.pictures import ROLES, Pictures, percent
from gkd_core.training.threads import computing_with, torch_limit

SIDE = 64  # of a map; the picture it lies over may be larger
BATCH_SIZE = 8


def heat_maps(network: Network | Ensemble, images: Tensor, named: Sequence[str]) -> NDArray[np.float32]:
    """A map for each image, of what speaks for one class.

    Args:
        network: in eval mode, on the images' device. Of an ensemble the map is the mean of those of its networks that
            know the class.
        images: [B, C, H, W] in [0, 1], square; all are computed at once.
        named: B names of classes.
    Returns:
        [B, SIDE, SIDE] over the whole image, each with 1 at its hottest place; 0 where nothing speaks for the class,
        and beyond the part of the image that the network sees.
    Raises:
        GkdError: the network has no feature map to make one of.
    """
    if isinstance(network, Network):
        return _of_one(network, images, named)
    total, count = np.zeros((len(images), SIDE, SIDE), np.float32), np.zeros(len(images), np.float32)
    for member in network.networks:
        assert isinstance(member, Network)
        rows = [row for row, name in enumerate(named) if name in member.classes]
        if rows:
            total[rows] += _of_one(member, images[rows], [named[row] for row in rows])
            count[rows] += 1
    mean = total / count[:, None, None]
    return _to_one(torch.from_numpy(mean)).numpy()


def choose_pictures(
    networks: Mapping[str, Network | Ensemble],
    logits: Mapping[str, NDArray[np.float32]],
    test: Split,
    info: DatasetInfo,
    device: torch.device,
    decision: Decision | None = None,
    decided: NDArray[np.int64] | None = None,
) -> Pictures:
    """The report's pictures, with heat maps of student and teacher.

    Args:
        networks: by role, "student" and "teacher" among them; left on the device, in eval mode.
        logits: [N, C] by role, of the test images.
        decision: of the exported student, whose temperature the student's probabilities have.
        decided: [N] what it says of the test images: a class, or −1; None where it does not decide.
    """
    answers = {
        "student": Answers.of(
            logits["student"],
            test.labels,
            temperature=1.0 if decision is None else decision.temperature,
            withheld=None if decided is None else decided == NONE_OF_THESE,
        ),
        "teacher": Answers.of(logits["teacher"], test.labels),
    }
    watched = {role: networks[role] for role in ROLES}
    found = Pictures(
        images=test.images,
        labels=test.labels,
        classes=info.classes,
        student=answers["student"],
        teacher=answers["teacher"],
        views=views(watched, info.image_size, info.channels),
    )
    heat: dict[str, dict[int, NDArray[np.float32]]] = {role: {} for role in ROLES}
    chosen, notes = found.with_heat(), []
    for role, network in watched.items():
        network.to(device).eval()
        try:
            for start in range(0, len(chosen), BATCH_SIZE):
                some = chosen[start : start + BATCH_SIZE]
                pixels = torch.from_numpy(np.stack([test.images[index] for index in some]))
                images = pixels.to(device).permute(0, 3, 1, 2).float() / 255
                named = [info.classes[answers[role].named[index]] for index in some]
                with computing_with(torch_limit()):
                    heat[role].update(zip(some, heat_maps(network, images, named), strict=True))
        except GkdError as error:
            notes.append(f"The {role} has no heat maps: {error}.")
    heat = {role: maps for role, maps in heat.items() if maps}
    return replace(found, heat=heat, notes=tuple(notes))


def views(networks: Mapping[str, Network | Ensemble], image_size: int, channels: int) -> tuple[str, ...]:
    """A sentence for each network that does not see the pictures as they are shown, or is several."""
    sentences = []
    for role, network in networks.items():
        members: list[Any] = list(network.networks) if isinstance(network, Ensemble) else [network]
        specs = {(each.spec.image_size, each.spec.in_channels, each.spec.crop_fraction) for each in members}
        seen = []
        for side, depth, crop in sorted(specs):
            color = "" if depth == channels else " in grey" if depth == 1 else " as colours"
            part = "" if crop == 1 else f", the middle {percent(crop)} of each side"
            if color or part or side != image_size:
                seen.append(f"at {side}\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}{side} pixels{color}{part}")
        if seen:
            sentences.append(f"The {role} sees them {' and '.join(seen)}.")
        if len(members) > 1:
            sentences.append(f"The {role} is {len(members)} networks; its heat map is the mean of theirs.")
        if any(each.topology_size for each in members):
            sentences.append(f"The {role} looks at persistence features too, of which a heat map shows nothing.")
    return tuple(sentences)


def _of_one(network: Network, images: Tensor, named: Sequence[str]) -> NDArray[np.float32]:
    targets = torch.tensor([network.spec.classes.index(name) for name in named], device=images.device)
    maps: NDArray[np.float32] = _laid_over(network, _grad_cam(network, images, targets)).cpu().numpy()
    return maps


def _grad_cam(network: Network, images: Tensor, targets: Tensor) -> Tensor:
    """[B, 1, H, W] of the network's last map, or of its grid of patches; not negative."""
    from captum.attr import LayerGradCam

    shapes = network.stage_shapes()
    if not shapes:
        raise GkdError(f"{network.name} has no feature maps")
    grid = shapes[-1][1:]
    after = _AfterStages(network, grid)
    maps: Tensor = LayerGradCam(after, after.place).attribute(images, target=targets).detach()
    # Exactly zero: the tokens of the patches have no part in the head.
    if len(network.last_stage_shape()) == 2 and not maps.any():
        before = _BeforeAttention(network, grid)
        maps = LayerGradCam(before, before.place).attribute(images, target=targets).detach()
    return maps.relu()


class _AfterStages(nn.Module):
    """Images → logits of all the network's own classes; the map that its head sees goes through `place`."""

    def __init__(self, network: Network, grid: tuple[int, int]) -> None:
        super().__init__()
        self.network, self.grid = network, grid
        self.place = nn.Identity()
        classifier = network.classifier
        # Persistence features add to the logits beside the map, so its gradient is that of the base alone.
        base = classifier.base if isinstance(classifier, TopologicalClassifier) else classifier
        self.head: Callable[[Tensor], Tensor] = base.head

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            output = self.network(images, images.new_zeros(len(images), self.network.topology_size))
        last = output.last_stage
        if last.ndim == 4:
            return self.head(self.place(last.detach().requires_grad_()))
        first = last.shape[2] - self.grid[0] * self.grid[1]
        others, patches = last[:, :, :first], last[:, :, first:]
        seen = self.place(patches.unflatten(2, self.grid).detach().requires_grad_())
        return self.head(torch.cat([others, seen.flatten(2)], 2))


class _BeforeAttention(nn.Module):
    """The same; what goes through `place` are the patches as they enter the last block's attention."""

    def __init__(self, network: Network, grid: tuple[int, int]) -> None:
        super().__init__()
        self.network, self.grid = network, grid
        self.place = nn.Identity()
        self.norm = _last_norm(network)

    def forward(self, images: Tensor) -> Tensor:
        height, width = self.grid

        def hook(layer: nn.Module, entered: Any, tokens: Tensor) -> Tensor:
            if tokens.ndim != 3 or tokens.shape[1] < height * width:
                raise GkdError(f"the last attention of {self.network.name} does not see a row of patches")
            first = tokens.shape[1] - height * width
            others, patches = tokens.detach()[:, :first], tokens.detach()[:, first:]
            seen = self.place(patches.transpose(1, 2).reshape(len(tokens), -1, height, width).requires_grad_())
            return torch.cat([others, seen.flatten(2).transpose(1, 2)], 1)

        handle = self.norm.register_forward_hook(hook)
        try:
            logits: Tensor = self.network.classifier(self.network.preprocess(images)).logits
        finally:
            handle.remove()
        return logits


def _last_norm(network: Network) -> nn.Module:
    """The norm before the last block's attention, by torchvision's or timm's name."""
    inner: Any = getattr(network.classifier, "network", None)
    for blocks, norm in (("encoder.layers", "ln_1"), ("blocks", "norm1")):
        try:
            *_, last = inner.get_submodule(blocks).children()
            found: nn.Module = last.get_submodule(norm)
        except (AttributeError, ValueError):
            continue
        return found
    raise GkdError(f"the head of {network.name} sees no patches, and where its last attention is cannot be told")


def _laid_over(network: Network, maps: Tensor) -> Tensor:
    """[B, 1, H, W] of what the network sees → [B, SIDE, SIDE] of the whole image."""
    side = max(1, round(SIDE * network.spec.crop_fraction))
    before = (SIDE - side) // 2
    after = SIDE - side - before
    seen = functional.interpolate(_to_one(maps[:, 0])[:, None], (side, side), mode="bilinear", align_corners=False)
    return functional.pad(_to_one(seen[:, 0]), (before, after, before, after))


def _to_one(maps: Tensor) -> Tensor:
    """[B, H, W], each divided by its largest value, where that is not 0."""
    largest = maps.amax((1, 2), keepdim=True)
    return maps / torch.where(largest > 0, largest, 1.0)
