"""The site is built without a warning, the same each time, and needs nothing from elsewhere."""

import functools
import hashlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import gkd_core as gkd
from benchmarks import pictures
from tests.docs.blocks import PAGES, ROOT
from tests.pipelines.test_results_page import words

DOCS = ROOT / "docs"
PROBLEMS = DOCS / "troubleshooting.md"


def build(folder: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def digests(folder: Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file() and "sitemap" not in file.name)  # the day is in those
    return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    build(folder)
    return folder


@pytest.fixture(scope="module")
def address(site) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *unused: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


@pytest.mark.slow
def test_it_is_built_strictly_and_the_same_each_time(site, tmp_path):
    build(tmp_path / "again")
    first, second = digests(site), digests(tmp_path / "again")
    assert [name for name in first.keys() | second.keys() if first.get(name) != second.get(name)] == []


@pytest.mark.slow
def test_files_outside_the_pages_are_pages_of_it(site):
    (link,) = re.findall(r'href="([^"]*fair-lr[^"]*)"', (site / "comparing.html").read_text())
    shown = (site / link).read_text()
    assert "configs/contenders/fair-lr.yaml" in shown
    assert (site / "contributing.html").is_file()
    assert (site / "results" / "flowers-lite0" / "runs.csv").is_file(), "raw tables can be fetched"
    assert not (site / "_site").exists()


@pytest.mark.slow
def test_it_asks_nobody_else_and_fits_a_phone(address, browser):
    asked: list[str] = []
    for scheme, width in (("light", 1280), ("dark", 390)):
        context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 844})
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        for name in ("index", "start", "reference/python", "kubernetes"):
            page.goto(f"{address}/{name}.html")
            assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{name} is wider than {width}"
        shown = page.evaluate("document.body.dataset.mdColorScheme")
        assert shown == {"light": "default", "dark": "slate"}[scheme]
        context.close()
    assert asked
    assert [url for url in asked if not url.startswith((address, "data:"))] == []


def test_every_public_name_is_in_the_reference():
    python, losses = ((DOCS / "reference" / f"{name}.md").read_text() for name in ("python", "losses"))
    assert sorted(re.findall(r"^::: gkd_core\.(\w+)$", python, re.MULTILINE)) == sorted(gkd._HOME)
    assert sorted(re.findall(r"^::: gkd_core\.losses\.(\w+)$", losses, re.MULTILINE)) == sorted(gkd.losses.__all__)


def test_the_curves_are_those_of_the_code():
    assert words((DOCS / "figures" / "schedules.svg").read_text()) == words(pictures.schedules()), "run `make docs`"


def test_what_can_go_wrong_quotes_what_the_code_says():
    sources = [
        file.read_text() for floor in ("gkd_core", "components", "pipelines") for file in (ROOT / floor).rglob("*.py")
    ]
    said = re.sub(r'"\s+f?"', "", " ".join(sources)).replace("`", "")
    sentences = [cell for cell in re.findall(r"^\| `([^`]*)` \|", PROBLEMS.read_text(), re.MULTILINE) if "…" in cell]
    assert len(sentences) > 12
    for sentence in sentences:
        for part in filter(None, (part.strip(" ,;:()") for part in sentence.split("…"))):
            assert part in said, f"nothing says {part!r}"


def test_the_readme_is_short_and_every_page_is_in_the_navigation():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120
    navigation = (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")[1]
    for page in PAGES:
        if page.is_relative_to(DOCS):
            assert f": {page.relative_to(DOCS).as_posix()}\n" in f"{navigation}\n", (
                f"{page.name} is not in nav of mkdocs.yml"
            )
