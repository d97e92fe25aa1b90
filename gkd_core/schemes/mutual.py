"""Deep mutual learning: peers instead of a teacher, each learning from the others while they all learn."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from gkd_core.data.loader import Batch
from gkd_core.data.shards import sharing
from gkd_core.errors import GkdError
from gkd_core.losses.base import at_least_float32
from gkd_core.losses.cross_entropy import CrossEntropy
from gkd_core.losses.soft_labels import kd_loss
from gkd_core.models.classifier import Output
from gkd_core.models.network import Network
from gkd_core.schemes.base import DistillationSpec, Options, Scheme
from gkd_core.training.learner import Learner

if TYPE_CHECKING:
    from gkd_core.config import TrainingConfig

CHOSEN = ("validation_top1", "validation_nll")  # of the history: those of the peer that is kept


class MutualOptions(Options):
    """Peers that learn from each other."""

    peers: Annotated[int, Field(ge=2, le=16)] = 2
    """Students trained together; the best on validation is kept."""


class Mutual(Scheme):
    """No teacher; with method ce the peers train side by side, and the best is picked: what has to be beaten."""

    name = "mutual"
    summary = "No teacher: peers on the same batches learn from each other; the best on validation is the student."
    source = "Zhang et al. 2018, arXiv:1706.00384"
    because = "peers exchange soft labels (kd), or train side by side without (ce)"
    options = MutualOptions
    teachers = "none"
    temperature = 1.0

    def takes(self, method: str) -> bool:
        """Soft labels, or none."""
        return method in ("kd", "ce")

    def check_training(self, training: "TrainingConfig") -> None:
        """The best peer of the last epoch is kept, and each has weights of its own."""
        if training.select != "last":
            raise GkdError(
                f"train.select is {training.select}, but distill.scheme {self.name} keeps the best peer of the last "
                "epoch: set train.select to last"
            )
        if training.ema_decay is not None:
            raise GkdError(
                f"train.ema_decay averages one network's weights, but distill.scheme {self.name} trains several: set "
                "it to null"
            )

    def create_teacher(self, spec: DistillationSpec, networks: Sequence[Network], **_: Any) -> None:
        """Nobody."""

    def create_learner(
        self,
        spec: DistillationSpec,
        student: Network,
        networks: Sequence[Network],
        facts: dict[str, Any],
        *,
        autocast: bool,
    ) -> Learner:
        """The peers; those beside the student have seeds of their own."""
        others = [_peer(student, facts["seed"] + k) for k in range(1, spec.scheme_options["peers"])]
        return MutualLearner(
            student, others, temperature=spec.temperature, exchange=spec.method == "kd", autocast=autocast
        )


class MutualLearner(Learner):
    """Σ_k L_k, L_k = CE(z_k, y) + mean over j ≠ k of τ²·KL(σ(z_j/τ) ‖ σ(z_k/τ)), the targets σ(z_j/τ) held fixed.

    The student is the first peer. The others share its architecture and see the same batches, but start from other
    weights. As no weight is shared, the sum trains each peer by its own L_k. All peers are updated at once, from
    answers given before the step; the authors' algorithm updates them in turn. `train.clip_norm` clips each
    peer by itself.

    The terms in the history are sums over the peers; train_top1 is the first peer's.

    Args:
        others: N − 1 networks, N ≥ 2.
        temperature: τ; 1 in the paper.
        exchange: learn from each other.
    Source: Zhang et al. 2018, §2 (arXiv:1706.00384).
    """

    def __init__(
        self,
        student: Network,
        others: Sequence[Network],
        *,
        temperature: float = 1.0,
        exchange: bool = True,
        autocast: bool = False,
    ) -> None:
        super().__init__(student, CrossEntropy(student), autocast=autocast)
        self.temperature = temperature
        self.exchange = exchange
        self.others = nn.ModuleList(others)

    def forward(
        self, batch: Batch, labels: Tensor, teacher_output: Output | None, epoch: float
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Terms "ce" and, with an exchange, "mutual"; and the first peer's logits."""
        with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=self.autocast):
            logits = [peer(batch.images).logits for peer in (self.network, *self.others)]
        with sharing(batch.shards):
            terms = {"ce": torch.stack([self.loss.cross_entropy(each, labels) for each in logits]).sum()}
            if self.exchange:
                terms["mutual"] = mutual_loss(logits, self.temperature, weights=self.loss.sample_weights(labels))
        return terms, logits[0].detach()

    def networks(self) -> dict[str, Network]:
        """The student, and peer2, peer3, …"""
        others = {f"peer{k}": cast(Network, peer) for k, peer in enumerate(self.others, start=2)}
        return super().networks() | others

    def live_row(self, row: dict[str, float]) -> dict[str, float]:
        """The first peer's measures under its name: which peer's are the student's is decided at the end."""
        return {f"{name}_peer1" if name in CHOSEN else name: value for name, value in row.items()}

    def on_train_end(self, history: list[dict[str, float]]) -> dict[str, object]:
        """Put the best peer into the student: by top-1 on validation after the last epoch, then by likelihood.

        In the history, validation_top1 and validation_nll become the chosen peer's; each peer's are under its own name.

        Returns:
            selected_peer, counted from 1, and every peer's validation_top1.
        """
        for row in history:
            for measure in CHOSEN:
                row[f"{measure}_peer1"] = row[measure]
        numbers = range(1, len(self.others) + 2)
        last = history[-1]
        best = max(numbers, key=lambda k: (last[f"validation_top1_peer{k}"], -last[f"validation_nll_peer{k}"]))
        for row in history:
            for measure in CHOSEN:
                row[measure] = row[f"{measure}_peer{best}"]
        if best > 1:
            self.network.load_state_dict(self.others[best - 2].state_dict())
        return {"selected_peer": best, "peers_validation_top1": [last[f"validation_top1_peer{k}"] for k in numbers]}


def mutual_loss(logits: Sequence[Tensor], temperature: float = 1.0, *, weights: Tensor | None = None) -> Tensor:
    """Σ_k mean over j ≠ k of τ²·KL(σ(z_j/τ) ‖ σ(z_k/τ)), in nats, mean over the batch.

    Args:
        logits: of each of N ≥ 2 peers, [B, C]; a gradient flows into z_k only where it is the one that learns.
        temperature: τ > 0.
        weights: [B], what each sample counts in the mean; None counts all alike.
    Source: Zhang et al. 2018, §2 (arXiv:1706.00384).
    """
    each = [at_least_float32(z) for z in logits]
    pairs = [
        kd_loss(student, teacher, temperature, weights=weights)
        for k, student in enumerate(each)
        for j, teacher in enumerate(each)
        if j != k
    ]
    return torch.stack(pairs).sum() / (len(each) - 1)


def _peer(student: Network, seed: int) -> Network:
    with torch.random.fork_rng(devices=[]):
        peer = student.sibling(seed)
    return peer.to(student.mean.device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


SCHEME = Mutual()
