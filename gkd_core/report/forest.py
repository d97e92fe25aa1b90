"""The plots of a comparison: each contender's accuracies by seed, and its difference to the reference."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from gkd_core.evaluation.standings import Standing

INK, MUTED, ACCENT, GRID = "#333333", "#888888", "#0b6fa4", "#e5e5e5"
# Of these plots, by the page's variables that take their places (`figures.in_page`).
COLORS = {"ink": INK, "muted": MUTED, "student": ACCENT, "grid": GRID, "axis": "#000000", "surface": "#ffffff"}


def forest_plot(pairs: Mapping[str, Sequence["Standing"]], reference: str, measure: str = "top-1") -> str:
    """SVG text, two panels a pair, a row a contender, the best on top; the same standings give the same text.

    On the left a dot a seed and the mean as a line. On the right the difference with its own interval, thick, and the
    one that holds for all together, thin; filled markers are differences that Holm's test tells from zero. A contender
    without a difference has none of them.

    Args:
        pairs: title of the panels → its standings.
        reference: name of the contender at zero.
        measure: what the differences are of, in words.
    """
    rows = [max(len(standings), 1) for standings in pairs.values()] or [1]
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "gkd", "text.parse_math": False, "font.size": 10}):
        figure = Figure(figsize=(9.6, 1.1 * len(rows) + 0.3 + 0.34 * sum(rows)), layout="constrained")
        figure.set_facecolor("white")
        grid = figure.subplots(len(rows), 2, squeeze=False, sharey="row", height_ratios=[each + 2 for each in rows])
        for (accuracy, difference), (pair, standings) in zip(grid, pairs.items(), strict=False):
            _accuracies(accuracy, standings)
            _differences(difference, standings)
            accuracy.set_yticks(range(len(standings)), [row.name for row in standings])
            accuracy.set_ylim(len(standings) - 0.4, -0.6)
            accuracy.set_title(pair, loc="left", color=INK)
        for axis, words in (
            (grid[-1][0], f"{measure} by seed, %"),
            (grid[-1][1], f"{measure} minus {reference}, percentage points, 95 % intervals"),
        ):
            axis.set_xlabel(words, color=INK)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _accuracies(axis: Axes, standings: Sequence["Standing"]) -> None:
    _plain(axis)
    for place, row in enumerate(standings):
        axis.plot([100 * one for one in row.accuracies], [place] * len(row.seeds), "o", color=MUTED, markersize=4)
        axis.plot([100 * row.mean] * 2, [place - 0.25, place + 0.25], color=ACCENT, linewidth=2)


def _differences(axis: Axes, standings: Sequence["Standing"]) -> None:
    _plain(axis)
    axis.axvline(0, color=MUTED, linewidth=1)
    for place, row in enumerate(standings):
        found = row.difference
        if found is None:
            continue
        for ends, width in (((found.low, found.high), 3), ((found.low_all, found.high_all), 1)):
            if None not in ends:
                axis.plot([100 * end for end in ends if end is not None], [place, place], color=ACCENT, linewidth=width)
        face = ACCENT if found.separable else "white"
        axis.plot(100 * found.mean, place, "o", color=ACCENT, markerfacecolor=face, markersize=7)


def _plain(axis: Axes) -> None:
    axis.grid(axis="x", color=GRID)
    axis.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.tick_params(axis="y", length=0)
