"""In what folder the blocks of a page run, and what makes them end soon."""

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = {"cat": 60, "dog": 120, "emu": 190}
PICTURES = 20  # of a class
SIDE = 48  # pixels

# Settings of the project: the digits' 8 grey pixels, which docs/serving.md sends, and an epoch each.
SETTINGS = """\
data: {source: folder, root: photos, image_size: 8, channels: 1, validation_fraction: 0.2, test_fraction: 0.2}
teacher: {name: resnet8, train: {epochs: 1, batch_size: 8}}
student: {name: resnet8}
distill: {method: gompertz}
train: {epochs: 1, batch_size: 8}
references: {baseline: true, kd: true}
evaluate: {latency_runs: 10}
decide: null
export: {pixels: true, int8: {min_agreement: 0.0, max_accuracy_drop: 1.0}}
gate: {min_gain_over_baseline: 0.0}
tracking: {model_name: gkd-student, system_metrics: false}
"""
STUDENTS = "- {name: small, student: {name: resnet8}}\n- {name: wider, student: {name: vgg8}}\n"
CONTENDERS = "- kd\n- {name: larger steps, distill: {method: kd}, train: {learning_rate: 0.2}}\n"
METHODS = "distill.method: {choices: [kd, gompertz]}\ntrain.learning_rate: {low: 0.02, high: 0.5, log: true}\n"

SMALLER = {
    r"--seeds [\d,]+": "--seeds 0",
    r"--methods [\w,]+": "--methods kd,gompertz",
    r"--students [\w,]+": "--students resnet8,vgg8",
    r"--trials \d+": "--trials 2",
    r"--runs \d+": "--runs 10",
    r", weights: pretrained": "",
    r"train\.epochs: \d+": "train.epochs: 1",
    r"(gkd init birds --data photos/[^\n]*)": r"\1\nsed -i 's/epochs: [0-9]*/epochs: 1/' birds/params.yaml",
    r"gkd-student/7": "gkd-student/1",
    r"\bFOLDER\b": "photos",
    r"range\(5\)": "range(1)",
    r"epochs=(?:15|30)": "epochs=1",
    r"trials=30": "trials=2",
}
IN_PYTHON = """\
from pathlib import Path
import gkd_core as gkd
data = gkd.load_data("digits", train_images=50)
teacher = gkd.create_model("resnet8", data=data)
Path("search").mkdir(exist_ok=True)
"""
NEEDS_DATA = ("docs/comparing.md", "docs/searching.md")  # their Python begins with a teacher and data
ONLY_PHOTOS = ("README.md", "docs/start.md")  # they make their project themselves
ONLY_PARAMETERS = ("docs/kubernetes.md",)  # those of the demo: a cluster does not have this machine's photos


@dataclass(frozen=True)
class Stage:
    """Where a page's blocks run: a copy of `folder`."""

    folder: Path
    before_python: str = ""
    smaller: dict[str, str] = field(default_factory=lambda: SMALLER)


def write_photos(place: Path) -> None:
    """Grey pictures, a folder a class, no two alike, and each class of its own brightness."""
    rng = np.random.default_rng(0)
    for name, level in CLASSES.items():
        (place / name).mkdir(parents=True)
        for number in range(1, PICTURES + 1):
            coarse = np.clip(rng.normal(level, 25, (6, 6)), 0, 255).astype(np.uint8)
            image = Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            image.save(place / name / f"{number:03}.png")


def write_project(place: Path, run: Callable[[str, Path], subprocess.CompletedProcess[str]]) -> None:
    """A project that has run once, and beside its folders what the pages speak of as given.

    Args:
        run: runs bash in a folder.
    """
    write_photos(place / "photos")
    for name in ("photo.png", "picture.png"):
        shutil.copy(place / "photos" / "cat" / "001.png", place / name)
    with Image.open(place / "photo.png") as image:
        for name in ("cat.jpg", "photo.jpg"):
            image.save(place / name)
    names = sorted(file.relative_to(place).as_posix() for file in (place / "photos").rglob("*.png"))
    (place / "list.csv").write_text("".join(f"{name}\n" for name in ["path", *names]))
    (place / "token").write_text("secret\n")
    (place / "students.yaml").write_text(STUDENTS)
    (place / "contenders.yaml").write_text(CONTENDERS)
    (place / "methods.yaml").write_text(METHODS)
    done = run("gkd init made --data photos && mv made/* made/.[a-z]* . && rmdir made", place)
    assert done.returncode == 0, done.stderr
    (place / "params.yaml").write_text(SETTINGS)
    done = run(
        "dvc repro --quiet && gkd registry promote 1 --reason 'for the pages' && git add . && git commit -qm made",
        place,
    )
    assert done.returncode == 0, done.stderr
