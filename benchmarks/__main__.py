"""`python -m benchmarks [NAME …] [--write]`: how fast it is, as ratios measured side by side; all questions, or some.

Every question is a file here with `measure`, whose table is printed as Markdown, goal beside measurement. Each is asked
in a process of its own, so none finds what another left in memory. `--write` puts the tables into docs/performance.md,
between the marks that name them; what stands around them is written by hand.
"""

import argparse
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from benchmarks.questions import QUESTIONS, answer_apart
from benchmarks.table import ROOT, Table, conditions, goals, written

GOALS = "goals"
PAGE = ROOT / "docs" / "performance.md"


def report(names: Sequence[str], rounds: int | None, page: Path | None) -> bool:
    """Ask questions, print what they give, and write it into a page.

    Args:
        names: of questions; where all are asked, a table of all goals comes too.
        rounds: how often a candidate has its turn; None is each question's own number.
        page: where it is written; None writes nothing.
    Returns:
        Whether all of them were answered. One that failed says so in its place and keeps none of the others.
    """
    where, start = conditions(), time.monotonic()
    tables: dict[str, Table] = {}
    for name in names:
        began = time.monotonic()
        try:
            tables[name] = answer_apart(name, rounds)
            text = tables[name].markdown() + f"\n{where}; {time.monotonic() - began:.0f} s.\n"
        except Exception as error:
            traceback.print_exc()
            text = f"Not measured, it failed: {str(error).splitlines()[0] if str(error) else type(error).__name__}\n"
        show(name, text, page)
    whole = f"{where}; {(time.monotonic() - start) / 60:.1f} minutes in all"
    if failed := [name for name in names if name not in tables]:
        whole += f"; not answered: {', '.join(failed)}"
    if set(names) == set(QUESTIONS):
        show(GOALS, f"{goals(tables).markdown()}\n{whole}.\n", page)
    else:
        print(f"{whole}.")
    return len(tables) == len(names)


def show(name: str, text: str, page: Path | None) -> None:
    """Print it, and write it into the page."""
    print(f"## {name}\n{text}", flush=True)
    if page is not None:
        page.write_text(written(page.read_text(), name, text))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(QUESTIONS)}; all, if none is given")
    parser.add_argument("--rounds", type=int, help="turns of each candidate, instead of each question's own number")
    parser.add_argument("--write", action="store_true", help=f"into {PAGE.relative_to(ROOT)}")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - {*QUESTIONS}:
        parser.error(f"{', '.join(sorted(unknown))}: unknown; known: {', '.join(QUESTIONS)}")
    if arguments.rounds is not None and arguments.rounds < 1:
        parser.error("--rounds is at least 1")
    names = [name for name in QUESTIONS if name in arguments.names or not arguments.names]
    sys.exit(not report(names, arguments.rounds, PAGE if arguments.write else None))


if __name__ == "__main__":
    main()
