"""`gkd check` on the command line: exit codes, the files it writes, the last line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from gkd_core.errors import GkdError
from gkd_core.files import kind_of
from pipelines.cli import app


@pytest.fixture
def photos(tmp_path) -> Path:
    for seed in range(40):
        colours = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
        place = tmp_path / "photos" / "train" / ("cat", "dog")[seed % 2] / f"{seed:02}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(colours).resize((96, 72), Image.Resampling.BICUBIC).save(place)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / "test" / name).mkdir(parents=True)
        shutil.move(place.parents[1] / name / f"0{('cat', 'dog').index(name)}.png", tmp_path / "photos" / "test" / name)
    return tmp_path / "photos"


def check(*arguments: object):
    return CliRunner().invoke(app, ["check", *map(str, arguments)])


def test_warnings_end_with_0_and_are_errors_under_strict(photos, tmp_path):
    result = check(photos, "--out", tmp_path / "health")
    assert result.exit_code == 0, result.output
    last = json.loads(result.stdout.splitlines()[-1])
    assert last["findings"] == {"few_images": 2}
    assert (last["images"], last["errors"], last["to_remove"], last["fix_list"]) == (40, 0, 0, None)
    assert sorted(file.name for file in (tmp_path / "health").iterdir()) == ["health.html", "health.json"]
    assert kind_of(tmp_path / "health") == "health"
    assert check(photos, "--out", tmp_path / "health", "--strict").exit_code == 1


def test_a_leak_ends_with_1_and_the_fix_list_mends_it(photos, tmp_path):
    shutil.copy(photos / "train/cat/02.png", photos / "test/cat/again.png")
    arguments = (photos, "--out", tmp_path / "health", "--fix-list", tmp_path / "fix.csv")
    result = check(*arguments)
    assert result.exit_code == 1
    assert json.loads(result.stdout.splitlines()[-1])["findings"]["leakage"] == 1
    assert (tmp_path / "fix.csv").read_text().splitlines()[1].startswith("train/cat/02.png,")
    assert check(*arguments, "--set", "data.leakage=allow").exit_code == 0
    (photos / "train/cat/02.png").unlink()
    assert check(*arguments).exit_code == 0
    assert (tmp_path / "fix.csv").read_text() == "path,reason\n"


def test_what_cannot_be_split_is_an_error(photos, tmp_path):
    for name in ("cat", "dog"):
        for file in sorted((photos / "train" / name).iterdir())[3 if name == "dog" else 30 :]:
            file.unlink()
    result = check(photos / "train", "--out", tmp_path / "health")
    assert result.exit_code == 1
    found = json.loads((tmp_path / "health" / "health.json").read_text())["findings"]
    assert found["splits"][0]["error"]
    assert "'dog'" in found["splits"][0]["detail"]


def test_without_a_folder_it_looks_at_the_configured_data(tmp_path):
    (tmp_path / "params.yaml").write_text("data: {source: digits}\n")
    result = check("--params", tmp_path / "params.yaml", "--out", tmp_path / "health")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout.splitlines()[-1])["images"] == 1797


def test_a_configuration_that_names_a_missing_path_is_refused(tmp_path, monkeypatch):
    (tmp_path / "params.yaml").write_text("student: {name: resnet8, weights: gone.pth}\n")
    monkeypatch.chdir(tmp_path)
    result = check()
    assert isinstance(result.exception, GkdError)
    assert f"student.weights is gone.pth, but there is no file or folder {tmp_path / 'gone.pth'}" in str(
        result.exception
    )
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


@pytest.mark.parametrize("name", ["2024", "photos #1", "a: b", "null", "@home", "müll \N{WASTEBASKET}"])
def test_a_folder_is_looked_at_where_no_configuration_is_whatever_it_is_called(name, photos, tmp_path, monkeypatch):
    photos.rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    result = check(name)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout.splitlines()[-1])["images"] == 40


def test_a_configuration_that_lies_about_is_not_of_the_folder_that_is_given(photos, tmp_path, monkeypatch):
    (tmp_path / "params.yaml").write_text("data: {source: list, root: x.csv, columns: {label: breed}}\n")
    monkeypatch.chdir(tmp_path)
    assert check("photos").exit_code == 0
    (tmp_path / "own.yaml").write_text("data: {leakage: allow, image_size: 400}\n")
    result = check("photos", "--params", "own.yaml")
    assert json.loads(result.stdout.splitlines()[-1])["findings"]["small"] == 40
    assert "FOLDER nowhere is not there" in str(check("nowhere").exception)


@pytest.mark.parametrize("place", ["nowhere/fix.csv", "photos/train"])
def test_a_fix_list_that_cannot_be_written_is_told_before_anything_is_looked_at(place, photos, tmp_path):
    result = check(photos, "--out", tmp_path / "health", "--fix-list", tmp_path / place)
    assert f"--fix-list {tmp_path / place}" in str(result.exception)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["photos"]


def test_an_earlier_result_is_replaced_and_nothing_else(photos, tmp_path):
    result = check(photos, "--out", photos)
    assert isinstance(result.exception, GkdError)
    assert sorted(place.name for place in photos.iterdir()) == ["test", "train"]
