"""Augmentations `noise` (a function) and `gaussian-blur` (a class: torchvision's)."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torchvision.transforms import v2

import gkd_core as gkd


@gkd.register_augmentation("noise")
def noise(image: Tensor, *, strength: Annotated[float, Field(ge=0, le=1)] = 0.05) -> Tensor:
    """[C, H, W] in [0, 1] with normal noise of a standard deviation up to `strength`."""
    return (image + strength * torch.rand(1) * torch.randn_like(image)).clamp(0, 1)


@gkd.register_augmentation("gaussian-blur")
class Blur(v2.GaussianBlur):
    """torchvision's, with options that params.yaml can give."""

    def __init__(self, *, size: Annotated[int, Field(ge=3)] = 3, sigma: Annotated[float, Field(gt=0.1)] = 2.0) -> None:
        super().__init__(size, (0.1, sigma))
