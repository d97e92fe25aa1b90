"""The exception a user is meant to read, and its one special case."""

import difflib
from collections.abc import Iterable, Mapping


class GkdError(Exception):
    """Something the user gave us is wrong, or something they can fix.

    The message is one sentence that says what, where and how to fix it. The command line prints it without a
    traceback and exits with `exit_code`; nothing half-written stays behind.

    Example:
        >>> try:
        ...     load_data("digitz")
        ... except GkdError as error:
        ...     print(error)
        data source 'digitz' is unknown; did you mean 'digits'? ...
    """

    exit_code = 2


class DivergedError(GkdError):
    """A training came to NaN or infinity: of settings that are only tried, a result like any other."""


def unknown(
    what: str, name: str, known: Iterable[str], *, section: str = "", renamed: Mapping[str, str] | None = None
) -> str:
    """One sentence for an unknown name: the nearest known one first, then all of them.

    Args:
        section: what stands before the name where the user wrote it ("distill.").
        renamed: old name → name, of what was called otherwise before.

    >>> unknown("distill.method", "gomperz", ["ce", "kd", "gompertz"])
    "distill.method 'gomperz' is unknown; did you mean 'gompertz'? Known: ce, kd, gompertz"
    >>> unknown("schedule", "nightly", [])
    "schedule 'nightly' is unknown; Known: none"
    """
    names, renamed = list(known), renamed or {}
    near = difflib.get_close_matches(name, [*names, *renamed], n=1, cutoff=0.5)
    guess = f" did you mean {section + renamed.get(near[0], near[0])!r}?" if near else ""
    return f"{what} {section + name!r} is unknown;{guess} Known: {', '.join(names) or 'none'}"


def causes(error: BaseException) -> list[BaseException]:
    """The error, what caused it, what caused that, and so on."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    return chain
