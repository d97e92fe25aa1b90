"""Random training images of a class, or of any other class, drawn for a whole batch at once on the device."""

import torch
from torch import Tensor, nn

# Remainders of numbers this large favour none of n images by more than n / 2⁶².
LARGE = 2**62


class ClassSampler(nn.Module):
    """Draws with replacement from torch's global generator; images are sorted by class, so a draw is arithmetic.

    Args:
        labels: [N] int64, the class of each training image.
        classes: number of classes.
    """

    labels: Tensor
    by_class: Tensor
    start: Tensor
    count: Tensor

    def __init__(self, labels: Tensor, classes: int) -> None:
        super().__init__()
        count = torch.bincount(labels, minlength=classes)
        # All of them follow from the labels: no part of the checkpoint.
        self.register_buffer("labels", labels.clone(), persistent=False)
        self.register_buffer("by_class", labels.argsort(stable=True), persistent=False)
        self.register_buffer("start", count.cumsum(0) - count, persistent=False)
        self.register_buffer("count", count, persistent=False)

    def other_classes(self, labels: Tensor, draws: int) -> Tensor:
        """Indices [B, draws] of images whose class is not the sample's; labels are [B]."""
        return self.other_class(torch.randint(LARGE, (len(labels), draws), device=labels.device), labels)

    def same_class(self, labels: Tensor) -> Tensor:
        """Indices [B] of images of the sample's class, the sample itself possibly among them."""
        position = torch.randint(LARGE, labels.shape, device=labels.device) % self.count[labels]
        return self.by_class[self.start[labels] + position]

    def other_class(self, numbers: Tensor, labels: Tensor) -> Tensor:
        """Numbers [B, K] ≥ 0 → images [B, K]: every N − n numbers in a row give each image of another class once."""
        start, count = self.start[labels][:, None], self.count[labels][:, None]
        position = numbers % (len(self.by_class) - count)
        return self.by_class[position + count * (position >= start)]
