"""ResNets of the CIFAR benchmarks: depth 6n + 2, three groups of basic blocks, 1×1-convolution shortcuts.

Source: He et al. 2016 (arXiv:1512.03385), §4.2, in the form of RepDistiller's models/resnet.py (Tian et al. 2020): a
convolution and batch norm where a shortcut changes shape, and the `x4` variants with four times the channels.
"""

import re

from torch import Tensor, nn
from torch.nn import functional

from gkd_core.models.classifier import PooledClassifier


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut: [B, C_in, H, W] → [B, C_out, H/stride, W/stride]."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Post-activation output."""
        residual = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(residual + self.downsample(x))


class ResNet(PooledClassifier):
    """Stages: the outputs of the three groups, after their last ReLU, at 1, 1/2 and 1/4 of the image's side.

    Args:
        depth: 6n + 2.
        widths: channels of the stem and of the three groups.
    """

    def __init__(self, depth: int, widths: tuple[int, int, int, int], num_classes: int, in_channels: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = _group(blocks, widths[0], widths[1], stride=1)
        self.layer2 = _group(blocks, widths[1], widths[2], stride=2)
        self.layer3 = _group(blocks, widths[2], widths[3], stride=2)
        self.fc = nn.Linear(widths[3], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """Three feature maps."""
        stem = functional.relu(self.bn1(self.conv1(images)))
        first = self.layer1(stem)
        second = self.layer2(first)
        return first, second, self.layer3(second)

    @property
    def pooled_linear(self) -> nn.Linear:
        """The last layer."""
        return self.fc


def _group(blocks: int, channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    first = BasicBlock(channels_in, channels_out, stride)
    return nn.Sequential(first, *(BasicBlock(channels_out, channels_out, 1) for _ in range(blocks - 1)))


def build(name: str, num_classes: int, *, in_channels: int, image_size: int) -> ResNet:
    """resnet8 … resnet110, resnet8x4, resnet32x4, for images of any size."""
    match = re.fullmatch(r"resnet(\d+)(x4)?", name)
    assert match is not None, name
    widths = (32, 64, 128, 256) if match[2] else (16, 16, 32, 64)
    return ResNet(int(match[1]), widths, num_classes, in_channels)
