"""What the docs say is what the code does."""

import re
from pathlib import Path

import pytest
import yaml

from gkd_core.config import load_params
from pipelines.catalogue import methods_markdown, parameters_markdown

ROOT = Path(__file__).parents[2]


def test_pages_made_from_the_code_are_up_to_date():
    assert (ROOT / "docs" / "parameters.md").read_text() == parameters_markdown(), "run `make docs`"
    assert (ROOT / "docs" / "methods.md").read_text() == methods_markdown(), "run `make docs`"


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda f: f.name)
def test_every_shipped_configuration_is_valid(file):
    written = yaml.safe_load(file.read_text())
    assert load_params(file).distill.method == written.get("distill", {}).get("method", "gompertz")


def test_links_in_the_documents_lead_somewhere():
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_readme_names_only_commands_and_targets_that_exist():
    from typer.main import get_command

    from pipelines.cli import app

    readme = (ROOT / "README.md").read_text()
    commands = get_command(app).commands
    for name in re.findall(r"\bgkd ([a-z]+)\b", readme):
        assert name in commands, f"README speaks of gkd {name}"
    targets = re.findall(r"^([a-z0-9]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for name in re.findall(r"\bmake ([a-z]+)\b", readme):
        assert name in targets, f"README speaks of make {name}"


def test_the_readmes_example_configuration_is_valid():
    from gkd_core.config import parse_params

    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        assert parse_params(yaml.safe_load(block)).data.source == "folder"
