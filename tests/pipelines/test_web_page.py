"""A bundle's page in a real browser, behind Python's own server of files: it answers as `gkd predict` does."""

import base64
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from sklearn.datasets import load_sample_images
from typer.testing import CliRunner

from gkd_core.decision import Decision, Shown, Spread
from gkd_core.export.manifest import read_manifest
from gkd_core.export.web_page import write_page
from pipelines.cli import app

SIDE, CLASSES = 64, 10
CLOSE = 1e-3  # of a probability


@pytest.fixture(scope="module")
def deploy(tmp_path_factory, make_deploy) -> Path:
    return make_deploy(tmp_path_factory.mktemp("web") / "deploy", seed=5, side=SIDE, channels=3, count=CLASSES)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> list[Path]:
    """Twenty: a temple and a flower, in the formats, sizes and turns that people have."""
    folder = tmp_path_factory.mktemp("photos")
    temple, flower = (Image.fromarray(pixels) for pixels in load_sample_images().images)  # 640 × 427

    def save(image: Image.Image, name: str, **options: Any) -> None:
        image.save(folder / name, **options)

    turn = Image.Exif()
    turn[0x0112] = 6
    save(temple.resize((4000, 3000)), "telephone.jpg", exif=turn, quality=90)
    for name, image in (("temple", temple), ("flower", flower)):
        save(image, f"{name}.jpg", quality=92)
        save(image, f"{name}-progressive.jpg", quality=70, progressive=True)
        save(image.crop((3, 5, 300, 420)), f"{name}-tall.jpg", subsampling=0)
        save(image.convert("L"), f"{name}-grey.jpg")
        save(image, f"{name}.png")
        save(image.resize((41, 30)), f"{name}-small.png")
        save(image.quantize(64), f"{name}-palette.png")
        save(image, f"{name}-lossy.webp", quality=80)
    save(flower.crop((0, 0, 600, 100)), "wide.webp", lossless=True)
    save(temple.resize((200, 133)).quantize(32), "temple.gif")
    glass = flower.resize((320, 213)).convert("RGBA")
    glass.putalpha(Image.linear_gradient("L").resize(glass.size))
    save(glass, "glass.png")
    files = sorted(folder.iterdir())
    assert len(files) == 20
    return files


@pytest.fixture(scope="module")
def web(tmp_path_factory, deploy, web_files) -> Path:
    return written(tmp_path_factory.mktemp("pages") / "web", deploy / "model.onnx", deploy, web_files)


def written(folder: Path, model: Path, deploy: Path, web_files: Path) -> Path:
    manifest = read_manifest(deploy)
    runtime = {file.name: file.read_bytes() for file in web_files.iterdir()}
    write_page(
        folder,
        name="flowers",
        model=model,
        manifest=manifest,
        entry=manifest["model"],
        precision="fp32",
        crop="center",
        runtime=runtime,
    )
    return folder


@pytest.fixture(scope="module")
def served(web) -> Iterator[str]:
    with serve(web) as url:
        yield url


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """`python -m http.server`, which is on a port of its own choice."""
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        said = re.search(r"port (\d+)", process.stdout.readline())
        assert said is not None
        try:
            yield f"http://127.0.0.1:{said[1]}/"
        finally:
            process.terminate()


@pytest.fixture
def page(browser: Browser, served: str) -> Iterator[Page]:
    """The page, loaded; in the end nothing was asked of another host, and nothing was complained of."""
    context = browser.new_context()
    opened = context.new_page()
    asked, complaints = [], []
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
    opened.goto(served)
    loaded(opened)
    yield opened
    assert all(url.startswith((served, "blob:")) for url in asked), asked
    assert complaints == []
    context.close()


def loaded(page: Page) -> None:
    expect(page.locator("#lineage")).to_contain_text("model")
    expect(page.get_by_role("status")).to_have_text("", timeout=60_000)


def answer(page: Page, name: str) -> dict[str, float]:
    """The probabilities by class, once they are those of the picture of this name."""
    page.wait_for_function(
        """name => document.getElementById('preview').alt === `The picture ${name}`
          && !document.getElementById('result').hidden""",
        arg=name,
    )
    rows = page.locator("#bars li").evaluate_all(
        "rows => rows.map(row => [row.querySelector('.name').textContent, row.querySelector('progress').value])"
    )
    return dict(rows)


def told(deploy: Path, files: list[Path]) -> list[dict[str, Any]]:
    """What `gkd predict` says."""
    command = ["predict", *map(str, files), "--model", str(deploy), "--top", str(CLASSES), "--json"]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    return json.loads(result.stdout.splitlines()[-1])


def probabilities(row: dict[str, Any]) -> dict[str, float]:
    return {entry["class"]: entry["probability"] for entry in row["predictions"]}


def predicted(deploy: Path, files: list[Path]) -> list[dict[str, float]]:
    return [probabilities(row) for row in told(deploy, files)]


def differs(found: dict[str, float], expected: dict[str, float]) -> float:
    assert next(iter(found)) == next(iter(expected))  # the likeliest class
    assert set(found) == set(expected)
    return max(abs(found[name] - expected[name]) for name in expected)


def test_twenty_photos_are_classified_as_on_the_command_line_without_a_network(page, deploy, photos):
    page.context.set_offline(True)
    differences = {}
    for file, expected in zip(photos, predicted(deploy, photos), strict=True):
        page.set_input_files("#file", file)
        differences[file.name] = differs(answer(page, file.name), expected)
        best = next(iter(expected))
        expect(page.get_by_role("status")).to_have_text(f"It looks like: {best}")
    expect(page.locator("#time")).to_contain_text(re.compile(r"read in [\d.]+ ms, answered in [\d.]+ ms"))
    assert max(differences.values()) <= CLOSE, differences
    # Rounded to six digits as they are, and computed by other kernels; half transparent pixels alone may be others.
    assert max(value for name, value in differences.items() if name != "glass.png") <= 1e-5, differences


def test_a_picture_of_the_camera_is_classified_as_its_pixels_are(page, deploy, tmp_path):
    page.get_by_role("button", name="Use the camera").click()
    page.wait_for_function("() => document.getElementById('video').videoWidth > 0")
    expect(page.locator("#drop")).to_be_hidden()
    page.get_by_role("button", name="Take the picture").click()
    found = answer(page, "of the camera")
    data = page.evaluate(
        """() => {
          const image = document.getElementById('preview');
          const canvas = document.createElement('canvas');
          [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
          canvas.getContext('2d').drawImage(image, 0, 0);
          return canvas.toDataURL('image/png');
        }"""
    )
    (tmp_path / "camera.png").write_bytes(base64.b64decode(data.partition(",")[2]))
    assert Image.open(tmp_path / "camera.png").size == (640, 480)
    assert differs(found, predicted(deploy, [tmp_path / "camera.png"])[0]) <= CLOSE
    expect(page.locator("#video")).to_be_hidden()
    assert page.evaluate("document.getElementById('video').srcObject") is None  # the camera's light is off


@pytest.mark.parametrize(
    ("score", "words"),
    [
        ({"score": "max_probability"}, "the largest calibrated probability is at least"),
        (
            {"score": "probability_and_distance", "distance": Spread(mean=-0.1, deviation=0.02)},
            "the calibrated probability of all other classes, lowered where the features are farther",
        ),
    ],
)
def test_a_model_that_decides_shows_its_own_probabilities_and_none_of_these(
    browser, tmp_path, photos, web_files, make_deploy, score, words
):
    shown = Shown(images=100, coverage=0.5, precision=0.9, nll=1.0, calibrated_nll=0.9)
    draft = Decision(temperature=2.0, threshold=0.0, **score, asked="precision", target=0.9, validation=shown)
    form = {"seed": 5, "side": SIDE, "channels": 3, "count": CLASSES}
    said = told(make_deploy(tmp_path / "draft", decision=draft, **form), photos[::4])
    scores = np.sort([row["score"] for row in said])
    assert scores[2] > scores[1] + 1e-3
    decision = draft.model_copy(update={"threshold": float(scores[1] + scores[2]) / 2})
    made = make_deploy(tmp_path / "deciding", decision=decision, **form)
    sentences = []
    with serve(written(tmp_path / "web", made / "model.onnx", made, web_files)) as url:
        page = browser.new_page()
        page.goto(url)
        loaded(page)
        for file, row in zip(photos[::4], told(made, photos[::4]), strict=True):
            page.set_input_files("#file", file)
            assert differs(answer(page, file.name), probabilities(row)) <= CLOSE
            best, named = row["predictions"][0]["class"], row["decision"]
            sentences.append(f"It looks like: {named}" if named else f"None of these; the likeliest would be {best}")
            expect(page.get_by_role("status")).to_have_text(sentences[-1])
        expect(page.locator("#rule")).to_contain_text(words)
        page.close()
    assert len({sentence.split()[0] for sentence in sentences}) == 2  # both were seen


def test_what_is_no_picture_and_a_missing_file_are_said(page, browser, web, tmp_path):
    (tmp_path / "words.txt").write_text("not a picture")
    page.set_input_files("#file", tmp_path / "words.txt")
    expect(page.get_by_role("status")).to_have_text("This browser cannot read that as a picture.")
    expect(page.locator("#result")).to_be_hidden()
    (tmp_path / "web").mkdir()
    for file in web.iterdir():
        if file.name != "ort.wasm":
            (tmp_path / "web" / file.name).symlink_to(file)
    with serve(tmp_path / "web") as url:
        broken = browser.new_page()
        broken.goto(url)
        expect(broken.get_by_role("status")).to_have_text("ort.wasm is missing beside this page (404).")
        broken.close()
