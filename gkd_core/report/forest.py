"""The forest plot of a comparison: each method's difference to the reference, with its interval."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from gkd_core.evaluation.comparison import Standing

INK, MUTED, ACCENT = "#333333", "#888888", "#0b6fa4"


def forest_plot(pairs: Mapping[str, Sequence["Standing"]], reference: str, measure: str = "top-1") -> str:
    """SVG text, a panel a pair, a row a method, the best on top; the same standings give the same text.

    Filled markers are differences whose interval leaves out zero. A method without a difference has no row.

    Args:
        pairs: title of the panel → its standings.
        reference: name of the method at zero.
        measure: what the differences are of, in words.
    """
    shown = {pair: [row for row in rows if row.difference is not None] for pair, rows in pairs.items()}
    longest = max((len(rows) for rows in shown.values()), default=0)
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "gkd", "text.parse_math": False, "font.size": 10}):
        figure = Figure(figsize=(7.2 * max(len(pairs), 1), 1.4 + 0.34 * longest), layout="constrained")
        figure.set_facecolor("white")
        axes = figure.subplots(1, max(len(pairs), 1), squeeze=False)[0]
        for axis, (pair, rows) in zip(axes, shown.items(), strict=False):
            axis.axvline(0, color=MUTED, linewidth=1)
            for place, row in enumerate(rows):
                difference = row.difference
                assert difference is not None
                if difference.low is not None and difference.high is not None:
                    axis.plot([100 * difference.low, 100 * difference.high], [place, place], color=ACCENT, linewidth=2)
                face = ACCENT if difference.separable else "white"
                axis.plot(100 * difference.mean, place, "o", color=ACCENT, markerfacecolor=face, markersize=7)
            axis.set_yticks(range(len(rows)), [row.method for row in rows])
            axis.set_ylim(len(rows) - 0.4, -0.6)
            axis.set_title(pair, loc="left", color=INK)
            axis.set_xlabel(f"{measure} minus {reference}, percentage points, 95 % interval over seeds", color=INK)
            axis.grid(axis="x", color="#e5e5e5")
            axis.set_axisbelow(True)
            for side in ("top", "right", "left"):
                axis.spines[side].set_visible(False)
            axis.tick_params(axis="y", length=0)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
