"""What every network is to the rest of the code: one output form, and a head that can be called alone."""

from typing import NamedTuple

from torch import Tensor, nn


class Output(NamedTuple):
    """One forward pass.

    Attributes:
        logits: [B, C].
        stages: feature maps from shallow to deep, each [B, C_i, H_i, W_i]; empty for a network without feature maps.
            The last one is what the classification head sees: `classifier.head(stages[-1])` gives the logits.
        embedding: [B, D], the vector before the last linear layer.
    """

    logits: Tensor
    stages: tuple[Tensor, ...]
    embedding: Tensor


class Classifier(nn.Module):
    """Base of all architectures: normalised images [B, C, H, W] in, `Output` out.

    A subclass sets `pooled_linear` to its last layer when its head is global average pooling followed by exactly that
    layer (gradients with respect to the last stage then have a closed form), and leaves it None otherwise.
    """

    def forward(self, images: Tensor) -> Output:
        """Raises: NotImplementedError in this base."""
        raise NotImplementedError

    def head(self, last_stage: Tensor) -> Tensor:
        """Logits [B, C] from the last stage [B, C_n, H_n, W_n] alone."""
        raise NotImplementedError

    @property
    def pooled_linear(self) -> nn.Linear | None:
        """The linear layer of a global-average-pool + linear head, else None."""
        return None
