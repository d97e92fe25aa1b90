"""A project of one's own: params.yaml, dvc.yaml, .gitignore and a short README, fitted to a folder of images.

Nothing is decoded: the images are counted, and of some the header is read. Photos get networks that start from
published weights; small or grey images get small networks that start from noise.
"""

import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from components.graph import STEPS
from gkd_core.config import load_params
from gkd_core.config.recipes import SMALL_UP_TO
from gkd_core.data.images import Unreadable, opened
from gkd_core.data.left_out import warnings_of
from gkd_core.data.sources import files_of, open_source
from gkd_core.data.sources.address import is_address
from gkd_core.data.sources.base import Source
from gkd_core.data.sources.folder import pictures
from gkd_core.data.splits import choose_splits
from gkd_core.data.unlabelled import refuse_inside
from gkd_core.errors import GkdError
from gkd_core.files import whole_folder
from pipelines.dvc import dvc_yaml

SAMPLE = 200  # images whose headers are read
UPDATES = 3000  # of the optimiser, that a training should have
FEW = 20  # images of a class
PUBLISHED = "pretrained"
PRETRAINED = {"teacher": "tf_efficientnet_lite2", "student": "tf_efficientnet_lite0"}  # timm's names
SEEN_SIDE = 160  # pixels that these see: fewer than their weights were made with, so that a CPU is enough
PHOTO_SIDE = 182  # pixels of the prepared images, of which the networks see the middle, as with their weights
PHOTOS_SEEN, PHOTO_EPOCHS = 3000, (3, 20)  # in one training from published weights
LARGER = """
  # These are larger: 128 keeps more of them at 4 times the cost, and goes with torchvision's networks, such as resnet18
  # as teacher and mobilenet_v3_small as student, which have published weights too (`weights: pretrained`)."""
SET_ASIDE = ("validation", "test")
IGNORED = (
    "data",
    "teacher",
    "baseline",
    "kd",
    "student",
    "deploy",
    "dvclive",
    "health",
    "work",
    "mlflow.db*",
    "mlruns",
    "mlartifacts",
)

IGNORED_BY_DVC = "# varies by run\nrun.json\n# said about a data set; makes it no other\nhealth.json\nhealth.html\n"


@dataclass(frozen=True)
class Photos:
    """What a folder of images holds.

    Attributes:
        source: its labels and file names.
        counts: images of each class that may be trained on.
        splits: how many images each split of its own has; only "train" where it has none.
        side: median of the shorter sides in pixels.
        grey: whether no image of the sample has colour.
    """

    source: Source
    counts: dict[str, int]
    splits: dict[str, int]
    side: int
    grey: bool


def create_project(
    out: Path, root: str | Path, weights: str | None = None, unlabelled: Path | None = None
) -> dict[str, Any]:
    """Write the project's files to `out`, and make it a repository of Git and DVC.

    Args:
        out: not there yet, or empty.
        root: images, as `data.root` takes them of a folder, a list or a Hugging Face data set.
        weights: what the networks start from: "pretrained", "none", or a folder with a NAME.safetensors for each of
            them; None chooses by the images.
        unlabelled: folder of images without classes; None is none.
    Returns:
        What was found, what was chosen and why ("chosen"), and what is to be looked at ("warnings").
    Raises:
        GkdError: `out` holds something, or lies among the images; `root` is no folder of classes, or one has too few;
            the weights are not there, or need a package that is not.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        found = "not empty" if out.is_dir() else "a file"
        raise GkdError(f"{out} is there and {found}: name a folder that is not there yet")
    if not str(root):
        raise GkdError("--data is empty: name a folder of images")
    local = None if is_address(root) else Path(root)
    if local is not None and out.resolve().is_relative_to(local.resolve()):
        raise GkdError(f"{out} would lie among the images of {root}: name a folder outside")
    if unlabelled is not None:
        if out.resolve().is_relative_to(unlabelled.resolve()):
            raise GkdError(f"{out} would lie among the images of {unlabelled}: name a folder outside")
        refuse_inside(unlabelled, local, "--unlabelled", "--data")
        pictures(unlabelled, 1, 1, option="--unlabelled")
    photos = look(root)
    starting, start = find(weights, photos, out)
    settings = choose(photos, starting)
    places = {"root": str(root) if local is None else _from(out, local)}
    watched = ["root"] if local is not None else []
    if unlabelled is not None:
        places["unlabelled"] = _from(out, unlabelled)
        watched.append("unlabelled")
    with whole_folder(out, [local, unlabelled], option="DIR") as building:
        (building / "params.yaml").write_text(_params(places, settings, photos), encoding="utf-8")
        (building / "dvc.yaml").write_text(_dvc(settings["weights"], watched), encoding="utf-8")
        (building / ".gitignore").write_text("".join(f"/{name}\n" for name in IGNORED))
        (building / ".dvcignore").write_text(IGNORED_BY_DVC)
        (building / "README.md").write_text(_readme(out.resolve().name, photos), encoding="utf-8")
        load_params(building / "params.yaml")
    warnings = [*warnings_of(photos.source, str(root)), *filter(None, (_scarce(photos), _repository(out)))]
    images = {"classes": photos.counts, "splits": photos.splits, "side": photos.side}
    networks = f"{settings['teacher']} teaches {settings['student']}"
    chosen = f"{networks}, {settings['epochs']} epochs each; both start from {start}"
    return {"path": str(out), "found": images, "settings": settings, "chosen": chosen, "warnings": warnings}


def look(root: str | Path) -> Photos:
    """Count the images of a folder, a list or a Hugging Face data set.

    Raises:
        GkdError: it has not two classes or more, or none of its images can be read.
    """
    source = open_source(files_of(root), root, option="--data")
    train = source.splits["train"]
    numbers = Counter(train.labels.tolist())
    assert train.open is not None
    sides, modes, reason = [], set(), ""
    for position in range(0, len(train.names), max(1, len(train.names) // SAMPLE)):
        try:
            with train.open(position) as stream, opened(stream) as image:
                sides.append(min(image.size))
                modes.add(image.mode)
        except (OSError, Unreadable) as error:  # the prepare step tells of each file
            reason = reason or f"{train.names[position]} ({error})"
    if not sides:
        raise GkdError(f"no image of {root} that was tried can be read: look at {reason}")
    return Photos(
        source=source,
        counts={name: numbers[label] for label, name in enumerate(source.classes)},
        splits={split: len(examples.labels) for split, examples in source.splits.items()},
        side=round(median(sides)),
        grey=all(mode in ("1", "L") or mode.startswith("I;16") for mode in modes),
    )


def find(given: str | None, photos: Photos, out: Path) -> tuple[dict[str, str], str]:
    """What teacher and student start from, and a word on that.

    Args:
        given: of `create_project`.
        out: the project, which may lie beside a folder of weights.
    Returns:
        `weights` by section, as params.yaml is to say it, nothing where they start from noise; and what they start from
        for the terminal.
    Raises:
        GkdError: a file is missing, or the package timm.
    """
    installed = importlib.util.find_spec("timm") is not None
    if given is None:
        against = {
            f"the images are small ({photos.side} pixels)": photos.side <= SMALL_UP_TO,
            "the images are grey": photos.grey,
            "published weights want the package timm: pip install 'gkd[hub]' and init again": not installed,
        }
        for reason, holds in against.items():
            if holds:
                return {}, f"noise ({reason})"
    if given == "none":
        return {}, "noise, as asked"
    if not installed:
        raise GkdError(f"--weights {given} is for networks of the package timm: pip install 'gkd[hub]'")
    if given in (None, PUBLISHED):
        fetched = "the first run fetches 44 MB unless the Hugging Face hub's cache has them"
        return dict.fromkeys(PRETRAINED, PUBLISHED), f"published weights ({fetched}; --weights FOLDER: from files)"
    files = {role: Path(str(given)) / f"{name}.safetensors" for role, name in PRETRAINED.items()}
    for file in files.values():
        if not file.is_file():
            raise GkdError(
                f"--weights {given}: there is no file {file}: give pretrained, none, or a folder that holds "
                f"{' and '.join(each.name for each in files.values())}"
            )
    return {role: _from(out, file) for role, file in files.items()}, f"the published weights in {given}"


def choose(photos: Photos, weights: dict[str, str]) -> dict[str, Any]:
    """Settings for such images.

    Args:
        weights: of `find`.
    Raises:
        GkdError: a class has too few images to be in every split.
    """
    total = sum(photos.counts.values())
    if weights:
        fewest, most = PHOTO_EPOCHS
        return {
            "teacher": f"timm:{PRETRAINED['teacher']}",
            "student": f"timm:{PRETRAINED['student']}",
            "weights": weights,
            "image_size": PHOTO_SIDE,
            "channels": 1 if photos.grey else 3,
            **_fractions(photos, (0.1, 0.1) if total >= 20_000 else (0.1, 0.2) if total >= 2000 else (0.2, 0.25)),
            "epochs": min(most, max(fewest, round(PHOTOS_SEEN / total))),
        }
    batch_size = next(size for size, most in ((16, 500), (32, 2000), (64, 20_000), (128, total + 1)) if total < most)
    return {
        "teacher": "resnet20",
        "student": "resnet8",
        "weights": {},
        "image_size": 32 if photos.side < 48 else 64,
        "channels": 1 if photos.grey else 3,
        **_fractions(photos, (0.1, 0.1) if total >= 20_000 else (0.1, 0.2) if total >= 500 else (0.2, 0.2)),
        "batch_size": batch_size,
        "epochs": min(100, max(15, round(UPDATES * batch_size / total))),
    }


def _fractions(photos: Photos, first: tuple[float, float]) -> dict[str, float]:
    """Parts for validation and test: `first`, or larger ones, until every class is in every split."""
    for validation, test in (first, (0.2, 0.2), (0.3, 0.3)):
        try:
            choose_splits(photos.source, validation, test, 0)
        except GkdError:
            continue
        return {"validation_fraction": validation, "test_fraction": test}
    name = min(photos.counts, key=photos.counts.__getitem__)
    raise GkdError(
        f"class {name!r} has {photos.counts[name]} images, too few to train on some and to measure on others: add "
        f"images (at least {FEW}), or move the class away"
    )


def _scarce(photos: Photos) -> str | None:
    scarce = sorted((count, name) for name, count in photos.counts.items() if count < FEW)
    if not scarce:
        return None
    count, name = scarce[0]
    return (
        f"{len(scarce)} of {len(photos.counts)} classes have fewer than {FEW} images to train on ({name!r} has "
        f"{count}): little can be learnt of them, and their accuracy rests on one or two images; add more if you can"
    )


def _from(out: Path, root: Path) -> str:
    """`data.root`: relative where the images lie beside the project, so that both can be moved together."""
    project, images = out.resolve(), root.resolve()
    return os.path.relpath(images, project) if images.is_relative_to(project.parent) else str(images)


def _params(places: dict[str, str], settings: dict[str, Any], photos: Photos) -> str:
    splits = ", ".join(f"{split} {count:,}" for split, count in photos.splits.items())
    validation, test = (" (not read: the folder has its own)" * (split in photos.splits) for split in SET_ASIDE)
    if settings["weights"]:
        larger = f"""
  # The networks see the middle {SEEN_SIDE} pixels of it."""
    else:
        larger = LARGER * (photos.side >= 128)
    folders = "\n".join(f"  {name}: {json.dumps(place, ensure_ascii=False)}" for name, place in places.items())
    return f"""\
# Made by `gkd init` for {len(photos.counts)} classes ({splits} images; median shorter side: {photos.side}).
# `gkd params` lists every field with its meaning; what is not written here has its default.

data:
  source: {photos.source.name}
{folders}
  # Side in pixels; images are resized and centre-cropped.{larger}
  image_size: {settings["image_size"]}
  channels: {settings["channels"]}                 # 3 for colour, 1 for grey
  validation_fraction: {settings["validation_fraction"]:<6} # of the training images{validation}
  test_fraction: {settings["test_fraction"]:<12} # of all images{test}
  unreadable: refuse          # or drop: leave out files that cannot be decoded, and list them

{_pretrained(settings) if settings["weights"] else _from_noise(settings)}
# Below, DVC wants every section to be there that a stage names.
references: {{baseline: true, kd: false}}   # the student alone; and by plain soft labels, where the method is another
evaluate: {{confidence: 0.95}}
export: {{input: uint8_nhwc}}
decide: null                              # or {{precision: 0.95}}: what the model is less sure of is "none of these"
gate: {{min_gain_over_baseline: 0.0}}       # what a student must show to become champion
tracking: {{uri: null, model_name: gkd-student}}    # null: MLFLOW_TRACKING_URI, else ./mlflow.db
"""


def _pretrained(settings: dict[str, Any]) -> str:
    """The sections of the networks and their trainings, from published weights."""
    weights = {role: json.dumps(each, ensure_ascii=False) for role, each in settings["weights"].items()}
    return f"""\
# Both networks start from weights learnt on ImageNet, so that a few hundred photos and a few epochs are enough: every
# null field of `train` takes the recipe fine-tune (`gkd params --effective --params params.yaml` shows what that is).
# `weights: pretrained` is fetched once from the Hugging Face hub; a .safetensors file here needs no network. The
# weights were made with 260 and 224 pixels; {SEEN_SIDE} takes less than half the time and costs some accuracy. On a GPU
# set 260 and 224, data.image_size to 292, and more epochs.
teacher:
  name: {settings["teacher"]}
  weights: {weights["teacher"]}
  image_size: {SEEN_SIDE}
  train: {{epochs: {settings["epochs"]}}}

student:
  name: {settings["student"]}
  weights: {weights["student"]}
  image_size: {SEEN_SIDE}

distill:
  method: kd                  # plain soft labels; gompertz and others: see `gkd methods`

train:                        # the student's budget, the same for the student alone and by the method
  epochs: {settings["epochs"]}
"""


def _from_noise(settings: dict[str, Any]) -> str:
    """The same for small networks from scratch."""
    return f"""\
teacher:
  name: {settings["teacher"]}              # on a GPU: resnet32x4, and resnet8x4 as student
  train: {{epochs: {settings["epochs"]}, batch_size: {settings["batch_size"]}}}

student:
  name: {settings["student"]}

distill:
  method: kd                  # plain soft labels; gompertz and others: see `gkd methods`

train:                        # the student's budget, the same for the student alone and by the method
  epochs: {settings["epochs"]}
  batch_size: {settings["batch_size"]}
"""


def _dvc(weights: dict[str, str], watched: list[str]) -> str:
    """The graph without gkd's sources, and with the images and files of weights: others make anew what used them.

    Args:
        weights: of `find`.
        watched: parameters of `data` that name images here, where DVC can look at them.
    """
    files = {role: [address] for role, address in weights.items() if address != PUBLISHED}
    beside = {"prepare": [f"${{data.{name}}}" for name in watched]} if watched else {}
    for step in STEPS:
        if step.trains and (used := [each for role in step.sections for each in files.get(role, [])]):
            beside[step.name] = used
    text = dvc_yaml(checkout=False, beside=beside)
    note = "# Another file of weights in params.yaml takes its place among `deps` here too.\n" if files else ""
    if "root" not in watched:
        note += (
            "# DVC does not see when the images at data.root change: `dvc repro --force prepare` reads them again.\n"
        )
    return f"# Made by `gkd init`. `gkd STEP --help` tells what each step takes.\n{note}{text[text.index('stages:') :]}"


def _readme(name: str, photos: Photos) -> str:
    return f"""\
# {name}

A small classifier of {len(photos.counts)} classes, distilled from a larger one by gkd.

    dvc repro                       # runs what is out of date: after new images or another params.yaml
    gkd summary                     # accuracies, the gate's decision, the registered version
    gkd predict IMAGE.jpg           # with the model in deploy/
    gkd registry list

`params.yaml` says what is trained and how; `report/report.html` shows what came of it.
"""


def _repository(out: Path) -> str | None:
    """Make it one of Git and DVC unless it lies in one; what is left to do where that fails."""
    inside = [out.resolve(), *out.resolve().parents]
    try:
        if not any((place / ".git").exists() for place in inside):
            _call("git", "init", "--quiet", cwd=out)
        if not any((place / ".dvc").is_dir() for place in inside):
            _call(sys.executable, "-m", "dvc", "init", "--quiet", "--subdir", cwd=out)
    except (OSError, subprocess.CalledProcessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        return (
            f"{out} is no repository yet ({said[-1] if said else error}): run `git init` and `dvc init --subdir` "
            "there before `dvc repro`"
        )
    return None


def _call(*command: str, cwd: Path) -> None:
    environment = os.environ | {"DVC_NO_ANALYTICS": "1"}
    subprocess.run(command, cwd=cwd, env=environment, check=True, capture_output=True, text=True)
