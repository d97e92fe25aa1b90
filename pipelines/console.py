"""Where tables are printed."""

from rich.console import Console


def console() -> Console:
    """As wide as the terminal, and wide enough for a table where there is none."""
    screen = Console()
    return screen if screen.is_terminal else Console(width=120)
