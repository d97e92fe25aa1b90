"""Images in an archive are those of the folder it was made of; nothing stays behind, and nothing leads outside."""

import gc
import io
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gkd_core.config import parse_params
from gkd_core.data.load import load_data
from gkd_core.data.prepared import PreparedData
from gkd_core.data.sources import archive, files_of, open_source
from gkd_core.errors import GkdError


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """photos/cat and photos/dog with 20 pictures each."""
    for number in range(40):
        file = tmp_path / "photos" / ("cat", "dog")[number % 2] / f"{number:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), number * 6).save(file)
    return tmp_path / "photos"


def zipped(photos: Path, inside: str) -> Path:
    with zipfile.ZipFile(photos.parent / "photos.zip", "w") as packed:
        for file in photos.rglob("*.png"):
            packed.write(file, f"{inside}{file.relative_to(photos)}")
            packed.writestr(f"__MACOSX/{inside}{file.relative_to(photos)}", b"")
    return photos.parent / "photos.zip"


def tarred(photos: Path, inside: str) -> Path:
    with tarfile.open(photos.parent / "photos.tgz", "w:gz") as packed:
        packed.add(photos, inside or ".")
    return photos.parent / "photos.tgz"


@pytest.mark.parametrize("inside", ["", "photos/"])
@pytest.mark.parametrize("pack", [zipped, tarred])
def test_an_archive_gives_what_its_folder_gives(
    photos: Path, temporary: Path, tmp_path: Path, pack: Callable[[Path, str], Path], inside: str
) -> None:
    from components import prepare

    packed = pack(photos, inside)
    before = packed.read_bytes()
    for name, root in (("folder", photos), ("archive", packed)):
        params = parse_params({"data": {"source": "folder", "root": str(root), "image_size": 8}})
        prepare.run(out=tmp_path / name, params=params)
    folder, unpacked = PreparedData.open(tmp_path / "folder").info, PreparedData.open(tmp_path / "archive").info
    assert folder == unpacked.model_copy(update={"left_out": folder.left_out})
    assert bool(unpacked.left_out) == (pack is zipped), "what macOS put beside the folder is told of"
    gc.collect()
    assert list(temporary.iterdir()) == []
    assert packed.read_bytes() == before


def test_an_archive_in_a_notebook_and_groups_by_file_name(photos: Path, temporary: Path) -> None:
    packed = zipped(photos, "photos/")
    data = load_data(
        packed, image_size=8, channels=1, group=r"(?P<group>\d)\d\.png", validation_fraction=0.25, test_fraction=0.25
    )
    of_split = {
        name: {int(grey) // 60 for grey in np.unique(data.split(name).images)}
        for name in ("train", "validation", "test")
    }
    assert sorted(group for groups in of_split.values() for group in groups) == [0, 1, 2, 3]
    del data
    gc.collect()
    assert list(temporary.iterdir()) == []
    with pytest.raises(GkdError, match=r"group frame_\(\\d\+\) is found in no file"):
        load_data(packed, group=r"frame_(\d+)")
    with pytest.raises(GkdError, match=r"group \( is no regular expression"):
        load_data(packed, group="(")


def test_what_lies_in_an_archive_or_a_folder_says_which_source_it_is(photos: Path, tmp_path: Path) -> None:
    rows = "".join(f"{file.relative_to(tmp_path)},{file.parent.name}\n" for file in sorted(photos.rglob("*.png")))
    (tmp_path / "list.csv").write_text("path,label\n" + rows)
    with tarfile.open(tmp_path / "listed.tar", "w") as packed:
        packed.add(tmp_path / "list.csv", "set/list.csv")
        packed.add(photos, "set/photos")
    assert archive.top_level(tmp_path / "listed.tar") == ({"photos"}, {"list.csv"})
    for pack in (zipped, tarred):
        assert archive.top_level(pack(photos, "photos/")) == ({"cat", "dog"}, set())
        assert files_of(pack(photos, "")) == "folder"
    assert files_of(tmp_path / "listed.tar") == "list"
    assert load_data(tmp_path / "listed.tar").classes == ("cat", "dog")
    (photos / "notes.csv").write_text("name,colour\n")
    assert files_of(photos) == "folder"
    with zipfile.ZipFile(tmp_path / "saved.zip", "w") as packed_zip:
        packed_zip.writestr("set/dataset_info.json", "{}")
        packed_zip.writestr("set/data.arrow", "")
    assert files_of(tmp_path / "saved.zip") == "huggingface"
    (tmp_path / "damaged.zip").write_bytes((tmp_path / "saved.zip").read_bytes()[:50])
    for name in ("damaged.zip", "nowhere", "nowhere.zip"):
        assert files_of(tmp_path / name) == "folder"
    assert files_of("s3://bucket/set.zip") == "folder"
    assert files_of("https://example.org/list.csv?signature=x") == "list"


def test_what_lies_beside_the_folder_of_an_archive_is_accounted_for(photos: Path) -> None:
    source = open_source("folder", zipped(photos, "photos/"))
    left = {each.name for each in source.left_out}
    assert len(left) == 40
    assert all(name.startswith("__MACOSX/photos/") for name in left)


def test_a_list_in_an_archive_names_its_own_images_only(photos: Path, tmp_path: Path, temporary: Path) -> None:
    packed = zipped(photos, "set/")
    names = [file.relative_to(photos).as_posix() for file in sorted(photos.rglob("*.png"))]
    table = "path,label\n" + "".join(f"{name},{name[:3]}\n" for name in names)
    with zipfile.ZipFile(packed, "a") as more:
        more.writestr("set/labels.csv", table)
    source = open_source("list", packed, 8, 1)
    assert source.splits["train"].read(3).shape == (8, 8, 1)
    outside = tmp_path / "outside.zip"
    with zipfile.ZipFile(outside, "w") as more:
        more.writestr("set/labels.csv", f"path,label\n{photos}/cat/00.png,cat\n../x.png,dog\n")
    with pytest.raises(
        GkdError, match=r"2 of 2 rows of data\.root .*outside\.zip/labels\.csv .*leads outside the folder"
    ) as error:
        open_source("list", outside)
    assert str(temporary) not in str(error.value)


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(
    "bad",
    [
        member("../outside.png"),
        member("/outside.png"),
        member("cat/link.png", tarfile.SYMTYPE, "/etc/passwd"),
        member("cat/link.png", tarfile.LNKTYPE, "../../outside.png"),
        member("cat/device", tarfile.CHRTYPE),
        member("cat/pipe", tarfile.FIFOTYPE),
    ],
    ids=lambda bad: f"{bad.name} of type {bad.type.decode()}",
)
def test_a_tar_that_leads_outside_is_refused(tmp_path: Path, temporary: Path, bad: tarfile.TarInfo) -> None:
    with tarfile.open(tmp_path / "bad.tar", "w") as packed:
        packed.addfile(bad)
    if bad.name == "/outside.png":  # is put inside
        with pytest.raises(GkdError):
            open_source("folder", tmp_path / "bad.tar")
    else:
        with pytest.raises(GkdError, match=r"data\.root .*bad\.tar cannot be unpacked"):
            open_source("folder", tmp_path / "bad.tar")
    assert not (tmp_path / "outside.png").exists()
    gc.collect()
    assert list(temporary.iterdir()) == []


def test_a_link_in_a_zip_is_no_link(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("cat/passwd.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "links.zip", "w") as packed:
        packed.writestr(link, "/etc/passwd")
        packed.writestr("dog/a.png", b"")
    (tmp_path / "out").mkdir()
    archive.unpack(tmp_path / "links.zip", tmp_path / "out", "links.zip")
    assert not (tmp_path / "out/cat/passwd.png").is_symlink()


def test_what_grows_beyond_measure_or_the_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "zeros.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("cat/a.png", bytes(1 << 20))
    monkeypatch.setattr(archive, "ROOM", 0)
    with pytest.raises(GkdError, match="far more than data of its size"):
        open_source("folder", tmp_path / "zeros.zip")
    monkeypatch.setattr(archive, "ROOM", 1 << 30)
    monkeypatch.setattr(archive.shutil, "disk_usage", lambda place: type("Usage", (), {"free": 1000}))
    with pytest.raises(GkdError, match=r"needs 0\.0 GB, and .* has 0\.0 GB left: make room, or let TMPDIR"):
        open_source("folder", tmp_path / "zeros.zip")


def test_what_is_no_archive_or_a_damaged_one_is_one_sentence(photos: Path, tmp_path: Path) -> None:
    packed = tarred(photos, "photos")
    packed.write_bytes(packed.read_bytes()[:-500])
    with pytest.raises(GkdError, match=r"data\.root .*photos\.tgz cannot be unpacked .*: pack it anew"):
        open_source("folder", packed)
    whole = zipped(photos, "").read_bytes()
    locked = bytearray(whole)
    locked[whole.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "locked.zip").write_bytes(locked)
    with pytest.raises(GkdError, match="locked by a password"):
        open_source("folder", tmp_path / "locked.zip")
    (tmp_path / "photos.rar").write_bytes(b"Rar!\x1a\x07\x01\x00")
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])  # where the files of a zip begin stands at its end
    for name in ("photos.rar", "cut.zip"):
        with pytest.raises(GkdError, match=r"nor an archive that can be read .* it is damaged, cut short or of"):
            open_source("folder", tmp_path / name)
    (tmp_path / "list.csv").write_text("path,label\n")
    with pytest.raises(GkdError, match=r"set data\.source to list"):
        open_source("folder", tmp_path / "list.csv")
    with zipfile.ZipFile(tmp_path / "one.zip", "w") as one:
        stream = io.BytesIO()
        Image.new("L", (8, 8)).save(stream, "png")
        one.writestr("set/cat/a.png", stream.getvalue())
    with pytest.raises(GkdError, match=r"one\.zip has no images in folders of classes"):
        open_source("folder", tmp_path / "one.zip")
