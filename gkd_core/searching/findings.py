"""What a search found: the best settings as files to go on with, the trials as tables, and what mattered as a plot."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from gkd_core.config.contenders import alone, merged
from gkd_core.config.schema import Params
from gkd_core.config.space import Space, sections_of
from gkd_core.errors import GkdError
from gkd_core.files import write_bytes, write_json
from gkd_core.searching.study import COPY, VALUES, WHY, Search, of_seed
from gkd_core.tables import markdown_table, rounded, write_table
from gkd_core.yaml_text import dump_yaml

NOTE = (
    "Validation top-1 is what was searched by: the mean over the seeds, of the epoch that is kept. The best of many "
    "trials looks better than it is, so its number is no estimate; compare the winner with others on the test images, "
    "with several seeds (gkd compare --contenders contender.yaml). A trial that was stopped did worse than the median "
    "of the complete ones at the same epoch; its top-1 is its last epoch's."
)
TELLING = 10  # complete trials from which on importance is told: of three, chance alone gives one parameter most of it
PLOT_NOTE = (
    "Each line is a complete trial, the more accurate the darker, the best one thick; it passes below the axis of a "
    "parameter that its trial does not have. Bars say what part of the variance of validation top-1 among complete "
    "trials each parameter explains by itself (fANOVA); parameters that only some trials have are without one, and all "
    f"are with fewer than {TELLING} complete trials, which are too few to tell."
)
SEED = 0  # of the forest behind fANOVA
STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "stopped"}


@dataclass(frozen=True)
class Trial:
    """One trial that has ended.

    Attributes:
        number: in the study.
        state: complete, stopped (early) or failed (nothing could be learned by these settings).
        validation_top1: mean over the seeds, in [0, 1]; of a stopped one that of its last epoch; None of a failed one
            that ended before its first.
        by_seed: seed → validation top-1, of a complete one.
        epochs: that the first seed was trained.
        values: key → value.
        copy_of: number of the trial that had the same settings, and was not trained again.
        why: it failed.
        seconds: of its trainings; the earlier part of an interrupted one is left out.
    """

    number: int
    state: str
    validation_top1: float | None
    by_seed: Mapping[int, float]
    epochs: int
    values: Mapping[str, Any]
    copy_of: int | None
    why: str
    seconds: float | None


@dataclass(frozen=True)
class Found:
    """What one study found.

    Attributes:
        name: what it is called in the tables.
        space: what was drawn.
        trials: by number.
        importance: key → part of the variance, most important first; empty with fewer than TELLING complete trials.
        running: trials that others are still at.
    """

    name: str
    space: Space
    trials: Sequence[Trial]
    importance: Mapping[str, float]
    running: int

    @property
    def complete(self) -> list[Trial]:
        """Those that were trained to their end."""
        return [trial for trial in self.trials if trial.state == "complete"]

    @property
    def best(self) -> Trial | None:
        """The complete trial with the best validation top-1, the first of equals; None without one."""
        return max(self.complete, key=lambda trial: (trial.validation_top1 or 0.0, -trial.number), default=None)

    @classmethod
    def of(cls, search: Search, name: str) -> "Found":
        """From the database, as it is now."""
        trials = [each for each in search.trials() if each.state in STATES]
        running = sum(each.state == TrialState.RUNNING for each in search.trials())
        return cls(name, search.space, [_trial(each, search.seeds) for each in trials], _importance(search), running)

    def table(self) -> list[list[str]]:
        """Headings, then the cells of each trial, the best first."""
        keys = [each.key for each in self.space.drawn]
        lines = [["trial", "validation top-1", *map(_short, keys), "epochs", ""]]
        best = self.best
        for trial in sorted(self.trials, key=_rank):
            top1 = "" if trial.validation_top1 is None else f"{100 * trial.validation_top1:.2f}"
            said = {"complete": "best" if trial is best else "", "stopped": "stopped", "failed": f"failed: {trial.why}"}
            copied = "" if trial.copy_of is None else f"as trial {trial.copy_of}"
            remark = ", ".join(part for part in (said[trial.state], copied) if part)
            cells = [_shown(trial.values[key]) if key in trial.values else "" for key in keys]
            lines.append([str(trial.number), top1, *cells, str(trial.epochs or ""), remark])
        return lines

    def chosen(self) -> list[list[str]]:
        """Headings, then each parameter of the best trial, with its importance."""
        assert self.best is not None
        lines = [["parameter", "best", "importance", "searched"]]
        for parameter in self.space.parameters:
            key = parameter.key
            value = _shown(self.best.values[key]) if key in self.best.values else "not drawn there"
            few = "too few trials" if len(self.complete) < TELLING and not parameter.fixed else ""
            weight = f"{100 * self.importance[key]:.0f} %" if key in self.importance else few
            lines.append([key, value, weight, "fixed" if parameter.fixed else _range(parameter.written())])
        return lines


@dataclass(frozen=True)
class Findings:
    """What a search found, in one study or in several side by side.

    Attributes:
        studies: of equal budgets, in the order they were asked for.
        facts: digests of what they were made from, and the budget, for the record.
    Raises:
        GkdError: a study has no complete trial.
    """

    studies: Sequence[Found]
    facts: Mapping[str, Any]

    def __post_init__(self) -> None:
        for study in self.studies:
            if study.best is None:
                last = next((trial.why for trial in reversed(study.trials) if trial.why), "")
                because = f", the last because {last}" if last else ""
                raise GkdError(
                    f"none of the {len(study.trials)} trials of {study.name} was trained to its end{because}: give the "
                    "search another space, or a larger budget"
                )

    @property
    def best(self) -> Found:
        """The study with the best trial; the first of equals."""
        return max(self.studies, key=lambda study: _best(study).validation_top1 or 0.0)

    @property
    def params(self) -> dict[str, Any]:
        """The best settings as a whole params.yaml."""
        space = self.best.space
        content = merged(space.content, alone(sections_of(_best(self.best).values), space.base))
        return {name: content[name] for name in Params.model_fields if name in content}

    @property
    def contenders(self) -> list[dict[str, Any]]:
        """Each study's best settings as entries of a file of contenders: what the space names."""
        return [{"name": study.name, **sections_of(_best(study).values)} for study in self.studies]

    def sentence(self) -> str:
        """Which settings won, by how much."""
        best, trials = _best(self.best), sum(len(study.trials) for study in self.studies)
        of = "" if len(self.studies) == 1 else f" of {self.best.name}"
        top1 = f"{100 * (best.validation_top1 or 0.0):.2f} %"
        return f"Best of {trials} trials: trial {best.number}{of}, validation top-1 {top1}"

    def tables(self) -> dict[str, list[list[str]]]:
        """Title → headings and lines."""
        found: dict[str, list[list[str]]] = {}
        if len(self.studies) > 1:
            found["Winners"] = self._winners()
        for study in self.studies:
            found[f"Best settings: {study.name}"] = study.chosen()
        for study in self.studies:
            running = f", {study.running} more at work" * bool(study.running)
            found[f"{len(study.trials)} trials: {study.name}{running}"] = study.table()
        return found

    def _winners(self) -> list[list[str]]:
        lines = [["study", "validation top-1", "trials", "complete", ""]]
        for study in sorted(self.studies, key=lambda each: -(_best(each).validation_top1 or 0.0)):
            top1 = f"{100 * (_best(study).validation_top1 or 0.0):.2f}"
            counts = str(len(study.trials)), str(len(study.complete))
            lines.append([study.name, top1, *counts, "best" * (study is self.best)])
        return lines

    def markdown(self) -> str:
        """The same as the page, without its plot."""
        lines = [f"# {self.sentence()}", "", NOTE, ""]
        for title, table in self.tables().items():
            lines += [f"## {title}", "", *markdown_table(table), ""]
        return "\n".join(lines)

    def plot(self) -> str:
        """Parallel coordinates and importance of every study, as SVG."""
        from gkd_core.report.parallel import Coordinates, parallel_plot

        return parallel_plot(
            {
                study.name: Coordinates(
                    keys=[each.key for each in study.space.drawn],
                    trials=[(one.values, 100 * (one.validation_top1 or 0.0)) for one in study.complete],
                    choices={each.key: each.choices for each in study.space.drawn if each.choices},
                    logs=[each.key for each in study.space.drawn if each.log],
                    importance=study.importance,
                )
                for study in self.studies
            }
        )

    def as_dict(self) -> dict[str, Any]:
        """Content of search.json; nothing in it varies from run to run with the same budget."""
        return {
            **self.facts,
            "best": {"study": self.best.name, "trial": _best(self.best).number},
            "studies": [
                {
                    "name": study.name,
                    "space": study.space.written(),
                    "best": _record(_best(study)),
                    "importance": rounded(dict(study.importance)),
                    "trials": [_record(trial) for trial in study.trials],
                }
                for study in self.studies
            ],
        }

    def rows(self) -> list[dict[str, Any]]:
        """Of trials.csv: a row a trial."""
        found = []
        for study in self.studies:
            for trial in study.trials:
                row: dict[str, Any] = {"study": study.name, **_record(trial)}
                values, by_seed = row.pop("values"), row.pop("by_seed")
                row |= {each.key: _cell(values.get(each.key)) for each in study.space.parameters}
                row |= {f"validation_top1 seed {seed}": value for seed, value in by_seed.items()}
                found.append(row | {"seconds": trial.seconds})
        return found

    def save(self, folder: Path | str) -> None:
        """Write best.yaml, contender.yaml, search.html, .md, .json and .svg and trials.csv into an existing folder."""
        from gkd_core.report.tables_page import render_tables

        folder = Path(folder)
        plot = self.plot()
        page = render_tables(
            self.sentence(), self.tables(), plot, about="Search on the validation images", caption=f"{NOTE} {PLOT_NOTE}"
        )
        head = f"# {self.sentence()}. Made by gkd search"
        write_bytes(folder / "best.yaml", _yaml(f"{head}; take it with --params.", self.params))
        write_bytes(
            folder / "contender.yaml",
            _yaml("# What gkd search found, for gkd compare --contenders.", self.contenders),
        )
        write_bytes(folder / "search.html", page.encode())
        write_bytes(folder / "search.md", f"{self.markdown()}\n![What mattered](search.svg)\n\n{PLOT_NOTE}\n".encode())
        write_bytes(folder / "search.svg", plot.encode())
        write_table(folder / "trials.csv", self.rows())
        write_json(folder / "search.json", self.as_dict())


def _best(study: Found) -> Trial:
    assert study.best is not None  # __post_init__ has seen to it
    return study.best


def _trial(frozen: FrozenTrial, seeds: Sequence[int]) -> Trial:
    known = frozen.user_attrs
    parts = {seed: known[of_seed(seed)] for seed in seeds if of_seed(seed) in known}
    last = max(frozen.intermediate_values, default=0)
    top1 = frozen.value if frozen.state == TrialState.COMPLETE else frozen.intermediate_values.get(last)
    return Trial(
        number=frozen.number,
        state="failed" if WHY in known else STATES[frozen.state],
        validation_top1=top1,
        by_seed={seed: part["validation_top1"] for seed, part in parts.items()},
        epochs=last,
        values=known[VALUES],
        copy_of=known.get(COPY),
        why=known.get(WHY, ""),
        seconds=round(sum(part["seconds"] for part in parts.values()), 2) if parts else None,
    )


def _importance(search: Search) -> dict[str, float]:
    """fANOVA over the complete trials; nothing where there are too few, or all came out alike."""
    complete = [each for each in search.trials() if each.state == TrialState.COMPLETE]
    if len(complete) < TELLING or len({each.value for each in complete}) < 2:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=SEED)
    try:
        return dict(optuna.importance.get_param_importances(search.study, evaluator=evaluator))
    except (ValueError, RuntimeError):  # no parameter that all have, or no variance in any tree
        return {}


def _record(trial: Trial) -> dict[str, Any]:
    return {
        "trial": trial.number,
        "state": trial.state,
        "validation_top1": rounded(trial.validation_top1),
        "epochs": trial.epochs,
        "values": dict(trial.values),
        "by_seed": {str(seed): rounded(value) for seed, value in trial.by_seed.items()},
        "copy_of": trial.copy_of,
        "why": trial.why,
    }


def _rank(trial: Trial) -> tuple[bool, bool, float, int]:
    """The complete ones first, by accuracy; then those that were stopped."""
    return trial.state == "failed", trial.state != "complete", -(trial.validation_top1 or 0.0), trial.number


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else json.dumps(value) if isinstance(value, list) else str(value)


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value


def _range(written: Any) -> str:
    if "choices" in written:
        return ", ".join(map(_shown, written["choices"]))
    log = ", by logarithm" if written.get("log") else ""
    step = f", by steps of {written['step']:g}" if "step" in written else ""
    return f"{written['low']:g} … {written['high']:g}{log}{step}"


def _short(key: str) -> str:
    """A key as the head of a column: its last part, or two where the last says little by itself."""
    return key.removeprefix("distill.options.").removeprefix("distill.").removeprefix("train.")


def _yaml(head: str, content: Any) -> bytes:
    return f"{head}\n{dump_yaml(content)}".encode()
