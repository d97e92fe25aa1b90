"""Method `cosine-embedding`: the student's embeddings point where the teacher's do."""

from typing import Annotated, Any

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

import gkd_core as gkd
from gkd_core.models.classifier import Output, StagedNetwork


@gkd.register_method(
    "cosine-embedding", source="scaled cosine error, Hou et al. 2022, arXiv:2205.10803", reads="embeddings"
)
class CosineEmbedding(gkd.losses.Loss):
    """Angle between the embeddings: weight · mean (1 − cos)^power, through a trained linear map where sizes differ."""

    unlabelled = True

    def __init__(
        self,
        student: StagedNetwork,
        teacher: StagedNetwork,
        *,
        weight: Annotated[float, Field(gt=0)] = 1.0,
        power: Annotated[float, Field(ge=1)] = 2.0,
    ) -> None:
        super().__init__()
        self.weight, self.power = weight, power
        sizes = student.embedding_size(), teacher.embedding_size()
        self.adapter = nn.Identity() if sizes[0] == sizes[1] else nn.Linear(*sizes, bias=False)

    def forward(
        self, student: Output, teacher: Output | None, labels: Tensor, *, epoch: float = 0.0, indices: Any = None
    ) -> dict[str, Tensor]:
        """Terms by name: every method has "ce", and `distill.schedule` weighs the others."""
        assert teacher is not None
        cosine = functional.cosine_similarity(self.adapter(student.embedding).float(), teacher.embedding.float())
        angle = (1 - cosine).clamp_min(0).pow(self.power).mean()
        return {"ce": self.cross_entropy(student.logits, labels), "angle": self.weight * angle}
