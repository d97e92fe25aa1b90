"""Deep mutual learning: peers instead of a teacher, each learning from the others while they all learn."""

import torch
from torch import Tensor, nn

from gkd_core.losses.base import Loss, at_least_float32
from gkd_core.losses.soft_labels import kd_loss
from gkd_core.models.classifier import Output
from gkd_core.models.network import Network


class MutualLearning(Loss):
    """Σ_k L_k, L_k = CE(z_k, y) + mean over j ≠ k of τ²·KL(σ(z_j/τ) ‖ σ(z_k/τ)), the targets σ(z_j/τ) held fixed.

    The student is the first peer; the others belong to this loss, so they are in its optimiser and its checkpoint. They
    share the student's architecture and see the same batches, but start from other weights (seed + 1, seed + 2, …). As
    no weight is shared, the sum trains each peer by its own L_k. All peers are updated at once, from answers given
    before the step; the authors' algorithm updates them in turn. `train.clip_norm` clips each peer by itself.

    The terms in the history are sums over the peers; train_top1 is the first peer's. After the last epoch `conclude`
    puts the best peer's weights into the student.

    Args:
        peers: N ≥ 2, the student included.
        temperature: τ; 1 in the paper.
        exchange: learn from each other; without, the peers train side by side and the best is picked: what mutual
            learning has to beat.
        autocast: run the peers in bf16.
    Source: Zhang et al. 2018, §2 (arXiv:1706.00384).
    """

    def __init__(
        self,
        student: Network,
        *,
        seed: int = 0,
        peers: int = 2,
        temperature: float = 1.0,
        exchange: bool = True,
        autocast: bool = False,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.exchange = exchange
        self._autocast = autocast
        self.others = nn.ModuleList(_peer(student, seed + k) for k in range(1, peers))

    def look(self, images: Tensor) -> None:
        """Take the images of the next step, which the peers see too."""
        self._images = images

    def forward(self, student: Output, teacher: Output | None, labels: Tensor, **unused: object) -> dict[str, Tensor]:
        """Terms "ce" and, with an exchange, "mutual"."""
        logits = [student.logits]
        with torch.autocast(self._images.device.type, torch.bfloat16, enabled=self._autocast):
            logits += [peer(self._images).logits for peer in self.others]
        terms = {"ce": torch.stack([self.cross_entropy(each, labels) for each in logits]).sum()}
        if self.exchange:
            terms["mutual"] = mutual_loss(logits, self.temperature)
        return terms

    def companions(self) -> dict[str, Network]:
        """The other peers: peer2, peer3, …"""
        return {f"peer{k}": peer for k, peer in enumerate(self.others, start=2) if isinstance(peer, Network)}

    def conclude(self, network: Network, history: list[dict[str, float]]) -> dict[str, object]:
        """Put the best peer into `network`: by top-1 on validation after the last epoch, then by likelihood.

        In the history, validation_top1 and validation_nll become the chosen peer's; each peer's are under its own name.

        Returns:
            selected_peer, counted from 1, and every peer's validation_top1.
        """
        for row in history:
            for measure in ("validation_top1", "validation_nll"):
                row[f"{measure}_peer1"] = row[measure]
        numbers = range(1, len(self.others) + 2)
        last = history[-1]
        best = max(numbers, key=lambda k: (last[f"validation_top1_peer{k}"], -last[f"validation_nll_peer{k}"]))
        for row in history:
            for measure in ("validation_top1", "validation_nll"):
                row[measure] = row[f"{measure}_peer{best}"]
        if best > 1:
            network.load_state_dict(self.others[best - 2].state_dict())
        return {"selected_peer": best, "peers_validation_top1": [last[f"validation_top1_peer{k}"] for k in numbers]}


def mutual_loss(logits: list[Tensor], temperature: float = 1.0) -> Tensor:
    """Σ_k mean over j ≠ k of τ²·KL(σ(z_j/τ) ‖ σ(z_k/τ)), in nats, mean over the batch.

    Args:
        logits: of each of N ≥ 2 peers, [B, C]; a gradient flows into z_k only where it is the one that learns.
        temperature: τ > 0.
    Source: Zhang et al. 2018, §2 (arXiv:1706.00384).
    """
    each = [at_least_float32(z) for z in logits]
    lessons = [
        kd_loss(learning, teaching, temperature)
        for k, learning in enumerate(each)
        for j, teaching in enumerate(each)
        if j != k
    ]
    return torch.stack(lessons).sum() / (len(each) - 1)


def _peer(student: Network, seed: int) -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peer = Network(student.spec, student.classes)
    return peer.to(memory_format=torch.channels_last)  # as the student
