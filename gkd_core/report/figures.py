"""The report's figures as inline SVG whose colours are the page's CSS variables, so that they follow its theme."""

import base64
import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from gkd_core.report.findings import Findings, Row, signed

# matplotlib only knows colours; these stand for the variables that take their place in the finished SVG.
NAMES = ["ink", "muted", "grid", "teacher", "baseline", "kd", "student", "s1", "s2", "s3", "s4", "s5", "s6"]
VARIABLES = {name: f"#0000{number:02x}" for number, name in enumerate(NAMES, start=1)}
SERIES = ("s1", "s2", "s3", "s4", "s5", "s6")
NOT_TERMS = {"train_loss", "train_top1", "train_gradient_norm"}
LABELLED_CLASSES = 120
TOLD_CELLS = 4000  # of a confusion matrix that tell their numbers; more are drawn as one picture
RASTER = 1000  # pixels of its side at most
COUNTED_CLASSES = 20
SCROLLED = 640  # pixels of a figure's width, below which a narrow page moves it instead of shrinking it

_STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a class may be called $100
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": VARIABLES["ink"],
    "axes.labelcolor": VARIABLES["muted"],
    "axes.edgecolor": VARIABLES["grid"],
    "axes.titlecolor": VARIABLES["ink"],
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.labelsize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": VARIABLES["grid"],
    "grid.linewidth": 0.8,
    "xtick.color": VARIABLES["grid"],
    "ytick.color": VARIABLES["grid"],
    "xtick.labelcolor": VARIABLES["muted"],
    "ytick.labelcolor": VARIABLES["muted"],
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}


def comparison(findings: Findings) -> Markup:
    """Top-1 of all networks with its interval, and the paired differences of the student to the others."""
    rows = list(findings.roles.items())
    differences = _differences(findings)
    with drawing("comparison", 1 + bool(differences), height=0.75 + 0.5 * len(rows), ratios=(1.15, 1)) as (
        figure,
        axes,
    ):
        bars = axes[0]
        for place, (role, _) in enumerate(rows):
            measured = findings.metrics[role]
            top1 = 100 * measured["top1"]
            ends = [[top1 - 100 * measured["top1_low"]], [100 * measured["top1_high"] - top1]]
            bars.barh(place, top1, height=0.62, color=VARIABLES[role])
            bars.errorbar(top1, place, xerr=ends, color=VARIABLES["ink"], capsize=3, linewidth=1.2)
            bars.text(102, place, f"{top1:.2f} %", va="center", ha="left", fontweight="bold")
        bars.set(xlim=(0, 118), ylim=(len(rows) - 0.4, -0.6), xlabel="top-1 on the test images, %", title="Accuracy")
        bars.set_yticks(range(len(rows)), [label for _, label in rows])
        bars.set_xticks(range(0, 101, 20))
        _labels_in_ink(bars)
        if differences:
            forest = axes[1]
            forest.axvline(0, color=VARIABLES["muted"], linewidth=1)
            for place, (_, role, found) in enumerate(differences):
                low, middle, high = (100 * found[key] for key in ("low", "difference", "high"))
                forest.plot([low, high], [place, place], color=VARIABLES[role], linewidth=2.6)
                forest.plot([middle], [place], "o", color=VARIABLES["student"], markersize=7)
                forest.text(middle, place - 0.2, signed(middle), ha="center", fontweight="bold")
            reach = 1.15 * max(abs(100 * found[key]) for *_, found in differences for key in ("low", "high"))
            forest.set(
                xlim=(-reach, reach),
                ylim=(len(differences) - 0.4, -0.6),
                xlabel="difference in top-1, percentage points",
                title="What the method gained",
            )
            forest.set_yticks(range(len(differences)), [label for label, *_ in differences])
            forest.spines["left"].set_visible(False)
            _labels_in_ink(forest)
        return svg(figure, "Top-1 accuracy of all networks, and the student's differences to the others")


def learning_curves(findings: Findings) -> Markup:
    """Validation and training top-1 by epoch, a line a network."""
    with drawing("learning", 2, height=3.3) as (figure, axes):
        for axis, column, title in zip(
            axes, ("validation_top1", "train_top1"), ("Validation images", "Training images, augmented"), strict=True
        ):
            for role, label in findings.roles.items():
                rows = findings.histories.get(role, [])
                _line(axis, rows, "epoch", column, VARIABLES[role], label, scale=100)
            axis.set(title=title, xlabel="epoch", ylabel="top-1, %")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        low = min(axis.get_ylim()[0] for axis in axes)
        for axis in axes:
            axis.set_ylim(max(low, 0), min(max(a.get_ylim()[1] for a in axes), 101))
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
        return svg(figure, "Top-1 accuracy by epoch on validation and training images, a line a network")


def schedule_and_terms(findings: Findings) -> Markup:
    """The weight β(t) and the learning rate, and the student's loss terms, over its training."""
    with drawing("schedule", 2, height=3.2) as (figure, axes):
        weight, terms = axes
        _line(weight, findings.schedule, "epoch", "beta", VARIABLES["student"], "β(t)")
        weight.set(title="Weight of the distillation terms", xlabel="time, epochs", ylabel="β")
        weight.margins(x=0.02)
        weight.set_ylim(0, 1.08 * max((row["beta"] or 0.0 for row in findings.schedule), default=1.0) + 1e-9)
        history = findings.histories.get("student", [])
        names = [
            name for name in (history[0] if history else ()) if name.startswith("train_") and name not in NOT_TERMS
        ]
        for number, name in enumerate(names):
            color = VARIABLES[SERIES[number % len(SERIES)]]
            _line(terms, history, "epoch", name, color, name.removeprefix("train_"))
        values = [value for row in history for name in names if (value := row[name]) is not None]
        if values and min(values) > 0 and max(values) > 20 * min(values):
            terms.set_yscale("log")
            terms.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            terms.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            terms.minorticks_off()
        terms.set(title="Loss terms of the student", xlabel="epoch", ylabel="mean over the epoch")
        terms.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if names:
            terms.legend(loc="best")
        return svg(figure, "The distillation weight over time, and the student's loss terms by epoch")


def calibration(findings: Findings) -> Markup:
    """Reliability diagrams: accuracy in bins of confidence, one panel a network."""
    roles = findings.roles
    with drawing("calibration", len(roles), height=2.95, share_y=True) as (figure, axes):
        for axis, (role, label) in zip(axes, roles.items(), strict=True):
            bins = findings.reliability[role]
            shares = bins.count / bins.count.sum()
            axis.plot([0, 1], [0, 1], "--", color=VARIABLES["muted"], linewidth=1)
            width = bins.edges[1] - bins.edges[0]
            centres = bins.edges[:-1] + width / 2
            # Faint bars stand on few images.
            for centre, accuracy, share in zip(centres, bins.accuracy, shares, strict=True):
                if not math.isnan(accuracy):
                    alpha = 0.35 + 0.65 * math.sqrt(share)
                    axis.bar(centre, accuracy, width=0.86 * width, color=VARIABLES[role], alpha=alpha)
            axis.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="confidence", aspect="equal")
            axis.set_title(f"{label}\nECE {findings.metrics[role]['ece']:.3f}")
            axis.set_xticks([0, 0.5, 1], ["0", "½", "1"])
            axis.set_yticks([0, 0.5, 1], ["0", "½", "1"])
        axes[0].set_ylabel("accuracy")
        return svg(figure, "Reliability diagrams, one panel a network")


def confusion(findings: Findings) -> Markup:
    """The student's confusion matrix; each cell tells its numbers when pointed at."""
    counts, classes = findings.confusion, findings.classes
    size = len(classes)
    cell = max(2.0, min(44.0, 900 / size))
    font = min(12.0, max(5.5, cell * 0.78))
    labelled, counted = size <= LABELLED_CLASSES, size <= COUNTED_CLASSES
    short = [name if len(name) <= 22 else f"{name[:21]}…" for name in classes]
    margin = 14 + (0.56 * font * max(map(len, short)) if labelled else 0)
    left = margin + 22
    side = cell * size
    width = left + side + 8
    parts = [
        f'<svg role="img" aria-label="Confusion matrix of the student" viewBox="0 0 {width:.0f} '
        f'{side + margin + 34:.0f}" style="min-width:{min(width, SCROLLED):.0f}px;max-width:{width:.0f}px">',
        f'<rect x="{left:.1f}" y="4" width="{side:.1f}" height="{side:.1f}" class="frame"/>',
    ]
    totals = counts.sum(axis=1)
    told = cells_told(findings)
    if not told:
        place = f'x="{left:.1f}" y="4" width="{side:.1f}" height="{side:.1f}"'
        parts.append(f'<image {place} href="{_raster(counts)}" style="image-rendering:pixelated"/>')
    for actual, predicted in zip(*np.nonzero(counts), strict=True) if told else ():
        count = int(counts[actual, predicted])
        share = count / totals[actual]
        right = actual == predicted
        strength = 0.15 + 0.85 * share if right else 0.2 + 0.8 * math.sqrt(share)
        x, y = left + predicted * cell, 4 + actual * cell
        words = f"{count} of {totals[actual]} images of {classes[actual]} taken for {classes[predicted]}"
        parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{cell - 0.4:.1f}" height="{cell - 0.4:.1f}" '
            f'class="{"hit" if right else "miss"}" fill-opacity="{strength:.2f}"><title>{escape(words)}</title></rect>'
        )
        if counted:
            ink = "strong" if strength > 0.6 else "weak"
            parts.append(
                f'<text x="{x + cell / 2:.1f}" y="{y + cell / 2:.1f}" class="{ink}" text-anchor="middle" '
                f'dominant-baseline="central" font-size="{font:.1f}" pointer-events="none">{count}</text>'
            )
    if labelled:
        for position, name in enumerate(short):
            middle = (position + 0.5) * cell
            text = f'font-size="{font:.1f}"><title>{escape(classes[position])}</title>{escape(name)}</text>'
            parts.append(
                f'<text x="{left - 6:.1f}" y="{4 + middle:.1f}" text-anchor="end" dominant-baseline="central" {text}'
                f'<text transform="translate({left + middle:.1f},{side + 10:.1f}) rotate(-90)" text-anchor="end" '
                f'dominant-baseline="central" {text}'
            )
    parts.append(
        f'<text class="axis" transform="translate(11,{4 + side / 2:.1f}) rotate(-90)" text-anchor="middle" '
        f'font-size="12">actual</text>'
        f'<text class="axis" x="{left + side / 2:.1f}" y="{side + margin + 26:.1f}" text-anchor="middle" '
        f'font-size="12">predicted</text></svg>'
    )
    return Markup("".join(parts))  # names were escaped above


def cells_told(findings: Findings) -> bool:
    """Whether the cells of the confusion matrix tell their numbers, or are too many for a page."""
    return bool(np.count_nonzero(findings.confusion) <= TOLD_CELLS)


def _raster(counts: NDArray[np.int64]) -> str:
    """A large confusion matrix as a PNG's data address: violet on the diagonal, red beside it, on any background."""
    size = len(counts)
    side = min(size, RASTER)
    actual, predicted = np.nonzero(counts)
    share = counts[actual, predicted] / counts.sum(axis=1)[actual]
    right = actual == predicted
    strength = np.where(right, 0.15 + 0.85 * share, 0.2 + 0.8 * np.sqrt(share))
    # Colour × 8 + strength: the diagonal is above all that shares its place where several cells do.
    value = 8 * (1 + right) + (7 * strength).round().astype(np.int64)
    cells = np.zeros((side, side), np.uint8)
    np.maximum.at(cells, (actual * side // size, predicted * side // size), value.astype(np.uint8))
    image = Image.fromarray(cells)
    image.putpalette([0, 0, 0] * 8 + [217, 72, 74] * 8 + [139, 105, 240] * 8)
    opacity = bytes([0] * 8 + [level * 255 // 7 for level in range(8)] * 2)
    content = io.BytesIO()
    image.save(content, "PNG", transparency=opacity)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def _differences(findings: Findings) -> list[tuple[str, str, dict[str, float]]]:
    found = findings.metrics["differences"]
    words = (("baseline", "over student alone"), ("kd", "over plain KD"))
    return [(label, role, found[f"student_minus_{role}"]) for role, label in words if f"student_minus_{role}" in found]


def _line(axis: Axes, rows: list[Row], x: str, y: str, color: str, label: str, scale: float = 1.0) -> None:
    points = [(a, scale * b) for row in rows if (a := row.get(x)) is not None and (b := row.get(y)) is not None]
    if points:
        marker = "o" if len(points) < 4 else None
        axis.plot([a for a, _ in points], [b for _, b in points], color=color, label=label, marker=marker)


def _labels_in_ink(axis: Axes) -> None:
    for label in axis.get_yticklabels():
        label.set(color=VARIABLES["ink"], fontsize=10)
    axis.tick_params(axis="y", length=0)
    axis.grid(False, axis="y")


@contextmanager
def drawing(
    name: str, columns: int, *, height: float, ratios: tuple[float, ...] | None = None, share_y: bool = False
) -> Iterator[tuple[Figure, list[Axes]]]:
    """A row of axes to draw into; the SVG is to be made within the block, where the theme holds."""
    # The salt makes the ids within an SVG its own: several stand in one page.
    with mpl.rc_context(_STYLE | {"svg.hashsalt": f"gkd {name}"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the browser has the font
        figure = Figure(figsize=(10.4, height), layout="constrained")
        widths = ratios[:columns] if ratios else None
        axes = figure.subplots(1, columns, squeeze=False, sharey=share_y, width_ratios=widths)
        yield figure, list(axes[0])


def svg(figure: Figure, description: str) -> Markup:
    """A figure of `drawing`, within its block, as part of the page; `description` is for who does not see it."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return in_page(buffer.getvalue(), description, VARIABLES)


def in_page(plot: str, description: str, colors: Mapping[str, str]) -> Markup:
    """matplotlib's SVG as part of a page whose theme it follows.

    Args:
        description: for who does not see it.
        colors: by the page's variables, which take their places.
    """
    text = plot[plot.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(
        r"<svg [^>]*?viewBox=\"([^\"]*)\"[^>]*>",
        lambda tag: f'<svg role="img" aria-label="{escape(description)}" viewBox="{tag[1]}">',
        text,
    )
    text = re.sub(r"font: ((?:\w+ )?[\d.]+px) [^;\"]*", r"font: \1 var(--font)", text)
    for variable, color in colors.items():
        text = text.replace(color, f"var(--{variable})")
    return Markup(text)  # matplotlib escapes what it writes
