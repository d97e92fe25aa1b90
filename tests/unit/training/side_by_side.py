"""A program, not a test: the same trainings in one process, or in each of several (told RANK and the like by torchrun).

Usage: python -m tests.unit.training.side_by_side FOLDER; leaves `result-RANK.pt` there. Everything is in float64, so
that two ways to the same weights differ by rounding alone, and a wrong way shows.
"""

import math
import os
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from gkd_core.data.augment import Augmentation
from gkd_core.data.loader import Loader
from gkd_core.errors import GkdError
from gkd_core.losses.base import Loss
from gkd_core.losses.cross_entropy import CrossEntropy
from gkd_core.methods import METHODS
from gkd_core.models.classifier import Output
from gkd_core.training import distributed, loop
from gkd_core.training.learning_rate import learning_rate_factor
from gkd_core.training.lesson import Lesson
from gkd_core.training.optimizer import create_optimizer
from tests.unit.stripes import CLASSES, network, stripes

CPU = torch.device("cpu")
COUNT = 15  # a batch of 8 and one of 7, which two processes share 4 to 3

CASES = {
    **{name: Lesson(name) for name in METHODS},
    "gompertz": Lesson("gompertz", {"preset": "paper", "iterations": 10}),
    "gompertz tuned": Lesson("gompertz", {"preset": "tuned", "iterations": 10}),
    "dynamickd per sample": Lesson("dynamickd", {"per_sample": True}),
    "crd relaxed": Lesson("crd", {"mode": "relaxed", "negatives": 5}),
    "crd shared negatives": Lesson("crd", {"shared_negatives": True, "negatives": 9}),
    "mutual": Lesson("kd", arrangement="mutual"),
    "amalgamation": Lesson("kd", arrangement="amalgamation"),
    "several teachers": Lesson("kd", arrangement="multi_teacher", options={"weighting": "confidence"}),
}
MIXED = ("kd", "dist", "gompertz")  # methods that also go through mixup here


def freeze_statistics(*modules: nn.Module) -> None:
    """Batch norms stay in eval mode whatever the loop says: on a CPU each process would see its own part alone."""
    for module in modules:
        for norm in module.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                norm.eval().train = lambda mode=True: None


def train(folder: Path, lesson: Lesson, *, loss: Loss | None = None, frozen: bool = True, **changes) -> dict:
    """One training, everything in it made anew; weights of network and loss, and the history."""
    student = network("resnet8", 1).double()
    parts = [CLASSES[:2], CLASSES[2:]] if lesson.arrangement == "amalgamation" else [CLASSES] * 2
    teachers = [network("wrn_16_2", 2 + i, part).double() for i, part in enumerate(parts)]
    teacher = lesson.create_teacher(
        teachers if lesson.teachers == "several" else teachers[:1], classes=CLASSES, device=CPU, autocast=False
    )
    split = stripes(COUNT, 1)
    torch.manual_seed(3)
    facts = {"seed": 0, "epochs": 1, "train_labels": torch.from_numpy(split.labels)}
    loss = (loss or lesson.create_loss(student, teachers, autocast=False, **facts)).double()
    if frozen:
        freeze_statistics(student, loss)
    distributed.own_random_numbers(3)
    share = {"device": CPU, "num_classes": 4, "processes": distributed.processes(), "rank": distributed.rank()}
    augmentation = Augmentation(crop_padding=1, flip=True, cutout=2, mixup=changes.pop("mixup", 0.0))
    trained = loop.train(
        student,
        loss,
        **{
            "name": "student",
            "loader": Loader(split, batch_size=8, seed=0, augmentation=augmentation, shuffle=True, **share),
            "validation": Loader(stripes(9, 2), batch_size=8, shuffle=False, **share),
            "teacher": teacher,
            "optimizer": create_optimizer(student, loss, name="sgd", learning_rate=0.01, weight_decay=5e-4),
            "learning_rate": learning_rate_factor("cosine", epochs=1),
            "weight": lambda t: 0.7,
            "epochs": 1,
            "checkpoint": folder / "checkpoint.pt",
            "fingerprint": "f",
            "clip_norm": 5.0,
            "ema_decay": 0.5 if lesson.arrangement != "mutual" else None,
            **changes,
        },
    )
    (folder / "checkpoint.pt").unlink(missing_ok=True) if distributed.rank() == 0 else None
    state = {f"network {k}": v for k, v in student.state_dict().items()}
    return {"state": state | {f"loss {k}": v for k, v in loss.state_dict().items()}, "history": trained.history}


class PoisonedElsewhere(Loss):
    """Cross-entropy that is no number in the last process, at the second step."""

    def forward(
        self, student: Output, teacher: Output | None, labels: Tensor, *, epoch: float = 0.0, **unused: object
    ) -> dict[str, Tensor]:
        ce = self.cross_entropy(student.logits, labels)
        poisoned = epoch > 0 and distributed.rank() == distributed.processes() - 1
        return {"ce": ce, "poison": ce * math.nan if poisoned else ce}


class Noisy(CrossEntropy):
    """Cross-entropy of logits with noise of its own in every process, as dropout would make it."""

    def forward(self, student: Output, teacher: Output | None, labels: Tensor, **unused: object) -> dict[str, Tensor]:
        logits = student.logits
        return {"ce": self.cross_entropy(logits + torch.randn_like(logits), labels)}


class Interrupted(Exception):
    pass


def weight_until(epoch: float):
    def weight(t: float) -> float:
        if t >= epoch:
            raise Interrupted
        return 1.0

    return weight


def everything(folder: Path) -> dict:
    result: dict = {"cases": {}}
    for name, lesson in CASES.items():
        result["cases"][name] = train(folder, lesson)
    for name in MIXED:
        result["cases"][f"{name} mixed"] = train(folder, CASES[name], mixup=0.4)
    try:
        train(folder, Lesson("ce"), loss=PoisonedElsewhere())
    except GkdError as error:
        result["poisoned"] = str(error)
    noisy = {"loss": Noisy(), "frozen": False, "epochs": 2}
    result["uninterrupted"] = train(folder, Lesson("ce"), **noisy)
    try:
        train(folder, Lesson("ce"), **noisy, weight=weight_until(1.5))
    except Interrupted:
        distributed.wait_for_all()
        result["resumed"] = train(folder, Lesson("ce"), **noisy)
    return result


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    with distributed.joined("cpu"):
        torch.save(everything(folder), folder / f"result-{os.environ.get('RANK', '0')}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
