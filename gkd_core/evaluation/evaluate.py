"""A network over a split: its logits, from which everything else is computed, and how good it is."""

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from gkd_core.data.loader import Loader
from gkd_core.data.prepared import PreparedData, Split
from gkd_core.errors import GkdError
from gkd_core.evaluation.calibration import Reliability, reliability
from gkd_core.evaluation.quality import PerClass, agreement, negative_log_likelihood, per_class, top_k_correct
from gkd_core.evaluation.statistics import wilson_interval
from gkd_core.models.ensemble import Ensemble
from gkd_core.models.network import Network, expect_network
from gkd_core.training.device import choose_device
from gkd_core.training.threads import computing_with, torch_limit

BATCH_SIZE = 250


@torch.no_grad()
def predict(network: nn.Module, loader: Loader, name: str) -> NDArray[np.float32]:
    """Logits [N, C] over an epoch of an unshuffled loader, in eval mode and full float32 precision.

    Args:
        network: images in [0, 1], and their persistence features or None, → `Output`; moved to the loader's device
            and left there, in eval mode.
        name: of the network, for the error.
    Raises:
        GkdError: a logit is not finite.
    """
    network.to(loader.device).eval()
    # TF32 and the search for the fastest algorithm would make the digits depend on the device's mood.
    exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    with exact, computing_with(torch_limit()):
        parts = [network(batch.images, batch.topology).logits.float() for batch in loader.epoch(0)]
    logits: NDArray[np.float32] = torch.cat(parts).cpu().numpy()
    if not np.isfinite(logits).all():
        raise GkdError(f"{name} gives logits that are not finite on the test images: train it again")
    return logits


@dataclass(frozen=True)
class Evaluation:
    """What a network is worth on some images.

    Attributes:
        network: its name.
        images: how many.
        top1: fraction of them that it is right on.
        low, high: Wilson's interval of top1 with `confidence`.
        balanced_accuracy, macro_f1: mean recall, and mean F1, of the classes that have images.
        expected_calibration_error: mean |accuracy − confidence|, in 15 bins of confidence.
        negative_log_likelihood: mean −log p(label), in nats.
        classes: names, in the order of `per_class`.
        per_class: support, recall, precision and F1.
        reliability: what the calibration error is computed from.
        agreement: fraction of the images on which it says what the teacher says; None without a teacher.
        logits: [N, C].
    """

    network: str
    images: int
    top1: float
    low: float
    high: float
    balanced_accuracy: float
    macro_f1: float
    confidence: float
    expected_calibration_error: float
    negative_log_likelihood: float
    agreement: float | None
    classes: tuple[str, ...]
    per_class: PerClass = field(repr=False)
    reliability: Reliability = field(repr=False)
    logits: NDArray[np.float32] = field(repr=False)

    def __str__(self) -> str:
        """A few lines to read."""
        worst = np.argsort(np.nan_to_num(self.per_class.recall, nan=1.0), kind="stable")[:3]
        lines = [
            f"{self.network} on {self.images} images",
            f"top-1      {self.top1:.2%}  [{self.low:.2%}, {self.high:.2%}] with {self.confidence:.0%} confidence",
            f"balanced   {self.balanced_accuracy:.2%} accuracy, macro-F1 {self.macro_f1:.2%}",
            f"ECE        {self.expected_calibration_error:.4f}",
            f"NLL        {self.negative_log_likelihood:.4f} nats",
            f"weakest    {', '.join(f'{self.classes[i]} ({self.per_class.recall[i]:.0%})' for i in worst)}",
        ]
        if self.agreement is not None:
            lines.append(f"agreement  {self.agreement:.2%} with the teacher")
        return "\n".join(lines)

    __repr__ = __str__


def evaluate(
    network: Network,
    data: Split | PreparedData,
    *,
    teacher: nn.Module | None = None,
    confidence: float = 0.95,
    device: str = "auto",
) -> Evaluation:
    """Measure a network on a split; of whole data, on its test split.

    Args:
        network: left on the device, in eval mode.
        data: its labels are positions in `network.classes`.
        teacher: a network with the same classes, to see how often the two agree.
        confidence: of the interval.
        device: "auto", "cpu", "cuda", …
    Raises:
        GkdError: an argument is of another kind, the data has other classes, or a network gives NaN or infinity.

    Example:
        >>> data = load_data("digits")
        >>> result = evaluate(create_model("resnet8", data=data), data.validation)
        >>> result.low <= result.top1 <= result.high
        True
    """
    expect_network(network, "network")
    if teacher is not None and not isinstance(teacher, Ensemble):
        expect_network(teacher, "teacher")
    if not isinstance(data, Split | PreparedData):
        raise GkdError(f"data is a {type(data).__name__}: give what load_data returns, or one of its splits")
    if not 0 < confidence < 1:
        raise GkdError(f"confidence is {confidence}: give a number between 0 and 1")
    for each in (network, teacher):
        if isinstance(data, PreparedData) and getattr(each, "classes", data.classes) != data.classes:
            raise GkdError(
                f"the network {getattr(each, 'name', '')} has other classes than the data, or in another order: call "
                "its select_classes(data.classes) first"
            )
    split = data.test if isinstance(data, PreparedData) else data
    loader = Loader(
        split,
        batch_size=BATCH_SIZE,
        device=choose_device(device, "device"),
        shuffle=False,
        num_classes=network.num_classes,
    )
    logits = predict(network, loader, network.name)
    correct = top_k_correct(logits, split.labels, 1)
    low, high = wilson_interval(int(correct.sum()), len(split), confidence)
    diagram = reliability(logits, split.labels)
    classes = per_class(logits.argmax(1), split.labels, network.num_classes)
    return Evaluation(
        network=network.name,
        images=len(split),
        top1=float(correct.mean()),
        low=low,
        high=high,
        balanced_accuracy=classes.balanced_accuracy,
        macro_f1=classes.macro_f1,
        confidence=confidence,
        expected_calibration_error=diagram.expected_calibration_error,
        negative_log_likelihood=negative_log_likelihood(logits, split.labels),
        agreement=None if teacher is None else agreement(logits, predict(teacher, loader, "the teacher")),
        classes=network.classes,
        per_class=classes,
        reliability=diagram,
        logits=logits,
    )
