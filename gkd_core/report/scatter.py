"""The plot of a frontier: each student's accuracy against what it costs."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from gkd_core.report.forest import ACCENT, GRID, INK, MUTED

AXES = {
    "latency_ms_p50": ("latency of one image, ms", 1.0),
    "size_mb": ("ONNX file, MB", 1.0),
    "macs": ("multiply-accumulates, millions", 1e-6),
}


LABEL = 8.5  # size of the names, in points
FAR = 16  # points from which on a line joins a name to its marker
# Where a name may begin (right of its marker) or end (left of it), in points from the marker's centre, nearest first.
PLACES = [(dx, dy) for dy in (5, -13, 18, -26, 31, -39, 44, -52) for dx in (8, -8)]


def scatter_plot(points: Sequence[Mapping[str, Any]], limits: Mapping[str, float | None]) -> str:
    """SVG text, a panel a cost; the same points give the same text.

    Args:
        points: "name", "top1" with "low" and "high" (or None), the keys of AXES, whether its marker is "filled" (on the
            frontier) and "ringed" (recommended).
        limits: on the costs, as dashed lines.
    """
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "gkd", "text.parse_math": False, "font.size": 10}):
        figure = Figure(figsize=(12.0, 4.2), layout="constrained")
        figure.set_facecolor("white")
        axes = figure.subplots(1, len(AXES), sharey=True)
        for axis, (key, (words, scale)) in zip(axes, AXES.items(), strict=True):
            for point in points:
                x, y = point[key] * scale, 100 * point["top1"]
                if point["low"] is not None:
                    axis.plot([x, x], [100 * point["low"], 100 * point["high"]], color=MUTED, linewidth=1)
                if point["ringed"]:
                    axis.plot(x, y, "o", color=ACCENT, markerfacecolor="none", markersize=14)
                face = ACCENT if point["filled"] else "white"
                axis.plot(x, y, "o", color=ACCENT, markerfacecolor=face, markersize=7)
            if (limit := limits.get(key)) is not None:
                axis.axvline(limit, color=MUTED, linewidth=1, linestyle="--")
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))  # its own is TeX
            axis.xaxis.set_minor_formatter(NullFormatter())
            axis.margins(x=0.25, y=0.15)
            axis.set_xlabel(words, color=INK)
            axis.grid(color=GRID)
            axis.set_axisbelow(True)
            for side in ("top", "right"):
                axis.spines[side].set_visible(False)
        axes[0].set_ylabel("top-1 on the test images, %", color=INK)
        canvas: Any = FigureCanvasAgg(figure)
        figure.draw_without_rendering()  # from here on a point's place on the page is known
        for axis, (key, (_, scale)) in zip(axes, AXES.items(), strict=True):
            _label(
                axis,
                canvas.get_renderer(),
                [(point["name"], point[key] * scale, 100 * point["top1"]) for point in points],
            )
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _label(axis: Axes, renderer: Any, points: Sequence[tuple[str, float, float]]) -> None:
    """Write each name where it covers neither a marker nor another name, as near to its point as there is room.

    A name that is not beside its point is joined to it by a line.
    """
    pixels: float = renderer.points_to_pixels(1.0)
    centres = [axis.transData.transform((x, y)) for _, x, y in points]
    reach = 5 * pixels
    taken = [Bbox([centre - reach, centre + reach]) for centre in centres]
    for (name, x, y), (left, bottom) in zip(points, centres, strict=True):
        width, height, _ = renderer.get_text_width_height_descent(name, FontProperties(size=LABEL), ismath=False)

        def cost(place: tuple[int, int], at: tuple[float, float, float, float] = (left, bottom, width, height)) -> Any:
            box = _box(place, *at, pixels)
            outside = box.x0 < axis.bbox.x0 or box.x1 > axis.bbox.x1
            return sum(box.overlaps(other) for other in taken), outside, PLACES.index(place)

        dx, dy = best = min(PLACES, key=cost)
        taken.append(_box(best, left, bottom, width, height, pixels))
        axis.annotate(
            name,
            (x, y),
            xytext=best,
            textcoords="offset points",
            ha="left" if dx > 0 else "right",
            color=INK,
            fontsize=LABEL,
            arrowprops=None if abs(dy) < FAR else {"arrowstyle": "-", "color": MUTED, "linewidth": 0.6, "shrinkB": 4},
        )


def _box(place: tuple[int, int], left: float, bottom: float, width: float, height: float, pixels: float) -> Bbox:
    dx, dy = place
    x = left + dx * pixels - (width if dx < 0 else 0)
    return Bbox.from_bounds(x, bottom + dy * pixels, width, height)
