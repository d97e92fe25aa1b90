"""What is trained as one module: the network and what its loss trains along. Several processes keep that the same."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from gkd_core.data.loader import Batch
from gkd_core.losses.base import Loss, Step
from gkd_core.losses.precision import at_least_float32
from gkd_core.models.classifier import Output
from gkd_core.models.network import Network


class Learner(nn.Module):
    """Images in, the terms of the loss out.

    Args:
        label_smoothing: ε in the cross-entropy.
        autocast: run the network in bf16.
    """

    def __init__(self, network: Network, loss: Loss, *, label_smoothing: float, autocast: bool) -> None:
        super().__init__()
        self.network = network
        self.loss = loss
        self._label_smoothing = label_smoothing
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

        def cross_entropy(logits: Tensor) -> Tensor:
            return functional.cross_entropy(at_least_float32(logits), target, label_smoothing=self._label_smoothing)

        step = Step(
            student=output,
            teacher=taught,
            images=batch.images,
            labels=batch.labels,
            targets=batch.targets,
            indices=batch.indices,
            epoch=t,
            cross_entropy=cross_entropy,
            shards=batch.shards,
        )
        return self.loss(step), output.logits.detach()
