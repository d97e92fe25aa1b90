"""Which score tells pictures of no class from photos of flowers: the measurements behind the default of `decide.score`.

    python -m benchmarks.unknowns write CIFAR FOLDER   # FOLDER/{cifar10,noise}/*.png
    python -m benchmarks.unknowns run FLOWERS FOLDER --weights weights/tf_efficientnet_lite0.safetensors

`run` fine-tunes EfficientNet-Lite0 on the photos with every seed and adds a line for each score to --results: what a
decision for 95 % precision, chosen on validation, does on the test photos, and on each folder of unknown pictures. What
stands in the file is not done again.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torchvision
from PIL import Image

import gkd_core as gkd
from gkd_core.data.prepared import PreparedData
from gkd_core.data.unknown import UnknownPictures
from gkd_core.decision import OF_FEATURES, Score
from gkd_core.evaluation.decision import measure_decision, measure_unknown
from gkd_core.export.class_distance import ClassDistance
from gkd_core.export.decide import choose_decision
from gkd_core.export.decision_graph import EMBEDDING
from gkd_core.export.onnx import write_onnx
from gkd_core.export.session import run_outputs, session
from gkd_core.models.network import Network
from gkd_core.run_facts import run_facts

COUNT = 1000  # pictures of each kind of unknown ones
SIDE = 96
EPOCHS = 4
PRECISION = 0.95


def write(cifar: Path, folder: Path) -> None:
    """Two folders of unknown pictures: the first test images of CIFAR-10, and noise, by the pixel or in soft spots."""
    images = torchvision.datasets.CIFAR10(cifar, train=False).data[:COUNT]
    random = np.random.default_rng(0)
    for name in ("cifar10", "noise"):
        (folder / name).mkdir(parents=True)
    for number in range(COUNT):
        Image.fromarray(images[number]).save(folder / "cifar10" / f"{number:04}.png")
        side = SIDE if number % 2 else 8  # the latter becomes soft spots
        noise = Image.fromarray(random.integers(256, size=(side, side, 3), dtype=np.uint8))
        noise.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(folder / "noise" / f"{number:04}.png")


def answers(network: Network, data: PreparedData, unknown: dict[str, Path]) -> dict[str, dict[str, np.ndarray]]:
    """Logits and features, as the exported file gives them, by what is looked at."""
    info = data.info
    with tempfile.TemporaryDirectory(prefix="gkd-") as name:
        file = Path(name) / "model.onnx"
        write_onnx(
            network, file, classes=info.classes, channels=info.channels, image_size=info.image_size, embedding=True
        )
        model = session(file)
        names = ["logits", EMBEDDING]
        found = {
            split: run_outputs(model, getattr(data, split).images, names) for split in ("train", "validation", "test")
        }
        for kind, folder in unknown.items():
            parts = [
                run_outputs(model, batch, names)
                for batch in UnknownPictures(folder, info.image_size, info.channels).batches()
            ]
            found[kind] = {each: np.concatenate([part[each] for part in parts]) for each in names}
    return found


def rows(found: dict[str, dict[str, np.ndarray]], data: PreparedData, kinds: list[str]) -> list[dict[str, Any]]:
    """One for each score."""
    distance = ClassDistance.fit(found["train"][EMBEDDING], data.train.labels)
    distances = {name: distance.scores(each[EMBEDDING]) for name, each in found.items()}
    lines = []
    for score in get_args(Score):
        decision = choose_decision(
            found["validation"]["logits"],
            data.validation.labels,
            score=score,
            asked="precision",
            target=PRECISION,
            distances=distances["validation"] if score in OF_FEATURES else None,
        )
        decided = {
            name: decision.decide(each["logits"], decision.scores(each["logits"], distances[name]))
            for name, each in found.items()
        }
        known = decided["test"][1]
        line = {"name": score, **measure_decision(decision, found["test"]["logits"], known, data.test.labels)}
        for kind in kinds:
            measured = measure_unknown(decided[kind][0], known, decided[kind][1])
            line |= {f"{name}_{kind}": value for name, value in measured.items()}
        lines.append(line)
    return lines


def run(flowers: Path, folder: Path, weights: Path, students: Path, results: Path, seeds: list[int]) -> None:
    """Train and measure what is not in `results`, an object a line; a student that is in `students` is not trained."""
    done = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    unknown = {path.name: path for path in sorted(folder.iterdir()) if path.is_dir()}
    data = gkd.load_data(flowers, image_size=SIDE, validation_fraction=0.2, test_fraction=0.25)
    for seed in seeds:
        if any(row["seed"] == seed for row in done):
            continue
        network = gkd.create_model("timm:tf_efficientnet_lite0", data=data, image_size=SIDE, weights=weights, seed=seed)
        student = students / str(seed)
        if not student.exists():
            students.mkdir(parents=True, exist_ok=True)
            gkd.train(network, data, seed=seed, epochs=EPOCHS, batch_size=16, device="cpu", out=student)
        network = gkd.load_model(student)
        facts = run_facts()
        where = {"commit": facts["git_revision"], "hardware": facts["cpu"], "torch": facts["torch"]}
        right = (answered := answers(network, data, unknown))["test"]["logits"].argmax(1) == data.test.labels
        told = {"seed": seed, "epochs": EPOCHS, "top1": float(right.mean()), **where}
        with results.open("a", encoding="utf-8") as stream:
            for row in rows(answered, data, list(unknown)):
                stream.write(json.dumps(row | told) + "\n")


def main() -> None:
    """Write the unknown pictures, or measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    writing = commands.add_parser("write")
    writing.add_argument("cifar", type=Path, metavar="CIFAR", help="holds cifar-10-batches-py")
    writing.add_argument("folder", type=Path, metavar="FOLDER")
    running = commands.add_parser("run")
    running.add_argument("flowers", type=Path, metavar="FLOWERS", help="a folder of photos for each class")
    running.add_argument("folder", type=Path, metavar="FOLDER", help="as `write` left it")
    running.add_argument("--weights", type=Path, required=True)
    running.add_argument("--students", type=Path, default=Path("work/unknowns"), help="where the students are kept")
    running.add_argument("--results", type=Path, default=Path("docs/results/flowers-unknowns/runs.jsonl"))
    running.add_argument("--seeds", default="0,1,2")
    given = parser.parse_args()
    if given.command == "write":
        write(given.cifar, given.folder)
    else:
        seeds = [int(seed) for seed in given.seeds.split(",")]
        run(given.flowers, given.folder, given.weights, given.students, given.results, seeds)


if __name__ == "__main__":
    main()
