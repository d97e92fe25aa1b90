"""Relational distillation: distances and angles between the samples of a batch, instead of the samples themselves."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from gkd_core.data import shards
from gkd_core.losses.base import Loss, at_least_float32, full_precision, required
from gkd_core.models.classifier import Output, StagedNetwork


def rkd_distance_loss(student_embedding: Tensor, teacher_embedding: Tensor) -> Tensor:
    """Smooth-L1 difference of all pairwise Euclidean distances, each network's in units of its own mean distance.

    Args:
        student_embedding: [B, D]; any float dtype, computed in at least float32.
        teacher_embedding: [B, D₂]; no gradient flows into it.
    Returns:
        The mean over all B² ordered pairs, the zero ones of a sample with itself included, as published.
    Raises:
        ValueError: the batches differ.
    Source: Park et al. 2019, eqs. 4–6 (arXiv:1904.05068).

    Example:
        >>> embedding = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 8.0]])
        >>> bool(rkd_distance_loss(7 * embedding, embedding).abs() < 1e-6)
        True
    """
    student, teacher = _both(student_embedding, teacher_embedding)
    target = _relative_distances(_distances(_differences(teacher)))
    return functional.smooth_l1_loss(_relative_distances(_distances(_differences(student))), target.to(student.dtype))


def rkd_angle_loss(student_embedding: Tensor, teacher_embedding: Tensor) -> Tensor:
    """Smooth-L1 difference of the cosines of all angles ∠ jik that two samples j, k make at a third, i.

    Memory grows with B²·D and B³. Arguments and errors as in `rkd_distance_loss`.

    Returns:
        The mean over all B³ ordered triples; a triple in which two samples coincide has cosine 0, and no gradient.
    Source: Park et al. 2019, eqs. 7–9 (arXiv:1904.05068).

    Example:
        >>> embedding = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 8.0]])
        >>> bool(rkd_angle_loss(7 * embedding, embedding).abs() < 1e-6)
        True
    """
    student, teacher = _both(student_embedding, teacher_embedding)
    return functional.smooth_l1_loss(_cosines(student), _cosines(teacher).to(student.dtype))


def _both(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    if student.ndim != 2 or teacher.ndim != 2 or len(student) != len(teacher):
        raise ValueError(
            f"student embedding {tuple(student.shape)} and teacher embedding {tuple(teacher.shape)} differ in batch"
        )
    return at_least_float32(student), at_least_float32(teacher.detach())


def _differences(embedding: Tensor) -> Tensor:
    """[B, D] → [B, B, D], entry (i, j) from sample i to sample j."""
    return embedding[None] - embedding[:, None]


def _distances(differences: Tensor) -> Tensor:
    """[B, B]; its gradient at zero is zero. Not by a matrix product, which loses small distances to rounding."""
    distances: Tensor = torch.linalg.vector_norm(differences, dim=2)
    return distances


def _relative_distances(distances: Tensor) -> Tensor:
    """Divided by the mean over all pairs of two samples; zeros when all are.

    Two samples that coincide are a pair like any other: the authors' code keeps their distance at 1e-6.
    """
    samples = len(distances)
    mean = distances.sum() / max(samples * (samples - 1), 1)
    return distances / torch.where(mean > 0, mean, 1.0)


def _cosines(embedding: Tensor) -> Tensor:
    """[B, B, B], entry (i, j, k) the cosine of the angle at i between j and k."""
    differences = _differences(embedding)
    distances = _distances(differences)[:, :, None]
    # Divided by 1 where samples coincide: a tiny constant there would make huge gradients.
    directions = differences / torch.where(distances > 0, distances, 1.0)
    with full_precision(directions):
        return directions @ directions.mT


class RelationalDistillation(Loss):
    """L = CE(z_S, y) + w_D·L_D + w_A·L_A, on the embeddings before the last linear layer.

    Args:
        weight_distance, weight_angle: w_D and w_A. The defaults are the CIFAR-100 benchmark's.
    Raises:
        GkdError: there is no teacher.
    Source: Park et al. 2019 (arXiv:1904.05068), in the form of RepDistiller's distiller_zoo/RKD.py.

    Example:
        >>> loss = RelationalDistillation(student, teacher)
        >>> sorted(loss(student(images), teacher(images), labels))
        ['angle', 'ce', 'distance']
    """

    unlabelled = True

    def __init__(
        self,
        student: StagedNetwork,
        teacher: StagedNetwork | None,
        *,
        weight_distance: Annotated[float, Field(ge=0.0)] = 25.0,
        weight_angle: Annotated[float, Field(ge=0.0)] = 50.0,
    ) -> None:
        super().__init__()
        required(teacher, "rkd")
        self.weight_distance = weight_distance
        self.weight_angle = weight_angle

    def forward(self, student: Output, teacher: Output | None, labels: Tensor, **unused: object) -> dict[str, Tensor]:
        """Terms "ce", "distance" and "angle"; a term of weight 0 is not computed."""
        # Pairs and triples reach over the whole batch, whichever process has its rows.
        gather = shards.current().gather
        embeddings = gather(student.embedding), gather(required(teacher, "rkd").embedding)
        terms = {"ce": self.cross_entropy(student.logits, labels)}
        if self.weight_distance:
            terms["distance"] = self.weight_distance * rkd_distance_loss(*embeddings)
        if self.weight_angle:
            terms["angle"] = self.weight_angle * rkd_angle_loss(*embeddings)
        return terms
