"""`gkd init`: what it makes of a folder of images, what it refuses, and that an installed gkd runs the result."""

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import fsspec
import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from PIL import Image

from gkd_core.config import load_params
from gkd_core.config.recipes import planned
from gkd_core.errors import GkdError
from pipelines.project import PRETRAINED, choose, create_project, find, look

ROOT = Path(__file__).parents[2]
COLOURS = {"cat": (200, 40, 40), "dog": (40, 180, 60), "emu": (40, 60, 200)}


def write_images(place: Path, count: int, *, size: tuple[int, int] = (30, 20), mode: str = "RGB") -> None:
    """Noisy images of a class's colour, a folder a class."""
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (place / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.clip(rng.normal(colour, 30, (*size[::-1], 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).convert(mode).save(place / name / f"{number}.png")


@pytest.fixture
def images(tmp_path) -> Path:
    write_images(tmp_path / "images", 10)
    return tmp_path / "images"


def test_a_folder_is_counted_and_measured(tmp_path):
    write_images(tmp_path / "photos" / "train", 4, size=(90, 64), mode="L")
    write_images(tmp_path / "photos" / "val", 2, mode="L")
    photos = look(tmp_path / "photos")
    assert photos.counts == {"cat": 4, "dog": 4, "emu": 4}
    assert photos.splits == {"train": 12, "validation": 6}
    assert (photos.side, photos.grey) == (64, True)


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (10, {"image_size": 32, "batch_size": 16, "epochs": 100, "validation_fraction": 0.2}),
        (200, {"image_size": 32, "batch_size": 32, "epochs": 100, "validation_fraction": 0.1}),
        (10_000, {"batch_size": 128, "epochs": 15, "validation_fraction": 0.1, "test_fraction": 0.1}),
    ],
)
def test_settings_follow_the_number_of_images(images, count, expected):
    photos = look(images)
    labels = np.repeat([0, 1, 2], count)
    object.__setattr__(photos.source.splits["train"], "labels", labels)
    photos.counts.update(dict.fromkeys(COLOURS, count))
    chosen = choose(photos, {})
    assert {name: chosen[name] for name in expected} == expected


def test_a_class_with_few_images_is_in_every_split_or_is_named(images):
    for number in range(3, 10):
        (images / "emu" / f"{number}.png").unlink()
    chosen = choose(look(images), {})
    assert chosen["validation_fraction"] > 0.2, "of three images, a fifth is none"
    (images / "emu" / "2.png").unlink()
    with pytest.raises(GkdError, match="'emu' has 2 images"):
        choose(look(images), {})


def test_the_project_is_whole(tmp_path, images):
    out = tmp_path / "project"
    made = create_project(out, images)
    params = load_params(out / "params.yaml")
    assert params.data.source == "folder"
    assert params.data.root == "../images"
    fractions = [line for line in (out / "params.yaml").read_text().splitlines() if "_fraction: " in line]
    assert [line.index("#") for line in fractions] == [30, 30], "their comments are not below each other"
    assert params.train.epochs == made["settings"]["epochs"]
    stages = yaml.safe_load((out / "dvc.yaml").read_text())["stages"]
    sections = yaml.safe_load((out / "params.yaml").read_text())
    assert {name for stage in stages.values() for name in stage["params"]} <= set(sections), "DVC misses one"
    read = {path for stage in stages.values() for path in stage.get("deps", [])}
    floors = ("gkd_core", "components", "pipelines")
    assert not [path for path in read if path.split("/")[0] in floors], "a source file of a checkout"
    assert stages["prepare"]["deps"] == ["${data.root}"]
    assert any("'cat' has 10" in sentence for sentence in made["warnings"])
    assert (out / ".git").is_dir()
    assert (out / ".dvc" / "config").is_file()


def test_a_project_for_an_archive_or_a_list(tmp_path, images):
    packed = shutil.make_archive(str(tmp_path / "packed"), "zip", images.parent, images.name)
    names = sorted(file.relative_to(tmp_path).as_posix() for file in images.rglob("*.png"))
    (tmp_path / "list.csv").write_text("path,label\n" + "".join(f"{name},{name.split('/')[1]}\n" for name in names))
    made = {
        root: create_project(tmp_path / f"of {Path(root).suffix}", tmp_path / root) for root in ("list.csv", packed)
    }
    of_list, of_archive = made.values()
    assert of_list["found"] == of_archive["found"] == create_project(tmp_path / "plain", images)["found"]
    for root, source in (("list.csv", "list"), ("packed.zip", "folder")):
        out = tmp_path / f"of {Path(root).suffix}"
        data = load_params(out / "params.yaml").data
        assert (data.source, data.root) == (source, f"../{root}")
        assert yaml.safe_load((out / "dvc.yaml").read_text())["stages"]["prepare"]["deps"] == ["${data.root}"]


def test_a_project_for_images_elsewhere_leaves_it_to_people_to_read_them_again(tmp_path, images):
    memory = fsspec.filesystem("memory")
    memory.put(str(images), "/init/photos", recursive=True)
    create_project(tmp_path / "project", "memory://init/photos")
    assert load_params(tmp_path / "project" / "params.yaml").data.root == "memory://init/photos"
    text = (tmp_path / "project" / "dvc.yaml").read_text()
    assert "deps" not in yaml.safe_load(text)["stages"]["prepare"]
    assert "dvc repro --force prepare" in text


def test_a_project_with_images_without_classes_depends_on_them_too(tmp_path, images):
    more = tmp_path / "more"
    (images / "cat").rename(more)
    write_images(tmp_path / "classes", 10)
    out = tmp_path / "project"
    create_project(out, tmp_path / "classes", unlabelled=more)
    assert load_params(out / "params.yaml").data.unlabelled == "../more"
    stages = yaml.safe_load((out / "dvc.yaml").read_text())["stages"]
    assert stages["prepare"]["deps"] == ["${data.root}", "${data.unlabelled}"]
    for place, part in (
        (tmp_path / "classes" / "cat", "is a class"),
        (tmp_path / "none", "--unlabelled .* is not there"),
    ):
        with pytest.raises(GkdError, match=part):
            create_project(tmp_path / "other", tmp_path / "classes", unlabelled=place)


def test_a_project_inside_a_repository_makes_no_second_one_and_finds_images_elsewhere(tmp_path, images):
    for repository in (".git", ".dvc"):
        (tmp_path / "deep" / repository).mkdir(parents=True)
    out = tmp_path / "deep" / "project"
    create_project(out, images)
    assert sorted(file.name for file in out.glob(".*")) == [".dvcignore", ".gitignore"]
    assert load_params(out / "params.yaml").data.root == str(images)


def test_without_git_it_tells_what_is_left_to_do(tmp_path, images, monkeypatch):
    monkeypatch.setenv("PATH", "")
    (*_, sentence) = create_project(tmp_path / "project", images)["warnings"]
    assert "git init" in sentence
    assert (tmp_path / "project" / "params.yaml").is_file()


def test_wrong_input_is_one_sentence_and_leaves_nothing(tmp_path, images, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    (tmp_path / "one" / "cat").mkdir(parents=True)
    (tmp_path / "one" / "cat" / "0.png").write_bytes((images / "cat" / "0.png").read_bytes())
    for name in COLOURS:
        (tmp_path / "broken" / name).mkdir(parents=True)
        (tmp_path / "broken" / name / "0.jpg").write_bytes(b"no image")
    before = sorted(tmp_path.rglob("*"))
    for out, data, named in (
        ("project", "nowhere", "nowhere"),
        ("project", "images/cat", "images/cat"),
        ("project", "images/cat/0.png", "images/cat/0.png"),
        ("project", "one", "--data one has one class, 'cat'"),
        ("project", "broken", "broken"),
        ("full", "images", "full"),
        ("full/file", "images", "full/file is there and a file"),
        ("full/file/project", "images", "^DIR full/file/project cannot be made"),
        ("images/project", "images", "images"),
        ("project", "", "--data is empty"),
    ):
        with pytest.raises(GkdError, match=named) as caught:
            create_project(Path(out), data)
        assert "\n" not in str(caught.value)
        assert sorted(tmp_path.rglob("*")) == before, (out, data)


# --- photos start from published weights


@pytest.fixture
def photos(tmp_path) -> Path:
    write_images(tmp_path / "photos", 20, size=(90, 72))
    return tmp_path / "photos"


@pytest.fixture
def weights(tmp_path) -> Path:
    """A folder with files of the right names, of which nothing is read."""
    folder = tmp_path / "weights"
    folder.mkdir()
    for name in PRETRAINED.values():
        (folder / f"{name}.safetensors").write_bytes(b"")
    return folder


def test_photos_start_from_published_weights(tmp_path, photos):
    made = create_project(tmp_path / "project", photos)
    params = load_params(tmp_path / "project" / "params.yaml")
    assert (params.teacher.name, params.teacher.weights) == ("timm:tf_efficientnet_lite2", "pretrained")
    assert (params.student.name, params.student.weights) == ("timm:tf_efficientnet_lite0", "pretrained")
    assert params.teacher.image_size == params.student.image_size == 160
    assert params.data.image_size == 182, "what the networks see is the middle of it"
    for plan in planned(params):
        assert all(outcome.recipe == "fine-tune" for outcome in plan.outcomes())
        assert plan.config.epochs == 20
    assert "tf_efficientnet_lite0" in made["chosen"]
    assert "published" in made["chosen"]


def test_files_of_weights_are_found_from_the_project_and_taken_for_small_images_too(tmp_path, images, weights):
    made = create_project(tmp_path / "project", images, str(weights))
    params = load_params(tmp_path / "project" / "params.yaml")
    assert params.teacher.weights == "../weights/tf_efficientnet_lite2.safetensors"
    assert (tmp_path / "project" / params.student.weights).resolve() == weights / "tf_efficientnet_lite0.safetensors"
    assert str(weights) in made["chosen"]
    stages = yaml.safe_load((tmp_path / "project" / "dvc.yaml").read_text())["stages"]
    files = {name: [path for path in stage["deps"] if path.startswith("../weights")] for name, stage in stages.items()}
    trained = dict.fromkeys(("baseline", "kd", "distill"), params.student.weights)
    assert {name: found[0] for name, found in files.items() if found} == {"teacher": params.teacher.weights} | trained


@pytest.mark.parametrize(
    ("size", "mode", "given", "timm", "reason"),
    [
        ((64, 64), "RGB", None, True, "small (64 pixels)"),
        ((90, 72), "L", None, True, "grey"),
        ((90, 72), "RGB", "none", True, "as asked"),
        ((90, 72), "RGB", None, False, "gkd[hub]"),
    ],
)
def test_what_starts_from_noise_and_why(tmp_path, monkeypatch, size, mode, given, timm, reason):
    write_images(tmp_path / "photos", 10, size=size, mode=mode)
    if not timm:
        monkeypatch.setitem(sys.modules, "timm", None)
    photos = look(tmp_path / "photos")
    weights, start = find(given, photos, tmp_path / "project")
    assert (weights, reason in start) == ({}, True)
    chosen = choose(photos, weights)
    assert (chosen["teacher"], chosen["student"], chosen["image_size"]) == ("resnet20", "resnet8", 64)


def test_weights_that_are_not_there_are_named(tmp_path, photos, weights, monkeypatch):
    (weights / "tf_efficientnet_lite0.safetensors").unlink()
    with pytest.raises(GkdError, match=r"--weights .*/weights: there is no file .*tf_efficientnet_lite0.safetensors"):
        create_project(tmp_path / "project", photos, str(weights))
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(GkdError, match=r"--weights pretrained .* pip install 'gkd\[hub\]'"):
        create_project(tmp_path / "project", photos, "pretrained")
    assert not (tmp_path / "project").exists()


@pytest.mark.parametrize(("count", "epochs", "test"), [(20, 20, 0.25), (250, 4, 0.25), (1000, 3, 0.2)])
def test_many_photos_take_fewer_epochs(photos, count, epochs, test):
    found = look(photos)
    object.__setattr__(found.source.splits["train"], "labels", np.repeat([0, 1, 2], count))
    found.counts.update(dict.fromkeys(COLOURS, count))
    chosen = choose(found, dict.fromkeys(PRETRAINED, "pretrained"))
    assert (chosen["epochs"], chosen["test_fraction"]) == (epochs, test)


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> dict[str, str]:
    """The variables of an environment of its own with gkd's wheel in it.

    What gkd depends on is not downloaded: the packages of this environment are seen by it, behind its own.
    """
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run(["hatchling", "build", "-t", "wheel", "-d", str(folder / "wheel")], cwd=ROOT, check=True)
    (wheel,) = (folder / "wheel").glob("gkd-*.whl")
    venv.create(folder / "venv")
    (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (packages / "others.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    python = folder / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True)
    kept = {name: text for name, text in os.environ.items() if not name.startswith(("MLFLOW_", "GKD_", "PYTHON"))}
    path = os.pathsep.join([str(python.parent), str(Path(sys.executable).parent), os.environ["PATH"]])
    return kept | {"PATH": path, "DVC_NO_ANALYTICS": "1", "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
@pytest.mark.timeout(1800)  # nine processes, each with its imports
def test_an_installed_package_makes_a_project_and_runs_it(tmp_path, installed):
    """On images of the modes and file forms that cameras and editors leave behind, and one that is broken."""
    write_images(tmp_path / "photos", 20)
    for name in COLOURS:
        exif = Image.Exif()
        exif[0x0112] = 6  # orientation: rotated by a quarter turn
        with Image.open(tmp_path / "photos" / name / "0.png") as image:
            image.convert("CMYK").save(tmp_path / "photos" / name / "a.jpeg")
            image.quantize(32).save(tmp_path / "photos" / name / "b.png")
            image.convert("RGBA").save(tmp_path / "photos" / name / "c.webp")
            image.save(tmp_path / "photos" / name / "d.JPG", exif=exif)
            image.convert("L").save(tmp_path / "photos" / name / "e.bmp")
    (tmp_path / "photos" / "cat" / "broken.jpg").write_bytes(b"\xff\xd8 not a picture")

    def run(*command: str, cwd: Path) -> str:
        done = subprocess.run(command, cwd=cwd, env=installed, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    where = run("python", "-c", "import gkd_core; print(gkd_core.__file__)", cwd=tmp_path)
    assert "environment" in where, "the checkout is seen instead of the wheel"
    run("gkd", "init", "project", "--data", "photos", cwd=tmp_path)
    project = tmp_path / "project"
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["data"] |= {"image_size": 16, "unreadable": "drop"}
    params["teacher"] |= {"name": "resnet8", "train": {"epochs": 3, "batch_size": 16, "device": "cpu"}}
    params["train"] = {"epochs": 2, "batch_size": 16, "device": "cpu"}
    params["evaluate"] = {"latency_runs": 10}
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    run("dvc", "repro", cwd=project)
    (version,) = json.loads(run("gkd", "registry", "list", cwd=project).splitlines()[-1])
    assert int(version["version"]) == 1
    data = json.loads((project / "data" / "dataset.json").read_text())
    assert sum(data["counts"].values()) == 75, "all but the broken one"
    outcome = json.loads(run("gkd", "summary", cwd=project).splitlines()[-1])
    pixels, labels = (np.load(project / "data" / "test" / f"{name}.npy") for name in ("images", "labels"))
    (logits,) = onnxruntime.InferenceSession(project / "deploy" / "model.onnx").run(None, {"image": pixels})
    assert outcome["student"]["top1"] == pytest.approx((logits.argmax(1) == labels).mean(), abs=1e-6)
    assert "up to date" in run("dvc", "status", cwd=project)
    (tmp_path / "photos" / "cat" / "new.png").write_bytes((tmp_path / "photos" / "cat" / "0.png").read_bytes())
    assert "prepare" in run("dvc", "status", cwd=project), "new images are seen"
