"""docs/results.md, made from raw tables: `python -m benchmarks.results` (a part of `make docs`).

docs/results/page.md is the page with a line `{{ NAME }}` where tables belong. The folder docs/results/NAME has

- `runs.csv`, as `gkd compare` and `gkd frontier` write it, or `runs.jsonl`, an object a line, as benchmarks do: a row a
  training, never edited; of several comparisons `runs-WHICH.csv` each, with the same names for the same contenders (a
  training that is in two of them counts once); and `frontier.json`, where it is a frontier's;
- `about.yaml`: see `About`.

To add a result: a folder with these two files and a line in page.md. What is counted is counted from the rows. Without
a raw table the page says that it was not run, and by which command it would be.
"""

import csv
import fnmatch
import json
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from gkd_core.config.load import parse_yaml
from gkd_core.errors import GkdError
from gkd_core.evaluation.comparison import ACCURACY, table
from gkd_core.evaluation.frontier import Candidate, Frontier
from gkd_core.evaluation.standings import Standing, standings
from gkd_core.files import write_bytes
from gkd_core.gate import WORDS
from gkd_core.report.forest import forest_plot
from gkd_core.tables import markdown_table

DOCS = Path(__file__).parents[1] / "docs"
SECONDS = {"seconds": "seconds a training", "cpu_seconds": "CPU seconds", "cpu_s": "CPU seconds"}
Row = dict[str, Any]


class Strict(BaseModel):
    """Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Table(Strict):
    """One table of the trainings."""

    title: str | None = None
    """A heading above it."""
    where: dict[str, str | int] = {}
    """Column → what stands in it in the rows that are meant."""
    only: list[str] = []
    """Names, or patterns of names (`terms: *`), beside the reference; none is all."""
    name: list[str] = []
    """Columns that make a contender's name; none is `name`, or `method` in a table that has no names."""
    labels: dict[str, str] = {}
    """Name → what the page calls it."""
    heading: str = "contender"
    """Above the names."""
    reference: str
    """Name of the one that the others are compared with; with `choose_by` what stands in that column of its rows."""
    metrics: dict[str, str] = {"top1": WORDS["top1"]}
    """Column → its name on the page; the first is compared by."""
    each_seed: bool = False
    """Show the first metric of every seed."""
    choose_by: str | None = None
    """Column whose values (`method`, say) are what is compared: of the contenders with one value, that with the highest
    mean of `validation_top1`, over the seeds that all contenders have, stands for it. A first table shows all tries, a
    second the chosen ones, with the seeds that all of them have; where there are others, without those that chose."""
    figure: bool = False
    """Draw it too, to docs/figures/."""


class About(Strict):
    """What stands with a raw table: about.yaml."""

    commands: str
    """A sentence of Markdown: the configuration, and how to make the table again."""
    notes: list[str] = []
    """More sentences, each a point of the list below the table."""
    commit: str | None = None
    """Of rows that do not say it themselves, as are the next two."""
    hardware: str | None = None
    torch: str | None = None
    row: str = "training"
    """What a row of the raw table is."""
    tables: list[Table] = []


def page(folder: Path = DOCS / "results") -> tuple[str, dict[str, str]]:
    """The page, and the figures that it shows by file name.

    Raises:
        GkdError: a raw table or what is told of it is missing or wrong.
    """
    figures: dict[str, str] = {}
    lines: list[str] = []
    names = sorted(each.name for each in folder.iterdir() if each.is_dir())
    template = (folder / "page.md").read_text(encoding="utf-8")
    for line in template.splitlines():
        name = line.removeprefix("{{ ").removesuffix(" }}")
        if line != f"{{{{ {name} }}}}":
            lines.append(line)
            continue
        if name not in names:
            raise GkdError(f"page.md has {line} but {folder} has no folder {name}: make it, or take the line out")
        names.remove(name)
        lines += _section(folder / name, figures)
    if names:
        raise GkdError(f"page.md shows nothing of {', '.join(names)}: give each a line {{{{ NAME }}}}")
    return "\n".join([*lines, ""]), figures


def _section(folder: Path, figures: dict[str, str]) -> Iterator[str]:
    """Tables, figures and facts of one folder, as lines of Markdown."""
    about, found = read_about(folder / "about.yaml"), read_runs(folder)
    if found is None:
        yield from ("Not run.", "", *_point(about.commands))
        return
    files, rows = found
    if (folder / "frontier.json").exists():
        content = json.loads((folder / "frontier.json").read_text(encoding="utf-8"))
        candidates = [Candidate(**each) for each in content["candidates"]]
        made_of = (content.get(name, "") for name in ("data_sha256", "teacher_digest"))  # the earliest have none
        frontier = Frontier(candidates, content["max_latency_ms"], content["max_mb"], content["hardware"], *made_of)
        yield from (frontier.sentence(), "", *markdown_table(frontier.table()), "")
        figures[f"{folder.name}.svg"] = frontier.plot()
        yield from (f"![Accuracy of the students against what they cost](figures/{folder.name}.svg)", "")
    for place, shown in enumerate(about.tables, start=1):
        name = folder.name if len(about.tables) == 1 else f"{folder.name}-{place}"
        yield from _table(rows, shown, name, figures)
    yield from _point(about.commands)
    links = ", ".join(f"[{file.name}](results/{folder.name}/{file.name})" for file in files)
    yield from _point(f"{facts(rows, about)} A row a {about.row}: {links}.")
    for each in about.notes:
        yield from _point(each)


def _table(rows: Sequence[Row], shown: Table, name: str, figures: dict[str, str]) -> Iterator[str]:
    """One table under its title, and its figure.

    Args:
        name: of the figure.
    """
    standing, trials = compared(rows, shown) if shown.choose_by is None else chosen(rows, shown)
    if len(standing) < 2:  # nobody was trained to compare the reference with
        return
    if shown.title:
        yield from (f"### {shown.title}", "")
    if shown.choose_by is not None:
        yield from (*markdown_table(tries(rows, shown)), "")
    yield from (*markdown_table(cells(standing, trials, shown)), "")
    if shown.figure:
        metric, reference = next(iter(shown.metrics.values())), _label(shown.reference, shown)
        labelled = [replace(row, name=_label(row.name, shown)) for row in standing]
        figures[f"{name}.svg"] = forest_plot({_pair(trials): labelled}, reference, metric)
        yield from (f"![{metric} by seed, and minus {reference} with intervals](figures/{name}.svg)", "")


def _label(name: str, shown: Table) -> str:
    return shown.labels.get(name, name)


def _point(sentence: str) -> list[str]:
    """A point of a list, in lines as long as the page's."""
    indents = {"initial_indent": "- ", "subsequent_indent": "  "}
    return textwrap.wrap(sentence, 120, break_long_words=False, break_on_hyphens=False, **indents)


def read_about(file: Path) -> About:
    """What about.yaml says.

    Raises:
        GkdError: it is missing or wrong.
    """
    try:
        return About.model_validate(parse_yaml(file.read_text(encoding="utf-8"), str(file)))
    except OSError as error:
        raise GkdError(f"{file} cannot be read ({error.strerror}): say there what the raw table beside it is") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise GkdError(f"{file}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def read_runs(folder: Path) -> tuple[list[Path], list[Row]] | None:
    """The raw tables and their rows, without empty cells. None before anything was trained."""
    files = sorted([*folder.glob("runs*.csv"), *folder.glob("runs*.jsonl")])
    rows: list[Row] = []
    for file in files:
        with file.open(newline="", encoding="utf-8") as stream:
            read = csv.DictReader(stream) if file.suffix == ".csv" else map(json.loads, stream)
            found = [{key: cell for key, cell in row.items() if cell not in (None, "")} for row in read]
        rows += [row for row in found if row not in rows]
    return (files, rows) if files else None


def named(rows: Sequence[Row], shown: Table) -> dict[str, dict[int, Row]]:
    """The rows that a table means, by contender and seed.

    Raises:
        GkdError: a training is there twice, or a name stands for several settings.
    """
    found: dict[str, dict[int, Row]] = {}
    for row in rows:
        if any(str(row.get(column)) != str(value) for column, value in shown.where.items()):
            continue
        columns = shown.name or ["name" if "name" in row else "method"]
        name, seed = ", ".join(str(row[column]) for column in columns), int(row["seed"])
        kept = not shown.only or name == shown.reference or any(fnmatch.fnmatchcase(name, each) for each in shown.only)
        if not kept:
            continue
        by_seed = found.setdefault(name, {})
        if seed in by_seed:
            raise GkdError(f"{name!r} is there twice with seed {seed}: leave one of them out by `where`")
        if len({str(each.get("settings")) for each in (*by_seed.values(), row)}) > 1:
            raise GkdError(f"{name!r} stands for several settings: train all of its seeds with one")
        by_seed[seed] = row
    return found


def compared(rows: Sequence[Row], shown: Table) -> tuple[list[Standing], dict[str, dict[int, Row]]]:
    """Every contender's standing, the best first, and its rows.

    Raises:
        GkdError: as `named`; or the reference is not there.
    """
    return _standing(named(rows, shown), shown)


def _standing(trials: dict[str, dict[int, Row]], shown: Table) -> tuple[list[Standing], dict[str, dict[int, Row]]]:
    if shown.reference not in trials:
        raise GkdError(f"the reference {shown.reference!r} is none of {', '.join(map(repr, trials))}")
    metric = next(iter(shown.metrics))
    values = {name: {seed: float(row[metric]) for seed, row in each.items()} for name, each in trials.items()}
    return standings(values, shown.reference), trials


def _tries(rows: Sequence[Row], shown: Table) -> tuple[list[int], dict[str, dict[str, dict[int, Row]]]]:
    """The seeds that all contenders have; and group → contender → seed → row, the best on validation first.

    Raises:
        GkdError: they have no seed in common, or as `named`.
    """
    trials = named(rows, shown)
    common = sorted(set.intersection(*(set(each) for each in trials.values()))) if trials else []
    if not common:
        raise GkdError("the contenders to choose from have no seed in common: train all with one at least")
    groups: dict[str, dict[str, dict[int, Row]]] = defaultdict(dict)
    for name in sorted(trials, key=lambda name: (-_validation(trials[name], common).mean, name)):
        groups[str(trials[name][common[0]][shown.choose_by or ""])][name] = trials[name]
    return common, groups


def _validation(by_seed: Mapping[int, Row], seeds: Sequence[int]) -> Standing:
    """Top-1 on the validation images."""
    (one,) = standings({"": {seed: float(by_seed[seed]["validation_top1"]) for seed in seeds}}, "")
    return one


def chosen(rows: Sequence[Row], shown: Table) -> tuple[list[Standing], dict[str, dict[int, Row]]]:
    """Each group's best contender by validation, and how these stand on the test images.

    Returns:
        Standings and rows, by the group's name.
    Raises:
        GkdError: as `compared`; or the contenders have no seed in common.
    """
    common, groups = _tries(rows, shown)
    best = {group: next(iter(each.values())) for group, each in groups.items()}
    shared = set.intersection(*(set(each) for each in best.values()))
    seeds = shared - set(common) or shared
    return _standing({group: {seed: each[seed] for seed in sorted(seeds)} for group, each in best.items()}, shown)


def tries(rows: Sequence[Row], shown: Table) -> list[list[str]]:
    """What each group was chosen from, as cells."""
    lines = [[shown.choose_by or "", "tried", "seeds", "validation top-1, mean ± sd", ""]]
    common, groups = _tries(rows, shown)
    for group, each in groups.items():
        for place, (name, by_seed) in enumerate(each.items()):
            word = "" if place else f"best of {len(each)} by validation"
            found = _validation(by_seed, common)
            cell = _spread(found.mean, found.deviation)
            lines.append([_label(group, shown), name, ", ".join(map(str, common)), cell, word])
    return lines


def cells(standing: Sequence[Standing], trials: Mapping[str, Mapping[int, Row]], shown: Table) -> list[list[str]]:
    """Headings and cells of a comparison: with its intervals, other metrics, and the time that a training took."""
    students = {name: str(next(iter(each.values())).get("student")) for name, each in trials.items()}
    found = [asdict(row) | {"name": _label(row.name, shown), "student": students[row.name]} for row in standing]
    lines = table(found, _label(shown.reference, shown))
    columns: dict[str, list[str]] = dict(zip(lines[0], zip(*lines[1:], strict=True), strict=True))
    first, *others = shown.metrics
    seconds = [name for name in SECONDS if all(name in row for each in trials.values() for row in each.values())][:1]
    more: dict[str, list[str]] = {}
    if shown.choose_by is not None:
        more["chosen"] = [next(iter(trials[row.name].values()))["name"] for row in standing]
    more["seeds"] = [_seeds(trials[row.name]) for row in standing]
    more[f"{shown.metrics[first]}, {ACCURACY}"] = columns[ACCURACY]
    if shown.each_seed:
        more["each seed"] = [", ".join(f"{100 * one:.2f}" for one in row.accuracies) for row in standing]
    for metric in others:
        values = [{seed: float(row[metric]) for seed, row in trials[each.name].items()} for each in standing]
        spread = [standings({"": each}, "")[0] for each in values]
        more[shown.metrics[metric]] = [_spread(each.mean, each.deviation) for each in spread]
    rest = {name: columns[name] for name in lines[0] if name not in ("contender", "seeds", ACCURACY)}
    for name in seconds:
        means = [[float(row[name]) for row in trials[each.name].values()] for each in standing]
        rest[SECONDS[name]] = [f"{sum(each) / len(each):,.0f}" for each in means]
    whole = {shown.heading: columns["contender"], **more, **rest}
    return [list(whole), *map(list, zip(*whole.values(), strict=True))]


def facts(rows: Sequence[Row], about: About) -> str:
    """How many trainings, with which seeds, of which commit, on what: as the rows say it, else about.yaml."""
    count = f"{len(rows)} {about.row}{'' if about.row.endswith('s') else 's'}"
    said = [f"{count}, seeds {_seeds({int(row['seed']): row for row in rows})}"]
    for key, word in (("commit", "commit "), ("hardware", ""), ("torch", "torch ")):
        counts = Counter(str(row.get(key) or getattr(about, key) or "not recorded") for row in rows)
        several = len(counts) > 1
        said.append(word + ", ".join(f"{value} ({count})" if several else value for value, count in counts.items()))
    return f"{'; '.join(said)}."


def _seeds(by_seed: Mapping[int, Row]) -> str:
    return ", ".join(map(str, sorted(by_seed)))


def _spread(mean: float, deviation: float | None) -> str:
    return f"{100 * mean:.2f}" + ("" if deviation is None else f" ± {100 * deviation:.2f}")


def _pair(trials: Mapping[str, Mapping[int, Row]]) -> str:
    """Who teaches whom, for a figure's title."""
    pairs = {
        f"{row['teacher']} → {row['student']}" for each in trials.values() for row in each.values() if "teacher" in row
    }
    return next(iter(pairs)) if len(pairs) == 1 else ""


def main() -> None:
    """Write the page and its figures."""
    text, figures = page()
    write_bytes(DOCS / "results.md", text.encode())
    for name, figure in figures.items():
        write_bytes(DOCS / "figures" / name, figure.encode())


if __name__ == "__main__":
    main()
