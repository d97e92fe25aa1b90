"""Tables and their plot as a page: comparison.html, frontier.html. No script, no address, nothing to fetch."""

from collections.abc import Mapping, Sequence

from gkd_core import __version__
from gkd_core.report.figures import in_page
from gkd_core.report.forest import COLORS
from gkd_core.report.page import page_environment


def render_tables(
    title: str, tables: Mapping[str, Sequence[Sequence[str]]], plot: str, *, about: str, caption: str
) -> str:
    """The page as one HTML document. All names are escaped.

    Args:
        tables: title → headings, then the cells of each row.
        plot: SVG in the colours of `gkd_core.report.forest`, which become the page's.
        about: stands above the title.
        caption: stands above the plot.
    """
    return (
        page_environment()
        .get_template("tables.html.j2")
        .render(
            title=title,
            about=about,
            tables=tables,
            plot=in_page(plot, about, COLORS),
            caption=caption,
            version=__version__,
        )
    )
