"""CIFAR from files of the published form: Python 2 pickles, opened only when their md5 is the published one."""

import dataclasses
import functools
import hashlib
import io
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gkd_core.data.download import download
from gkd_core.data.prepare import write_prepared
from gkd_core.data.sources import cifar, open_source
from gkd_core.data.sources.cifar import PUBLISHED, Published
from gkd_core.errors import GkdError


def python2_pickle(value: Any) -> bytes:
    """Protocol 2 as Python 2 wrote it: strings are bytes, arrays are rebuilt by numpy.core.multiarray."""
    return b"\x80\x02" + _python2(value) + b"."


def _python2(value: Any) -> bytes:
    match value:
        case bytes():
            return b"T" + struct.pack("<i", len(value)) + value
        case int():
            return b"J" + struct.pack("<i", value)
        case list():
            return b"](" + b"".join(map(_python2, value)) + b"e"
        case tuple():
            return b"(" + b"".join(map(_python2, value)) + b"t"
        case dict():
            return b"}(" + b"".join(_python2(k) + _python2(v) for k, v in value.items()) + b"u"
        case np.ndarray():
            kind = (
                b"cnumpy\ndtype\n" + _python2((b"u1", 0, 1)) + b"R(" + _python2(3) + _python2(b"|") + b"NNN"
                + _python2(-1) + _python2(-1) + _python2(0) + b"tb"
            )  # fmt: skip
            rebuild = (
                b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + _python2((0,)) + _python2(b"b") + b"tR"
            )
            return (
                rebuild
                + b"("
                + _python2(1)
                + _python2(value.shape)
                + kind
                + b"I00\n"
                + _python2(value.tobytes())
                + b"t"
                + b"b"
            )
    raise TypeError(type(value))


def rows(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)


LABELS = [i % 10 for i in range(40)]
NAMES = [f"class {i}".encode() for i in range(10)]


def contents(name: str) -> dict[str, bytes]:
    """File by file what a small data set of the published form holds."""
    published = PUBLISHED[name]
    files = {
        file: python2_pickle({b"batch_label": b"training", published.labels: LABELS, b"data": rows(40, seed)})
        for seed, file in enumerate((*published.train, published.test))
    }
    return files | {published.meta: python2_pickle({published.class_names: NAMES, b"num_vis": 3072})}


def archive(name: str, files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as members:
        for file, content in files.items():
            member = tarfile.TarInfo(f"{PUBLISHED[name].folder}/{file}")
            member.size = len(content)
            members.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def publish(
    monkeypatch: pytest.MonkeyPatch, name: str, files: dict[str, bytes], packed: bytes = b"", **more: str
) -> Published:
    md5 = {file: hashlib.md5(content).hexdigest() for file, content in files.items()}
    published = dataclasses.replace(PUBLISHED[name], files=md5, md5=hashlib.md5(packed).hexdigest(), **more)
    monkeypatch.setitem(PUBLISHED, name, published)
    return published


def unpack(root: Path, name: str, files: dict[str, bytes]) -> Path:
    folder = root / PUBLISHED[name].folder
    folder.mkdir(parents=True)
    for file, content in files.items():
        (folder / file).write_bytes(content)
    return folder


def refused(root: Path, name: str = "cifar10") -> str:
    with pytest.raises(GkdError) as error:
        open_source(name, root)
    return str(error.value)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("packed", [False, True])
def test_images_labels_and_names_are_read(
    name: str, packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = contents(name)
    content = archive(name, files)
    publish(monkeypatch, name, files, content)
    if packed:
        (tmp_path / PUBLISHED[name].address.rpartition("/")[2]).write_bytes(content)
    else:
        unpack(tmp_path, name, files)
    source = open_source(name, tmp_path)
    assert (source.name, source.image_size, source.channels, source.flip) == (name, 32, 3, True)
    assert source.classes == tuple(f"class {i}" for i in range(10))
    assert set(source.splits) == {"train", "test"}
    batches = len(PUBLISHED[name].train)
    train = np.concatenate([rows(40, seed) for seed in range(batches)])
    for split, raw in (("train", train), ("test", rows(40, batches))):
        examples = source.splits[split]  # type: ignore[index]
        assert examples.labels.tolist() == LABELS * (len(raw) // 40)
        for i in (0, 1, len(raw) - 1):
            red_green_blue = raw[i].reshape(3, 32, 32)  # as the authors' page says
            assert np.array_equal(examples.read(i), np.dstack(list(red_green_blue)))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        PUBLISHED[name].address.rpartition("/")[2] if packed else PUBLISHED[name].folder
    ]


def test_the_digest_does_not_depend_on_where_it_lay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = contents("cifar10")
    content = archive("cifar10", files)
    publish(monkeypatch, "cifar10", files, content)
    unpack(tmp_path / "a", "cifar10", files)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "cifar-10-python.tar.gz").write_bytes(content)
    infos = []
    for place in ("a", "b"):
        (tmp_path / place / "out").mkdir()
        infos.append(write_prepared(open_source("cifar10", tmp_path / place), tmp_path / place / "out"))
    assert infos[0] == infos[1]
    assert infos[0].counts == {"train": 180, "validation": 20, "test": 40}
    assert infos[0].augment == {"crop_padding": 4, "flip": True}


def test_size_and_channels_can_be_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = contents("cifar10")
    publish(monkeypatch, "cifar10", files)
    unpack(tmp_path, "cifar10", files)
    assert open_source("cifar10", tmp_path, image_size=16, channels=1).splits["train"].read(0).shape == (16, 16, 1)


def test_a_changed_or_truncated_file_is_never_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = contents("cifar10")
    publish(monkeypatch, "cifar10", files)
    folder = unpack(tmp_path, "cifar10", files)
    monkeypatch.setattr(cifar._ArraysOnly, "load", lambda self: pytest.fail("it was opened"))
    monkeypatch.setitem(files, "batches.meta", files["batches.meta"][:-5])
    (folder / "batches.meta").write_bytes(files["batches.meta"])
    assert "batches.meta is truncated or not the published file (md5" in refused(tmp_path)
    (folder / "batches.meta").unlink()
    assert "batches.meta cannot be read (No such file or directory): delete" in refused(tmp_path)


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_a_truncated_archive_is_one_sentence(keep: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = contents("cifar100")
    content = archive("cifar100", files)
    publish(monkeypatch, "cifar100", files, content)
    (tmp_path / "cifar-100-python.tar.gz").write_bytes(content[:keep])
    message = refused(tmp_path, "cifar100")
    assert "cifar-100-python.tar.gz is truncated or not the published archive (md5" in message
    assert "delete it and run again" in message


def test_an_archive_with_other_content_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = contents("cifar100")
    whole = archive("cifar100", files)
    for content, sentence in (
        (archive("cifar100", {k: v for k, v in files.items() if k != "test"}), "holds no cifar-100-python/test"),
        (archive("cifar100", files | {"test": b"x"}), "holds no cifar-100-python/test as published"),
        (whole[: len(whole) // 2], "delete it and run again"),
        (b"no archive", "cannot be unpacked ("),
    ):
        publish(monkeypatch, "cifar100", files, content)
        (tmp_path / "cifar-100-python.tar.gz").write_bytes(content)
        assert sentence in refused(tmp_path, "cifar100")


class _Opened:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("it was opened",))


@pytest.mark.parametrize("value", [_Opened(), {b"fine": print}, np.dtype, Path("x"), np.empty(1, dtype=object)])
def test_the_unpickler_admits_arrays_only(value: object) -> None:
    with pytest.raises(GkdError, match="which is not part of an array"):
        cifar._load(pickle.dumps({b"a": value, b"b": _Opened()}, protocol=2))


def test_without_network_the_address_and_the_root_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Nothing listens on port 1 of this machine.
    publish(monkeypatch, "cifar10", contents("cifar10"), address="http://127.0.0.1:1/cifar-10-python.tar.gz")
    monkeypatch.setattr(cifar, "download", functools.partial(download, pause_seconds=0.0))
    message = refused(tmp_path / "new")
    assert message.startswith("http://127.0.0.1:1/cifar-10-python.tar.gz cannot be downloaded (")
    assert f"put the file into {tmp_path / 'new'} yourself" in message
    assert "data.root" in message
    assert list((tmp_path / "new").iterdir()) == []


def test_without_a_root_the_cache_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    files = contents("cifar10")
    publish(monkeypatch, "cifar10", files)
    unpack(tmp_path / "gkd", "cifar10", files)
    assert len(open_source("cifar10").splits["train"].labels) == 200


def test_the_published_sums_are_torchvisions() -> None:
    from torchvision.datasets import CIFAR10, CIFAR100

    for name, theirs in (("cifar10", CIFAR10), ("cifar100", CIFAR100)):
        ours = PUBLISHED[name]
        assert (ours.address, ours.md5, ours.folder) == (theirs.url, theirs.tgz_md5, theirs.base_folder)
        sums = dict([*theirs.train_list, *theirs.test_list, (theirs.meta["filename"], theirs.meta["md5"])])
        assert ours.files == sums
