"""A folder of pictures as people have them: prepared, trained on, predicted; the same pixels wherever they are read.

The folder is made here: every oddity of docs/photos.md is in it.
"""

import asyncio
import csv
import json
import os
import re
import runpy
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pillow_heif import register_heif_opener

from components import distill, evaluate, export, prepare, teacher
from components.model_source import FileSource, load_model
from gkd_core.config import Params, parse_params
from gkd_core.data.prepared import PreparedData
from gkd_core.data.sources import open_source
from gkd_core.export.bundle import write_bundle
from gkd_core.serving.app import Serving
from gkd_core.serving.batching import Batcher
from gkd_core.serving.classify import classify_files
from gkd_core.serving.limits import Limits
from gkd_core.serving.metrics import Metrics
from gkd_core.serving.reload import Served

pytestmark = pytest.mark.slow

SIDE = 32
PICTURES = ("palette.png", "cmyk.jpg", "cmyk.tif", "deep.png", "twelve bits.png", "large.jpg", "phone.heic", "new.avif")
ODD = (*PICTURES, *(f"turned{i}.jpg" for i in range(1, 9)))


def scene(seed: int, size: tuple[int, int] = (120, 80)) -> Image.Image:
    """Something that no turn and no mirror leaves as it is."""
    random = np.random.default_rng(seed)
    image = Image.fromarray(random.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    ImageDraw.Draw(image).rectangle((0, 0, size[0] // 3, size[1] // 4), fill=(255, 0, 0))
    return image


def odd_pictures(place: Path) -> None:
    register_heif_opener()
    palette = scene(50).quantize(16)
    palette.save(place / "palette.png", transparency=palette.getpixel((3, 3)))
    scene(51).convert("CMYK").save(place / "cmyk.jpg")
    scene(52).convert("CMYK").save(place / "cmyk.tif")
    grey = np.asarray(scene(53).convert("L")).astype(np.uint16)
    Image.fromarray(grey * 257).save(place / "deep.png")
    Image.fromarray(np.flip(grey) * 16).save(place / "twelve bits.png")
    scene(54, (1200, 800)).save(place / "large.jpg")
    scene(55).save(place / "phone.heic")
    scene(56).save(place / "new.avif")
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        scene(60 + orientation).save(place / f"turned{orientation}.jpg", exif=exif)


def make_folder(root: Path) -> set[str]:
    """The folder; the names of the pictures that cannot be decoded."""
    number = 0
    for split, count in (("Training", 10), ("VAL", 4), ("Testing", 4)):
        for name in ("caf\u00e9" if split == "Training" else "cafe\u0301", "tea"):
            place = root / split / name
            place.mkdir(parents=True)
            for i in range(count):
                number += 1
                scene(100 + number).save(place / f"{i}{('.jpg', '.JPE', '.jfif', '.png', '.webp', '.bmp')[i % 6]}")
    tea = root / "Training" / "tea"
    odd_pictures(tea)
    scene(1).save(root / "Training" / "cafe\u0301.jpg")
    (root / "Training" / "cafe\u0301").mkdir()
    scene(2).save(root / "Training" / "cafe\u0301" / "other form.jpg")
    scene(3).save(tea / "no ending", "PNG")
    scene(4).save(tea / "a webp.jpg", "WEBP")
    for name in ("clip.mov", "clip2.mov", "clip3.mov", "notes.txt", "Thumbs.db"):
        (tea / name).write_bytes(b"BM, no picture")
    scene(5).save(tea / "raw.dng", "TIFF")
    for place, name in ((tea / "@eaDir" / "0.jpg", "SYNOPHOTO_THUMB_M.jpg"), (root / "#recycle" / "tea", "0.jpg")):
        place.mkdir(parents=True)
        scene(6).save(place / name)
    (root / "Training" / "all").symlink_to(root)
    (tea / "again").symlink_to(tea)
    os.mkfifo(tea / "pipe.png")
    (tea / "cut.jpg").write_bytes((tea / "large.jpg").read_bytes()[:3000])
    (tea / "empty.png").write_bytes(b"")
    return {"Training/tea/cut.jpg", "Training/tea/empty.png"}


class Made(NamedTuple):
    root: Path
    unreadable: set[str]
    data: Path
    deploy: Path
    bundle: Path
    params: Params
    summary: dict[str, Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The folder prepared, a moment's training on it, exported, bundled."""
    place = tmp_path_factory.mktemp("photos")
    root = place / "photos"
    unreadable = make_folder(root)
    params = parse_params(
        {
            "data": {"source": "folder", "root": str(root), "image_size": SIDE, "unreadable": "drop"},
            "teacher": {"name": "resnet8", "train": {"epochs": 1, "batch_size": 16, "device": "cpu"}},
            "student": {"name": "resnet8"},
            "distill": {"method": "kd"},
            "references": {"baseline": False, "kd": False},
            "train": {"epochs": 1, "batch_size": 16, "device": "cpu"},
            "export": {"int8": {"enabled": False}},
            "evaluate": {"latency_runs": 10},
        }
    )
    at = {name: place / name for name in ("data", "teacher", "baseline", "kd", "student", "deploy", "report")}
    summary = prepare.run(out=at["data"], params=params)
    teacher.run(data=at["data"], out=at["teacher"], work=place / "work", params=params)
    common = {"data": at["data"], "teacher": at["teacher"], "work": place / "work", "params": params}
    distill.run(**common, out=at["baseline"], reference="baseline")
    distill.run(**common, out=at["kd"], reference="kd")
    distill.run(**common, out=at["student"])
    given = {name: at[name] for name in ("data", "teacher", "student")}
    export.run(**given, out=at["deploy"], params=params)
    steps = ("baseline", "kd", "deploy")
    evaluate.run(**given, **{name: at[name] for name in steps}, out=at["report"], params=params)
    inputs = {name: at[name] for name in ("data", "student", "deploy", "report")}
    write_bundle(place / "bundle", **inputs, image="gkd:0.1.0")
    return Made(root, unreadable, at["data"], at["deploy"], place / "bundle", params, summary)


def test_every_file_of_the_folder_is_accounted_for(made: Made) -> None:
    source = open_source("folder", made.root, SIDE)
    assert source.classes == ("caf\u00e9", "tea")
    used = {name for each in source.splits.values() for name in each.names} - made.unreadable
    with (made.data / "left_out.csv").open(newline="", encoding="utf-8") as stream:
        left = {row["file"]: row["reason"] for row in csv.DictReader(stream)}
    there = {path.relative_to(made.root).as_posix() for path in made.root.rglob("*") if not path.is_dir()}
    assert used | set(left) == there | {"Training/all/", "Training/tea/again/"}
    assert not used & set(left)
    assert made.unreadable < set(left)
    assert {f"Training/tea/{name}" for name in ODD} < used
    assert left["Training/tea/raw.dng"] == "camera raw: export it as JPEG"
    info = PreparedData.open(made.data).info
    assert sum(info.counts.values()) == len(used)
    assert set(info.dropped) == made.unreadable
    assert made.summary["left_out"] == info.left_out
    assert sum(sum(counts.values()) for counts in info.left_out.values()) + len(info.dropped) == len(left)
    assert info.left_out["no picture of a format that is read"] == {".mov": 3, ".txt": 1}


def test_a_picture_gives_the_same_pixels_wherever_it_is_read(
    made: Made, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, data = open_source("folder", made.root, SIDE), PreparedData.open(made.data)
    names = [name for name in source.splits["train"].names if name not in made.unreadable]
    files = {name: made.root / "Training" / "tea" / name for name in ODD}
    prepared = {name: data.train.images[names.index(f"Training/tea/{name}")] for name in ODD}

    loaded = load_model(str(made.deploy))
    for name, file in files.items():
        assert np.array_equal(
            pixels_of(loaded, monkeypatch, lambda f=file: classify_files(loaded, [f], 1)), prepared[name]
        )

    serving, served = endpoints(made.deploy / "model.onnx", monkeypatch)
    for name, file in files.items():
        seen = pixels_of(served, monkeypatch, lambda f=file: asyncio.run(classify(serving, f.read_bytes())))
        assert np.array_equal(seen, prepared[name]), name
    serving.close()

    monkeypatch.chdir(made.bundle)
    monkeypatch.syspath_prepend(made.bundle)
    blocks = re.findall(r"```python\n(.*?)```", (made.bundle / "README.md").read_text(), flags=re.DOTALL)
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr(urllib.request, "urlopen", lambda request: Answer(sent, request))
    for name, file in files.items():
        Path("image.png").unlink(missing_ok=True)
        Path("image.png").symlink_to(file)
        for block in blocks:
            Path("program.py").write_text(block)
            assert np.array_equal(runpy.run_path("program.py")["pixels"][0], prepared[name]), name
        (tensor,) = sent.pop()["inputs"]
        assert np.array_equal(np.array(tensor["data"], np.uint8).reshape(tensor["shape"])[0], prepared[name])
        assert tensor["datatype"] == "UINT8"
    assert len({image.tobytes() for image in prepared.values()}) == len(ODD)


def pixels_of(model: Any, monkeypatch: pytest.MonkeyPatch, work: Callable[[], Any]) -> np.ndarray:
    """What reaches the model while `work` is done."""
    seen: list[np.ndarray] = []
    original = type(model).from_pictures
    with monkeypatch.context() as patch:
        patch.setattr(model, "from_pictures", lambda pictures: seen.append(pictures) or original(model, pictures))
        work()
    ((picture,),) = seen
    return picture


def endpoints(model: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Serving, Any]:
    async def here(function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    metrics = Metrics()
    batcher = Batcher(max_batch=64, max_delay=0, queue=64)
    serving = Serving("tea", Served(FileSource(model), metrics, threads=1), Limits(), metrics, batcher)
    monkeypatch.setattr(serving._workers, "run", here)
    return serving, serving.served.model


async def classify(serving: Serving, body: bytes) -> None:
    scope = {"type": "http", "method": "POST", "path": "/classify", "query_string": b"", "headers": []}
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await serving.app(None)(scope, receive, send)
    assert sent[0]["status"] == 200, sent


class Answer:
    """What a server says to the README's request, which is kept in `sent`."""

    def __init__(self, sent: list[dict[str, Any]], request: urllib.request.Request) -> None:
        assert request.full_url == "http://localhost:8080/v2/models/gkd-student/infer"
        sent.append(json.loads(request.data))

    def __enter__(self) -> "Answer":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def read(self) -> bytes:
        return json.dumps({"outputs": [{"data": [0.1, 0.9]}]}).encode()


def test_what_a_bundle_reads_pictures_with_needs_nothing_of_ours(made: Made) -> None:
    text = (made.bundle / "pictures.py").read_text()
    imported = set(re.findall(r"^\s*(?:from|import) (\w+)", text, flags=re.MULTILINE))
    assert imported <= {
        "contextlib",
        "io",
        "sys",
        "warnings",
        "collections",
        "pathlib",
        "typing",
        "numpy",
        "PIL",
        "pillow_heif",
    }
