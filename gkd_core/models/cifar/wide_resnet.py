"""Wide residual networks: depth 6n + 4, pre-activation blocks, width factor k.

Source: Zagoruyko & Komodakis 2016 (arXiv:1605.07146), in the form of RepDistiller's models/wrn.py, without dropout.
"""

import math

from torch import Tensor, nn
from torch.nn import functional

from gkd_core.models.classifier import PooledClassifier


class PreActivationBlock(nn.Module):
    """Batch norm and ReLU before each 3×3 convolution; where channels change, the shortcut is a 1×1 convolution."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.convShortcut = (  # the benchmark's name, kept so that its checkpoints load
            None if channels_in == channels_out else nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """The sum of shortcut and residual, not activated."""
        activated = functional.relu(self.bn1(x))
        residual: Tensor = self.conv2(functional.relu(self.bn2(self.conv1(activated))))
        return residual + (x if self.convShortcut is None else self.convShortcut(activated))


class Group(nn.Module):
    """Blocks in a row, the first one strided."""

    def __init__(self, blocks: int, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        first = PreActivationBlock(channels_in, channels_out, stride)
        self.layer = nn.Sequential(
            first, *(PreActivationBlock(channels_out, channels_out, 1) for _ in range(blocks - 1))
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, C_in, H, W] → [B, C_out, H/stride, W/stride]."""
        out: Tensor = self.layer(x)
        return out


class WideResNet(PooledClassifier):
    """Stages: the outputs of the three groups at 1, 1/2 and 1/4 of the image's side.

    The first two are the residual sums as they leave the group (this network activates before, not after a block); the
    last one is after the final batch norm and ReLU, since that is what the head sees.

    Args:
        depth: 6n + 4.
        width: k, the factor on 16, 32 and 64 channels.
    """

    def __init__(self, depth: int, width: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.block1 = Group(blocks, 16, 16 * width, stride=1)
        self.block2 = Group(blocks, 16 * width, 32 * width, stride=2)
        self.block3 = Group(blocks, 32 * width, 64 * width, stride=2)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        nn.init.zeros_(self.fc.bias)

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """Three feature maps."""
        first = self.block1(self.conv1(images))
        second = self.block2(first)
        return first, second, functional.relu(self.bn1(self.block3(second)))

    @property
    def pooled_linear(self) -> nn.Linear:
        """The last layer."""
        return self.fc


def build(name: str, num_classes: int, *, in_channels: int, image_size: int) -> WideResNet:
    """wrn_D_K: depth D, width factor K, for images of any size."""
    depth, width = name.removeprefix("wrn_").split("_")
    return WideResNet(int(depth), int(width), num_classes, in_channels)
