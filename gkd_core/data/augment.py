"""Random changes to training images, for a whole batch at once, on the device, from a seeded generator.

Nothing here waits for the device: no value is read back, no shape depends on one.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Augmentation:
    """What is done to each image, drawn anew for each.

    Attributes:
        crop_padding: pixels of black put round the image before a crop back to size; 0 is off.
        flip: mirror left-right with probability one half.
        cutout: side in pixels of a square set to the data's mean, its centre anywhere in the image (so part of it may
            lie outside); 0 is off. After DeVries & Taylor 2017 (arXiv:1708.04552).
        mixup: α of Beta(α, α), one mixture λ for the batch; 0 is off. After Zhang et al. 2018 (arXiv:1710.09412).
    """

    crop_padding: int = 0
    flip: bool = False
    cutout: int = 0
    mixup: float = 0.0

    def __post_init__(self) -> None:
        if self.crop_padding < 0 or self.cutout < 0 or self.mixup < 0:
            raise ValueError(f"crop_padding, cutout and mixup must not be negative: {self}")


def crop_and_flip(images: Tensor, shifts: Tensor, flips: Tensor, padding: int) -> Tensor:
    """Each image's own window of the zero-padded batch, then mirrored where asked; one gather does both.

    Args:
        images: [B, C, H, W], any dtype.
        shifts: [B, 2] int64 in 0…2·padding: top row and left column of the window in the padded image.
        flips: [B] bool.
        padding: black pixels on each side.
    Returns:
        [B, C, H, W] of the same dtype.
    """
    batch, channels, height, width = images.shape
    padded = functional.pad(images, (padding, padding, padding, padding))
    device = images.device
    column = torch.arange(width, device=device)
    columns = torch.where(flips[:, None], width - 1 - column, column) + shifts[:, 1:]
    rows = torch.arange(height, device=device) + shifts[:, :1]
    sample = torch.arange(batch, device=device)
    channel = torch.arange(channels, device=device)
    return padded[
        sample[:, None, None, None], channel[:, None, None], rows[:, None, :, None], columns[:, None, None, :]
    ]


def cut_out(images: Tensor, centres: Tensor, side: int, fill: Tensor) -> Tensor:
    """Each image with a square round its own centre filled.

    Args:
        images: [B, C, H, W].
        centres: [B, 2] int64, row and column. The square reaches from centre − side//2 on, `side` pixels.
        fill: [C].
    Returns:
        [B, C, H, W].
    """
    _, channels, height, width = images.shape
    start = centres - side // 2
    row = torch.arange(height, device=images.device) - start[:, :1]
    column = torch.arange(width, device=images.device) - start[:, 1:]
    inside = ((row >= 0) & (row < side))[:, None, :, None] & ((column >= 0) & (column < side))[:, None, None, :]
    return torch.where(inside, fill.view(1, channels, 1, 1), images)


def mix(images: Tensor, labels: Tensor, partners: Tensor, share: float, num_classes: int) -> tuple[Tensor, Tensor]:
    """Each image mixed with its partner, and the mixture of their labels.

    Args:
        images: [B, C, H, W]. labels: [B] int64.
        partners: [B] int64, a permutation of the batch.
        share: λ in [0, 1], what remains of the image itself.
    Returns:
        images [B, C, H, W]; targets [B, num_classes], rows sum to 1.
    """
    # Not functional.one_hot, which reads the labels back to check their range.
    one_hot = (labels[:, None] == torch.arange(num_classes, device=labels.device)).to(images.dtype)
    mixed = share * images + (1 - share) * images[partners]
    return mixed, share * one_hot + (1 - share) * one_hot[partners]
