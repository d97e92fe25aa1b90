"""Every block of the README and of the site is run as it stands there, or says why not."""

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.docs.blocks import NEEDS, PAGES, ROOT, RUN, SHOWN, blocks, name_of, script
from tests.docs.shell import commands
from tests.docs.stages import IN_PYTHON, NEEDS_DATA, ONLY_PARAMETERS, ONLY_PHOTOS, Stage, write_photos, write_project

Bash = Callable[[str, Path], subprocess.CompletedProcess[str]]
IDENTITY = {f"GIT_{role}_{what}": "gkd@example.org" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
WITH_BLOCKS = [page for page in PAGES if any(block.runs for block in blocks(page.read_text()))]


@pytest.fixture(scope="module")
def bash(tmp_path_factory) -> Iterator[Bash]:
    """Runs a script in a folder, with `gkd` and `dvc` at hand."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "GKD_"))}
    with commands(tmp_path_factory.mktemp("bin")) as folder:
        settings = {
            "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "DVC_NO_ANALYTICS": "1",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "COLUMNS": "120",
        }

        def run(text: str, cwd: Path) -> subprocess.CompletedProcess[str]:
            program = ["bash", "-euo", "pipefail", "-c", text]
            environment = kept | IDENTITY | settings
            return subprocess.run(program, cwd=cwd, env=environment, capture_output=True, text=True, timeout=1700)

        yield run


@pytest.fixture(scope="module")
def stage(made_once, bash) -> Callable[[Path], Stage]:
    """Where a page's blocks run."""

    def of(page: Path) -> Stage:
        if name_of(page) in ONLY_PHOTOS:
            return Stage(made_once("photos-of-the-pages", lambda folder: write_photos(folder / "photos")))
        if name_of(page) in ONLY_PARAMETERS:
            return Stage(made_once("parameters-of-the-pages", lambda folder: shutil.copy(ROOT / "params.yaml", folder)))
        project = made_once("project-of-the-pages", lambda folder: write_project(folder, bash))
        return Stage(project, IN_PYTHON if name_of(page) in NEEDS_DATA else "")

    return of


@pytest.mark.slow
@pytest.mark.timeout(3600)  # for a machine that is busy with other things; some seconds a page on an idle one
@pytest.mark.parametrize("page", WITH_BLOCKS, ids=name_of)
def test_the_blocks_of_a_page_run_in_order(page, stage, bash, tmp_path):
    set_up = stage(page)
    folder = tmp_path / "here"
    assert bash(f"cp -r '{set_up.folder}' '{folder}'", tmp_path).returncode == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    done = bash(script(page, folder, port, set_up.smaller, set_up.before_python), folder)
    assert done.returncode == 0, f"{name_of(page)}: {done.stderr[-3000:]}\n{done.stdout[-1000:]}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_is_run_or_says_why_not(page):
    for block in blocks(page.read_text()):
        where = f"{name_of(page)}, line {block.line}"
        assert block.language in (*RUN, *SHOWN), f"{where}: say its language, one of {', '.join((*RUN, *SHOWN))}"
        if block.needs:
            assert block.needs in NEEDS, f"{where}: a block can need {', '.join(NEEDS)}"
        if block.run_by:
            text = (ROOT / block.run_by).read_text()
            targets = [line.split("#")[0].strip() for line in block.text.splitlines() if line.startswith("make ")]
            by_ci = bool(targets) and all(target in text for target in targets)
            assert by_ci or page.name in text, f"{where}: {block.run_by} does not speak of it"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_yaml_of_a_page_can_be_read(page):
    for block in blocks(page.read_text()):
        if block.language == "yaml":
            assert list(yaml.safe_load_all(block.text)), f"{name_of(page)}, line {block.line}"


def test_no_fence_is_passed_over():
    for page in PAGES:
        text = page.read_text()
        assert text.count("\n```") == 2 * len(blocks(text)), f"{name_of(page)}: a fence is indented or not closed"


def test_most_of_what_can_be_run_is():
    known = [block for page in PAGES for block in blocks(page.read_text()) if block.language in RUN]
    assert sum(block.runs for block in known) > 20


def test_a_marker_a_language_and_the_text_of_a_block_are_found():
    first, second = blocks("a\n<!-- needs: gpu -->\n```bash\nx\n```\n\n```python\ny\nz\n```\n")
    assert (first.line, first.language, first.text, first.needs, first.runs) == (3, "bash", "x\n", "gpu", False)
    assert (second.line, second.text, second.runs) == (7, "y\nz\n", True)
