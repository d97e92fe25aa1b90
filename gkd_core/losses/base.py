"""What all losses share: how one is called, the precision it computes in, a teacher it cannot do without, a warm-up.

In the examples of this package `student` and `teacher` are networks of 4 classes (see `StagedNetwork`), `images`
[6, 3, 8, 8] and `labels` [6] a batch.
"""

import contextlib
import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor, nn
from torch.nn import functional

from gkd_core.data import shards
from gkd_core.data.interleave import UNLABELLED
from gkd_core.errors import GkdError
from gkd_core.methods import model_of
from gkd_core.mistakes import mistakes
from gkd_core.models.classifier import Output, StagedNetwork

T = TypeVar("T")

PARTS = {name for name in vars(StagedNetwork) if not name.startswith("_")} | {*Output._fields, "last_stage"}
"""What a loss may ask of a network and of its output."""

LARGEST_WARMUP = 0.25  # of the training; the benchmark that the papers chose their warm-ups for has 240 epochs


@dataclass(frozen=True)
class Traits:
    """What a method with its hyperparameters needs, and what it can do.

    Attributes:
        hard_labels, unlabelled, weighs_samples: see the class attributes of `Loss`.
        option: the hyperparameter, by name and value, that makes them other than the method's own; empty where none
            does.
    """

    hard_labels: bool
    unlabelled: bool
    weighs_samples: bool
    option: str = ""

    @property
    def where(self) -> str:
        """After the method's name in a sentence: which of its options is meant."""
        return f" with {self.option}" if self.option else ""

    @property
    def other(self) -> str:
        """What to take another one of."""
        return self.option.partition(" ")[0] or "method"


class Loss(nn.Module, ABC):
    """Base of every method's loss: called with outputs and labels, in the trainer's loop or in one of your own.

    Its trained parameters (adapters, auxiliary heads, a temperature) join the student's optimiser
    (`parameter_groups`) and its buffers the checkpoint; none of them ends up in the student. Nothing in it makes the
    device wait.

    The constructor takes the two networks (see `StagedNetwork`; teacher None for a method without), which do not become
    submodules, and keyword-only arguments. Facts of the training are `seed`, `epochs` and `train_labels`, where a
    method needs them; all others are hyperparameters with a type, limits (`Annotated[float, Field(gt=0)]`) and a
    default: `gkd methods` and the configuration read them there, and the constructor of every subclass keeps to them.

    Class attributes:
        hard_labels: the method needs integer labels, so mixup and cutmix are refused.
        feature_maps: it needs the stages of both networks, so networks without feature maps are refused.
        unlabelled: it also teaches on images without a label; where it does not, they are refused.
        weighs_samples: every term is a mean over samples in which `sample_weights` count; else weighting is refused.
    Attributes:
        label_smoothing: ε of the cross-entropy, set by whoever trains; so are the next two.
        class_weights: [C], what a sample of each class counts in every term; None counts all alike.
        log_priors: [C], added to the logits in the cross-entropy alone; None adds nothing.
    Raises:
        ValueError: a hyperparameter is of another type or beyond its limits.
        GkdError: a network, or its output in the call, lacks what the loss asks of it.

    Example:
        >>> class Margin(Loss):
        ...     def forward(self, student, teacher, labels, *, epoch=0.0, indices=None):
        ...         gap = (student.logits - teacher.logits).abs().mean()
        ...         return {"ce": self.cross_entropy(student.logits, labels), "gap": gap}
        >>> loss = Margin()
        >>> loss.label_smoothing = 0.1
        >>> sorted(loss(student(images), teacher(images), labels))
        ['ce', 'gap']
    """

    hard_labels = False
    feature_maps = False
    unlabelled = False
    weighs_samples = False
    label_smoothing: float = 0.0
    class_weights: Tensor | None = None
    log_priors: Tensor | None = None

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "__init__" in vars(cls):
            cls.__init__ = _checked(cls.__init__, cls.__name__)  # type: ignore[method-assign]

    @classmethod
    def contradictions(cls, given: Mapping[str, Any]) -> Iterator[str]:
        """What hyperparameters say against each other, each sentence beginning with the name of one.

        The configuration asks when it is read, so that nobody trains a teacher first.

        Args:
            given: by name; the others have their defaults.
        """
        yield from ()

    @classmethod
    def traits(cls, given: Mapping[str, Any]) -> Traits:
        """What the method needs and can do with these hyperparameters: its class attributes, unless one changes them.

        Args:
            given: by name, each of its type; the others have their defaults.
        """
        return Traits(cls.hard_labels, cls.unlabelled, cls.weighs_samples)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """`forward`, with one sentence about what is no `Output`."""
        try:
            return super().__call__(*arguments, **keywords)
        except AttributeError as error:
            _refuse_foreign(error, self)
            raise

    @abstractmethod
    def forward(
        self,
        student: Output,
        teacher: Output | None,
        labels: Tensor,
        *,
        epoch: float = 0.0,
        indices: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Named scalar terms, each already weighted by the method.

        "ce" is the cross-entropy term; a schedule β(t) multiplies the sum of all others.

        Args:
            student: gradients flow into it.
            teacher: of the same images; no gradient flows into it. None for a method without a teacher.
            labels: [B] int64, or [B, C] class probabilities (mixup, cutmix). An image without a label has −1, or zeros:
                only where `unlabelled` says so.
            epoch: time t in epochs, a float: epoch + step / steps_per_epoch. For warm-ups, and for what is drawn anew
                at every step.
            indices: [B] int64, each sample's position in the training split, where a method remembers samples.
        """

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy in at least float32, with `label_smoothing`; labels as in `forward`.

        Images without a label have no part in it; at least one image has one. With `log_priors` it is that of
        logits + log π: the network then learns, in its logits, what is left when the classes' frequencies π are taken
        out (logit adjustment at τ = 1).

        Source: Menon et al. 2021, eq. 10 (arXiv:2007.07314), for `log_priors`.
        """
        logits = at_least_float32(logits)
        measure = functools.partial(
            functional.cross_entropy,
            logits if self.log_priors is None else logits + self.log_priors,
            labels,
            ignore_index=UNLABELLED,
            label_smoothing=self.label_smoothing,
        )
        weights = self.sample_weights(labels)
        if weights is None and shards.current().labelled is None:
            return measure()
        each = measure(reduction="none")
        return mean_over_labelled(each if weights is None else weights * each, labels)

    def sample_weights(self, labels: Tensor) -> Tensor | None:
        """[B], `class_weights` of the samples' classes, or None; labels as in `forward`.

        Of class probabilities the mean by these; 1 for an image without a label, whose class nobody knows.
        """
        if self.class_weights is None:
            return None
        if labels.ndim == 2:
            weights = labels @ self.class_weights.to(labels.dtype)
        else:
            weights = self.class_weights[labels.clamp_min(0)]
        return torch.where(has_label(labels), weights, 1.0)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameters for the optimiser, with their own settings where they need any (weight_decay: 0, say)."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        return [{"params": parameters}] if parameters else []


def _checked(construct: Callable[..., None], name: str) -> Callable[..., None]:
    """A loss's constructor that looks at its hyperparameters first. Its signature stays what it was."""

    @functools.cache
    def model() -> type[BaseModel] | None:
        try:
            return model_of(construct, name)
        except NameError:  # an annotation for type checkers alone
            return None

    @functools.wraps(construct)
    def checked(self: Loss, *arguments: Any, **keywords: Any) -> None:
        options = model()
        given = {key: value for key, value in keywords.items() if options and key in options.model_fields}
        if options and given:
            try:
                options.model_validate(given)
            except ValidationError as error:
                wrong = [each.sentence for each in mistakes(error, options, at=(name,)) if each.place[1] in given]
                if wrong:  # one that is missing is Python's to say
                    raise ValueError("; ".join(wrong)) from None
        try:
            construct(self, *arguments, **keywords)
        except AttributeError as error:
            _refuse_foreign(error, self)
            raise

    return checked


def _refuse_foreign(error: AttributeError, loss: Loss) -> None:
    """Raises: GkdError: what lacks the attribute should have been a network, or the output of one."""
    if error.name in PARTS and error.obj is not loss:
        raise GkdError(
            f"{type(loss).__name__} asks for {error.name}, and a {type(error.obj).__name__} has none: make a network "
            "of your module with gkd.wrap, and call the loss with what such networks give, an Output each"
        ) from None


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half types become float32; float32 and float64 stay (gradcheck needs the latter)."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def has_label(labels: Tensor) -> Tensor:
    """[B] bool, which images have a label; labels are [B] int64 or [B, C] class probabilities."""
    return labels >= 0 if labels.ndim == 1 else labels.sum(1) > 0.5


def mean_over_labelled(each: Tensor, labels: Tensor) -> Tensor:
    """Mean of [B], a value an image, over the images that have a label; zero where none has.

    Where processes share the batch each has the part that, in their weighted mean, makes it the mean over all its
    labelled images, however these are spread.
    """
    labelled = has_label(labels)
    total = torch.where(labelled, each, 0.0).sum()
    shared = shards.current()
    if shared.labelled is None:  # a loop of one's own, which says nothing of the whole batch
        return total / labelled.sum().clamp_min(1)
    return total * (shared.total / (shared.labelled * len(each)))


def batch_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """Mean of [B] over the batch, each value times its weight where there are weights.

    Divided by B, not by the weights' sum: weights are of mean 1 over the training images, not over each batch, so this
    is an unbiased estimate of the weighted mean over all images, and the same however many processes share the batch.

    Example:
        >>> batch_mean(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 1.5]))
        tensor(1.7500)
    """
    return values.mean() if weights is None else (weights.to(values.dtype) * values).mean()


def mean_squared_difference(student: Tensor, teacher: Tensor, weights: Tensor | None) -> Tensor:
    """Mean of (student − teacher)² over batch and all else, [B, …] each; samples count by their weights."""
    if weights is None:
        return functional.mse_loss(student, teacher)
    return batch_mean((student - teacher).square().flatten(1).mean(1), weights)


def expect_same_shape(student_name: str, student: Tensor, teacher_name: str, teacher: Tensor) -> None:
    """Raises: ValueError: the shapes differ."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"{student_name} {tuple(student.shape)} and {teacher_name} {tuple(teacher.shape)} differ in shape"
        )


def full_precision(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """A block in which autocast does not turn products back into half types, on the tensor's device."""
    device = tensor.device.type
    if not torch.amp.is_autocast_available(device):
        return contextlib.nullcontext()
    return torch.autocast(device, enabled=False)


def required(teacher: T | None, method: str) -> T:
    """The teacher, or its output, of a method that needs one.

    Raises:
        GkdError: there is none.
    """
    if teacher is None:
        raise GkdError(f"method {method} learns from a teacher and was given none: pass one, or take ce")
    return teacher


def warmup_length(given: float | None, *, published: float, epochs: int) -> float:
    """Epochs of a method's first, gentle phase: what was given, else the published length or a quarter of the training,
    the shorter one.

    Args:
        given: the user's choice; None leaves it to the rule.
        published: length in the paper's trainings.
        epochs: length of this training.
    """
    return min(published, LARGEST_WARMUP * epochs) if given is None else given


def warmed_up(epoch: float, length: float) -> float:
    """How much of a warm-up of so many epochs is over at time t in epochs, from 0 to 1; one of length 0 is over."""
    return min(epoch / length, 1.0) if length else 1.0


def warmed_up_by_steps(epoch: float, length: float) -> float:
    """The same in steps of an epoch, counted from 1 as in the code of many authors: the first epoch has 1 / length."""
    return warmed_up(math.floor(epoch) + 1, length)
