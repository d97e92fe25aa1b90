"""What the docs say is what the code does."""

import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from gkd_core.config import Params, parse_params
from gkd_core.mistakes import section_of
from pipelines.catalogue import methods_markdown, parameters_markdown
from pipelines.command_reference import commands_markdown
from tests.docs.blocks import blocks

ROOT = Path(__file__).parents[2]


def test_pages_made_from_the_code_are_up_to_date():
    assert (ROOT / "docs" / "parameters.md").read_text() == parameters_markdown(), "run `make docs`"
    assert (ROOT / "docs" / "methods.md").read_text() == methods_markdown(), "run `make docs`"
    assert (ROOT / "docs" / "commands.md").read_text() == commands_markdown(), "run `make docs`"


def test_links_in_the_documents_lead_somewhere():
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_files_that_the_page_of_the_house_names_are_there():
    text = (ROOT / "docs" / "architecture.md").read_text().replace("components/NAME.py", "")
    for name in set(re.findall(r"[\w/]+\.py\b", text)):
        found = [
            file for floor in ("gkd_core", "components", "pipelines", "tests") for file in (ROOT / floor).rglob("*.py")
        ]
        assert any(f"/{file.relative_to(ROOT)}".endswith(f"/{name}") for file in found), name


PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
ENDS = {"|", "&&", "||", ";", ">", "2>", "#"}


def invocations(page: Path) -> Iterator[list[str]]:
    """The words after `gkd` of every command in a page, in its blocks and in its lines."""
    text = page.read_text()
    shell = [block.text for block in blocks(text) if block.language == "bash"]
    lines = [line for block in shell for line in block.replace("\\\n", " ").splitlines()]
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    lines += [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]
    for line in lines:
        for start in re.finditer(r"(?:^|[\s(;])(?:uv run )?gkd (?=[a-z-])", line):
            words = shlex.split(line[start.end() :].replace("$(", "").replace("'", '"'), comments=True)
            yield list(itertools.takewhile(lambda word: word not in ENDS, words))


def missing(words: list[str]) -> str | None:
    """What a command line names that there is not."""
    from typer.main import get_command

    from pipelines.cli import app

    command = get_command(app)
    rest = list(words)
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        name = rest.pop(0).rstrip(".,:)")
        if re.search(r"[|*…]", name):  # several at once: gkd registry list|promote
            names = [part for part in name.split("|") if part != "…"]
            return next((part for part in names if part not in command.commands), None)
        if name not in command.commands:
            return name
        command = command.commands[name]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    for place, word in enumerate(rest):
        option = word.strip("[](),.").partition("=")[0]
        if option.startswith("--") and option not in known | {"--help"}:
            return option
        if word == "--set" and re.match(r"[a-z0-9_]+\.", rest[place + 1]):
            section, *keys = rest[place + 1].partition("=")[0].split(".")
            model = Params.model_fields.get(section)
            if model is None or keys[0] not in section_of(model.annotation).model_fields:
                return rest[place + 1]
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_names_only_commands_options_and_targets_that_exist(page):
    for words in invocations(page):
        assert missing(words) is None, f"{page.name}: gkd {' '.join(words)}"
    targets = re.findall(r"^([a-z0-9-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for name in re.findall(r"`make ([a-z0-9-]+)[` ]|^make ([a-z0-9-]+)", page.read_text(), re.MULTILINE):
        assert "".join(name) in targets, f"{page.name} speaks of make {''.join(name)}"


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (["distill", "--data", "data"], None),
        (["distil"], "distil"),
        (["pipeline", "sumbit"], "sumbit"),
        (["registry", "list|premote"], "premote"),
        (["serve", "deploy", "--prot=8080"], "--prot"),
        (["distill", "--set", "train.epoch=3"], "train.epoch=3"),
    ],
)
def test_the_check_of_the_pages_finds_what_is_wrong(words, wrong):
    assert missing(words) == wrong


def test_the_pages_have_commands_to_check():
    found = {page.name: len(list(invocations(page))) for page in PAGES}
    assert found["README.md"] > 5
    assert found["kubernetes.md"] > 5
    assert found["serving.md"] >= 4


def test_the_example_configuration_by_hand_is_valid():
    examples = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "settings.md").read_text(), re.DOTALL)
    assert examples
    for block in examples:
        assert parse_params(yaml.safe_load(block)).data.source == "folder"
