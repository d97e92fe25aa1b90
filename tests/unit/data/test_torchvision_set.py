"""torchvision's sets by name, offline: its FakeData, and MNIST from raw files written here."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from gkd_core.data.prepare import write_prepared
from gkd_core.data.prepared import PreparedData
from gkd_core.data.sources import open_source
from gkd_core.data.sources.torchvision_set import known_sets
from gkd_core.errors import GkdError


def write_mnist(root: Path, name: str = "MNIST", count: int = 100) -> dict[str, np.ndarray]:
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    images = {}
    for seed, (prefix, n) in enumerate((("train", count), ("t10k", 20))):
        images[prefix] = np.random.default_rng(seed).integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = (np.arange(n) % 10).astype(np.uint8)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(
            struct.pack(">4i", 2051, n, 28, 28) + images[prefix].tobytes()
        )
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, n) + labels.tobytes())
    return images


@pytest.mark.parametrize(("name", "flip"), [("MNIST", False), ("FashionMNIST", True)])
def test_a_set_with_a_train_argument(name: str, flip: bool, tmp_path: Path) -> None:
    images = write_mnist(tmp_path, name)
    source = open_source(f"torchvision:{name}", tmp_path)
    assert (source.image_size, source.channels, source.flip) == (28, 1, flip)
    assert source.classes == tuple(getattr(datasets, name).classes)
    assert set(source.splits) == {"train", "test"}
    assert source.splits["train"].labels.tolist() == [i % 10 for i in range(100)]
    assert np.array_equal(source.splits["train"].read(7)[:, :, 0], images["train"][7])
    assert np.array_equal(source.splits["test"].read(19)[:, :, 0], images["t10k"][19])
    (tmp_path / "out").mkdir()
    info = write_prepared(source, tmp_path / "out")
    assert info.counts == {"train": 90, "validation": 10, "test": 20}
    assert info.augment == {"crop_padding": 3, "flip": flip}
    assert info.source == f"torchvision:{name}"
    assert np.array_equal(PreparedData.open(tmp_path / "out").test.images[:, :, :, 0], images["t10k"])


def test_a_set_without_splits_and_with_arguments(tmp_path: Path) -> None:
    source = open_source("torchvision:FakeData?size=30&num_classes=3", tmp_path, image_size=8)
    assert source.classes == ("0", "1", "2")
    assert (source.image_size, source.channels) == (8, 3)
    assert set(source.splits) == {"train"}
    theirs = datasets.FakeData(size=30, num_classes=3)
    assert source.splits["train"].labels.tolist() == [theirs[i][1] for i in range(30)]
    info = write_prepared(source, tmp_path)
    assert info.counts == {"train": 21, "validation": 3, "test": 6}


def fake(splits: dict[str, list[int | None]], classes: list[Any] | None = None, **attributes: Any) -> type:
    """A set of the kind torchvision has, with a `split` argument; an image's grey value is its position."""

    class Fake(datasets.VisionDataset):
        def __init__(
            self, root: str, split: str = "train", target_transform: Callable[[Any], Any] | None = None
        ) -> None:
            datasets.utils.verify_str_arg(split, "split", splits)
            self.found = splits[split]
            if classes is not None:
                self.classes = classes
            for name, value in attributes.items():
                setattr(self, name, value)

        def __len__(self) -> int:
            return len(self.found)

        def __getitem__(self, index: int) -> tuple[Any, Any]:
            return Image.new("L", (9 + index % 2, 9), index), self.found[index]

    return Fake


def use(monkeypatch: pytest.MonkeyPatch, kind: type) -> None:
    monkeypatch.setattr(datasets, "Fake", kind, raising=False)
    monkeypatch.setattr(datasets, "__all__", (*datasets.__all__, "Fake"))


LABELS: list[int | None] = [0, 1, 2] * 20
FEW: list[int | None] = [2, 1, 0]


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        ({"train": LABELS, "test": FEW}, {"train": 60, "test": 3}),
        ({"train": LABELS, "val": [0, 1, 2, 0], "test": FEW}, {"train": 60, "validation": 4, "test": 3}),
        ({"train": LABELS, "valid": [0, 1, 2, 0], "test": FEW}, {"train": 60, "validation": 4, "test": 3}),
        ({"train": LABELS, "val": FEW}, {"train": 60, "test": 3}),
        ({"trainval": LABELS, "test": FEW}, {"train": 60, "test": 3}),
        ({"train-standard": LABELS, "val": FEW}, {"train": 60, "test": 3}),
        ({"train": LABELS, "val": [0, 1, 2, 0], "test": [None, None]}, {"train": 60, "test": 4}),
        ({"train": LABELS, "test": [None, None]}, {"train": 60}),
    ],
)
def test_the_words_a_set_has_for_its_splits(
    splits: dict[str, list[int | None]], expected: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, fake(splits))
    source = open_source("torchvision:Fake", tmp_path)
    assert {name: len(examples.labels) for name, examples in source.splits.items()} == expected
    assert (source.image_size, source.channels) == (64, 1)  # 9 or 10 pixels wide: no size of its own


def test_names_of_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["N/A", ("crane", "bird"), "crane", "crane", "never"]
    use(monkeypatch, fake({"train": [1, 2, 3] * 5, "test": [3, 1]}, names))
    source = open_source("torchvision:Fake", tmp_path)
    assert source.classes == ("crane, bird", "crane (2)", "crane (3)")
    assert source.splits["train"].labels.tolist() == [0, 1, 2] * 5
    assert source.splits["test"].labels.tolist() == [2, 0]
    assert source.splits["test"].read(0)[0, 0].tolist() == [0]
    use(monkeypatch, fake({"train": [3, 5] * 5}))
    assert open_source("torchvision:Fake", tmp_path).classes == ("3", "5")


def refused(source: str, root: Path) -> str:
    with pytest.raises(GkdError) as error:
        write_prepared(open_source(source, root), root)
    return str(error.value)


def test_what_is_not_a_classification_set_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, fake({"train": [None, None]}))
    assert "has no class for each training image: it is not a classification set" in refused(
        "torchvision:Fake", tmp_path
    )
    use(monkeypatch, fake({"train": LABELS, "test": [0, 7]}))
    assert "class 7 is in the test split of torchvision:Fake but not in its training split" in refused(
        "torchvision:Fake", tmp_path
    )
    use(monkeypatch, fake({"train": LABELS}, targets=LABELS[::-1]))
    assert refused("torchvision:Fake", tmp_path) == ("torchvision:Fake gives class 0 for image 3 and keeps 2 for it")


def test_a_name_or_an_argument_that_is_wrong(tmp_path: Path) -> None:
    assert "'FashonMNIST' is unknown; did you mean 'FashionMNIST'?" in refused("torchvision:FashonMNIST", tmp_path)
    assert "'CocoDetection' is unknown" in refused("torchvision:CocoDetection", tmp_path)
    assert "argument 'sizes' is unknown; did you mean 'size'?" in refused("torchvision:FakeData?sizes=3", tmp_path)
    assert refused("torchvision:EMNIST", tmp_path) == (
        "torchvision:EMNIST needs split: write it as torchvision:EMNIST?split=…"
    )


def test_a_set_that_cannot_be_had_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(datasets.MNIST, "mirrors", ["http://127.0.0.1:1/"])
    message = refused("torchvision:MNIST", tmp_path)
    assert message.startswith(f"torchvision:MNIST cannot be opened in {tmp_path} (")
    assert "check the network, or put the set there" in message
    assert capsys.readouterr().out == ""


def test_the_known_sets() -> None:
    known = known_sets()
    for name in ("MNIST", "SVHN", "STL10", "Food101", "OxfordIIITPet", "EuroSAT", "ImageNet", "GTSRB", "FakeData"):
        assert name in known
    for name in ("VOCDetection", "CocoCaptions", "Kinetics", "KittiFlow", "CelebA", "ImageFolder"):
        assert name not in known
