"""Be Your Own Teacher: auxiliary heads on the shallow stages learn from labels and from the network's own end."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from gkd_core.data import shards
from gkd_core.errors import GkdError
from gkd_core.losses.base import Loss, at_least_float32, expect_same_shape, full_precision
from gkd_core.losses.feature_maps import BatchNorm, Shape, stages_of
from gkd_core.losses.soft_labels import kd_loss, soft_label_kl
from gkd_core.models.classifier import Output, StagedNetwork


def feature_distance(features: Tensor, target: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """‖f − target‖ over the whole batch, not squared and no mean: it grows with √B. No gradient where it is 0.

    Args:
        features: [B, D] of a shallow head; any float dtype, computed in at least float32.
        target: [B, D] of the deepest stage; no gradient flows into it.
        weights: [B], what each sample's square counts; None counts all alike.
    Raises:
        ValueError: shapes differ.
    Source: the authors' later code (ArchipLab-LinfengZhang/pytorch-self-distillation-final), to which the published
        weight belongs; Zhang et al. 2019, eq. 5 (arXiv:1905.08094) has the square.

    Example:
        >>> feature_distance(torch.tensor([[3.0, 0.0], [0.0, 4.0]]), torch.zeros(2, 2))
        tensor(5.)
    """
    expect_same_shape("features", features, "target", target)
    features = at_least_float32(features)
    differences = features - at_least_float32(target.detach()).to(features.dtype)
    if weights is not None:
        differences = differences * weights.to(differences.dtype).sqrt()[:, None]
    distance: Tensor = torch.linalg.vector_norm(differences)
    return distance


class AuxiliaryHead(nn.Module):
    """A bottleneck that brings a shallow stage to the size of the deepest, pooling, and a classification layer.

    Args:
        stage: (C, H, W) of the shallow stage.
        deepest: (D, H₂, W₂) of the deepest.
        classes: C of the logits.
    Source: Zhang et al. 2019, fig. 2; `branchBottleNeck` in luanyunteng/pytorch-be-your-own-teacher, models/resnet.py.
    """

    def __init__(self, stage: Shape, deepest: Shape, classes: int) -> None:
        super().__init__()
        narrow = max(1, deepest[0] // 4)
        shrink = (max(1, stage[1] // deepest[1]), max(1, stage[2] // deepest[2]))
        self.bottleneck = nn.Sequential(
            nn.Conv2d(stage[0], narrow, 1),
            BatchNorm(narrow),
            nn.ReLU(),
            nn.Conv2d(narrow, narrow, shrink, stride=shrink),
            BatchNorm(narrow),
            nn.ReLU(),
            nn.Conv2d(narrow, deepest[0], 1),
            BatchNorm(deepest[0]),
            nn.ReLU(),
        )
        self.linear = nn.Linear(deepest[0], classes)
        for module in self.bottleneck:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, stage: Tensor) -> tuple[Tensor, Tensor]:
        """[B, C, H, W] → logits [B, classes], features [B, D], in at least float32, also under autocast."""
        with full_precision(stage):
            features = self.bottleneck(at_least_float32(stage)).mean((2, 3))
            return self.linear(features), features


class SelfDistillation(Loss):
    """CE of the network, and for each auxiliary head (1 − weight)·CE + weight·KL(σ(z/τ) ‖ σ(z_i/τ)) + λ·‖A_i(F_i) − F‖.

    z and F, the logits and the pooled deepest stage, are constants in the last two: the network's end learns from the
    labels alone. The heads on all stages but the deepest, and a linear map A_i behind each one's features, learn along
    and are thrown away with the loss. The norm is over the features of the whole batch, as in the code that λ is from.

    The heads' cross-entropy stands in the term "ce" beside the network's own: it is learnt from labels, and a schedule
    weighs only what is distilled.

    Args:
        seed: of the heads' initial weights.
        weight: of the soft labels (α); the heads' cross-entropy has 1 − weight.
        weight_features: of the distance between features (λ).
        temperature: τ of the soft labels.
        scale_tau2: multiply the soft-label terms by τ², which the authors' code does not.
    Raises:
        GkdError: the network has no feature maps, or a single stage.
    Source: Zhang et al. 2019, eq. 6 (arXiv:1905.08094); α, λ and τ from the authors' later code
        (ArchipLab-LinfengZhang/pytorch-self-distillation-final), for the paper does not give them.

    Example:
        >>> loss = SelfDistillation(student)
        >>> sorted(loss(student(images), None, labels))
        ['ce', 'features', 'kd']
    """

    feature_maps = True
    unlabelled = True
    weighs_samples = True

    def __init__(
        self,
        student: StagedNetwork,
        teacher: StagedNetwork | None = None,
        *,
        seed: int = 0,
        weight: Annotated[float, Field(ge=0.0, le=1.0)] = 0.3,
        weight_features: Annotated[float, Field(ge=0.0)] = 0.03,
        temperature: Annotated[float, Field(gt=0.0)] = 3.0,
        scale_tau2: bool = False,
    ) -> None:
        super().__init__()
        *shallow, deepest = stages_of(student, "student", "self-distillation")
        if not shallow:
            raise GkdError(
                f"method self-distillation puts heads on the shallow stages, and the student "
                f"{student.name} has a single stage: choose another student"
            )
        self.weight = weight
        self.weight_features = weight_features
        self.temperature = temperature
        self.scale_tau2 = scale_tau2
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.heads = nn.ModuleList(AuxiliaryHead(stage, deepest, student.num_classes) for stage in shallow)
            self.adapters = nn.ModuleList(nn.Linear(deepest[0], deepest[0]) for _ in shallow)

    def forward(self, student: Output, teacher: Output | None, labels: Tensor, **unused: object) -> dict[str, Tensor]:
        """Terms "ce" (the network's, and 1 − weight times its heads'), "kd" and "features", summed over the heads."""
        heads = [head(stage) for head, stage in zip(self.heads, student.stages[:-1], strict=True)]
        deepest = at_least_float32(student.stages[-1]).mean((2, 3))
        soft = kd_loss if self.scale_tau2 else soft_label_kl
        weights = self.sample_weights(labels)
        ce = [self.cross_entropy(logits, labels) for logits, _ in heads]
        kd = [soft(logits, student.logits, self.temperature, weights=weights) for logits, _ in heads]
        # The norm reaches over the whole batch, whichever process has its rows.
        gather = shards.current().gather
        everywhere = None if weights is None else gather(weights)
        with full_precision(deepest):
            adapted = [adapt(features) for adapt, (_, features) in zip(self.adapters, heads, strict=True)]
        distances = [feature_distance(gather(each), gather(deepest), weights=everywhere) for each in adapted]
        return {
            "ce": self.cross_entropy(student.logits, labels) + (1 - self.weight) * torch.stack(ce).sum(),
            "kd": self.weight * torch.stack(kd).sum(),
            "features": self.weight_features * torch.stack(distances).sum(),
        }
