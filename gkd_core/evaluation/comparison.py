"""Contenders compared fairly: the same data, teacher and seeds, and differences paired by seed."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from gkd_core.config.contenders import line_up
from gkd_core.config.load import params_of_sections, parse_params
from gkd_core.config.schema import Params
from gkd_core.errors import DivergedError, GkdError, unknown
from gkd_core.evaluation.standings import Standing, standings
from gkd_core.files import write_bytes, write_json
from gkd_core.gate import WORDS, Metric
from gkd_core.methods import is_method
from gkd_core.tables import markdown_table, rounded, write_table

if TYPE_CHECKING:
    from gkd_core.data.prepared import PreparedData
    from gkd_core.models.network import Network
    from gkd_core.training.result import Result
    from gkd_core.training.trainer import EpochHook

METRICS = get_args(Metric)
WHERE = ("seconds", "commit", "hardware", "torch")
"""What may differ between two trainings that came out the same."""
MEASURED = ("teacher", "student", "method", "seed", *METRICS, "validation_top1", "schedule", *WHERE)
ACCURACY = "mean ± sd"
COLUMNS = ("teacher", "student", "name", "settings", *MEASURED[2:])


@dataclass(frozen=True)
class Comparison:
    """What trainings of several contenders and seeds say about the contenders.

    Attributes:
        rows: one dict a training with the keys of COLUMNS; the measures in [0, 1] on the same test images.
        reference: name of the contender that the others are compared with.
        metric: the measure they are compared by.
    Raises:
        GkdError: there are no rows, the metric is unknown, or a name stands for two settings.
    """

    rows: Sequence[dict[str, Any]]
    reference: str
    metric: Metric = "top1"

    def __post_init__(self) -> None:
        expect_metric(self.metric)
        if not self.rows:
            raise GkdError("there is no finished training to compare: run some first")
        for pair, trials in self.trials.items():
            for name, by_seed in trials.items():
                if len({row["settings"] for row in by_seed.values()}) > 1:
                    raise GkdError(f"{name} ({pair}) was trained with other settings for other seeds: train it anew")

    @property
    def trials(self) -> dict[str, dict[str, dict[int, dict[str, Any]]]]:
        """The rows by table, name and seed.

        A table has the contenders that learn from one teacher. Where one contender was trained with several students
        (the pairs of a sweep), each pair of teacher and student has its own.
        """
        by_name: dict[tuple[str, str], set[str]] = defaultdict(set)
        by_teacher: dict[str, set[str]] = defaultdict(set)
        for row in self.rows:
            by_name[row["teacher"], row["name"]].add(row["student"])
            by_teacher[row["teacher"]].add(row["student"])
        by_pair = any(len(students) > 1 for students in by_name.values())
        found: dict[str, dict[str, dict[int, dict[str, Any]]]] = {}
        for row in sorted(self.rows, key=lambda row: (row["teacher"], row["student"])):
            mixed = len(by_teacher[row["teacher"]]) > 1 and not by_pair
            title = f"{row['teacher']} → {'several students' if mixed else row['student']}"
            found.setdefault(title, {}).setdefault(row["name"], {})[row["seed"]] = row
        return found

    @property
    def pairs(self) -> dict[str, list[Standing]]:
        """The standings by "teacher → student", the most accurate contender first."""
        return {
            pair: standings(
                {name: {seed: row[self.metric] for seed, row in by_seed.items()} for name, by_seed in trials.items()},
                self.reference,
            )
            for pair, trials in self.trials.items()
        }

    def as_dict(self) -> dict[str, Any]:
        """{"teacher → student": [{"name", "method", "student", "settings", and a `Standing`}, …]}, the best first."""
        about = {
            (pair, name): {key: row[key] for key in ("name", "method", "student", "settings")}
            for pair, trials in self.trials.items()
            for name, by_seed in trials.items()
            for row in by_seed.values()
        }
        return {
            pair: [about[pair, row.name] | rounded(asdict(row)) for row in rows] for pair, rows in self.pairs.items()
        }

    def __repr__(self) -> str:
        return self.markdown()

    def markdown(self) -> str:
        """A table a pair, in percent and percentage points."""
        lines = []
        for pair, rows in self.as_dict().items():
            headings, *cells = table(rows, self.reference)
            headings[headings.index(ACCURACY)] = f"{WORDS[self.metric]}, {ACCURACY}"
            lines += [f"### {pair}", "", *markdown_table([headings, *cells]), ""]
        return "\n".join([*lines, note(self.reference), ""])

    def html(self) -> str:
        """A page with tables and plots: no script, no address, nothing to fetch."""
        from gkd_core.report.tables_page import render_tables

        return render_tables(
            f"Compared with {self.reference}",
            {pair: table(rows, self.reference) for pair, rows in self.as_dict().items()},
            self.plot(),
            about=f"Comparison of contenders · {WORDS[self.metric]} on the test images",
            caption=f"{note(self.reference)} In the plot the first interval is thick, the second thin, and a marker is "
            "filled where Holm's test tells the difference from zero.",
        )

    def plot(self) -> str:
        """Accuracies by seed and a forest plot of the differences, as SVG."""
        from gkd_core.report.forest import forest_plot

        return forest_plot(self.pairs, self.reference, WORDS[self.metric])

    def save(self, folder: Path | str) -> None:
        """Write comparison.html, .json, .md and .svg and runs.csv into an existing folder."""
        folder = Path(folder)
        write_json(
            folder / "comparison.json", {"reference": self.reference, "metric": self.metric, "pairs": self.as_dict()}
        )
        write_bytes(folder / "comparison.html", self.html().encode())
        write_bytes(folder / "comparison.md", f"{self.markdown()}\n![The same as a plot](comparison.svg)\n".encode())
        write_bytes(folder / "comparison.svg", self.plot().encode())
        write_runs(folder / "runs.csv", self.rows)


def compare(
    student: "str | Callable[[int], Network]",
    teacher: "Network",
    data: "PreparedData",
    *,
    methods: Sequence[str] = (),
    contenders: Mapping[str, Mapping[str, Any]] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    reference: str | None = None,
    metric: Metric = "top1",
    options: Mapping[str, dict[str, Any]] | None = None,
    work: Path | str | None = None,
    **settings: Any,
) -> Comparison:
    """Train every contender with every seed and measure each once on the test split.

    Args:
        student: a name as `create_model` takes it, or a function that makes an untrained student from a seed.
        teacher: frozen here.
        data: from `load_data`.
        methods: names from `list_methods()`; unless given, and without contenders, ce, kd and gompertz.
        contenders: name → what differs, as the sections `distill`, `train` and `student` of params.yaml, instead of
            methods.
        seeds: of the students and of the order of images; three or more for an interval worth having.
        reference: name of the contender that the others are compared with; a method that is not among them is trained
            too. None is kd, or the first of the contenders.
        metric: what they are compared by: top1, or, where classes are of different size, balanced_accuracy or macro_f1.
        options: hyperparameters by method.
        work: folder for checkpoints: the same call again goes on from the last checkpoint.
        settings: fields of `train` in params.yaml, the same for all.
    Raises:
        GkdError: an unknown method or metric, doubled seeds, a wrong setting.

    Example:
        >>> import gkd_core as gkd
        >>> data = gkd.load_data("digits", train_images=200)
        >>> teacher = gkd.create_model("resnet8", data=data)
        >>> larger = {"distill": {"method": "kd"}, "train": {"learning_rate": 0.1}}
        >>> contenders = {"kd": {"distill": {"method": "kd"}}, "kd, larger steps": larger}
        >>> once = {"seeds": [0], "epochs": 1, "device": "cpu"}
        >>> comparison = gkd.compare("resnet8", teacher, data, contenders=contenders, **once)
        >>> sorted(standing.name for standing in comparison.pairs["resnet8 → resnet8"])
        ['kd', 'kd, larger steps']
    """
    from gkd_core.evaluation.evaluate import evaluate
    from gkd_core.models.network import expect_network
    from gkd_core.run_facts import where_it_ran
    from gkd_core.training.trainer import refuse_options

    expect_network(teacher, "teacher")
    expect_student(student)
    lists: dict[str, object] = {"methods": methods, "seeds": seeds}
    for name, given in lists.items():
        if isinstance(given, str) or not isinstance(given, Iterable):
            raise GkdError(f"{name} is {given!r}: give a list")
    seeds = list(seeds)
    check_seeds(seeds)
    expect_metric(metric)
    methods = list(methods) or ([] if contenders is not None else ["ce", "kd", "gompertz"])
    for method in (name for name in methods if is_method(name)):
        refuse_options(settings, method)
    entries = None if contenders is None else _listed(contenders, named=isinstance(student, str))
    lined = line_up(common_params(student, data, options, settings), methods, entries, reference)
    rows: list[dict[str, Any]] = []
    for seed in seeds:  # seed by seed: stopped half-way, whole seeds can be compared
        for contender in lined:
            try:
                network, result = train_by(contender.seeded(seed), student, teacher, data, work=work)
            except DivergedError as error:
                raise DivergedError(f"{contender.name!r}, seed {seed}: {error}") from None
            measured = evaluate(network, data.test)
            rows.append(
                {
                    "teacher": teacher.name,
                    "student": network.name,
                    "name": contender.name,
                    "settings": contender.settings,
                    "method": contender.params.distill.method,
                    "seed": seed,
                    **{name: rounded(getattr(measured, name)) for name in METRICS},
                    "validation_top1": rounded(result.facts["validation_top1"]),
                    "schedule": result.facts["schedule"],
                    "seconds": round(result.seconds, 2),
                    **where_it_ran(result.run_facts()),
                }
            )
    return Comparison(rows, lined[0].name, metric)


def train_by(
    params: Params,
    student: "str | Callable[[int], Network]",
    teacher: "Network",
    data: "PreparedData",
    *,
    work: Path | str | None,
    on_epoch: "EpochHook | None" = None,
) -> "tuple[Network, Result]":
    """A student trained by one configuration, and the record.

    Args:
        params: `student`, `train` and `distill`.
        student: a name, or a function from a seed, for what `params` does not name.
        teacher, data, work: as in `compare`.
        on_epoch: as in `distill`.
    """
    from gkd_core.models.create import create_model
    from gkd_core.training.trainer import distill

    own, how, seed = params.student, params.distill, params.train.seed
    if isinstance(student, str) or "student" in params.model_fields_set:
        network = create_model(data=data, seed=seed, **own.model_dump(exclude_unset=True))
    else:
        network = student(seed)
    result = distill(
        network,
        teacher,
        data,
        method=how.method,
        options=how.hyperparameters(),
        schedule=how.schedule,
        curve=how.curve.model_dump(exclude_unset=True),
        scheme=how.scheme,
        scheme_options=how.scheme_options.get(how.scheme),
        work=work,
        on_epoch=on_epoch,
        **params.train.model_dump(exclude_unset=True),
    )
    return network, result


def expect_student(student: object) -> None:
    """Raises: GkdError: it is neither a name nor a function that makes one."""
    from gkd_core.models.network import Network

    if isinstance(student, Network) or not (isinstance(student, str) or callable(student)):
        raise GkdError(
            f"student is a {type(student).__name__}: give a name from list_models, or a function seed → network, for "
            "every training begins with a new one"
        )


def common_params(
    student: object, data: "PreparedData", options: Mapping[str, Any] | None, settings: dict[str, Any]
) -> Params:
    """What the arguments of `compare` and its data come to, as sections of params.yaml.

    Raises:
        GkdError: they are wrong, whatever the method.
    """
    if "seed" in settings:
        raise GkdError(f"seed is {settings['seed']!r}: give seeds, a list")
    content: dict[str, Any] = {
        "data": {
            "source": data.info.source,
            "image_size": min(max(data.info.image_size, 4), 1024),  # what the section takes; recipes look at 64
            "store": "squares" if data.info.photos is None else "raw",
            "unlabelled": None if data.info.unlabelled is None else "given",
        },
        "distill": {"options": dict(options or {})},
        "train": settings,
        **({"student": {"name": student}} if isinstance(student, str) else {}),
    }
    parse_params(content | {"distill": {"method": "ce", **content["distill"]}}, where="compare")
    return params_of_sections(content)


def _listed(contenders: Mapping[str, Mapping[str, Any]], *, named: bool) -> list[dict[str, Any]]:
    """Contenders as a file has them.

    Args:
        named: the student is known by its name, of which a contender may change a part.
    Raises:
        GkdError: they are no names with sections.
    """
    if not isinstance(contenders, Mapping) or not all(isinstance(each, Mapping) for each in contenders.values()):
        raise GkdError(f"contenders is {contenders!r}: give a dict of dicts, name → what differs")
    for name, each in contenders.items():
        if not named and each.get("student") and "name" not in each["student"]:
            raise GkdError(f"contenders: {name!r}: student has no name, and student is a function: name the network")
    return [{**each, "name": name} for name, each in contenders.items()]


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


def check_seeds(seeds: Sequence[int], name: str = "seeds") -> None:
    """See that each training has a seed of its own, before anything is trained.

    Args:
        name: what the caller calls them, for the error.
    Raises:
        GkdError: there are none, doubled ones, or one out of range.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise GkdError(f"{name} names {list(seeds) or 'none'}: give different seeds, three or more for an interval")
    if min(seeds) < 0 or max(seeds) >= 2**32:
        raise GkdError(f"{name} names {list(seeds)}: a seed is 0 or more and below 2^32")


def write_runs(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """The raw table: a row a training with the columns COLUMNS."""
    runs = sorted(rows, key=lambda row: [row[key] for key in ("teacher", "student", "name", "seed")])
    write_table(file, ({name: row.get(name) for name in COLUMNS} for row in runs))


def table(rows: Sequence[Mapping[str, Any]], reference: str) -> list[list[str]]:
    """A table's headings, and the cells of each contender, in percent and percentage points.

    Of one seed there is no interval, so without more no columns for them.

    Args:
        rows: of one pair, as `Comparison.as_dict` has them.
    """
    several = len({row["student"] for row in rows}) > 1
    compared = sum(row["difference"] is not None and row["difference"]["low"] is not None for row in rows)
    headings = ["contender", *["student"] * several, "seeds", ACCURACY, f"minus {reference}"]
    tested = ["95 % interval", f"for all {compared}", "p, by Holm"] if compared else []
    lines = [[*headings, *tested, ""]]
    for row in rows:
        spread = "" if row["deviation"] is None else f" ± {100 * row['deviation']:.2f}"
        cells = [str(row["name"]), *[str(row["student"])] * several, str(len(row["seeds"]))]
        mean, *intervals, verdict = _difference_cells(row["difference"])
        lines.append([*cells, f"{100 * row['mean']:.2f}{spread}", mean, *intervals[: len(tested)], verdict])
        if row["difference"] is None:
            lines[-1][-1] = "reference" if row["name"] == reference else "not compared"
    return lines


def _difference_cells(difference: Mapping[str, Any] | None) -> list[str]:
    """The difference, its interval alone and among all, the p-value, and the verdict."""
    if difference is None:
        return [""] * 5
    mean = f"{100 * difference['mean']:+.2f}"
    if difference["low"] is None:
        return [mean, "", "", "", "one seed"]
    ends = [
        f"[{100 * difference[low]:+.2f}, {100 * difference[high]:+.2f}]"
        for low, high in (("low", "high"), ("low_all", "high_all"))
    ]
    verdict = ("better" if difference["mean"] > 0 else "worse") if difference["separable"] else "not separable"
    p_value = "< 0.001" if difference["p_holm"] < 0.001 else f"{difference['p_holm']:.3f}"
    return [mean, *ends, p_value, verdict]


def note(reference: str) -> str:
    """What the columns of a table mean, in sentences."""
    return (
        "Differences are paired by seed, in percentage points. The first interval (Student's t) holds for one "
        f"contender and {reference} alone; the second (Bonferroni) for all differences of the table together. p is "
        "corrected for their number by Holm; better and worse are what it shows below 0.05. One seed has no interval "
        "and shows neither."
    )
