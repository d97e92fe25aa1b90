"""docs/commands.md, made from the commands: `python -m pipelines.command_reference`, a part of `make docs`."""

import html
import re
from typing import Any

import typer.cli
from typer.main import get_command

from pipelines.cli import app


def commands_markdown() -> str:
    """docs/commands.md: what `--help` says of every command, by typer's own generator."""
    command = get_command(app)
    _whole_first_lines(command)
    text = typer.cli.get_docs_for_click(obj=command, ctx=typer.Context(command), name="gkd", title="Command line")
    text = html.unescape(text).replace("```console\n$ ", "```text\n")
    text = re.sub(r"^\* `--help`: .*\n", "", text, flags=re.MULTILINE)  # every command has it
    text = re.sub(r"\*\*Options\*\*:\n\n(?!\*)", "", text)
    about = (
        "Every command and option; made by `make docs` from `pipelines/commands/`. `gkd COMMAND --help` says the same."
    )
    return text.replace("# Command line\n", f"# Command line\n\n{about}\n", 1).strip() + "\n"


def _whole_first_lines(command: Any) -> None:
    """In a group's list a command's first line stands whole, where typer would cut it."""
    for each in getattr(command, "commands", {}).values():
        each.short_help = (each.help or "").strip().split("\n\n")[0].replace("\n", " ")
        _whole_first_lines(each)


if __name__ == "__main__":
    print(commands_markdown(), end="")
