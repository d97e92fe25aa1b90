"""Network `separable-32`: depthwise separable convolutions, for small images."""

from torch import Tensor, nn

import gkd_core as gkd


@gkd.register_model("separable-32", stages=["wide", "deep"], head="fc")
class Separable(nn.Module):
    """Normalised images [B, C, H, W] → logits [B, num_classes]."""

    def __init__(self, num_classes: int, in_channels: int = 3, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(in_channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        self.wide = self._block(width, width)
        self.deep = self._block(width, 2 * width, stride=2)
        self.fc = nn.Linear(2 * width, num_classes)

    @staticmethod
    def _block(inside: int, outside: int, stride: int = 1) -> nn.Sequential:
        depthwise = nn.Conv2d(inside, inside, 3, stride, padding=1, groups=inside, bias=False)
        return nn.Sequential(depthwise, nn.Conv2d(inside, outside, 1, bias=False), nn.BatchNorm2d(outside), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.deep(self.wide(self.stem(images).relu())).mean((2, 3)))
