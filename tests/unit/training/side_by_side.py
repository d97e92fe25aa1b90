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

from gkd_core.config import TrainingConfig
from gkd_core.errors import GkdError
from gkd_core.losses.cross_entropy import CrossEntropy
from gkd_core.methods import METHODS
from gkd_core.schemes import DistillationSpec, get
from gkd_core.training import distributed
from gkd_core.training.learner import Learner
from gkd_core.training.trainer import Trainer, Training
from tests.unit.stripes import CLASSES, network, stripes_data

CPU = torch.device("cpu")
COUNT = 15  # a batch of 8 and one of 7, which two processes share 4 to 3

CASES = {
    **{name: DistillationSpec(name) for name in METHODS},
    "gompertz": DistillationSpec("gompertz", {"preset": "paper", "iterations": 10}),
    "gompertz tuned": DistillationSpec("gompertz", {"preset": "tuned", "iterations": 10}),
    "gompertz with all stages, dist and running means": DistillationSpec(
        "gompertz", {"solver": "quantile", "stages": "all", "soft_labels": "dist", "term_scale": "running_mean"}
    ),
    "dynamickd per sample": DistillationSpec("dynamickd", {"per_sample": True}),
    "crd relaxed": DistillationSpec("crd", {"mode": "relaxed", "negatives": 5}),
    "crd shared negatives": DistillationSpec("crd", {"shared_negatives": True, "negatives": 9}),
    "mutual": DistillationSpec("kd", scheme="mutual"),
    "amalgamation": DistillationSpec("kd", scheme="amalgamation"),
    "several teachers": DistillationSpec("kd", scheme="ensemble", scheme_options={"weighting": "confidence"}),
}
HEAD_FIRST = ("ce", "gompertz", "mutual")  # of which the head alone is trained for an epoch, then everything
UNLABELLED = ("kd", "dist", "gompertz", "rkd", "mutual", "several teachers")  # that also learn without labels here
MIXED = ("kd", "dist", "gompertz")  # methods that also go through mixup here
BALANCED = {  # and those with classes of different size made up for
    "weights": ("ce", "gompertz tuned", "dkd", "mutual"),
    "sampler": ("kd", "dist"),
    "logit-adjustment": ("kd",),
}


def freeze_statistics(*modules: nn.Module) -> None:
    """Batch norms stay in eval mode whatever the loop says: on a CPU each process would see its own part alone."""
    for module in modules:
        for norm in module.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                norm.eval().train = lambda mode=True: None


def train(
    folder: Path, spec: DistillationSpec, *, loss: nn.Module | None = None, frozen: bool = True, **changes
) -> dict:
    """One training, everything in it made anew; weights of all that was trained, and the history."""
    student = network("resnet8", 1).double()
    student.pretrained = changes.pop("pretrained", False)
    parts = [CLASSES[:2], CLASSES[2:]] if spec.scheme == "amalgamation" else [CLASSES] * 2
    teachers = [network("wrn_16_2", 2 + i, part).double() for i, part in enumerate(parts)]
    augment = {"crop_padding": 1, "flip": True, "cutout": 2, "mixup": changes.pop("mixup", 0.0)}
    weight = changes.pop("weight", lambda t: 0.7)
    unlabelled = changes.pop("unlabelled", 0)
    config = {
        "epochs": 1, "batch_size": 8, "device": "cpu", "learning_rate": 0.01, "seed": 3, "clip_norm": 5.0,
        "ema_decay": 0.5 if spec.scheme != "mutual" else None, "augment": augment, **changes,
    }  # fmt: skip
    data = stripes_data(COUNT, 9, unlabelled)
    several = get(spec.scheme).teachers == "several"
    training = Training(
        student,
        data,
        TrainingConfig.model_validate(config),
        spec,
        tuple(teachers if several else teachers[:1]),
        title="student",
    )
    trainer = DoubleTrainer(training, folder)
    trainer.weight = weight
    if loss is not None:
        trainer.learner = Learner(student, loss.double())
    if frozen:
        freeze_statistics(trainer.learner)
    result = trainer.run()
    if distributed.rank() == 0:
        result.checkpoint.unlink(missing_ok=True)
    return {"state": dict(trainer.learner.state_dict()), "history": result.history.rows}


class DoubleTrainer(Trainer):
    """All that is trained in float64."""

    def create_optimizer(self) -> torch.optim.Optimizer:
        self.learner.double()
        return super().create_optimizer()


class PoisonedElsewhere(CrossEntropy):
    """Cross-entropy that is NaN in the last process, at the second step."""

    def forward(self, student, teacher, labels, *, epoch=0.0, indices=None) -> dict[str, Tensor]:
        ce = self.cross_entropy(student.logits, labels)
        poisoned = epoch > 0 and distributed.rank() == distributed.processes() - 1
        return {"ce": ce, "poison": ce * math.nan if poisoned else ce}


class Noisy(CrossEntropy):
    """Cross-entropy of logits with noise of its own in every process, as dropout would make it."""

    def forward(self, student, teacher, labels, *, epoch=0.0, indices=None) -> dict[str, Tensor]:
        return {"ce": self.cross_entropy(student.logits + torch.randn_like(student.logits), labels)}


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
    for name, spec in CASES.items():
        result["cases"][name] = train(folder, spec)
    for name in HEAD_FIRST:
        how = {"epochs": 2, "freeze_epochs": 1, "pretrained": True, "recipe": "cifar"}
        result["cases"][f"{name} head first"] = train(folder, CASES[name], **how)
    for name in MIXED:
        result["cases"][f"{name} mixed"] = train(folder, CASES[name], mixup=0.4)
    for name in UNLABELLED:
        how = {"unlabelled": 11, "unlabelled_fraction": 0.4, "mixup": 0.4 if name in MIXED else 0.0}
        result["cases"][f"{name} unlabelled"] = train(folder, CASES[name], **how)
    for balance, some in BALANCED.items():
        for name in some:
            result["cases"][f"{name} {balance}"] = train(folder, CASES[name], balance=balance)
    try:
        train(folder, DistillationSpec("ce"), loss=PoisonedElsewhere(None, None))
    except GkdError as error:
        result["poisoned"] = str(error)
    noisy = {"loss": Noisy(None, None), "frozen": False, "epochs": 2}
    result["uninterrupted"] = train(folder, DistillationSpec("ce"), **noisy)
    try:
        train(folder, DistillationSpec("ce"), **noisy, weight=weight_until(1.5))
    except Interrupted:
        distributed.wait_for_all()
        result["resumed"] = train(folder, DistillationSpec("ce"), **noisy)
    return result


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    with distributed.joined("cpu"):
        torch.save(everything(folder), folder / f"result-{os.environ.get('RANK', '0')}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
