"""Options in groups: the command line shows the fields, the command gets the group."""

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from pipelines.commands.options import grouped


@dataclass
class Place:
    """Where."""

    host: Annotated[str, typer.Option(help="Who is asked.")] = "here"
    tags: Annotated[list[str] | None, typer.Option("--tag", help="Repeatable.")] = None


def call(*arguments: str) -> tuple[int, list[object], str]:
    got: list[object] = []
    app = typer.Typer()

    @app.command()
    @grouped
    def ask(
        what: Annotated[str, typer.Argument()],
        times: Annotated[int, typer.Option(min=1)] = 1,
        *,
        place: Place,
        loud: Annotated[bool, typer.Option("--loud")] = False,
    ) -> None:
        """Ask for something."""
        got.extend([what, times, place, loud])

    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, got, result.output


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["tea"], ["tea", 1, Place("here", None), False]),
        (["tea", "--host", "there", "--loud"], ["tea", 1, Place("there", None), True]),
        (["--tag", "a", "tea", "--times", "3", "--tag", "b"], ["tea", 3, Place("here", ["a", "b"]), False]),
    ],
)
def test_a_group_is_filled_from_the_command_line(arguments, expected):
    assert call(*arguments)[:2] == (0, expected)


def test_help_shows_every_option_in_the_order_written():
    shown = call("--help")[2]
    assert "Ask for something." in shown
    places = [shown.index(name) for name in ("--times", "--host", "--tag", "--loud")]
    assert places == sorted(places)
    assert "Who is asked." in shown


@pytest.mark.parametrize("arguments", [["tea", "--times", "0"], ["tea", "--place", "x"], ["--host", "x"]])
def test_what_is_wrong_is_refused_before_the_command(arguments):
    code, got, _ = call(*arguments)
    assert (code, got) == (2, [])
