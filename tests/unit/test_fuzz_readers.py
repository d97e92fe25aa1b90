"""Whatever is in a file, its reader gives a value or one sentence: never another exception, never a hang."""

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pillow_heif import register_heif_opener
from pyarrow import parquet

from gkd_core.config import load_params
from gkd_core.data.arrays import open_array
from gkd_core.data.health import Look, look_at
from gkd_core.data.images import FORMATS, Unreadable, read_image, read_whole
from gkd_core.data.photos import Store
from gkd_core.data.prepare import write_prepared
from gkd_core.data.prepared import PreparedData
from gkd_core.data.sources import files_of, open_source
from gkd_core.data.sources.base import SPLITS, Examples, Source
from gkd_core.data.sources.folder import pictures as folder_of_pictures
from gkd_core.data.unlabelled import add_unlabelled
from gkd_core.errors import GkdError
from gkd_core.export.manifest import read_manifest
from gkd_core.export.session import session
from gkd_core.files import kind_of, write_json
from gkd_core.models.network import Network, NetworkSpec, load_network, save_network
from gkd_core.models.weights import load_model
from gkd_core.records import (
    read_bundle,
    read_card_metrics,
    read_gate,
    read_metrics,
    read_teacher,
    read_training,
    read_version,
)
from gkd_core.serving.model import Model, ModelFile
from gkd_core.tables import read_table
from gkd_core.training.checkpoint import load_checkpoint, save_checkpoint
from tests.conftest import deploy_folder
from tests.unit.deep_pictures import png_of_16_bits

ROOT = Path(__file__).parents[2]
EXAMPLES = int(os.environ.get("GKD_FUZZ_EXAMPLES", "40"))
fuzz = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
slow_fuzz = settings(fuzz, max_examples=max(10, EXAMPLES // 2))

CLASSES = tuple("0123456789")
PICTURES = (*FORMATS, "HEIF")
STORES: tuple[Store, ...] = ("raw", "compressed")


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory, few_digits: Path) -> Path:
    """One real file of every kind."""
    root = tmp_path_factory.mktemp("originals")
    shutil.copytree(few_digits, root / "data")
    network = root / "network"
    network.mkdir()
    save_network(Network(NetworkSpec("resnet8", "cifar", CLASSES, 1, 8, (0.3,), (0.3,))), network)
    training = {"trained": True, "network": "resnet8", "method": "kd", "data_sha256": "", "teacher_digest": ""}
    write_json(network / "training.json", training | {"config_digest": ""})
    (network / "history.csv").write_text("epoch,train_loss,validation_top1\n1,2.25,0.5\n2,1.5,\n")
    write_json(root / "teacher.json", {"networks": ["resnet8"], "data_sha256": "0"})
    deploy_folder(root, classes=CLASSES)
    write_json(root / "version.json", {"name": "x", "version": 1, "manifest": "0" * 64, "alias": "champion"})
    write_json(
        root / "gate.json", {"passed": True, "reasons": [{"check": "size", "passed": True, "sentence": "small enough"}]}
    )
    write_json(root / "bundle.json", {"name": "x", "files": {"model.onnx": "0" * 64}})
    quality = {"top1": 0.5, "top1_low": 0.4, "top1_high": 0.6, "nll": 0.3, "parameters": 9, "onnx_bytes": 5}
    quality |= {"ece": 0.1, "macs": 7, "network": "resnet8", "agreement_with_fp32": 0.9}
    write_json(
        root / "metrics.json",
        {
            "data": {"sha256": "", "source": "digits", "test_images": 3, "confidence": 0.95},
            "digests": {"manifest": "", "student": "", "teacher": ""},
            "differences": {"student_minus_kd": {"difference": 0.1, "low": 0.0, "high": 0.2, "standard_error": 0.1}},
            "onnx": {"top1": 0.5, "parity_max_abs": 1e-6, "onnx_bytes": 5},
            **dict.fromkeys(("teacher", "kd", "student", "int8"), quality),
        },
    )
    np.save(root / "predictions.npy", np.arange(30, dtype=np.int32))
    shutil.copy(ROOT / "params.yaml", root / "params.yaml")
    save_checkpoint(root / "checkpoint.pt", {"fingerprint": "f", "epoch": 1, "network": {"w": torch.randn(4, 4)}})
    torch.save(load_network(network).classifier.state_dict(), root / "state.pth")
    register_heif_opener()
    for kind in PICTURES:
        noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(noise).save(root / f"image.{kind.lower()}", format=kind)
    (root / "deep.png").write_bytes(png_of_16_bits(np.arange(768).reshape(16, 16, 3) * 5, significant=12))
    listed_photos(root)
    (root / "health").mkdir()
    write_json(root / "health" / "health.json", {"images": 2, "findings": {}})
    return root


def listed_photos(root: Path) -> None:
    """A folder of small photos, the same as lists and in archives, and prepared whole, as pixels and as JPEG."""
    photos = root / "photos"
    for number in range(16):
        file = photos / ("cat", "dog")[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (9, 12, 3), dtype=np.uint8)
        Image.fromarray(noise).save(file)
    rows = [(str(file), file.parent.name) for file in sorted(photos.rglob("*.png"))]
    text = "path,label,split,group\n" + "".join(f"{path},{label},train,{path[-5]}\n" for path, label in rows)
    (root / "list.csv").write_text(text)
    table = pyarrow.table({"path": [path for path, _ in rows], "label": [label for _, label in rows]})
    parquet.write_table(table, root / "list.parquet")
    for ending, kind in (("zip", "zip"), ("tar", "tar"), ("tar.gz", "gztar")):
        shutil.make_archive(str(root / "photos"), kind, root, "photos")
        assert (root / f"photos.{ending}").is_file()
    source = open_source("folder", photos, 8)
    for store in STORES:
        (root / store).mkdir()
        info = write_prepared(source, root / store, store=store, validation_fraction=0.25, test_fraction=0.25)
        add_unlabelled(root / store, info, folder_of_pictures(photos, 8, 3))


# --- what may stand in a file


@st.composite
def mutated(draw: st.DrawFn, content: bytes) -> bytes:
    """Anything, or the real content after a few changes: bytes set, taken out, put in, repeated, the end cut off."""
    if draw(st.integers(0, 5)) == 0:
        return draw(st.binary(max_size=400))
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        # Headers decide more than the rest does: half of the changes are among the first bytes.
        most = min(len(changed), draw(st.sampled_from([128, 1 << 30])))
        place = draw(st.integers(0, max(0, most - 1)))
        match draw(st.integers(0, 4)):
            case 0 if changed:
                changed[place] = draw(st.integers(0, 255))
            case 1:
                del changed[place : place + draw(st.integers(1, 64))]
            case 2:
                changed[place:place] = draw(st.binary(min_size=1, max_size=16))
            case 3:
                changed[place:place] = changed[place : place + draw(st.integers(1, 64))]
            case _:
                del changed[place:]
    return bytes(changed)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**25), 10**25) | st.floats(allow_nan=True) | st.text(max_size=8)
    | st.sampled_from(["..", "../../etc/passwd", "/", "\0", "model.onnx", "resnet8", "vit_b_16", "1e999"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@st.composite
def another_json(draw: st.DrawFn, content: Any) -> Any:
    """The real content with one value, however deep, replaced, or its key taken out."""
    if not isinstance(content, dict | list) or not content or draw(st.integers(0, 7)) == 0:
        return draw(JSON)
    keys = list(content) if isinstance(content, dict) else list(range(len(content)))
    key = draw(st.sampled_from(keys))
    copy = dict(content) if isinstance(content, dict) else list(content)
    if draw(st.integers(0, 7)) == 0:
        del copy[key]
    else:
        copy[key] = draw(another_json(content[key]))
    return copy


def told_by(function: Callable[[], object], *also: type[Exception]) -> str | None:
    """What a reader says of a file that it refuses; None where it gives a value. Nothing else is let through."""
    try:
        function()
    except (GkdError, *also) as error:
        return str(error)
    return None


def value_or_sentence(told: str | None) -> bool:
    """Whether that is no refusal, or a sentence that can be printed; of a configuration, one a mistake, each a line."""
    return told is None or (all(told.split("\n")) and 0 < len(told.encode()) < 4000)


def replaced(originals: Path, folder: Path, names: list[str], content: bytes) -> None:
    """`folder` as the originals are, the first of `names` with other content."""
    for name in names:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content if name == names[0] else (originals / name).read_bytes())


# --- JSON

RECORDS = ("images.bin", "offsets.npy", "sizes.npy")
PHOTOS = {
    "train": (*RECORDS, "labels.npy"),
    "unlabelled": RECORDS,
    **dict.fromkeys(("validation", "test"), ("images.npy", "labels.npy")),
}
JSON_READERS: dict[str, tuple[list[str], Callable[[Path], object]]] = {
    "teacher.json": (["teacher.json"], read_teacher),
    "training.json": (["network/training.json"], lambda root: read_training(root / "network", "student")),
    "manifest.json": (["manifest.json", "model.onnx"], read_manifest),
    "metrics.json": (["metrics.json"], read_metrics),
    "metrics.json for a card": (["metrics.json"], lambda root: read_card_metrics(root, ["int8"])),
    "version.json": (["version.json"], read_version),
    "gate.json": (["gate.json"], read_gate),
    "bundle.json": (["bundle.json"], read_bundle),
    "health.json": (["health/health.json"], lambda root: kind_of(root / "health") or ""),
    "model.json": (
        ["network/model.json", "network/model.safetensors"],
        lambda root: load_network(root / "network", CLASSES),
    ),
    "dataset.json of photos": (
        ["raw/dataset.json", *(f"raw/{part}/{file}" for part, files in PHOTOS.items() for file in files)],
        lambda root: (lambda data: (np.array(data.train.images), data.unlabelled))(
            PreparedData.open(root / "raw", check=False)
        ),
    ),
    "dataset.json": (
        ["data/dataset.json", *(f"data/{s}/{a}.npy" for s in SPLITS for a in ("images", "labels"))],
        lambda root: PreparedData.open(root / "data", check=False).train,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", JSON_READERS)
@fuzz
@given(choice=st.data())
def test_json_with_other_values(kind: str, choice: st.DataObject, originals: Path, tmp_path: Path) -> None:
    names, read = JSON_READERS[kind]
    content = choice.draw(another_json(json.loads((originals / names[0]).read_text())))
    replaced(originals, tmp_path, names, json.dumps(content).encode())
    assert value_or_sentence(told_by(lambda: read(tmp_path)))


@pytest.mark.parametrize("kind", JSON_READERS)
@slow_fuzz
@given(choice=st.data())
def test_json_with_other_bytes(kind: str, choice: st.DataObject, originals: Path, tmp_path: Path) -> None:
    names, read = JSON_READERS[kind]
    replaced(originals, tmp_path, names, choice.draw(mutated((originals / names[0]).read_bytes())))
    assert value_or_sentence(told_by(lambda: read(tmp_path)))


# --- everything else


def _array(root: Path) -> object:
    try:
        return np.array(open_array(root / "predictions.npy"))
    except ValueError as error:  # what it is documented to raise
        raise GkdError(str(error)) from None


def _state_dict(root: Path) -> object:
    path = root / "state.pth"
    return load_model(
        path, name="resnet8", stem="cifar", classes=CLASSES, mean=(0.3,), std=(0.3,), image_size=8, channels=1
    )


def _listed(file: Path) -> object:
    files_of(file)
    return open_source("list", file, 8, 3)


def _packed(file: Path) -> object:
    files_of(file)
    return open_source("folder", file, 8, 3)


def _picture(file: Path) -> object:
    try:
        return read_image(file, 8, 3)
    except Unreadable as error:
        raise GkdError(str(error)) from None


READERS: dict[str, tuple[list[str], Callable[[Path], object]]] = {
    "model.safetensors": (
        ["network/model.safetensors", "network/model.json"],
        lambda root: load_network(root / "network", CLASSES),
    ),
    "predictions.npy": (["predictions.npy"], _array),
    "history.csv": (["network/history.csv"], lambda root: read_table(root / "network" / "history.csv")),
    "params.yaml": (["params.yaml"], lambda root: load_params(root / "params.yaml")),
    "checkpoint.pt": (["checkpoint.pt"], lambda root: load_checkpoint(root / "checkpoint.pt", "f")),
    "state.pth": (["state.pth"], _state_dict),
    "list.csv": (["list.csv"], lambda root: _listed(root / "list.csv")),
    "list.parquet": (["list.parquet"], lambda root: _listed(root / "list.parquet")),
    **{
        f"photos.{ending}": ([f"photos.{ending}"], lambda root, ending=ending: _packed(root / f"photos.{ending}"))
        for ending in ("zip", "tar", "tar.gz")
    },
    "deep.png": (["deep.png"], lambda root: _picture(root / "deep.png")),
    "model.onnx": (["model.onnx"], lambda root: session(root / "model.onnx")),
    "model.onnx to be served": (
        ["model.onnx"],
        lambda root: Model(ModelFile(root / "model.onnx"), version="1", threads=1),
    ),
}


@pytest.mark.parametrize("kind", READERS)
@fuzz
@given(choice=st.data())
def test_files_with_other_bytes(kind: str, choice: st.DataObject, originals: Path, tmp_path: Path) -> None:
    names, read = READERS[kind]
    replaced(originals, tmp_path, names, choice.draw(mutated((originals / names[0]).read_bytes())))
    assert value_or_sentence(told_by(lambda: read(tmp_path)))


@pytest.mark.parametrize("array", ["train/images.npy", "train/labels.npy"])
@fuzz
@given(choice=st.data())
def test_prepared_arrays_with_other_bytes(array: str, choice: st.DataObject, originals: Path, tmp_path: Path) -> None:
    """Changed in place, so that sizes fit and the header is what is read."""
    if not (tmp_path / "data").exists():
        shutil.copytree(originals / "data", tmp_path / "data")
    content = bytearray((originals / "data" / array).read_bytes())
    for _ in range(choice.draw(st.integers(1, 6))):
        content[choice.draw(st.integers(0, 140))] = choice.draw(st.integers(0, 255))
    (tmp_path / "data" / array).write_bytes(content)
    images = told_by(lambda: np.array(PreparedData.open(tmp_path / "data", check=False).train.images))
    assert value_or_sentence(images)
    assert value_or_sentence(told_by(lambda: PreparedData.open(tmp_path / "data")))


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("file", RECORDS)
@pytest.mark.parametrize("part", ["train", "unlabelled"])
@slow_fuzz
@given(choice=st.data())
def test_whole_pictures_with_other_bytes(
    store: Store, file: str, part: str, choice: st.DataObject, originals: Path, tmp_path: Path
) -> None:
    place = tmp_path / store
    if not place.exists():
        shutil.copytree(originals / store, place)
    content = (originals / store / part / file).read_bytes()
    if choice.draw(st.booleans()):  # of the same length, so that what is in the records is looked at
        changed = bytearray(content)
        for _ in range(choice.draw(st.integers(1, 6))):
            changed[choice.draw(st.integers(0, len(changed) - 1))] = choice.draw(st.integers(0, 255))
        (place / part / file).write_bytes(changed)
    else:
        (place / part / file).write_bytes(choice.draw(mutated(content)))

    def look() -> object:
        data = PreparedData.open(place, check=False)
        images = data.train.images if part == "train" else data.unlabelled.images  # type: ignore[union-attr]
        return np.array(images), [images.read(row) for row in range(len(images))]

    assert value_or_sentence(told_by(look))
    assert value_or_sentence(told_by(lambda: PreparedData.open(place)))


@pytest.mark.parametrize("kind", PICTURES)
@fuzz
@given(choice=st.data())
def test_pictures_with_other_bytes(kind: str, choice: st.DataObject, originals: Path) -> None:
    content = choice.draw(mutated((originals / f"image.{kind.lower()}").read_bytes()))
    assert value_or_sentence(told_by(lambda: read_image(io.BytesIO(content), 8, 3), Unreadable))
    assert value_or_sentence(told_by(lambda: read_whole(io.BytesIO(content), 8, 1), Unreadable))
    look = health(content)
    assert value_or_sentence(look.unreadable or None)


def health(content: bytes) -> Look:
    """What `gkd check` sees of one picture."""
    examples = Examples(
        np.zeros(1, np.int64), lambda _: np.zeros((8, 8, 3), np.uint8), ("a",), open=lambda _: io.BytesIO(content)
    )
    (look,) = look_at(Source("folder", ("a",), 8, 3, {"train": examples}, flip=True))
    return look


def test_the_originals_themselves_are_read(originals: Path, tmp_path: Path) -> None:
    """Else the tests above would look at error messages only."""
    for place, (kind, (names, read)) in enumerate((JSON_READERS | READERS).items()):
        replaced(originals, tmp_path / str(place), names, (originals / names[0]).read_bytes())
        if kind == "dataset.json":
            continue  # needs its arrays, see the prepared arrays above
        assert read(tmp_path / str(place)) is not None, kind
    for kind in PICTURES:
        assert read_image(originals / f"image.{kind.lower()}", 8, 3).shape == (8, 8, 3)


# --- what was thought of by hand

NO_YAML = {
    "no day of the calendar": "data: 2026-99-99",
    "text as an integer": "data: !!int x",
    "an object": "data: !!python/object/apply:os.system ['touch owned']",
    "brackets without end": "data: " + "[" * 20_000,
}


@pytest.mark.parametrize("name", NO_YAML)
def test_yaml_that_pyyaml_stumbles_over_is_one_sentence(name: str, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(NO_YAML[name])
    with pytest.raises(GkdError, match=r"params\.yaml.* is not valid YAML") as error:
        load_params(tmp_path / "params.yaml")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"image_size": 10**9}, "image_size is 1000000000"),
        ({"classes": [str(i) for i in range(100_000)]}, "no layer for 100000 classes"),
        ({"std": [0.0]}, "std is not above 0"),
        ({"name": 3}, "a wrong 'name'"),
        ({"more": 3}, "'more' is no part of one"),
    ],
)
def test_a_network_is_built_only_when_it_can_be(
    change: dict[str, Any], sentence: str, originals: Path, tmp_path: Path
) -> None:
    content = json.loads((originals / "network" / "model.json").read_text()) | change
    names = ["network/model.json", "network/model.safetensors"]
    replaced(originals, tmp_path, names, json.dumps(content).encode())
    with pytest.raises(GkdError, match=sentence):
        load_network(tmp_path / "network")


def test_weights_of_another_type_are_refused(originals: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(originals / "network" / "model.safetensors")
    save_file({k: v.half() for k, v in weights.items()}, tmp_path / "model.safetensors")
    shutil.copy(originals / "network" / "model.json", tmp_path)
    with pytest.raises(GkdError, match=r"is torch\.float16, not torch\.float32"):
        load_network(tmp_path)
