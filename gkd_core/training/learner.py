"""What is trained as one module: the network and what its loss trains along. Several processes keep that the same."""

import torch
from torch import Tensor, nn

from gkd_core.data import shards
from gkd_core.data.loader import Batch
from gkd_core.losses.base import Loss
from gkd_core.models.classifier import Output
from gkd_core.models.network import Network


class Learner(nn.Module):
    """Images in, the terms of the loss out.

    Args:
        autocast: run the network in bf16.
    """

    def __init__(self, network: Network, loss: Loss, *, autocast: bool) -> None:
        super().__init__()
        self.network = network
        self.loss = loss
        self._autocast = autocast

    def forward(
        self, batch: Batch, target: Tensor, taught: Output | None, t: float
    ) -> tuple[dict[str, Tensor], Tensor]:
        """One step.

        Args:
            target: [B] labels or [B, C] class probabilities.
            taught: the teacher's answer.
            t: time in epochs.
        Returns:
            The terms by name, and the student's logits [B, C] without gradient.
        """
        with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=self._autocast):
            output: Output = self.network(batch.images, batch.topology)
        if look := getattr(self.loss, "look", None):  # a loss with networks of its own
            look(batch.images)
        with shards.sharing(batch.shards):
            terms = self.loss(output, taught, target, epoch=t, indices=batch.indices)
        return terms, output.logits.detach()
