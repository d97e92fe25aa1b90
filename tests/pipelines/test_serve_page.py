"""The page in a real browser, and `gkd predict`: both give the same answer, with nothing loaded from elsewhere."""

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect
from typer.testing import CliRunner

from pipelines.cli import app
from tests.forked import gkd


def predict(*arguments: str):
    return CliRunner().invoke(app, ["predict", *arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def deploy(tmp_path_factory, make_deploy) -> Path:
    return make_deploy(tmp_path_factory.mktemp("page") / "deploy", seed=5, side=16, channels=3, count=12)


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    """Neither square nor of the model's size."""
    rows, columns = np.mgrid[0:90, 0:140]
    pixels = np.stack([rows * 2, columns, (rows + columns) % 256], -1).astype(np.uint8)
    file = tmp_path_factory.mktemp("pictures") / "hills.png"
    Image.fromarray(pixels).save(file)
    return file


@pytest.fixture(scope="module")
def server(start, deploy):
    return start(deploy, "--name", "hills & <valleys>", "--max-request-bytes", "200000")


@pytest.fixture
def page(browser, server) -> Iterator[Page]:
    """The page, opened; in the end nothing came from elsewhere and nothing was complained of."""
    context = browser.new_context()
    opened = context.new_page()
    asked, complaints = [], []
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    opened.goto(server.url)
    yield opened
    assert all(url.startswith((server.url, "blob:")) for url in asked)
    # A refused answer is in the browser's console too; nothing else may be.
    assert [text for text in complaints if "Failed to load resource" not in text] == []
    context.close()


def shown(page: Page) -> list[tuple[str, str]]:
    rows = page.locator("#bars li")
    expect(rows).to_have_count(10)
    return [tuple(rows.nth(i).locator("span").all_text_contents()) for i in range(10)]


def told(deploy: Path, picture: Path) -> list[tuple[str, str]]:
    result = predict(str(picture), "--model", str(deploy), "--top", "10", "--json")
    rows = json.loads(result.stdout.splitlines()[-1])[0]["predictions"]
    return [(row["class"], f"{100 * row['probability']:.1f} %") for row in rows]


def test_a_chosen_picture_is_classified_as_on_the_command_line(page, deploy, picture):
    expect(page.locator("h1")).to_have_text("hills & <valleys>")
    expect(page.locator("#about")).to_contain_text("12 classes")
    expect(page.locator("#lineage")).to_contain_text("version 1")
    page.set_input_files("#file", picture)
    assert shown(page) == told(deploy, picture)
    expect(page.get_by_role("status")).to_have_text(f"It looks like: {told(deploy, picture)[0][0]}")
    widths = [float(bar.get_attribute("value")) for bar in page.locator("#bars progress").all()]
    assert widths == sorted(widths, reverse=True)
    assert 0 < sum(widths) <= 1


@pytest.mark.slow
def test_a_dropped_picture_too(page, deploy, picture):
    data = page.evaluate_handle(
        "bytes => { const t = new DataTransfer(); t.items.add(new File([new Uint8Array(bytes)], 'p.png')); return t; }",
        list(picture.read_bytes()),
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": data})
    assert shown(page) == told(deploy, picture)


@pytest.mark.slow
def test_by_keyboard_alone(page):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "file"
    assert page.evaluate("getComputedStyle(document.getElementById('drop')).outlineStyle") == "solid"
    # A click is what opens the browser's own dialogue, which is not the page's to test.
    page.evaluate("document.getElementById('file').addEventListener('click', () => { window.opened = true; })")
    page.keyboard.press("Enter")
    page.wait_for_function("window.opened")


@pytest.mark.slow
def test_what_is_no_picture_is_said(page, tmp_path):
    (tmp_path / "words.txt").write_text("not a picture")
    page.set_input_files("#file", tmp_path / "words.txt")
    expect(page.get_by_role("status")).to_contain_text("the body is no picture that can be read")
    expect(page.locator("#result")).to_be_hidden()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_light_and_dark(page, picture, scheme):
    page.emulate_media(color_scheme=scheme)
    page.set_input_files("#file", picture)
    shown(page)
    ratios = page.evaluate(
        """() => {
          const light = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map(Number).map((v) => v / 255)
            .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
            .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
          const ground = light(getComputedStyle(document.body).backgroundColor);
          return ["h1", "#about", "#status", "#bars .name", "#bars .share", "#lineage"].map((which) => {
            const ink = light(getComputedStyle(document.querySelector(which)).color);
            return (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05);
          });
        }"""
    )
    assert min(ratios) >= 4.5  # WCAG 2.2, level AA
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light")


@pytest.mark.slow
def test_it_fits_a_telephone(page, picture):
    page.set_viewport_size({"width": 320, "height": 640})
    page.set_input_files("#file", picture)
    shown(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 320


@pytest.mark.slow
def test_a_token_is_asked_for(start, deploy, browser, picture):
    server = start(deploy, GKD_TOKEN="open-sesame")
    context = browser.new_context()
    page = context.new_page()
    page.goto(server.url)
    page.set_input_files("#file", picture)
    expect(page.get_by_role("status")).to_contain_text("wants its token")
    page.get_by_label("This server wants its token").fill("wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_contain_text("wants its token")
    page.get_by_label("This server wants its token").fill("open-sesame")
    page.keyboard.press("Enter")
    assert shown(page) == told(deploy, picture)
    expect(page.locator("#access")).to_be_hidden()
    context.close()


# Without a browser


def test_classify_takes_a_picture_in_any_format(server, deploy, picture):
    for kind in ("PNG", "BMP", "TIFF"):
        stream = io.BytesIO()
        Image.open(picture).save(stream, kind)
        reply = server.ask("POST", "/classify?top=10", stream.getvalue())
        rows = [(row["class"], f"{100 * row['probability']:.1f} %") for row in reply.json["predictions"]]
        assert rows == told(deploy, picture)


def test_what_is_no_image_or_would_fill_the_memory_is_refused_in_words_alone(server):
    stream = io.BytesIO()
    Image.new("1", (9_000, 9_000)).save(stream, "PNG")
    for content, sentence in (
        (b"not a picture", "can be read: it is no picture of a format that is read (AVIF, BMP, GIF, JPEG, "),
        (stream.getvalue(), "9000 × 9000 pixels large"),
    ):
        reply = server.ask("POST", "/classify", content)
        assert reply.status == 400
        assert sentence in reply.json["error"]


def test_predict_prints_a_table_for_people(deploy, picture):
    text = predict(str(picture), "--model", str(deploy), "--top", "2").stdout
    (best, _), (second, _) = told(deploy, picture)[:2]
    lines = text.splitlines()
    assert lines[0] == str(picture)
    assert [line.split()[:2] for line in lines[1:]] == [best.split(), second.split()]
    assert len(lines) == 3


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["{words}"], "words.txt is no picture that can be read"),
        (["{missing}"], "is no picture that can be read"),
        (["{picture}", "--model", "nowhere"], "neither an ONNX file nor a folder"),
    ],
)
def test_what_cannot_be_predicted_is_said_in_one_sentence(deploy, picture, tmp_path, arguments, sentence):
    from gkd_core.errors import GkdError

    (tmp_path / "words.txt").write_text("not a picture")
    places = {"words": tmp_path / "words.txt", "missing": tmp_path / "missing.png", "picture": picture}
    with pytest.raises(GkdError) as error:
        predict("--model", str(deploy), *(text.format(**places) for text in arguments))
    assert sentence in str(error.value)


def test_a_pipe_is_not_waited_for(deploy, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    result = gkd("predict", "pipe", "--model", str(deploy), cwd=tmp_path, timeout=60)
    assert result.returncode == 2
    assert result.stderr == "gkd: pipe is no picture that can be read (it is no file): name an image file\n"
