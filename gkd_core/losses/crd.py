"""CRD: contrastive representation distillation, a memory of all training images supplying the negatives."""

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from gkd_core.data import shards
from gkd_core.errors import GkdError
from gkd_core.losses.base import Loss, at_least_float32, batch_mean, full_precision, required
from gkd_core.models.classifier import Output, StagedNetwork


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
        others = len(self.by_class) - self.count[labels][:, None]
        return self.other_class(self._below(others, len(labels), draws), labels)

    def same_class(self, labels: Tensor) -> Tensor:
        """Indices [B] of images of the sample's class, the sample itself possibly among them."""
        return self.by_class[self.start[labels] + self._below(self.count[labels], *labels.shape)]

    def other_class(self, positions: Tensor, labels: Tensor) -> Tensor:
        """Positions [B, K] in 0 … N − n − 1 → images [B, K]: each position is another image of another class."""
        start, count = self.start[labels][:, None], self.count[labels][:, None]
        return self.by_class.take(positions + count * (positions >= start))

    def _below(self, limits: Tensor, *shape: int) -> Tensor:
        """Integers of this shape, each in 0 … limit − 1; none is favoured by more than 2·N² / 2⁶².

        The product's upper bits, where a remainder would take a division for every number.
        """
        bits = 62 - len(self.by_class).bit_length()
        drawn = torch.empty(shape, dtype=torch.int64, device=limits.device).random_()
        return drawn.bitwise_right_shift_(63 - bits).mul_(limits).bitwise_right_shift_(bits)


class _Derived(torch.autograd.Function):
    """Values [B], given with their gradients [B, D] by the anchors [B, D], each by its own."""

    @staticmethod
    def forward(ctx: Any, anchors: Tensor, values: Tensor, gradients: Tensor) -> Tensor:
        ctx.save_for_backward(gradients)
        return values.view_as(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (gradients,) = ctx.saved_tensors
        return gradient[:, None] * gradients, None, None


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
        # Both are known since a call, so that none has to be computed to be thrown away, nor read from a device.
        self._normalised = False

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
        of_student, self.log_normaliser_student = self._contrast(
            student_embedding, self.memory_teacher, labels, positives, negatives, self.log_normaliser_student
        )
        of_teacher, self.log_normaliser_teacher = self._contrast(
            teacher_embedding, self.memory_student, labels, positives, negatives, self.log_normaliser_teacher
        )
        self._normalised = True
        contrast = batch_mean(of_student + of_teacher, self.sample_weights(labels))
        if self.training:
            everyone = shared.gather(indices)
            student_rows = shared.gather(student_embedding.detach())
            teacher_rows = shared.gather(teacher_embedding.detach())
            self._remember(self.memory_student, student_rows, everyone)
            self._remember(self.memory_teacher, teacher_rows, everyone)
        return {"ce": self.cross_entropy(student.logits, labels), "contrast": self.weight * contrast}

    def _load_from_state_dict(self, *arguments: Any, **keywords: Any) -> None:
        self._normalised = False  # the state may be one before the first batch
        super()._load_from_state_dict(*arguments, **keywords)

    def _contrast(
        self, anchors: Tensor, memory: Tensor, labels: Tensor, positives: Tensor, negatives: Tensor, known: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`contrastive_loss` of each anchor, [B], and log Z; negatives are [B, K], or [K] for the whole batch.

        The gradient by the anchors is computed along: products with all N images are then in memory once and a step
        at a time, and the memory may change before the backward pass.
        """
        wanted = torch.is_grad_enabled() and anchors.requires_grad
        with torch.no_grad(), full_precision(anchors):
            memory = memory.to(anchors.dtype)
            rows, partners = anchors / self.critic_temperature, memory[positives]
            positive = (rows * partners).sum(1)
            if negatives.dim() == 1:
                others = memory[negatives]
                own = self.sampler.labels[negatives] == labels[:, None]
                scores, count = (rows @ others.T).masked_fill_(own, -math.inf), (~own).sum(1)
            else:  # one product with all and a gather of numbers, where the authors gather B·K vectors
                products = rows @ memory.T
                scores, count = products.gather(1, negatives), labels.new_full(labels.shape, negatives.shape[1])
            log_normaliser = self._log_normaliser(known, positive, scores, count)
            shift = log_normaliser + (count.clamp_min(1) / self.images).log().to(scores.dtype)
            positive, scores = positive - shift, scores.sub_(shift[:, None])
            values = functional.softplus(-positive) + functional.softplus(scores).sum(1)
            if not wanted:
                return values, log_normaliser
            pulls = scores.sigmoid_()
            if negatives.dim() == 1:
                away = pulls @ others
            else:
                away = products.zero_().scatter_add_(1, negatives, pulls) @ memory
            gradients = (away - torch.sigmoid(-positive)[:, None] * partners) / self.critic_temperature
        loss: Tensor = _Derived.apply(anchors, values, gradients)
        return loss, log_normaliser

    def _log_normaliser(self, known: Tensor, positive: Tensor, scores: Tensor, count: Tensor) -> Tensor:
        """log Z; Z is N times the mean of exp(score) over the first batch ever seen, and unchanged after it."""
        if self._normalised:
            return known
        shared = shards.current()
        sums = shared.each(torch.logaddexp(positive.logsumexp(0), scores.flatten().logsumexp(0)))
        counts = shared.each(count.sum() + len(count))
        estimate = sums.logsumexp(0) - (counts.sum() / self.images).log()
        return torch.where(known.isinf(), estimate.to(known.dtype), known)

    @torch.no_grad()
    def _remember(self, memory: Tensor, embedding: Tensor, indices: Tensor) -> None:
        mixed = self.momentum * memory[indices] + (1 - self.momentum) * embedding.to(memory.dtype)
        memory.index_copy_(0, indices, functional.normalize(mixed))
