"""A table says of each picture what is said of it alone, whatever stops the run or a process in between."""

import csv
import json
import multiprocessing
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from components.model_source import load_model
from gkd_core.decision import WORDS, Decision, Shown
from gkd_core.errors import GkdError
from gkd_core.prediction import reading
from gkd_core.prediction.entries import Entries
from gkd_core.prediction.predict import NOT_FINITE, _predict_batch, predict_to_table
from gkd_core.prediction.reading import KILLED, Entry, PictureFormat, Readers
from gkd_core.prediction.sorting import UNSURE
from gkd_core.serving.classify import classify_files
from tests.conftest import GKD
from tests.unit.prediction import deadly

SIDE = 16


@pytest.fixture(scope="module")
def deploy(tmp_path_factory, make_deploy) -> Path:
    return make_deploy(tmp_path_factory.mktemp("model") / "deploy", seed=4, side=SIDE, channels=3, count=4)


def quarters(file: Path, seed: int, shape: tuple[int, ...] = (24, 40, 3), **options: object) -> Path:
    """Four colours by chance: the classes differ from picture to picture."""
    file.parent.mkdir(parents=True, exist_ok=True)
    few = np.random.default_rng(seed).integers(0, 256, (2, 2, *shape[2:]), dtype=np.uint8)
    Image.fromarray(few).resize(shape[1::-1], Image.Resampling.NEAREST).save(file, **options)
    return file


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """More than two batches of all kinds, and some that cannot be read."""
    root = tmp_path_factory.mktemp("pictures") / "photos"
    turned = Image.Exif()
    turned[0x0112] = 6
    for n in range(60):
        quarters(root / f"{n % 7}" / f"{n:02d}.png", n)
    quarters(root / "turned.jpg", 100, exif=turned)
    quarters(root / "large.jpg", 101, (900, 700, 3))
    quarters(root / "grey.png", 102, (30, 20))
    quarters(root / "clear.png", 103, (30, 20, 4))
    (root / "2" / "broken.jpg").write_bytes((root / "large.jpg").read_bytes()[:500])
    (root / "empty.png").touch()
    (root / "gone.png").symlink_to("nowhere")
    return root


@pytest.fixture(scope="module")
def whole(tmp_path_factory, deploy, photos) -> tuple[dict, Path]:
    """What a run that nothing stopped said, and its table."""
    out = tmp_path_factory.mktemp("whole") / "out.csv"
    return predict_to_table(load_model(str(deploy)), [str(photos)], out, processes=2), out


def test_each_row_is_what_is_said_of_the_picture_alone(deploy, photos, whole):
    said, out = whole
    with out.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    counts = {"pictures": 67, "unreadable": 3, "left_out": 0, "resumed_from": 0}
    assert said == {"out": str(out), **counts, "sorted_into": None}
    assert [row["path"] for row in rows] == sorted(str(p) for p in photos.rglob("*.*"))
    errors = {Path(row["path"]).name: row["error"] for row in rows if row["error"]}
    assert sorted(errors) == ["broken.jpg", "empty.png", "gone.png"]
    assert errors["gone.png"] == "it does not exist"
    model = load_model(str(deploy))
    for row in rows:
        if row["error"]:
            assert not any(value for name, value in row.items() if name not in ("path", "error"))
            continue
        alone = classify_files(model, [Path(row["path"])], 3)[0]["predictions"]
        for ending, wanted in zip(("", "_2", "_3"), alone, strict=True):
            assert row[f"class{ending}"] == wanted["class"]
            assert float(row[f"probability{ending}"]) == pytest.approx(wanted["probability"], abs=2e-6)
    assert len({row["class"] for row in rows}) > 3
    assert [file.name for file in out.parent.iterdir()] == ["out.csv"]


def test_a_grey_models_file_for_any_size_says_alone_what_the_model_says(photos, tmp_path, make_deploy):
    deploy = make_deploy(tmp_path / "grey", channels=1, pixels=True)
    files = [photos / "0" / "00.png", photos / "turned.jpg", photos / "grey.png", photos / "clear.png"]
    alone = classify_files(load_model(str(deploy / "model_pixels.onnx")), files, 10)
    beside = classify_files(load_model(str(deploy)), files, 10)
    for one, other in zip(alone, beside, strict=True):
        found, expected = ({row["class"].removeprefix("class "): row["probability"] for row in each["predictions"]}
                           for each in (one, other))  # fmt: skip
        assert found == pytest.approx(expected, abs=2e-6)


def test_what_a_model_decides_is_in_the_table_and_the_unsure_are_apart(photos, tmp_path, make_deploy):
    shown = Shown(images=9, coverage=0.5, precision=None, nll=1.0, calibrated_nll=0.9)
    chosen = {"asked": "coverage", "target": 0.5, "validation": shown}
    decision = Decision(temperature=2.0, score="max_probability", threshold=0.5, **chosen)
    deploy = make_deploy(tmp_path / "deploy", seed=4, side=SIDE, channels=3, count=4, decision=decision)
    model, out = load_model(str(deploy)), tmp_path / "out.csv"
    said = predict_to_table(model, [str(photos)], out, top=1, processes=1, sort_into=tmp_path / "sorted", copy=True)
    with out.open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if not row["error"]]
    assert list(rows[0]) == ["path", "decision", "unsure", "score", "class", "probability", "error"]
    for row in rows:
        alone = classify_files(model, [Path(row["path"])], 1)[0]
        named = alone["decision"]
        assert (row["decision"], row["unsure"]) == ((WORDS, "true") if named is None else (named, "false"))
        assert row["class"] == alone["predictions"][0]["class"]
        assert float(row["score"]) == pytest.approx(alone["score"], abs=2e-6)
        folder = tmp_path / "sorted" / (named or UNSURE)
        assert (folder / Path(row["path"]).name).read_bytes() == Path(row["path"]).read_bytes()
    unsure = sum(row["unsure"] == "true" for row in rows)
    assert 0 < unsure < len(rows)
    assert (said["unsure"], said["unreadable"]) == (unsure, 3)


def test_a_process_that_a_picture_ends_costs_that_picture_alone(tmp_path, monkeypatch):
    names = [f"{n:02d}.png" for n in range(40)]
    names[11] = "11 deadly.png"
    for seed, name in enumerate(names):
        quarters(tmp_path / name, seed)
    monkeypatch.setattr(reading, "read_task", deadly.read_task)
    entries = Entries([str(tmp_path)])
    with Readers(PictureFormat(SIDE, 3, "center"), 2) as readers:
        found = list(readers.read(entries.since(0)))
    assert [Path(entry.name).name for entry, _ in found] == names
    assert [position for position, (_, picture) in enumerate(found) if isinstance(picture, str)] == [11]
    assert found[11][1] == KILLED
    assert multiprocessing.active_children() == []


def test_a_second_run_goes_on_and_ends_with_the_bits_of_one(deploy, photos, whole, tmp_path, monkeypatch):
    model = load_model(str(deploy))
    out, ran = tmp_path / "out.csv", []
    answer = type(model).answer

    def run(self, images):
        ran.append(len(images))
        if len(ran) == 3:
            raise KeyboardInterrupt
        return answer(self, images)

    monkeypatch.setattr(type(model), "answer", run)
    with pytest.raises(KeyboardInterrupt):
        predict_to_table(model, [str(photos)], out, processes=1)
    assert not out.exists()
    said = predict_to_table(model, [str(photos)], out, processes=1, sort_into=tmp_path / "sorted")
    assert said["resumed_from"] == 64
    assert sum(ran[3:]) == 3  # what was not answered before, alone
    assert out.read_bytes() == whole[1].read_bytes()
    linked = [path for path in (tmp_path / "sorted").rglob("*") if path.is_symlink()]
    rows = out.read_text().splitlines()[1:]
    assert len(linked) == 64
    for path in linked:
        assert any(row.startswith(f"{path.readlink()},{path.parent.name},") for row in rows)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "sorted"]


def test_what_cannot_be_is_refused_before_anything_is_written(deploy, photos, tmp_path, make_deploy):
    model = load_model(str(deploy))
    (tmp_path / "list.csv").write_text("path\ns3://bucket/x.jpg\n")
    with pytest.raises(GkdError, match="none leads to an address: give --copy"):
        predict_to_table(model, [str(tmp_path / "list.csv")], tmp_path / "out.csv", sort_into=tmp_path / "sorted")
    with pytest.raises(GkdError, match="lies inside"):
        predict_to_table(model, [str(photos)], tmp_path / "out.csv", sort_into=photos / "sorted")
    other = make_deploy(tmp_path / "deploy", side=8, channels=2)
    with pytest.raises(GkdError, match="does not take square grey or colour pictures"):
        predict_to_table(load_model(str(other)), [str(photos)], tmp_path / "out.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deploy", "list.csv"]


def test_an_answer_that_is_no_number_is_an_error_of_its_row(deploy, monkeypatch):
    model = load_model(str(deploy))
    answer = type(model).answer

    def spoilt(self, images):
        found = answer(self, images)
        found["logits"][1, 2] = np.nan
        return found

    monkeypatch.setattr(type(model), "answer", spoilt)
    pictures = [(Entry(f"{n}.png", "file", ""), np.full((SIDE, SIDE, 3), 80 * n, np.uint8)) for n in range(3)]
    rows = _predict_batch(model, [*pictures, (Entry("4.png", "file", ""), "truncated")], 1)
    assert [row.get("error") for row in rows] == [None, NOT_FINITE, None, "truncated"]
    assert [row["path"] for row in rows] == ["0.png", "1.png", "2.png", "4.png"]
    assert "class" not in rows[1]


@pytest.mark.slow
def test_twenty_thousand_pictures_killed_three_times_are_one_row_each_in_order(deploy, tmp_path):
    """Killed without a warning each time a quarter more is done."""
    seeds = [quarters(tmp_path / "seeds" / f"{n}.png", n, (SIDE, SIDE, 3)) for n in range(50)]
    for n in range(20_000):
        place = tmp_path / "photos" / f"{n // 500:02d}" / f"{n:05d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        os.link(seeds[n * 7 % 50], place)

    command = [*GKD, "predict", "photos", "-o", "out.csv", "--model", str(deploy)]
    progress = tmp_path / ".out.csv.progress"
    for quarter in (1, 2, 3):
        with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL) as running:
            while not progress.exists() or progress.read_bytes().count(b"\n") < 5_000 * quarter:
                assert running.poll() is None
                time.sleep(0.05)
            running.send_signal(signal.SIGKILL)
        assert not (tmp_path / "out.csv").exists()
    last = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(last.stdout.splitlines()[-1])["resumed_from"] >= 15_000 - 32
    alone = [answer["predictions"][0] for answer in classify_files(load_model(str(deploy)), seeds, 1)]
    with (tmp_path / "out.csv").open(newline="") as stream:
        for n, row in enumerate(csv.DictReader(stream)):
            assert (row["path"], row["class"]) == (f"photos/{n // 500:02d}/{n:05d}.png", alone[n * 7 % 50]["class"])
            assert float(row["probability"]) == pytest.approx(alone[n * 7 % 50]["probability"], abs=2e-6)
    assert n == 19_999
    assert not progress.exists()
