"""CIFAR from small files of the published form, which torchvision opens when their md5 is the published one."""

import hashlib
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from torchvision import datasets

from gkd_core.data.prepare import write_prepared
from gkd_core.data.sources import open_source
from gkd_core.errors import GkdError

SETS = {
    "cifar10": (datasets.CIFAR10, "labels", "label_names"),
    "cifar100": (datasets.CIFAR100, "fine_labels", "fine_label_names"),
}
LABELS = [i % 10 for i in range(40)]


def rows(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (40, 3072), dtype=np.uint8)


def publish(monkeypatch: pytest.MonkeyPatch, name: str) -> dict[str, bytes]:
    """Small files by their names, which torchvision from now on takes for the published ones."""
    kind, labels, names = SETS[name]
    parts = [[file for file, _ in part] for part in (kind.train_list, kind.test_list)]
    every = enumerate([*parts[0], *parts[1]])
    files = {file: pickle.dumps({labels: LABELS, "data": rows(seed)}, protocol=2) for seed, file in every}
    md5 = {file: hashlib.md5(content).hexdigest() for file, content in files.items()}
    for attribute, part in zip(("train_list", "test_list"), parts, strict=True):
        monkeypatch.setattr(kind, attribute, [[file, md5[file]] for file in part])
    meta = pickle.dumps({names: [f"class {i}" for i in range(10)]}, protocol=2)
    file = kind.meta["filename"]
    monkeypatch.setattr(kind, "meta", {"filename": file, "key": names, "md5": hashlib.md5(meta).hexdigest()})
    return {f"{kind.base_folder}/{file}": content for file, content in {**files, file: meta}.items()}


def unpack(root: Path, files: dict[str, bytes]) -> None:
    for file, content in files.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(content)


@pytest.mark.parametrize("name", SETS)
def test_images_labels_and_names_are_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unpack(tmp_path, publish(monkeypatch, name))
    source = open_source(name, tmp_path)
    assert (source.name, source.image_size, source.channels, source.flip) == (name, 32, 3, True)
    assert source.classes == tuple(f"class {i}" for i in range(10))
    batches = len(SETS[name][0].train_list)
    for split, seeds in (("train", range(batches)), ("test", [batches])):
        raw = np.concatenate([rows(seed) for seed in seeds])
        examples = source.splits[split]  # type: ignore[index]
        assert examples.labels.tolist() == LABELS * (len(raw) // 40)
        for i in (0, 1, len(raw) - 1):
            red_green_blue = raw[i].reshape(3, 32, 32)  # as the authors' page says
            assert np.array_equal(examples.read(i), np.dstack(list(red_green_blue)))


def test_an_archive_gives_the_same_data_as_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = publish(monkeypatch, "cifar10")
    unpack(tmp_path / "a", files)
    (tmp_path / "b").mkdir()
    with tarfile.open(tmp_path / "b" / "cifar-10-python.tar.gz", mode="w:gz") as members:
        for file, content in files.items():
            member = tarfile.TarInfo(file)
            member.size = len(content)
            members.addfile(member, io.BytesIO(content))
    packed = (tmp_path / "b" / "cifar-10-python.tar.gz").read_bytes()
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", hashlib.md5(packed).hexdigest())
    infos = []
    for place in ("a", "b"):
        (tmp_path / place / "out").mkdir()
        infos.append(write_prepared(open_source("cifar10", tmp_path / place), tmp_path / place / "out"))
    assert infos[0] == infos[1]
    assert infos[0].counts == {"train": 180, "validation": 20, "test": 40}
    assert infos[0].augment == {"crop_padding": 4, "flip": True}


def test_a_changed_file_is_not_opened_and_without_network_it_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = publish(monkeypatch, "cifar10")
    unpack(tmp_path, files)
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"changed")
    monkeypatch.setattr(datasets.CIFAR10, "url", "http://127.0.0.1:1/cifar-10-python.tar.gz")  # nothing listens there
    with pytest.raises(GkdError) as error:
        open_source("cifar10", tmp_path)
    assert all(part in str(error.value) for part in ("cifar10", str(tmp_path), "data.root"))


def test_without_a_root_the_cache_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    unpack(tmp_path / "gkd", publish(monkeypatch, "cifar10"))
    assert len(open_source("cifar10").splits["train"].labels) == 200
