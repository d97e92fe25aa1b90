"""Which student for a limit: accuracy against cost, who is beaten in everything, and one recommendation."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from scipy import stats

from gkd_core.evaluation.standings import Standing
from gkd_core.files import Shape, expect_kind, read_json, write_bytes, write_json
from gkd_core.tables import markdown_table, rounded

NOTE = (
    "Which students are on the frontier, and which is recommended, is decided by top-1 on the validation images, mean "
    "over the seeds; top-1 on the test images, with its 95 % interval over the seeds (Student's t, cut at 0 and 100), "
    "is what to expect. Latency is the median for one image with onnxruntime on this machine's CPU, size that of the "
    "float32 ONNX file, MACs are multiply-accumulates for one image. A student is on the frontier unless another is at "
    "least as good in validation top-1, latency and size, and better in one of them."
)
FILE = "frontier.json"
SHAPE: Shape = {
    "max_latency_ms": float | None,
    "max_mb": float | None,
    "hardware": {str: str | int},
    "data_sha256": str,
    "teacher_digest": str,
    "candidates": [
        {
            **dict.fromkeys(("name", "student"), str),
            **dict.fromkeys(("validation_top1", "top1", "latency_ms_p50", "latency_ms_p95", "size_mb"), float),
            **dict.fromkeys(("low", "high"), float | None),
            **dict.fromkeys(("seeds", "macs", "parameters"), int),
        }
    ],
}
HEADINGS = ("contender", "student", "validation top-1", "top-1", "95 % interval", "latency p50", "p95", "ONNX", "MACs",
            "parameters", "")  # fmt: skip


@dataclass(frozen=True)
class Candidate:
    """A student and what it costs.

    Attributes:
        name: of the contender.
        student: of the network.
        validation_top1: mean over the seeds, in [0, 1]; what is chosen by.
        top1: on the test images, mean over the seeds.
        low, high: Student's 95 % interval of it, cut at 0 and 1; None with one seed.
        latency_ms_p50, latency_ms_p95: for one image.
        size_mb: of the ONNX file, in 10⁶ bytes.
        macs: multiply-accumulates for one image.
        parameters: trained numbers.
    """

    name: str
    student: str
    seeds: int
    validation_top1: float
    top1: float
    low: float | None
    high: float | None
    latency_ms_p50: float
    latency_ms_p95: float
    size_mb: float
    macs: int
    parameters: int

    @classmethod
    def of(cls, rows: Sequence[dict[str, Any]], standing: Standing, cost: dict[str, Any]) -> "Candidate":
        """From a contender's trainings.

        Args:
            rows: one a seed, with "student" and "validation_top1".
            standing: on the test images.
            cost: the last five attributes.
        """
        low = high = None
        if standing.deviation is not None:
            count = len(rows)
            reach = float(stats.t.ppf(0.975, count - 1)) * standing.deviation / count**0.5
            low, high = max(standing.mean - reach, 0.0), min(standing.mean + reach, 1.0)
        validation = sum(row["validation_top1"] for row in rows) / len(rows)
        about = (standing.name, str(rows[0]["student"]), len(rows), validation, standing.mean, low, high)
        return cls(*about, **cost)


@dataclass(frozen=True)
class Frontier:
    """Students by accuracy and cost.

    Attributes:
        candidates: in any order.
        max_latency_ms: what one image may take; None does not limit.
        max_mb: what the file may weigh; None does not limit.
        hardware: what latency was measured on.
        data_sha256, teacher_digest: what the students learned from.
    """

    candidates: Sequence[Candidate]
    max_latency_ms: float | None
    max_mb: float | None
    hardware: dict[str, str | int]
    data_sha256: str
    teacher_digest: str

    @classmethod
    def read(cls, folder: Path) -> "Frontier":
        """What `save` wrote.

        Raises:
            GkdError: the folder is another, or damaged.
        """
        expect_kind(folder, "frontier")
        content = read_json(folder / FILE, "the frontier folder", shape=SHAPE)
        names = [field.name for field in fields(Candidate)]
        candidates = [Candidate(**{name: one[name] for name in names}) for one in content["candidates"]]
        return cls(candidates, **{field.name: content[field.name] for field in fields(cls)[1:]})

    @property
    def pareto(self) -> list[Candidate]:
        """Those that no other beats: is as accurate, as fast and as small, and better in one of these; the fastest
        first.
        """
        found = [one for one in self.candidates if not any(_beats(other, one) for other in self.candidates)]
        return sorted(found, key=lambda one: (one.latency_ms_p50, one.size_mb, one.name))

    @property
    def within(self) -> list[Candidate]:
        """Those that keep to the limits."""
        return [
            one
            for one in self.candidates
            if (self.max_latency_ms is None or one.latency_ms_p50 <= self.max_latency_ms)
            and (self.max_mb is None or one.size_mb <= self.max_mb)
        ]

    @property
    def recommended(self) -> Candidate | None:
        """The most accurate on validation that keeps to the limits, of equals the fastest, then the smallest; None
        where none does.
        """
        return min(self.within, key=lambda one: (*_cost(one), one.name), default=None)

    def sentence(self) -> str:
        """The recommendation, or what is in its way."""
        limits = [
            *([] if self.max_latency_ms is None else [f"{self.max_latency_ms:g} ms"]),
            *([] if self.max_mb is None else [f"{self.max_mb:g} MB"]),
        ]
        asked, count = " and ".join(limits), len(self.candidates)
        best = self.recommended
        if best is None:
            fastest = min(self.candidates, key=lambda one: one.latency_ms_p50)
            smallest = min(self.candidates, key=lambda one: one.size_mb)
            return (
                f"None of the {count} keeps to {asked}: the fastest is {fastest.name} with "
                f"{fastest.latency_ms_p50:.3g} ms, the smallest {smallest.name} with {smallest.size_mb:.3g} MB."
            )
        among = f"of the {len(self.within)} of {count} that keep to {asked}" if limits else f"of all {count}"
        return (
            f"{best.name} ({best.student}): the most accurate on validation {among}; {100 * best.top1:.2f} % on test, "
            f"{best.latency_ms_p50:.3g} ms, {best.size_mb:.3g} MB."
        )

    def table(self) -> list[list[str]]:
        """Headings, then the cells of each student, the fastest first."""
        lines = [[*HEADINGS]]
        front, best = self.pareto, self.recommended
        for one in sorted(self.candidates, key=lambda one: (one.latency_ms_p50, one.name)):
            marks = ["frontier"] * (one in front) + ["recommended"] * (one == best)
            interval = "" if one.low is None or one.high is None else f"[{100 * one.low:.2f}, {100 * one.high:.2f}]"
            lines.append(
                [one.name, one.student, f"{100 * one.validation_top1:.2f}", f"{100 * one.top1:.2f}", interval,
                 f"{one.latency_ms_p50:.3f} ms", f"{one.latency_ms_p95:.3f} ms", f"{one.size_mb:.3g} MB",
                 f"{one.macs / 1e6:.3g} M", f"{one.parameters:,}", ", ".join(marks)]
            )  # fmt: skip
        return lines

    def markdown(self) -> str:
        """The recommendation, the table, and what it means."""
        note, measured = self.notes()
        return "\n".join([self.sentence(), "", *markdown_table(self.table()), "", note, "", measured, ""])

    def notes(self) -> tuple[str, str]:
        """What the table means, and what it was measured on."""
        where = ", ".join(f"{name} {value}" for name, value in self.hardware.items())
        return NOTE, f"Measured on: {where}."

    def plot(self) -> str:
        """Accuracy against latency, size and MACs, as SVG."""
        from gkd_core.report.scatter import scatter_plot

        best, front = self.recommended, self.pareto
        return scatter_plot(
            [asdict(one) | {"filled": one in front, "ringed": one == best} for one in self.candidates],
            {"latency_ms_p50": self.max_latency_ms, "size_mb": self.max_mb},
        )

    def as_dict(self) -> dict[str, Any]:
        """Content of frontier.json."""
        best = self.recommended
        return {
            "max_latency_ms": self.max_latency_ms,
            "max_mb": self.max_mb,
            "recommended": None if best is None else best.name,
            "pareto": [one.name for one in self.pareto],
            "candidates": [rounded(asdict(one)) for one in self.candidates],
            "hardware": self.hardware,
            "data_sha256": self.data_sha256,
            "teacher_digest": self.teacher_digest,
        }

    def save(self, folder: Path) -> None:
        """Write frontier.html, .json, .md and .svg into an existing folder."""
        from gkd_core.report.tables_page import render_tables

        plot = self.plot()
        page = render_tables(
            self.sentence(), {"Students": self.table()}, plot, about="Students by accuracy and cost", caption=NOTE
        )
        write_json(folder / FILE, self.as_dict())
        write_bytes(folder / "frontier.html", page.encode())
        write_bytes(folder / "frontier.md", f"{self.markdown()}\n![The same as a plot](frontier.svg)\n".encode())
        write_bytes(folder / "frontier.svg", plot.encode())


def _cost(one: Candidate) -> tuple[float, float, float]:
    """Of two that differ in one of these alone, the better has the smaller."""
    return -one.validation_top1, one.latency_ms_p50, one.size_mb


def _beats(one: Candidate, other: Candidate) -> bool:
    mine, yours = _cost(one), _cost(other)
    return mine != yours and all(a <= b for a, b in zip(mine, yours, strict=True))
