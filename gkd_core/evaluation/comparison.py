"""Methods compared fairly: the same data, teacher, student, budget and seeds, and differences paired by seed."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from scipy import stats

from gkd_core.errors import GkdError, unknown
from gkd_core.files import write_bytes, write_json
from gkd_core.gate import WORDS, Metric
from gkd_core.methods import METHODS
from gkd_core.tables import rounded, write_table

if TYPE_CHECKING:
    from gkd_core.data.prepared import PreparedData
    from gkd_core.models.network import Network

METRICS = get_args(Metric)
COLUMNS = ("teacher", "student", "method", "seed", *METRICS, "validation_top1", "schedule", "seconds")


@dataclass(frozen=True)
class Difference:
    """Mean of a method's accuracy, or of another measure, minus the reference's, seed by seed.

    Attributes:
        mean: in [−1, 1].
        low, high: Student's t-interval of the mean; None with fewer than two common seeds.
        seeds: how many seeds both have.
    """

    mean: float
    low: float | None
    high: float | None
    seeds: int

    @property
    def separable(self) -> bool:
        """The interval leaves out zero."""
        return self.low is not None and self.high is not None and not self.low <= 0.0 <= self.high


@dataclass(frozen=True)
class Standing:
    """One method in a comparison.

    Attributes:
        mean: accuracy over its seeds, in [0, 1].
        deviation: standard deviation over its seeds (n − 1); None with one seed.
        difference: to the reference; None for the reference itself, and without a common seed.
    """

    method: str
    seeds: tuple[int, ...]
    mean: float
    deviation: float | None
    difference: Difference | None


def standings(
    accuracies: Mapping[str, Mapping[int, float]], reference: str, confidence: float = 0.95
) -> list[Standing]:
    """Every method's standing, the most accurate first.

    Two trainings of one seed share their initial weights, the order of their images and their augmentation, so the
    difference is taken within a seed: what the seeds differ by cancels. With few seeds the interval is wide, and it is
    not corrected for the number of methods.

    Args:
        accuracies: method → seed → accuracy in [0, 1]; a method without seeds is left out.
        reference: the method that the others are compared with.
    """
    base = accuracies.get(reference, {})
    found = []
    for method, by_seed in accuracies.items():
        if not by_seed:
            continue
        values = np.array([by_seed[seed] for seed in sorted(by_seed)])
        common = sorted(set(by_seed) & set(base)) if method != reference else []
        gaps = np.array([by_seed[seed] - base[seed] for seed in common])
        found.append(
            Standing(
                method=method,
                seeds=tuple(sorted(by_seed)),
                mean=float(values.mean()),
                deviation=float(values.std(ddof=1)) if len(values) > 1 else None,
                difference=_interval(gaps, confidence) if len(gaps) else None,
            )
        )
    return sorted(found, key=lambda standing: (-standing.mean, standing.method))


def _interval(gaps: np.ndarray, confidence: float) -> Difference:
    mean = float(gaps.mean())
    if len(gaps) < 2:
        return Difference(mean, None, None, len(gaps))
    reach = float(stats.t.ppf((1 + confidence) / 2, len(gaps) - 1) * stats.sem(gaps))
    return Difference(mean, mean - reach, mean + reach, len(gaps))


@dataclass(frozen=True)
class Comparison:
    """What trainings of several methods and seeds say about the methods.

    Attributes:
        rows: one dict a training with the keys of COLUMNS; the measures in [0, 1] on the same test images.
        reference: the method that the others are compared with.
        metric: the measure they are compared by.
    Raises:
        GkdError: there are no rows, or the metric is unknown.
    """

    rows: Sequence[dict[str, Any]]
    reference: str
    metric: Metric = "top1"

    def __post_init__(self) -> None:
        expect_metric(self.metric)
        if not self.rows:
            raise GkdError("there is no finished training to compare: run some first")

    @property
    def pairs(self) -> dict[str, list[Standing]]:
        """The standings by "teacher → student", the most accurate method first."""
        found: dict[str, dict[str, dict[int, float]]] = {}
        for row in sorted(self.rows, key=_pair):
            found.setdefault(_pair(row), {}).setdefault(row["method"], {})[row["seed"]] = row[self.metric]
        return {pair: standings(accuracies, self.reference) for pair, accuracies in found.items()}

    def as_dict(self) -> dict[str, Any]:
        """{"teacher → student": [{"method", "seeds", "mean", "deviation", "difference"}, …]}, the best first."""
        return {pair: [rounded(asdict(standing)) for standing in rows] for pair, rows in self.pairs.items()}

    def __repr__(self) -> str:
        return self.markdown()

    def markdown(self) -> str:
        """A table a pair, in percent and percentage points."""
        return "\n".join(_table(pair, rows, self.reference, WORDS[self.metric]) for pair, rows in self.pairs.items())

    def plot(self) -> str:
        """A forest plot as SVG."""
        from gkd_core.report.forest import forest_plot

        return forest_plot(self.pairs, self.reference, WORDS[self.metric])

    def save(self, folder: Path) -> None:
        """Write comparison.json, comparison.md, comparison.svg and runs.csv into an existing folder."""
        write_json(
            folder / "comparison.json", {"reference": self.reference, "metric": self.metric, "pairs": self.as_dict()}
        )
        write_bytes(folder / "comparison.md", self.markdown().encode())
        write_bytes(folder / "comparison.svg", self.plot().encode())
        runs = sorted(self.rows, key=lambda row: (_pair(row), row["method"], row["seed"]))
        write_table(folder / "runs.csv", ({name: row.get(name) for name in COLUMNS} for row in runs))


def compare(
    student: "str | Callable[[int], Network]",
    teacher: "Network",
    data: "PreparedData",
    *,
    methods: Sequence[str] = ("ce", "kd", "gompertz"),
    seeds: Sequence[int] = (0, 1, 2),
    reference: str = "kd",
    metric: Metric = "top1",
    options: Mapping[str, dict[str, Any]] | None = None,
    work: Path | str | None = None,
    **settings: Any,
) -> Comparison:
    """Train a student by every method with every seed and measure each once on the test split.

    Args:
        student: a name as `create_model` takes it, or a function that makes an untrained student from a seed.
        teacher: frozen here.
        data: from `load_data`.
        methods: names from `list_methods()`; the reference is trained too.
        seeds: of the students and of the order of images; three or more for an interval worth having.
        reference: the method that the others are compared with.
        metric: what they are compared by: top1, or, where classes are of different size, balanced_accuracy or macro_f1.
        options: hyperparameters by method.
        work: folder for checkpoints: the same call again goes on from the last epoch.
        settings: fields of `train` in params.yaml, the same for all.
    Raises:
        GkdError: an unknown method or metric, doubled seeds, a wrong setting.

    Example:
        >>> import gkd_core as gkd
        >>> data = gkd.load_data("digits", train_images=200)
        >>> teacher = gkd.create_model("resnet8", data=data)
        >>> comparison = gkd.compare("resnet8", teacher, data, methods=["ce"], seeds=[0, 1], epochs=1, device="cpu")
        >>> [standing.method for standing in comparison.pairs["resnet8 → resnet8"]]  # doctest: +SKIP
        ['ce', 'kd']
    """
    from gkd_core.evaluation.evaluate import evaluate
    from gkd_core.models.create import create_model
    from gkd_core.models.network import Network, expect_network
    from gkd_core.training.trainer import distill

    expect_network(teacher, "teacher")
    if isinstance(student, Network) or not (isinstance(student, str) or callable(student)):
        raise GkdError(
            f"student is a {type(student).__name__}: give a name from list_models, or a function seed → network, for "
            "every training begins with a new one"
        )
    lists: dict[str, object] = {"methods": methods, "seeds": seeds}
    for name, given in lists.items():
        if isinstance(given, str) or not isinstance(given, Iterable):
            raise GkdError(f"{name} is {given!r}: give a list")
    methods, seeds = list(methods), list(seeds)
    chosen = list(dict.fromkeys([reference, *methods]))
    check_trials(chosen, seeds, "methods", "seeds", reference="reference")
    expect_metric(metric)
    rows: list[dict[str, Any]] = []
    for seed in seeds:  # seed by seed: stopped half-way, whole seeds can be compared
        for method in chosen:
            network = create_model(student, data=data, seed=seed) if isinstance(student, str) else student(seed)
            given = (options or {}).get(method)
            result = distill(network, teacher, data, method=method, options=given, seed=seed, work=work, **settings)
            measured = evaluate(network, data.test)
            rows.append(
                {
                    "teacher": teacher.name,
                    "student": network.name,
                    "method": method,
                    "seed": seed,
                    **{name: rounded(getattr(measured, name)) for name in METRICS},
                    "validation_top1": rounded(result.facts["validation_top1"]),
                    "schedule": result.facts["schedule"],
                    "seconds": round(result.seconds, 1),
                }
            )
    return Comparison(rows, reference, metric)


def expect_metric(name: str, option: str = "metric") -> Metric:
    """The name as one of METRICS.

    Args:
        option: what the caller calls it, for the error.
    Raises:
        GkdError: it is none.
    """
    for metric in METRICS:
        if metric == name:
            return metric  # type: ignore[no-any-return]
    raise GkdError(unknown(option, name, METRICS))


def check_trials(
    methods: Sequence[str], seeds: Sequence[int], methods_name: str, seeds_name: str, *, reference: str
) -> None:
    """See that methods and seeds can be compared, before anything is trained.

    Args:
        methods: the reference first.
        methods_name, seeds_name, reference: what the caller calls them, for the errors.
    Raises:
        GkdError: an unknown method, doubled seeds, or one out of range.
    """
    for place, method in enumerate(methods):
        if method not in METHODS:
            raise GkdError(unknown(f"{methods_name if place else reference}: method", method, METHODS))
    if not seeds or len(set(seeds)) < len(seeds):
        raise GkdError(
            f"{seeds_name} names {list(seeds) or 'none'}: give different seeds, three or more for an interval"
        )
    if min(seeds) < 0 or max(seeds) >= 2**32:
        raise GkdError(f"{seeds_name} names {list(seeds)}: a seed is 0 or more and below 2^32")


def _table(pair: str, rows: Sequence[Standing], reference: str, measure: str) -> str:
    lines = [
        f"### {pair}",
        "",
        f"| method | seeds | {measure}, mean ± sd | minus {reference}, with 95 % interval | |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        spread = "" if row.deviation is None else f" ± {100 * row.deviation:.2f}"
        gap, verdict = "", "reference" if row.method == reference else "not compared"
        if row.difference is not None:
            gap = f"{100 * row.difference.mean:+.2f}"
            if row.difference.low is not None and row.difference.high is not None:
                gap += f" [{100 * row.difference.low:+.2f}, {100 * row.difference.high:+.2f}]"
            verdict = "not separable"
            if row.difference.separable:
                verdict = "better" if row.difference.mean > 0 else "worse"
        lines.append(f"| {row.method} | {len(row.seeds)} | {100 * row.mean:.2f}{spread} | {gap} | {verdict} |")
    return "\n".join([*lines, ""])


def _pair(row: Mapping[str, Any]) -> str:
    return f"{row['teacher']} → {row['student']}"
