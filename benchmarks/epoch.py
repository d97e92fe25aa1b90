"""An epoch of plain KD by our trainer, by torchdistill and by a loop as tutorials write it.

All three train the same pair of networks on the same images in memory, with crop and flip, cross-entropy and soft
labels, SGD with momentum, on one thread, and do what they do by default. Theirs take pictures through `DataLoader` and
`torchvision.transforms`, in this process, so that all CPU time counts. Ours also validates on 64 images.
"""

import contextlib
import io
import logging
from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import transforms

from benchmarks.synthetic import MEAN, STD, synthetic_data, synthetic_network
from benchmarks.table import Goal, Row, Table, absent, installed
from benchmarks.timing import Candidate, in_turns, milliseconds, ratio
from gkd_core.config import TrainingConfig
from gkd_core.data.prepared import PreparedData
from gkd_core.models.network import Network
from gkd_core.schemes import DistillationSpec
from gkd_core.training.trainer import Training

ROUNDS = 3
TEACHER, STUDENT = "resnet20", "resnet8"
IMAGES, BATCH = 1024, 64
TEMPERATURE = 4.0
RATE = {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}
OURS, PLAIN, PEER = "gkd", "a tutorial's loop", "torchdistill"


class Pictures(Dataset[tuple[Tensor, int]]):
    """Train images as torchvision's CIFAR gives them: a Pillow image, transformed."""

    def __init__(self, data: PreparedData) -> None:
        self.images, self.labels = data.train.images, data.train.labels
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(data.info.image_size, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[i])), int(self.labels[i])


class Logits(nn.Module):
    """A network without its preprocessing, which the transforms do here, from images to logits."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.classifier = network.classifier

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(images).logits
        return logits


def networks() -> tuple[Network, Network]:
    """Teacher and student, the same ones every time."""
    torch.manual_seed(0)
    return synthetic_network(TEACHER), synthetic_network(STUDENT)


def ours(data: PreparedData) -> Candidate:
    """A training of one epoch, beginning to end."""
    config = TrainingConfig.model_validate(
        {"epochs": 1, "batch_size": BATCH, "device": "cpu", "learning_rate": RATE["lr"], "threads": 1}
    )

    def epoch() -> None:
        teacher, student = networks()
        with contextlib.redirect_stderr(io.StringIO()):  # its progress
            Training(student, data, config, DistillationSpec("kd"), (teacher,)).run()

    return epoch


def plain(data: PreparedData) -> Candidate:
    """The loop of a tutorial."""
    loader = DataLoader(Pictures(data), batch_size=BATCH, shuffle=True)

    def epoch() -> None:
        teacher, student = map(Logits, networks())
        optimizer = torch.optim.SGD(student.parameters(), **RATE)
        teacher.eval()
        student.train()
        running_loss = 0.0
        for images, labels in loader:
            optimizer.zero_grad()
            with torch.no_grad():
                teacher_logits = teacher(images)
            student_logits = student(images)
            soft_loss = functional.kl_div(
                functional.log_softmax(student_logits / TEMPERATURE, dim=1),
                functional.softmax(teacher_logits / TEMPERATURE, dim=1),
                reduction="batchmean",
            )
            loss = functional.cross_entropy(student_logits, labels) + TEMPERATURE**2 * soft_loss
            loss.backward()
            optimizer.step()
            running_loss += loss.item()

    return epoch


def torchdistill(data: PreparedData) -> Candidate:
    """Its box for distillation, as its examples configure and drive it."""
    logging.getLogger("torchdistill").setLevel(logging.ERROR)
    from torchdistill.core.distillation import DistillationBox

    place = {"module_path": ".", "module_io": "output"}
    roles = {f"{role}_{key}": value for role in ("student", "teacher") for key, value in place.items()}
    pictures = Pictures(data)

    def epoch() -> None:
        teacher, student = map(Logits, networks())
        train = {
            "num_epochs": 1,
            "train_data_loader": {
                "dataset_id": "train",
                "sampler": {"class_or_func": RandomSampler, "kwargs": {}},
                "kwargs": {"batch_size": BATCH},
            },
            "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
            "student": {"forward_proc": "forward_batch_only"},
            "optimizer": {"key": "SGD", "kwargs": {**RATE}},
            "criterion": {
                "key": "WeightedSumLoss",
                "kwargs": {
                    "sub_terms": {
                        "kd": {
                            "criterion": {
                                "key": "KDLoss",
                                "kwargs": {**roles, "temperature": TEMPERATURE, "alpha": 0.5},
                            },
                            "weight": 1.0,
                        }
                    }
                },
            },
        }
        box = DistillationBox(teacher, student, {"train": pictures}, train, torch.device("cpu"), None, False, 1.0)
        teacher.eval()
        box.pre_epoch_process(epoch=0)
        for images, labels, more in box.train_data_loader:
            loss = box.forward_process(images, labels, more)
            box.post_forward_process(loss=loss)
        box.post_epoch_process()

    return epoch


def measure(rounds: int = ROUNDS) -> Table:
    torch.set_num_threads(1)
    data = synthetic_data(IMAGES)
    makers: dict[str, Callable[[PreparedData], Candidate]] = {OURS: ours, PLAIN: plain}
    missing = []
    if installed("torchdistill"):
        makers[PEER] = torchdistill
    else:
        missing.append(Row((PEER, absent(PEER)), None, Goal(1.0)))
    seconds = in_turns({name: make(data) for name, make in makers.items()}, rounds)
    return Table(
        f"An epoch of plain KD, {TEACHER} → {STUDENT}, {IMAGES:,} images of 32×32, crop and flip, batches of {BATCH}, "
        f"one thread, with what it takes to begin; {rounds} turns.",
        ("who trains", "ms of CPU"),
        "gkd ÷ it",
        [
            Row((name, milliseconds(found)), ratio(seconds[OURS], found), None if name == OURS else Goal(1.0))
            for name, found in seconds.items()
        ]
        + missing,
    )
