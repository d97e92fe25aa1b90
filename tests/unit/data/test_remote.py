"""Images behind addresses, from a server of S3's protocol and a web server: fetched, swept away, no secret told."""

import csv
import functools
import gc
import http.server
import io
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import boto3
import pytest
from moto.server import ThreadedMotoServer
from PIL import Image

from components.model_source import load_model
from gkd_core.config import parse_params
from gkd_core.data.load import load_data
from gkd_core.data.prepared import PreparedData
from gkd_core.data.sources import open_source
from gkd_core.data.sources.remote import Fetcher
from gkd_core.errors import GkdError
from gkd_core.prediction import sorting
from gkd_core.prediction.entries import Entries
from gkd_core.prediction.predict import predict_to_table
from gkd_core.prediction.reading import Entry, PictureFormat, read_task
from gkd_core.prediction.sorting import Sorted

SECRET = "s3cr3tk3y"


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """photos/cat and photos/dog with 10 pictures each, a list of them, and an archive of all."""
    root = tmp_path_factory.mktemp("remote") / "photos"
    lines = ["file,label"]
    for number in range(20):
        name = f"{('cat', 'dog')[number % 2]}/no. {number:02d} #1.png"
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), number * 12).save(root / name)
        lines.append(f"{name},{name[:3]}")
    with zipfile.ZipFile(root.parent / "photos.zip", "w") as packed:
        for file in root.rglob("*.png"):
            packed.write(file, file.relative_to(root.parent))
    (root / "list.csv").write_text("\n".join(lines) + "\n")
    (root / "broken.csv").write_text("\n".join([*lines, "cat/none.png,cat", f"{root}/cat/x.png,cat"]) + "\n")
    (root / "gone.csv").write_text("\n".join([*lines, "cat/none.png,cat"]) + "\n")
    return root


@pytest.fixture(scope="module")
def s3(photos: Path) -> Iterator[str]:
    """Address of an S3 server with everything in the bucket `pictures`; the environment has its credentials."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "somebody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        client = boto3.client("s3")
        client.create_bucket(Bucket="pictures")
        client.put_object(Bucket="pictures", Key="photos/", Body=b"")  # as consoles make folders
        for file in photos.parent.rglob("*"):
            if file.is_file():
                client.upload_file(str(file), "pictures", file.relative_to(photos.parent).as_posix())
        yield f"http://{host}:{port}"
    server.stop()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        if "private" in self.path and "X-Amz-Signature=" not in self.path:
            self.send_error(403)
        else:
            self.path = urlsplit(self.path).path.replace("/private", "")
            super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def web(photos: Path) -> Iterator[str]:
    """Address of a web server with everything; below /private/ it wants a signature."""
    handler = functools.partial(_Quiet, directory=str(photos.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def prepared(source: str, root: str, out: Path) -> PreparedData:
    from components import prepare

    prepare.run(
        out=out, params=parse_params({"data": {"source": source, "root": root, "image_size": 8, "channels": 1}})
    )
    return PreparedData.open(out)


@pytest.mark.parametrize(
    ("source", "root"),
    [
        ("folder", "s3://pictures/photos"),
        ("folder", "s3://pictures/photos/"),
        ("folder", "s3://pictures/photos.zip"),
        ("list", "s3://pictures/photos/list.csv"),
        ("folder", "{web}/photos.zip"),
        ("folder", "{web}/private/photos.zip?X-Amz-Signature=s3cr3tk3y"),
        ("list", "{web}/photos/list.csv"),
    ],
)
def test_what_lies_behind_an_address_is_what_lies_here(
    photos: Path, s3: str, web: str, temporary: Path, tmp_path: Path, source: str, root: str
) -> None:
    here = prepared(source, str(photos / "list.csv" if source == "list" else photos), tmp_path / "here")
    there = prepared(source, root.format(web=web), tmp_path / "there")
    assert there.info.sha256 == here.info.sha256
    assert SECRET not in (tmp_path / "there/dataset.json").read_text()
    assert "127.0.0.1" not in (tmp_path / "there/dataset.json").read_text()
    gc.collect()
    assert list(temporary.iterdir()) == []


def test_addresses_in_a_list_of_this_machine(photos: Path, s3: str, web: str, tmp_path: Path, temporary: Path) -> None:
    names = [file.relative_to(photos).as_posix() for file in sorted(photos.rglob("*.png"))]
    lines = [f"s3://pictures/photos/{name},{name[:3]}" for name in names[::2]]
    lines += [f"{photos}/{name},{name[:3]}" for name in names[1::2]]
    lines += [f"{web}/private/photos/{names[0].replace(' ', '%20').replace('#', '%23')}?X-Amz-Signature={SECRET},cat"]
    (tmp_path / "mine.csv").write_text("path,label\n" + "\n".join(lines))
    source = open_source("list", tmp_path / "mine.csv", 8, 1)
    train = source.splits["train"]
    greys = [int(train.read(n)[0, 0, 0]) for n in range(21)]
    local = [int(Image.open(photos / name).getpixel((0, 0))) for name in [*names[::2], *names[1::2], names[0]]]  # type: ignore[arg-type]
    assert greys == local
    assert not any(SECRET in name for name in train.names)
    (tmp_path / "gone.csv").write_text(f"path,label\n{web}/photos/none.png?X-Amz-Signature={SECRET},cat\n")
    with pytest.raises(GkdError, match=r"line 2 names http://.*/photos/none\.png, which is not there") as error:
        open_source("list", tmp_path / "gone.csv")
    assert SECRET not in str(error.value)


def test_rows_of_a_list_elsewhere_that_cannot_be_are_named(s3: str, web: str) -> None:
    with pytest.raises(GkdError, match=r"line 23 names .*/cat/x\.png, which leads outside the folder of the list"):
        open_source("list", f"{web}/photos/broken.csv")
    with pytest.raises(
        GkdError, match=r"1 of 21 rows of data\.root s3://pictures/photos/gone\.csv .*line 22 names cat/none\.png"
    ):
        open_source("list", "s3://pictures/photos/gone.csv")


def test_a_notebook_takes_an_address(s3: str, web: str) -> None:
    assert len(load_data("s3://pictures/photos/list.csv", image_size=8).train) == 14
    assert load_data(f"{web}/photos.zip", image_size=8).classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("root", "words"),
    [
        ("s3://pictures/none/", "data.root s3://pictures/none/ is not there, or holds no files: check the address"),
        ("s3://nobody/photos/", "data.root s3://nobody/photos/ is not there"),
        ("{web}/none.zip", "none.zip is not there"),
        ("{web}/private/photos.zip", "private/photos.zip refuses access"),
        ("{web}/photos/list.csv", "list.csv is not a folder, nor an archive that can be read"),
        ("http://127.0.0.1:9/photos.zip", "data.root http://127.0.0.1:9/photos.zip is not reachable"),
        (
            "http://me:s3cr3tk3y@127.0.0.1:9/photos.zip?sig=s3cr3tk3y",
            "data.root http://me:***@127.0.0.1:9/photos.zip is",
        ),
        ("nonsense://pictures", "has a protocol that is not known"),
    ],
)
def test_an_address_that_gives_nothing_is_one_sentence(
    s3: str, web: str, temporary: Path, root: str, words: str
) -> None:
    with pytest.raises(GkdError) as error:
        open_source("folder", root.format(web=web))
    assert words in str(error.value)
    assert SECRET not in str(error.value)
    gc.collect()
    assert list(temporary.iterdir()) == []


def test_s3_without_credentials_or_with_the_wrong_ones(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(GkdError, match=r"s3://pictures/photos refuses access .*AWS_ACCESS_KEY_ID"):
        open_source("folder", "s3://pictures/photos")


def test_s3_that_is_not_reachable(monkeypatch: pytest.MonkeyPatch, s3: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(GkdError, match="s3://pictures/photos is not reachable"):
        open_source("folder", "s3://pictures/photos")


@pytest.mark.parametrize(
    ("root", "module", "package"),
    [
        ("gs://pictures/photos", "gcsfs", "gcsfs"),
        ("https://x/y.zip", "aiohttp", "aiohttp"),
    ],
)
def test_a_package_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, root: str, module: str, package: str
) -> None:
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(GkdError, match=f"data.root {root} needs the package {package}: pip install {package}"):
        open_source("folder", root)


def test_without_fsspec_both_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "fsspec", None)
    for ask in (lambda: Entries(["s3://pictures/photos"]), lambda: open_source("folder", "s3://pictures/photos")):
        with pytest.raises(GkdError, match=r"s3://pictures/photos needs the package s3fs: pip install fsspec s3fs"):
            ask()


def test_any_other_protocol_of_fsspec(photos: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(photos), "/bucket/photos", recursive=True)
    assert len(open_source("folder", "memory://bucket/photos").splits["train"].labels) == 20


def test_a_key_that_leads_outside_is_refused(s3: str, temporary: Path) -> None:
    client = boto3.client("s3")
    stream = io.BytesIO()
    Image.new("L", (8, 8)).save(stream, "png")
    client.create_bucket(Bucket="bad")
    client.put_object(Bucket="bad", Key="set/../../../out.png", Body=stream.getvalue())
    with pytest.raises(GkdError, match=r"s3://bad/set holds '\.\./\.\./\.\./out\.png', which would land outside"):
        open_source("folder", "s3://bad/set")


def test_what_is_predicted_of_may_lie_behind_addresses(photos: Path, s3: str, web: str, temporary: Path) -> None:
    """Each picture is fetched when it is read; one that is not there costs its row, a server that is away the run."""
    names = [file.relative_to(photos).as_posix() for file in sorted(photos.rglob("*.png"))]
    quoted = names[0].replace(" ", "%20").replace("#", "%23")
    signed = f"{web}/private/photos/{quoted}?X-Amz-Signature={SECRET}"
    entries = Entries(["s3://pictures/photos/", signed, f"{web}/photos/gone.csv"])
    found = list(entries.since(0))
    assert (entries.count, entries.addresses, entries.left_out) == (42, 42, 3)  # the lists below the prefix
    assert [entry.name for entry in found[:20]] == [f"s3://pictures/photos/{name}" for name in names]
    assert found[20].name == signed.partition("?")[0]
    listed = [f"{('cat', 'dog')[n % 2]}/no. {n:02d} #1.png" for n in range(20)]
    assert [entry.name for entry in found[21:]] == [*listed, "cat/none.png"]
    read = read_task(found, PictureFormat(8, 1, "center"))
    assert read[-1] == "it does not exist"
    greys = [int(picture[0, 0, 0]) for picture in read[:-1] if not isinstance(picture, str)]
    local = [int(Image.open(photos / name).getpixel((0, 0))) for name in [*names, names[0], *listed]]  # type: ignore[arg-type]
    assert greys == local
    assert list(temporary.iterdir()) == []
    with pytest.raises(GkdError, match=r"IMAGES http://127\.0\.0\.1:9/x\.png is not reachable"):
        read_task([Entry("x", "address", "http://127.0.0.1:9/x.png")], PictureFormat(8, 1, "center"))
    with pytest.raises(GkdError, match=r"IMAGES s3://pictures/none/ is not there"):
        Entries(["s3://pictures/none/"])


def test_what_lies_behind_addresses_is_sorted_as_copies(
    photos: Path, s3: str, web: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_deploy: Callable[..., Path]
) -> None:
    model = load_model(str(make_deploy(tmp_path / "deploy", seed=4, side=8, channels=1, count=4)))
    file = sorted(photos.rglob("*.png"))[0]
    quoted = file.relative_to(photos).as_posix().replace(" ", "%20").replace("#", "%23")
    signed = f"{web}/private/photos/{quoted}?X-Amz-Signature={SECRET}"
    places, out, into = ["s3://pictures/photos/", signed, signed, str(file)], tmp_path / "out.csv", tmp_path / "sorted"
    with pytest.raises(GkdError, match="--sort-into makes links, and none leads to an address: give --copy"):
        predict_to_table(model, places, out, processes=1, sort_into=into)
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("deploy", "temporary")] == []

    monkeypatch.setattr(sorting, "TOGETHER", 5)
    with monkeypatch.context() as patch:  # stopped while the second five are fetched
        fetch, calls = Fetcher.fetch, []

        def stop(self: Fetcher, wanted: dict[str, Path]) -> list[str]:
            calls.append(len(wanted))
            if len(calls) == 2:
                next(iter(wanted.values())).write_bytes(b"half")
                raise KeyboardInterrupt
            return fetch(self, wanted)

        patch.setattr(Fetcher, "fetch", stop)
        with pytest.raises(KeyboardInterrupt):
            predict_to_table(model, places, out, processes=1, sort_into=into, copy=True)
    assert not into.exists()
    assert not out.exists()
    said = predict_to_table(model, places, out, processes=1, sort_into=into, copy=True)
    assert (said["pictures"], said["resumed_from"], said["left_out"]) == (23, 23, 3)

    with out.open(newline="") as stream:
        classes = {row["path"]: row["class"] for row in csv.DictReader(stream)}
    expected = {}
    for picture in photos.rglob("*.png"):
        name = picture.relative_to(photos).as_posix()
        expected[f"{classes[f's3://pictures/photos/{name}']}/{picture.name}"] = picture.read_bytes()
    for name in ("{0}", "{0} (2)"):
        expected[f"{classes[str(file)]}/{name.format(Path(quoted).stem)}.png"] = file.read_bytes()
    expected[f"{classes[str(file)]}/{file.stem} (2).png"] = file.read_bytes()
    assert {str(p.relative_to(into)): p.read_bytes() for p in into.rglob("*") if p.is_file()} == expected
    assert sorted(path.name for path in into.iterdir()) == sorted({name.partition("/")[0] for name in expected})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deploy", "out.csv", "sorted", "temporary"]


def test_a_picture_that_went_away_before_it_was_sorted_is_named(s3: str, tmp_path: Path) -> None:
    into = Sorted(tmp_path / "sorted", ["cat"], key="k", sources=[], copy=True)
    into.begin()
    into.add_address("s3://pictures/photos/none.png", "cat")
    with pytest.raises(GkdError, match=r"--sort-into: s3://pictures/photos/none\.png went away .*: run the same again"):
        into.fetch()
    assert not (tmp_path / "sorted").exists()
