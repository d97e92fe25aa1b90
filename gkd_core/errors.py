"""The exception a user is meant to read, its one special case, and sentences that several places say."""

import difflib
from collections import Counter
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


def refuse_doubled(names: Iterable[object], where: str) -> None:
    """See that a list names each once: what is given twice is a slip, and would be done once without a word.

    Args:
        where: they stand, for the error.
    Raises:
        GkdError: one is there twice.

    >>> refuse_doubled(["resnet8", "resnet14", "resnet8"], "--students")
    Traceback (most recent call last):
        ...
    gkd_core.errors.GkdError: --students names resnet8 twice: name each once
    """
    twice = [str(name) for name, count in Counter(names).items() if count > 1]
    if twice:
        raise GkdError(f"{where} names {' and '.join(twice)} twice: name each once")


def causes(error: BaseException) -> list[BaseException]:
    """The error, what caused it, what caused that, and so on."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    return chain
