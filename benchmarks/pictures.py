"""Pictures of the documentation, in docs/figures: `python -m benchmarks.pictures [--demo FOLDER]`.

The curves of the schedules are drawn from the code (a part of `make docs`; results.py draws what belongs to results).
With --demo also photographs of what `make demo` left in FOLDER: the report, and the server's page with a digit on it.
They need Chromium.
"""

import argparse
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from gkd_core.errors import GkdError
from gkd_core.files import write_bytes
from gkd_core.report.forest import INK
from gkd_core.schedules import create_schedule

if TYPE_CHECKING:
    from playwright.sync_api import Browser

FIGURES = Path(__file__).parents[1] / "docs" / "figures"
EPOCHS = 30
SHOWN = {  # name → colour and line; adaptive-gompertz is the student's own curve
    "gompertz": ("#00796b", "-"),
    "reversed-gompertz": ("#c2570c", "-"),
    "linear": ("#5b6abf", "--"),
    "cosine": ("#9c3f9c", "-."),
    "constant": ("#888888", ":"),
}
CHROMIUM = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


def schedules() -> str:
    """β(t) of every schedule that is a curve beforehand, as SVG text; the same code gives the same text."""
    time = np.linspace(0, EPOCHS, 241)
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "gkd", "font.size": 10}):
        figure = Figure(figsize=(8.0, 3.4), layout="constrained")
        figure.set_facecolor("white")
        axis = figure.subplots()
        for name, (color, line) in SHOWN.items():
            values = np.broadcast_to(create_schedule(name, epochs=EPOCHS)(time), time.shape)
            axis.plot(time, values, line, color=color, label=name)
        axis.set(xlim=(0, EPOCHS), ylim=(0, 1.08))
        axis.set_xlabel("epoch", color=INK)
        axis.set_ylabel("β, weight of the method's terms", color=INK)
        axis.grid(color="#e5e5e5")
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
        figure.legend(frameon=False, loc="outside right upper")
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def photographs(demo: Path) -> Iterator[tuple[str, bytes]]:
    """File name and content of the pictures of a demo's report and page.

    Raises:
        GkdError: the demo has not run there, or Chromium is not installed.
    """
    report, deploy = demo / "report" / "report.html", demo / "deploy"
    if not report.is_file() or not deploy.is_dir():
        raise GkdError(f"{demo} has no report/report.html and deploy/: run `make demo` there first")
    with chromium() as browser, _served(deploy) as address:
        page = browser.new_page(viewport={"width": 1100, "height": 860}, device_scale_factor=1.5)
        page.goto(report.resolve().as_uri())
        yield "report.webp", _webp(page.screenshot())
        page.set_viewport_size({"width": 900, "height": 640})
        page.goto(address)
        page.set_input_files("input[type=file]", files=[_digit(demo)])
        page.locator("#bars li").first.wait_for()
        yield "page.webp", _webp(page.screenshot())


@contextmanager
def chromium(*switches: str) -> Iterator["Browser"]:
    """Chromium, started without a window and with these switches beside our own.

    Raises:
        GkdError: it is not installed.
    """
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium")
    if program is None:
        raise GkdError("pages are looked at in Chromium, which is not there: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=[*CHROMIUM, *switches])
        yield browser
        browser.close()


@contextmanager
def _served(deploy: Path) -> Iterator[str]:
    """The address of a server of this folder."""
    command = [sys.executable, "-m", "pipelines.cli", "serve", str(deploy), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"]
    finally:
        process.terminate()
        process.wait()


def _digit(demo: Path) -> dict[str, str | bytes]:
    """The first test image, large enough to be looked at."""
    pixels = np.load(demo / "data" / "test" / "images.npy", mmap_mode="r")[0].squeeze()
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(pixels)).resize((256, 256), Image.Resampling.NEAREST).save(buffer, "PNG")
    return {"name": "digit.png", "mimeType": "image/png", "buffer": buffer.getvalue()}


def _webp(png: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").save(buffer, "WEBP", quality=82, method=6)
    return buffer.getvalue()


def main() -> None:
    """Write them to docs/figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, help="folder in which `make demo` ran")
    demo = parser.parse_args().demo
    write_bytes(FIGURES / "schedules.svg", schedules().encode())
    for name, content in photographs(demo) if demo is not None else ():
        write_bytes(FIGURES / name, content)
        print(f"{FIGURES / name}: {len(content):,} bytes")


if __name__ == "__main__":
    try:
        main()
    except GkdError as error:
        sys.exit(f"gkd: {error}")
