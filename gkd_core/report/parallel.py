"""The plot of a search: each trial a line through its parameters to its accuracy, and what each parameter explains."""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from gkd_core.report.forest import ACCENT, GRID, INK, MUTED

TOP1 = "validation top-1, %"
ABSENT = -0.12  # height of a line at a parameter that its trial does not have


@dataclass(frozen=True)
class Coordinates:
    """What is drawn of one study.

    Attributes:
        keys: of the parameters, from left to right.
        trials: key → value, and top-1 in percent, of each complete trial.
        choices: key → all there are, of the parameters that have them.
        logs: keys whose axis is logarithmic.
        importance: key → part in [0, 1]; empty where it is not told.
    """

    keys: Sequence[str]
    trials: Sequence[tuple[Mapping[str, Any], float]]
    choices: Mapping[str, Sequence[Any]]
    logs: Sequence[str]
    importance: Mapping[str, float]


def parallel_plot(studies: Mapping[str, Coordinates]) -> str:
    """SVG text, a row a study; the same trials give the same text.

    Args:
        studies: by title.
    """
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "gkd", "text.parse_math": False, "font.size": 9}):
        widest = max(len(study.keys) for study in studies.values())
        figure = Figure(figsize=(max(9.0, 3.6 + 1.7 * widest), 3.9 * len(studies)), layout="constrained")
        figure.set_facecolor("white")
        grid = figure.subplots(len(studies), 2, squeeze=False, width_ratios=[3, 1])
        for (lines, bars), (title, study) in zip(grid, studies.items(), strict=True):
            _lines(lines, study)
            lines.set_title(title, loc="left", color=INK)
            _bars(bars, study.keys, study.importance)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _lines(axes: Axes, study: Coordinates) -> None:
    """Parallel coordinates: every axis from its smallest value to its largest, the accuracy last."""
    keys, tops = study.keys, [top1 for _, top1 in study.trials]
    scales = [
        _scale([values.get(key) for values, _ in study.trials], study.choices.get(key), key in study.logs)
        for key in keys
    ]
    scales.append(_scale(tops, None, log=False))
    low, high = min(tops, default=0.0), max(tops, default=1.0)
    for place, (values, top1) in enumerate(study.trials):
        drawn = [*(values.get(key) for key in keys), top1]
        heights = [ABSENT if value is None else scale[0](value) for value, scale in zip(drawn, scales, strict=True)]
        best = place == tops.index(high)
        shade = 1.0 if best else 0.12 + 0.6 * ((top1 - low) / (high - low) if high > low else 1.0)
        axes.plot(range(len(heights)), heights, color=ACCENT, alpha=shade, linewidth=2.5 if best else 1.0)
    for x, (_, ticks) in enumerate(scales):
        axes.axvline(x, color=MUTED, linewidth=1)
        for height, words in ticks:
            axes.annotate(
                words, (x, height), xytext=(3, 0), textcoords="offset points", color=INK, fontsize=8, va="center"
            )
    axes.set_xticks(range(len(scales)), [*map(_wrapped, keys), _wrapped(TOP1)], color=INK)
    axes.set_yticks([])
    axes.set_xlim(-0.1, len(scales) - 0.5)
    axes.set_ylim(ABSENT - 0.06, 1.06)
    axes.tick_params(axis="x", length=0)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)


def _scale(
    values: Sequence[Any], choices: Sequence[Any] | None, log: bool
) -> tuple[Callable[[Any], float], list[tuple[float, str]]]:
    """A function from a value to its height in [0, 1], and heights with words beside them."""
    if choices is not None:
        named = [str(choice) for choice in choices]
        step = 1 / max(len(named) - 1, 1)
        return lambda value: named.index(str(value)) * step, [(i * step, name) for i, name in enumerate(named)]
    numbers = [float(value) for value in values if value is not None] or [0.0, 1.0]
    low, high = min(numbers), max(numbers)
    bend = math.log if log else float
    span = bend(high) - bend(low)

    def height(value: float) -> float:
        return (bend(value) - bend(low)) / span if span else 0.5

    locator = LogLocator(subs=(1.0, 2.0, 5.0)) if log else MaxNLocator(4)
    between = [float(tick) for tick in locator.tick_values(low, high) if low < tick < high]
    ticks = [tick for tick in between if 0.08 < height(tick) < 0.92] if span else []
    return height, [(height(tick), f"{tick:.4g}") for tick in dict.fromkeys([low, *ticks, high])]


def _bars(axes: Axes, keys: Sequence[str], importance: Mapping[str, float]) -> None:
    ordered = [*importance, *(key for key in keys if key not in importance)]
    axes.barh(range(len(ordered)), [100 * importance.get(key, 0.0) for key in ordered], color=ACCENT, height=0.55)
    axes.set_yticks(range(len(ordered)), [key.rpartition(".")[2] for key in ordered], color=INK)
    axes.set_ylim(len(ordered) - 0.4, -0.6)
    if not importance:
        axes.text(50, (len(ordered) - 1) / 2, "not told", color=MUTED, ha="center", va="center")
    axes.set_xlim(0, 100)
    axes.set_xlabel("importance, %", color=INK)
    axes.grid(axis="x", color=GRID)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _wrapped(key: str) -> str:
    """A key in lines that stand under an axis."""
    return key.replace(".", ".\n").replace(", ", ",\n")
