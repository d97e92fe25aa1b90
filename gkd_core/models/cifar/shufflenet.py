"""ShuffleNetV2 of the CIFAR benchmarks: size 1, a 1×1 stem without strides.

Source: Ma et al. 2018 (arXiv:1807.11164), in the form of RepDistiller's models/ShuffleNetv2.py (`ShuffleV2`).
torchvision's own is `shufflenet_v2_x1_0`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from gkd_core.models.classifier import PooledClassifier

STEM_CHANNELS = 24
CHANNELS = (116, 232, 464, 1024)
BLOCKS = (3, 7, 3)


class BasicBlock(nn.Module):
    """Half of the channels passes, the other half goes through 1×1, depthwise 3×3 and 1×1; then both are shuffled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(half, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → the same shape."""
        kept, changed = x.chunk(2, dim=1)
        changed = functional.relu(self.bn1(self.conv1(changed)))
        changed = self.bn2(self.conv2(changed))
        changed = functional.relu(self.bn3(self.conv3(changed)))
        return _shuffle(torch.cat([kept, changed], 1))


class DownBlock(nn.Module):
    """Two strided branches side by side: [B, C_in, H, W] → [B, C_out, H/2, W/2]."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        half = channels_out // 2
        self.conv1 = nn.Conv2d(channels_in, channels_in, 3, stride=2, padding=1, groups=channels_in, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv2 = nn.Conv2d(channels_in, half, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(channels_in, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = nn.Conv2d(half, half, 3, stride=2, padding=1, groups=half, bias=False)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        """Both branches, shuffled."""
        left = self.bn1(self.conv1(x))
        left = functional.relu(self.bn2(self.conv2(left)))
        right = functional.relu(self.bn3(self.conv3(x)))
        right = self.bn4(self.conv4(right))
        right = functional.relu(self.bn5(self.conv5(right)))
        return _shuffle(torch.cat([left, right], 1))


class ShuffleNetV2(PooledClassifier):
    """Stages: at 1/2, 1/4 and 1/8 of the image's side.

    The first two are the outputs of their groups; the last is the 1024-channel map after ReLU that the head pools.
    """

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, STEM_CHANNELS, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM_CHANNELS)
        self.layer1 = _group(STEM_CHANNELS, CHANNELS[0], BLOCKS[0])
        self.layer2 = _group(CHANNELS[0], CHANNELS[1], BLOCKS[1])
        self.layer3 = _group(CHANNELS[1], CHANNELS[2], BLOCKS[2])
        self.conv2 = nn.Conv2d(CHANNELS[2], CHANNELS[3], 1, bias=False)
        self.bn2 = nn.BatchNorm2d(CHANNELS[3])
        self.linear = nn.Linear(CHANNELS[3], num_classes)

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """Three feature maps."""
        first = self.layer1(functional.relu(self.bn1(self.conv1(images))))
        second = self.layer2(first)
        return first, second, functional.relu(self.bn2(self.conv2(self.layer3(second))))

    @property
    def pooled_linear(self) -> nn.Linear:
        """The last layer."""
        return self.linear


def _group(channels_in: int, channels_out: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(DownBlock(channels_in, channels_out), *(BasicBlock(channels_out) for _ in range(blocks)))


def _shuffle(x: Tensor) -> Tensor:
    """Interleave the two halves of the channels."""
    batch, channels, height, width = x.shape
    return x.reshape(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)


def build(name: str, num_classes: int, *, in_channels: int, image_size: int) -> ShuffleNetV2:
    """ShuffleNetV2 of size 1, for images of any size."""
    return ShuffleNetV2(num_classes, in_channels)
