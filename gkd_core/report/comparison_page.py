"""comparison.html: the tables and plots of a comparison. No script, no address, nothing to fetch."""

from collections.abc import Mapping, Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from gkd_core import __version__
from gkd_core.report.forest import ACCENT, INK, MUTED


def render_comparison(
    tables: Mapping[str, Sequence[Sequence[str]]], plot: str, *, reference: str, measure: str, note: str
) -> str:
    """The page as one HTML document. All names are escaped.

    Args:
        tables: title → headings, then the cells of each contender.
        plot: of `forest_plot`.
        reference: name of the contender that the others are compared with.
        measure: what they are compared by, in words.
        note: what the columns mean.
    """
    environment = Environment(
        loader=PackageLoader("gkd_core.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for color, variable in ((INK, "ink"), (MUTED, "muted"), (ACCENT, "student"), ("#ffffff", "surface")):
        plot = plot.replace(color, f"var(--{variable})")
    return environment.get_template("comparison.html.j2").render(
        tables=tables,
        plot=Markup(plot[plot.index("<svg") :]),  # matplotlib escapes what it writes
        reference=reference,
        measure=measure,
        note=note,
        version=__version__,
    )
