"""What a method's loss is given, and what it gives back."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from gkd_core.data.shards import ALONE, Shards
from gkd_core.models.classifier import Output
from gkd_core.models.network import Network


@dataclass(frozen=True)
class Context:
    """What a loss may know when it is built, before the first step.

    Attributes:
        student: the network that learns.
        teacher: the frozen network, or None for methods without one. Where several answer as one it is the first of
            them: only methods that look no further than logits get there.
        train_labels: [N] int64, labels of the training split by sample index.
        epochs: length of the training.
        seed: for anything random in the loss.
    """

    student: Network
    teacher: Network | None
    train_labels: Tensor
    epochs: int
    seed: int


@dataclass(frozen=True)
class Step:
    """What a loss sees at one step. Nothing in it makes the device wait.

    Attributes:
        student: the student's output; gradients flow into it.
        teacher: the teacher's output without gradient, or None.
        images: [B, C, H, W] in [0, 1], augmented, as both networks saw them.
        labels: [B] int64. With mixup, the labels of the first of each pair; `targets` has the mixture.
        targets: [B, C] class probabilities (label smoothing left out), or None when labels are plain.
        indices: [B] int64, each sample's position in the training split.
        epoch: time t in epochs, a float: epoch + step / steps_per_epoch.
        cross_entropy: logits [B, C] → the mean cross-entropy with the labels, label smoothing and mixup applied.
        shards: which part of a batch this is, where several processes share it, and the way to the other parts.
    """

    student: Output
    teacher: Output | None
    images: Tensor
    labels: Tensor
    targets: Tensor | None
    indices: Tensor
    epoch: float
    cross_entropy: Callable[[Tensor], Tensor]
    shards: Shards = ALONE


class Loss(nn.Module, ABC):
    """Base of every method's loss.

    Its trained parameters (adapters, auxiliary heads, a temperature) join the student's optimiser and its buffers the
    checkpoint; none of them ends up in the student. Hyperparameters are keyword-only arguments of `__init__` with a
    type, limits (`Annotated[float, Field(gt=0)]`) and a default: `gkd methods` and the configuration read them there.

    Class attributes:
        hard_labels: the method needs integer labels, so mixup is refused.
        feature_maps: it needs the stages of both networks, so networks without feature maps are refused.
        across_samples: what a sample's loss has to do with the other samples of the batch, which several processes
            share; every loss says so, there is no default. `nothing`: terms are means over samples, and those of the
            processes are averaged. `gathered`: it asks the other processes for what it needs (`Step.shards`).
            `refused`: it would be another loss on several processes, so they are refused. (Batch norms do not count:
            on CUDA they see the whole batch by themselves.)
    """

    hard_labels = False
    feature_maps = False
    across_samples: ClassVar[Literal["nothing", "gathered", "refused"]]

    @abstractmethod
    def forward(self, step: Step) -> dict[str, Tensor]:
        """Named scalar terms, each already weighted by the method.

        "ce" is the cross-entropy term; the schedule β(t) multiplies the sum of all others.
        """

    def parameter_groups(self) -> list[dict[str, object]]:
        """Parameters for the optimiser, with their own settings where they need any (weight_decay: 0, say)."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        return [{"params": parameters}] if parameters else []

    def companions(self) -> dict[str, Network]:
        """Networks trained along that are measured on the validation split after every epoch too, by name."""
        return {}

    def conclude(self, network: Network, history: list[dict[str, float]]) -> dict[str, object]:
        """After the last epoch: may change the student's weights and the history; facts for training.json."""
        return {}
