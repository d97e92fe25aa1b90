"""The plot of a frontier: each student's accuracy against what it costs."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from gkd_core.report.forest import ACCENT, INK, MUTED

AXES = {
    "latency_ms_p50": ("latency of one image, ms", 1.0),
    "size_mb": ("ONNX file, MB", 1.0),
    "macs": ("multiply-accumulates, millions", 1e-6),
}


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
                axis.annotate(point["name"], (x, y), xytext=(8, 5), textcoords="offset points", color=INK, fontsize=8.5)
            if (limit := limits.get(key)) is not None:
                axis.axvline(limit, color=MUTED, linewidth=1, linestyle="--")
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))  # its own is TeX
            axis.xaxis.set_minor_formatter(NullFormatter())
            axis.margins(x=0.25, y=0.15)
            axis.set_xlabel(words, color=INK)
            axis.grid(color="#e5e5e5")
            axis.set_axisbelow(True)
            for side in ("top", "right"):
                axis.spines[side].set_visible(False)
        axes[0].set_ylabel("top-1 on the test images, %", color=INK)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
