"""MobileNetV2 of the CIFAR benchmarks: half width, expansion 6, plain ReLU, two strides fewer than on ImageNet.

Source: Sandler et al. 2018 (arXiv:1801.04381), in the form of RepDistiller's models/mobilenetv2.py (`mobile_half`).
torchvision's own is `mobilenet_v2`.
"""

import math

from torch import Tensor, nn

from gkd_core.models.classifier import PooledClassifier

GROUPS = (
    # expansion, channels at full width, blocks, stride
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
LAST_CHANNELS = 1280


class InvertedResidual(nn.Module):
    """1×1 expansion, 3×3 depthwise convolution, linear 1×1 projection; a shortcut where shapes agree."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        self.shortcut = stride == 1 and channels_in == channels_out
        inner = channels_in * expansion
        self.conv = nn.Sequential(
            nn.Conv2d(channels_in, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, inner, 3, stride=stride, padding=1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, channels_out, 1, bias=False),
            nn.BatchNorm2d(channels_out),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, C_in, H, W] → [B, C_out, H/stride, W/stride], not activated."""
        out: Tensor = self.conv(x)
        return x + out if self.shortcut else out


class MobileNetV2(PooledClassifier):
    """Stages: at 1/2, 1/4, 1/8 and 1/16 of the image's side.

    The first three are linear bottlenecks (groups 1, 2 and 4, counted from 0); the last is the 1280-channel map after
    ReLU that the head pools. Up to 16 pixels the first convolution is not strided, so that 8×8 images keep a map to
    work on; each stage is then twice as large.

    Args:
        width: factor on the channels.
    """

    def __init__(self, width: float, num_classes: int, in_channels: int, image_size: int) -> None:
        super().__init__()
        channels = int(32 * width)
        self.conv1 = _activated(in_channels, channels, 3, stride=2 if image_size > 16 else 1)
        self.blocks = nn.ModuleList()
        for expansion, full_channels, depth, stride in GROUPS:
            channels_out = int(full_channels * width)
            first = InvertedResidual(channels, channels_out, stride, expansion)
            rest = (InvertedResidual(channels_out, channels_out, 1, expansion) for _ in range(depth - 1))
            self.blocks.append(nn.Sequential(first, *rest))
            channels = channels_out
        self.conv2 = _activated(channels, LAST_CHANNELS, 1, stride=1)
        self.classifier = nn.Sequential(nn.Linear(LAST_CHANNELS, num_classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        nn.init.normal_(self.pooled_linear.weight, std=0.01)
        nn.init.zeros_(self.pooled_linear.bias)

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """Four feature maps."""
        x = self.conv1(images)
        outputs = []
        for group in self.blocks:
            x = group(x)
            outputs.append(x)
        return outputs[1], outputs[2], outputs[4], self.conv2(x)

    @property
    def pooled_linear(self) -> nn.Linear:
        """The last layer."""
        layer = self.classifier[0]
        assert isinstance(layer, nn.Linear)
        return layer


def _activated(channels_in: int, channels_out: int, kernel: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels_in, channels_out, kernel, stride=stride, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out), nn.ReLU())


def build(name: str, num_classes: int, *, in_channels: int, image_size: int) -> MobileNetV2:
    """MobileNetV2 at half width, for images of any size."""
    return MobileNetV2(0.5, num_classes, in_channels, image_size)
