"""What is trained as one module: the network and what its loss trains along. Several processes keep that the same."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gkd_core import plugins
from gkd_core.data.loader import Batch
from gkd_core.data.shards import sharing
from gkd_core.errors import GkdError
from gkd_core.losses.base import Loss
from gkd_core.models.classifier import Output
from gkd_core.models.network import Network


class Learner(nn.Module):
    """Images in, the terms of the loss out.

    Args:
        network: the student.
        loss: its trained parameters (adapters, auxiliary heads, a temperature) are learned along and belong to no
            network.
        autocast: run the network in bf16.
        method: whose loss it is; where that is a plugin's, its mistakes end in a sentence that names it.
    Raises:
        TypeError: the loss registered the network as its own submodule: it would be trained and saved twice.
    """

    def __init__(self, network: Network, loss: Loss, *, autocast: bool = False, method: str = "") -> None:
        super().__init__()
        if any(isinstance(module, Network) for module in loss.modules()):
            raise TypeError(
                f"{type(loss).__name__} holds a network as a submodule: it would be trained and saved with it"
            )
        self.network = network
        self.loss = loss
        self.autocast = autocast
        self.method = method

    def forward(
        self, batch: Batch, labels: Tensor, teacher_output: Output | None, epoch: float
    ) -> tuple[dict[str, Tensor], Tensor]:
        """One step.

        Args:
            labels: [B] int64, or [B, C] class probabilities.
            epoch: time t in epochs.
        Returns:
            The terms by name, and the network's logits [B, C] without gradient.
        Raises:
            GkdError: a plugin's loss fails, or gives something else.
        """
        with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=self.autocast):
            output: Output = self.network(batch.images, batch.topology)
        with sharing(batch.shards), plugins.in_words("method", self.method):
            terms: dict[str, Tensor] = self.loss(output, teacher_output, labels, epoch=epoch, indices=batch.indices)
        if plugins.owner("method", self.method):
            _refuse_wrong(terms, output.logits.device, plugins.named("method", self.method))
        return terms, output.logits.detach()

    def networks(self) -> dict[str, Network]:
        """The networks trained side by side by name; the student's name is empty."""
        return {"": self.network}

    def live_row(self, row: dict[str, float]) -> dict[str, float]:
        """An epoch's row as it can be told while the training runs: what `on_train_end` decides is not in it yet."""
        return dict(row)

    def on_train_end(self, history: list[dict[str, float]]) -> dict[str, object]:
        """After the last epoch: may change the student's weights and the history; facts for the record."""
        return {}


def _refuse_wrong(terms: object, device: torch.device, where: str) -> None:
    """Raises: GkdError: a loss gave what cannot be trained on."""
    if not isinstance(terms, Mapping):
        found = "None" if terms is None else f"a {type(terms).__name__}"
    elif "ce" not in terms:
        found = 'a dict without "ce"'
    elif wrong := [name for name, term in terms.items() if not _is_scalar(term, device)]:
        term = terms[wrong[0]]
        what = f"Tensor {list(term.shape)} on {term.device}" if isinstance(term, Tensor) else type(term).__name__
        found = f'a dict whose "{wrong[0]}" is a {what}'
    elif not any(term.requires_grad for term in terms.values()):
        raise GkdError(f"{where} gives terms without a gradient, so that nothing is learned: correct it")
    else:
        return
    raise GkdError(f'{where} gives {found}, not a dict of scalar tensors with "ce": correct it')


def _is_scalar(term: object, device: torch.device) -> bool:
    return isinstance(term, Tensor) and term.ndim == 0 and term.device == device
