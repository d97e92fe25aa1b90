"""CRD: contrastive representation distillation, a memory of all training images supplying the negatives."""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from gkd_core.data import shards
from gkd_core.data.shards import Shards
from gkd_core.errors import GkdError
from gkd_core.losses.base import Loss, at_least_float32, batch_mean, full_precision, required
from gkd_core.models.classifier import Output, StagedNetwork

# Remainders of numbers this large favour none of n images by more than n / 2⁶².
LARGE = 2**62


def contrastive_loss(scores: Tensor, log_normaliser: Tensor, images: int, *, weights: Tensor | None = None) -> Tensor:
    """Noise-contrastive loss of telling one positive from m negatives, in nats, mean over the batch.

    With the critic h = P / (P + m/N), P = exp(score) / Z: −log h(positive) − Σ log(1 − h(negative)).

    Args:
        scores: [B, 1 + K], ⟨anchor, other⟩ / temperature, the positive first; −inf marks a place that is no negative,
            and m counts the others, row by row.
        log_normaliser: log Z, [].
        images: N, number of images that negatives are drawn from.
        weights: [B], what each anchor counts in the mean; None counts all alike.
    Source: Tian et al. 2020, eq. 18 (arXiv:1910.10699); crd/criterion.py of HobbitLong/RepDistiller, less its ε of
        1e-7: in log space nothing needs it.

    Example:
        >>> contrastive_loss(torch.zeros(1, 2), torch.tensor(0.0), images=1)  # 2·ln 2
        tensor(1.3863)
    """
    count = scores[:, 1:].isfinite().sum(1, keepdim=True).clamp_min(1)
    log_odds = scores - log_normaliser - (count / images).log().to(scores.dtype)
    return batch_mean(functional.softplus(-log_odds[:, 0]) + functional.softplus(log_odds[:, 1:]).sum(1), weights)


class EmbeddingHead(nn.Linear):
    """A linear map to the sphere: [B, D] → [B, dimensions], each row of length 1, in at least float32."""

    def forward(self, embedding: Tensor) -> Tensor:
        """Also in full precision under autocast."""
        with full_precision(embedding):
            x = at_least_float32(embedding)
            return functional.normalize(functional.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype)))


class ClassSampler(nn.Module):
    """Draws with replacement from torch's global generator; images are sorted by class, so a draw is arithmetic.

    Args:
        labels: [N] int64, the class of each training image.
        classes: number of classes.
    """

    labels: Tensor
    by_class: Tensor
    start: Tensor
    count: Tensor

    def __init__(self, labels: Tensor, classes: int) -> None:
        super().__init__()
        count = torch.bincount(labels, minlength=classes)
        # All of them follow from the labels: no part of the checkpoint.
        self.register_buffer("labels", labels.clone(), persistent=False)
        self.register_buffer("by_class", labels.argsort(stable=True), persistent=False)
        self.register_buffer("start", count.cumsum(0) - count, persistent=False)
        self.register_buffer("count", count, persistent=False)

    def other_classes(self, labels: Tensor, draws: int) -> Tensor:
        """Indices [B, draws] of images whose class is not the sample's; labels are [B]."""
        return self.other_class(torch.randint(LARGE, (len(labels), draws), device=labels.device), labels)

    def same_class(self, labels: Tensor) -> Tensor:
        """Indices [B] of images of the sample's class, the sample itself possibly among them."""
        position = torch.randint(LARGE, labels.shape, device=labels.device) % self.count[labels]
        return self.by_class[self.start[labels] + position]

    def other_class(self, numbers: Tensor, labels: Tensor) -> Tensor:
        """Numbers [B, K] ≥ 0 → images [B, K]: every N − n numbers in a row give each image of another class once."""
        start, count = self.start[labels][:, None], self.count[labels][:, None]
        position = numbers % (len(self.by_class) - count)
        return self.by_class[position + count * (position >= start)]


class ContrastiveRepresentation(Loss):
    """L = CE(z_S, y) + λ·(L_s + L_t): each network's embedding against the other's memory.

    Both embeddings go through a trained linear head onto the sphere; a memory holds a moving average of them for every
    training image. L_s tells apart, for the student's embedding, the teacher's memory of the same image and that of K
    images of other classes; L_t the other way round. The first batch fixes the normalising constants Z.

    Differences to the authors' code: negatives are drawn on the device, all at once and with replacement (theirs,
    image by image without, takes the CPU about a minute an epoch), from torch's global generator, whose state is in
    the checkpoint, as are memories and constants; and K is at most the number of training images.

    Args:
        seed: of the heads' and the memories' initial values.
        train_labels: [N] int64, by position in the training split.
        weight: λ.
        negatives: K.
        mode: which memory is the positive: of the image itself (`exact`), or of a random image of its class, which may
            be itself (`relaxed`). Negatives are of other classes in both, as in the authors' code.
        shared_negatives: one draw of K images serves the whole batch, each sample leaving out those of its own class:
            a much smaller product for large data sets, but negatives that vary together.
        dimensions: of the embeddings compared.
        critic_temperature: divides the inner products; no softness of labels, so `distill.temperature` leaves it alone.
        momentum: share of the old memory in the new.
    Raises:
        GkdError: there is no teacher, or only one class.
    Source: Tian et al. 2020 (arXiv:1910.10699); crd/ and dataset/cifar100.py of HobbitLong/RepDistiller.

    Example:
        >>> loss = ContrastiveRepresentation(student, teacher, train_labels=torch.arange(100) % 4)
        >>> positions = torch.arange(6)  # of these images in the training split
        >>> sorted(loss(student(images), teacher(images), labels, indices=positions))
        ['ce', 'contrast']
    """

    hard_labels = True
    weighs_samples = True
    memory_student: Tensor
    memory_teacher: Tensor
    log_normaliser_student: Tensor
    log_normaliser_teacher: Tensor

    def __init__(
        self,
        student: StagedNetwork,
        teacher: StagedNetwork | None,
        *,
        seed: int = 0,
        train_labels: Tensor,
        weight: Annotated[float, Field(ge=0.0)] = 0.8,
        negatives: Annotated[int, Field(ge=1)] = 16384,
        mode: Literal["exact", "relaxed"] = "exact",
        shared_negatives: bool = False,
        dimensions: Annotated[int, Field(ge=2)] = 128,
        critic_temperature: Annotated[float, Field(gt=0.0)] = 0.07,
        momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5,
    ) -> None:
        super().__init__()
        teacher = required(teacher, "crd")
        if bool((train_labels == train_labels[0]).all()):
            raise GkdError("method crd contrasts classes, and the training images are all of one: take kd")
        self.weight = weight
        self.images = len(train_labels)
        self.negatives = min(negatives, self.images)
        self.mode = mode
        self.shared_negatives = shared_negatives
        self.critic_temperature = critic_temperature
        self.momentum = momentum
        self.sampler = ClassSampler(train_labels, student.num_classes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.student_head = EmbeddingHead(student.embedding_size(), dimensions)
            self.teacher_head = EmbeddingHead(teacher.embedding_size(), dimensions)
            bound = math.sqrt(3 / dimensions)  # rows of length about 1
            self.register_buffer("memory_student", torch.empty(self.images, dimensions).uniform_(-bound, bound))
            self.register_buffer("memory_teacher", torch.empty(self.images, dimensions).uniform_(-bound, bound))
        self.register_buffer("log_normaliser_student", torch.tensor(math.inf))  # inf: not known yet
        self.register_buffer("log_normaliser_teacher", torch.tensor(math.inf))

    def forward(
        self,
        student: Output,
        teacher: Output | None,
        labels: Tensor,
        *,
        indices: Tensor | None = None,
        **unused: object,
    ) -> dict[str, Tensor]:
        """Terms "ce" and "contrast"; in train mode the batch then enters the memories.

        Raises:
            ValueError: there are no indices, or the labels are no integers.
        """
        if indices is None or labels.ndim != 1:
            raise ValueError("crd needs the indices of the samples in the training split, and integer labels")
        student_embedding = self.student_head(student.embedding)
        teacher_embedding = self.teacher_head(required(teacher, "crd").embedding.detach())
        # Drawn for the whole batch, also where processes share it: all know the same memory and remember the same.
        shared = shards.current()
        all_labels = shared.gather(labels)
        positives = indices
        if self.mode == "relaxed":
            positives = shared.common(self.sampler.same_class(all_labels))[shared.mine]
        if self.shared_negatives:
            negatives = shared.common(torch.randint(self.images, (self.negatives,), device=labels.device))
        else:
            negatives = shared.common(self.sampler.other_classes(all_labels, self.negatives))[shared.mine]
        student_scores = self._scores(student_embedding, self.memory_teacher, labels, positives, negatives)
        teacher_scores = self._scores(teacher_embedding, self.memory_student, labels, positives, negatives)
        self.log_normaliser_student = self._log_normaliser(self.log_normaliser_student, student_scores, shared)
        self.log_normaliser_teacher = self._log_normaliser(self.log_normaliser_teacher, teacher_scores, shared)
        weights = self.sample_weights(labels)
        contrast = contrastive_loss(student_scores, self.log_normaliser_student, self.images, weights=weights)
        contrast = contrast + contrastive_loss(
            teacher_scores, self.log_normaliser_teacher, self.images, weights=weights
        )
        if self.training:
            everyone = shared.gather(indices)
            student_rows = shared.gather(student_embedding.detach())
            teacher_rows = shared.gather(teacher_embedding.detach())
            self.memory_student = self._remember(self.memory_student, student_rows, everyone)
            self.memory_teacher = self._remember(self.memory_teacher, teacher_rows, everyone)
        return {"ce": self.cross_entropy(student.logits, labels), "contrast": self.weight * contrast}

    def _scores(self, anchors: Tensor, memory: Tensor, labels: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        """[B, 1 + K] as `contrastive_loss` takes them; negatives are [B, K], or [K] for the whole batch."""
        with full_precision(anchors):
            memory = memory.to(anchors.dtype)
            positive = (anchors * memory[positives]).sum(1, keepdim=True)
            if negatives.dim() == 1:
                own = self.sampler.labels[negatives] == labels[:, None]
                negative = (anchors @ memory[negatives].T).masked_fill(own, -math.inf)
            else:  # one product with all and a gather of numbers, where the authors gather B·K vectors
                negative = (anchors @ memory.T).gather(1, negatives)
            return torch.cat([positive, negative], dim=1) / self.critic_temperature

    @torch.no_grad()
    def _log_normaliser(self, known: Tensor, scores: Tensor, shared: Shards) -> Tensor:
        """log Z; Z is N times the mean of exp(score) over the first batch ever seen, and unchanged after it."""
        sums, counts = shared.each(scores.flatten().logsumexp(0)), shared.each(scores.isfinite().sum())
        estimate = sums.logsumexp(0) - (counts.sum() / self.images).log()
        return torch.where(known.isinf(), estimate.to(known.dtype), known)

    @torch.no_grad()
    def _remember(self, memory: Tensor, embedding: Tensor, indices: Tensor) -> Tensor:
        """A new memory, because the backward pass still needs the old one."""
        mixed = self.momentum * memory[indices] + (1 - self.momentum) * embedding.to(memory.dtype)
        return memory.index_copy(0, indices, functional.normalize(mixed))
