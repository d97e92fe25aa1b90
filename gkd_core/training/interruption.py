"""A request to stop, acted on between two steps: a signal is taken note of when it comes, and delivered when it suits.

Kubernetes sends SIGTERM to a pod that has to go and kills it when its grace period is over; a terminal sends SIGINT. A
handler runs at any moment, in the middle of an update, so it writes no checkpoint. It leaves a number behind, which the
training looks at after each step: reading it costs nothing and no device waits for it.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

STOPS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """What has arrived within a `deferred` block.

    Attributes:
        number: of the first signal; 0 is none.
    """

    def __init__(self) -> None:
        self.number = 0
        self._handlers: dict[int, Any] = {}

    def deliver(self, number: int) -> None:
        """Do what a signal would have done outside the block: an exception as a rule, such as SystemExit(143).

        Where the program has a handler of its own that returns, all goes on as if nothing had come.

        Raises:
            SystemExit: 128 + number, where the signal would have killed the process: what is half-written is swept
                away then, and the code says the same to whoever started it.
        """
        self.number = 0
        handler = self._handlers.get(number)
        if not callable(handler):
            raise SystemExit(128 + number)
        handler(number, None)

    def _take(self, handlers: dict[int, Any]) -> Callable[[int, FrameType | None], None]:
        self._handlers = handlers

        def note(number: int, frame: FrameType | None) -> None:
            # Someone at a keyboard who asks twice means now. A second SIGTERM is the same request by another way:
            # Argo and torchrun hand it on to processes that may have it already.
            if self.number and number == signal.SIGINT:
                self.deliver(number)
            self.number = self.number or number

        return note


@contextlib.contextmanager
def deferred() -> Iterator[Interruption]:
    """Within the block SIGINT and SIGTERM are only taken note of; what nobody delivered is when the block ends well.

    A second SIGINT is delivered at once. A signal that is ignored stays so. Outside the main thread nothing changes,
    since Python has signals handled there alone.
    """
    interruption = Interruption()
    handlers: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        known = {number: signal.getsignal(number) for number in STOPS}
        # None is a handler that Python does not know and could not put back.
        handlers = {n: handler for n, handler in known.items() if handler not in (None, signal.SIG_IGN)}
    note = interruption._take(handlers)
    try:
        for number in handlers:
            signal.signal(number, note)
        yield interruption
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if interruption.number:
        interruption.deliver(interruption.number)


@contextlib.contextmanager
def ending_in_good_order() -> Iterator[None]:
    """Within the block SIGTERM ends the process by an exception, so that nothing half-written is left.

    Without a handler it would die on the spot, and as a container's first process not at all. One that is there stays.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def leave(number: int, frame: FrameType | None) -> None:
    """A handler: SystemExit, once."""
    signal.signal(number, signal.SIG_IGN)
    raise SystemExit(128 + number)
