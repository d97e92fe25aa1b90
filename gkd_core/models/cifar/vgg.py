"""VGG with batch norm and one linear layer, as the CIFAR benchmarks have it.

Source: Simonyan & Zisserman 2015 (arXiv:1409.1556), in the form of RepDistiller's models/vgg.py (`vggN_bn`).
"""

import math

from torch import Tensor, nn
from torch.nn import functional

from gkd_core.models.classifier import PooledClassifier

WIDTHS = (64, 128, 256, 512, 512)
DEPTHS = {
    "vgg8": (1, 1, 1, 1, 1),
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}


class VGG(PooledClassifier):
    """Stages: the outputs of the last four of five blocks, after ReLU: at 1/2, 1/4, 1/8 and 1/8 of the image's side.

    Images of 64 pixels and more are halved once more before the fifth block; a map of a single pixel is not halved, so
    small images work.

    Args:
        depths: 3×3 convolutions in each block.
    """

    def __init__(self, depths: tuple[int, ...], num_classes: int, in_channels: int, image_size: int) -> None:
        super().__init__()
        channels = (in_channels, *WIDTHS)
        self.block0, self.block1, self.block2, self.block3, self.block4 = (
            _block(depth, channels[i], channels[i + 1]) for i, depth in enumerate(depths)
        )
        self.classifier = nn.Linear(WIDTHS[-1], num_classes)
        self.halve_before_last = image_size >= 64
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """Four feature maps."""
        first = functional.relu(self.block1(_halve(functional.relu(self.block0(images)))))
        second = functional.relu(self.block2(_halve(first)))
        third = functional.relu(self.block3(_halve(second)))
        last = functional.relu(self.block4(_halve(third) if self.halve_before_last else third))
        return first, second, third, last

    @property
    def pooled_linear(self) -> nn.Linear:
        """The last layer."""
        return self.classifier


def _block(depth: int, channels_in: int, channels_out: int) -> nn.Sequential:
    """Convolutions with batch norm, ReLU between them; the last ReLU is left to the caller."""
    layers: list[nn.Module] = []
    for i in range(depth):
        convolution = nn.Conv2d(channels_in if i == 0 else channels_out, channels_out, 3, padding=1)
        layers += [convolution, nn.BatchNorm2d(channels_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _halve(x: Tensor) -> Tensor:
    return functional.max_pool2d(x, 2) if min(x.shape[2:]) > 1 else x


def build(name: str, num_classes: int, *, in_channels: int, image_size: int) -> VGG:
    """vgg8 … vgg19, for images of any size."""
    return VGG(DEPTHS[name], num_classes, in_channels, image_size)
