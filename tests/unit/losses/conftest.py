"""Networks small enough to reason about, and batches that have gone through them."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from gkd_core.models.classifier import Classifier, Output
from gkd_core.models.network import Network, NetworkSpec

CLASSES = ("a", "b", "c", "d")


class Pooled(Classifier):
    """One convolution, global average pooling, one linear layer."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, channels, 3, stride=stride, padding=1)
        self.linear = nn.Linear(channels, len(CLASSES))

    def forward(self, images: Tensor) -> Output:
        stage = self.convolution(images).relu()
        return Output(self.head(stage), (stage,), stage.mean((2, 3)))

    def head(self, last_stage: Tensor) -> Tensor:
        return self.linear(last_stage.mean((2, 3)))

    @property
    def pooled_linear(self) -> nn.Linear | None:
        return self.linear


class Flattened(Pooled):
    """A head that keeps positions, is not linear and drops units, as VGG's does; it begins with an in-place step."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__(channels, stride)
        cells = (4 // stride) ** 2
        self.top = nn.Sequential(
            nn.LeakyReLU(0.1, inplace=True),
            nn.Flatten(),
            nn.Linear(channels * cells, 6),
            nn.Tanh(),
            nn.Dropout(0.5),
            nn.Linear(6, len(CLASSES)),
        )

    def head(self, last_stage: Tensor) -> Tensor:
        return self.top(last_stage)

    def forward(self, images: Tensor) -> Output:
        stage = self.convolution(images)
        return Output(self.head(stage.clone()), (stage,), stage.mean((2, 3)))

    @property
    def pooled_linear(self) -> nn.Linear | None:
        return None


class NoMaps(Pooled):
    """A network without feature maps, as a vision transformer is."""

    def forward(self, images: Tensor) -> Output:
        return super().forward(images)._replace(stages=())


class Tiny(Network):
    """A `Network` around one of the classifiers above, for 3 × 4 × 4 images."""

    def __init__(self, classifier: Classifier, name: str) -> None:
        nn.Module.__init__(self)
        self.spec = NetworkSpec(name, "auto", CLASSES, 3, 4, (0.5,) * 3, (0.25,) * 3)
        self.classifier = classifier
        self.register_buffer("mean", torch.tensor(self.spec.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(self.spec.std).view(1, -1, 1, 1), persistent=False)
        self.select_classes(None)


class Pair(NamedTuple):
    """What a loss is built from."""

    student: Network
    teacher: Network | None


class Batch(NamedTuple):
    """What a loss is called with."""

    student: Output
    teacher: Output | None
    labels: Tensor


KINDS = {"pooled": Pooled, "flattened": Flattened, "no-maps": NoMaps}


@pytest.fixture
def make_network() -> Callable[..., Network]:
    """kind, channels, stride (grid 4 // stride), seed → network in train mode."""

    def make(kind: str = "pooled", *, channels: int = 5, stride: int = 1, seed: int = 0) -> Network:
        torch.manual_seed(seed)
        return Tiny(KINDS[kind](channels, stride), kind)

    return make


@pytest.fixture
def make_staged() -> Callable[..., Network]:
    """name, seed → a real network with several stages, for images resized to 8 × 8, in train mode."""

    def make(name: str = "resnet8", *, seed: int = 0) -> Network:
        torch.manual_seed(seed)
        return Network(NetworkSpec(name, "auto", CLASSES, 3, 8, (0.5,) * 3, (0.25,) * 3))

    return make


@pytest.fixture
def make_pair() -> Callable[..., Pair]:
    """student, teacher → the pair; the teacher is frozen as whoever trains freezes it."""

    def make(student: Network, teacher: Network | None) -> Pair:
        if teacher is not None:
            teacher.eval().requires_grad_(False)
        return Pair(student, teacher)

    return make


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    """pair, batch size → what a loss is called with: `loss(*batch)`."""

    def make(pair: Pair, size: int = 6, *, seed: int = 1) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        reference = pair.student.mean
        images = torch.rand(size, 3, 4, 4, generator=generator).to(reference)
        labels = torch.randint(len(CLASSES), (size,), generator=generator).to(reference.device)
        teacher = None
        if pair.teacher is not None:
            with torch.no_grad():
                teacher = pair.teacher(images)
        return Batch(pair.student(images), teacher, labels)

    return make
