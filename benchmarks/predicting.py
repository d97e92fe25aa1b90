"""A folder of photos through `gkd predict -o` beside a plain loop, and the memory it holds as the folder grows.

The loop is what one writes first: Pillow opens, converts, resizes and crops, onnxruntime answers, one picture after the
other. Both take the same ONNX file, and onnxruntime all cores. By the clock, starting processes included, so on an idle
machine; CPU time is told too. Memory is of a process of its own: `python -m benchmarks.predicting MODEL FOLDER`.
"""

import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

from benchmarks.table import ROOT, Goal, Row, Table
from components.model_source import load_model
from gkd_core.cores import usable_cores
from gkd_core.prediction.predict import predict_to_table

# torch is imported by `exported` alone: the processes that decode import this file again when it is the program.

ROUNDS = 3
SIDE = 160
PHOTOS = (("500 × 375", (500, 375), 800), ("2000 × 1500", (2000, 1500), 200), ("4000 × 3000", (4000, 3000), 80))
DIFFERENT = 20  # the others are links to these
FOLDERS = (1_000, 100_000)
GROWTH = 1.1
OURS, LOOP = "gkd predict -o", "Pillow + onnxruntime, a loop"


def make(folder: Path, size: tuple[int, int], count: int) -> None:
    """JPEG files, smooth with some noise, in folders of a thousand; of one size, as a camera's."""
    first: list[Path] = []
    for number in range(count):
        place = folder / f"{number // 1000:03d}" / f"{number:06d}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        if number >= DIFFERENT:
            os.link(first[number % DIFFERENT], place)
            continue
        rng = np.random.default_rng(number)
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), dtype=np.int16)
        pixels = np.clip(smooth + rng.integers(-12, 13, smooth.shape, dtype=np.int16), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(place, quality=90)
        first.append(place)


def loop(model: Path, folder: Path) -> list[int]:
    """The class of each picture, by a plain loop."""
    session = onnxruntime.InferenceSession(str(model))
    name = session.get_inputs()[0].name
    found = []
    for file in sorted(folder.rglob("*.jpg")):
        image = ImageOps.exif_transpose(Image.open(file)).convert("RGB")
        pixels = np.asarray(ImageOps.fit(image, (SIDE, SIDE), Image.Resampling.BILINEAR))
        found.append(int(session.run(None, {name: pixels[None]})[0].argmax()))
    return found


def exported(name: str, side: int, folder: Path) -> Path:
    """The ONNX file of a network as it is initialised."""
    from benchmarks.synthetic import synthetic_network
    from gkd_core.export.deploy import export_onnx

    return Path(export_onnx(synthetic_network(name, side=side).eval(), folder))


def cpu_seconds() -> float:
    """Of this process and of those it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def timed(run: Callable[[], object], count: int) -> tuple[float, float]:
    """Pictures a second by the clock, and milliseconds of CPU a picture."""
    start, busy = time.perf_counter(), cpu_seconds()
    run()
    return count / (time.perf_counter() - start), 1000 * (cpu_seconds() - busy) / count


def speed(folder: Path, rounds: int) -> list[Row]:
    """A row for each size and way."""
    model = exported("mobilenet_v3_small", SIDE, folder / "deploy")
    rows = []
    for name, size, count in PHOTOS:
        photos = folder / name
        make(photos, size, count)
        ways = {
            OURS: lambda photos=photos: predict_to_table(load_model(str(model)), [str(photos)], folder / "out.csv"),
            LOOP: lambda photos=photos: loop(model, photos),
        }
        found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, run in ways.items():
                found[way].append(timed(run, count))
        ratios = sorted(mine / theirs for (mine, _), (theirs, _) in zip(found[OURS], found[LOOP], strict=True))
        for way, turns in found.items():
            clock, busy = (float(np.median(column)) for column in zip(*turns, strict=True))
            ratio = float(np.median(ratios)) if way == OURS else 1.0
            cells = (f"{count} of {name}", way, f"{clock:,.1f}", f"{busy:,.1f}", "")
            rows.append(Row(cells, ratio, Goal(3.0, smallest=True) if way == OURS else None))
    return rows


def memory(folder: Path) -> list[Row]:
    """A row for each number of pictures: how much is held by the process, and by the largest of its own."""
    model = exported("resnet8", 8, folder / "small")
    rows, first = [], 0
    for count in FOLDERS:
        make(folder / f"{count}", (32, 24), count)
        command = [sys.executable, "-m", "benchmarks.predicting", str(model), str(folder / f"{count}")]
        said = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
        held = json.loads(said.splitlines()[-1])
        first = first or held["peak"]
        sizes = f"{held['peak'] / 1e6:,.0f} + {usable_cores()} × {held['reader'] / 1e6:,.0f}"
        cells = (f"{count:,} of 32 × 24", OURS, f"{held['per_second']:,.0f}", "", sizes)
        rows.append(Row(cells, held["peak"] / first, Goal(GROWTH) if count != FOLDERS[0] else None))
    return rows


def measure(rounds: int = ROUNDS) -> Table:
    with tempfile.TemporaryDirectory(prefix="gkd-bench-") as name:
        rows = speed(Path(name), rounds)
        if Path("/proc/self/status").is_file():
            rows += memory(Path(name))
        else:
            rows.append(Row(("memory", "not measured: this system has no /proc", "", "", "")))
    return Table(
        f"JPEG files to a table, mobilenet_v3_small at {SIDE} pixels, {usable_cores()} cores, by the clock; {rounds} "
        "turns. The ratio is of images/s; in the rows with memory, peak RSS ÷ that of the smaller folder.",
        ("pictures", "way", "images/s", "ms of CPU a picture", "peak RSS, MB, and of each process that decodes"),
        "÷ the loop",
        rows,
        named=2,
    )


def peak(pid: int | str = "self") -> int:
    """The most memory that a process has held, in bytes; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


def main() -> None:
    model = load_model(sys.argv[1])
    ended, readers = threading.Event(), [0]

    def watch() -> None:
        while not ended.wait(0.1):
            readers[0] = max(readers[0], *(peak(child.pid or 0) for child in multiprocessing.active_children()), 0)

    threading.Thread(target=watch, daemon=True).start()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        said = predict_to_table(model, [sys.argv[2]], Path(folder, "out.csv"))
    per_second = said["pictures"] / (time.perf_counter() - start)
    ended.set()
    print(json.dumps({"peak": peak(), "reader": readers[0], "per_second": per_second}))


if __name__ == "__main__":
    main()
