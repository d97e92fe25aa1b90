"""A signal is taken note of, delivered when it suits, and everything is as before afterwards."""

import signal
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from gkd_core.training.interruption import STOPS, Interruption, deferred, ending_in_good_order


@pytest.fixture(autouse=True)
def handlers():
    """Those of a program in which nobody has set any; they are put back."""
    before = {number: signal.getsignal(number) for number in STOPS}
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def within(work: Callable[[Interruption], None]) -> None:
    with deferred() as stop:
        work(stop)


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_acts_where_it_is_delivered_and_no_sooner(number, error):
    reached = []

    def work(stop):
        assert stop.number == 0
        signal.raise_signal(number)
        reached.append(stop.number)
        stop.deliver(stop.number)
        reached.append("behind it")

    with pytest.raises(error):
        within(work)
    assert reached == [number]
    assert [signal.getsignal(each) for each in STOPS] == [signal.default_int_handler, signal.SIG_DFL]


def test_what_would_have_killed_the_process_ends_it_with_the_code_that_says_so():
    with pytest.raises(SystemExit) as ended:
        within(lambda stop: stop.deliver(signal.SIGTERM))
    assert ended.value.code == 143


def test_what_nobody_delivered_acts_at_the_end_of_the_block():
    reached = []
    with pytest.raises(SystemExit):
        within(lambda stop: (signal.raise_signal(signal.SIGTERM), reached.append("the end")))
    assert reached == ["the end"]


def test_an_error_that_ends_the_block_is_told_rather_than_the_signal():
    def work(stop):
        signal.raise_signal(signal.SIGTERM)
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        within(work)


def test_a_second_ctrl_c_acts_at_once():
    reached = []

    def work(stop):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        reached.append("behind it")

    with pytest.raises(KeyboardInterrupt):
        within(work)
    assert not reached


@pytest.mark.parametrize("first", STOPS)
def test_a_second_sigterm_is_the_same_request(first):
    seen = []

    def work(stop):
        signal.raise_signal(first)
        signal.raise_signal(signal.SIGTERM)
        seen.append(stop.number)

    with pytest.raises((SystemExit, KeyboardInterrupt)):
        within(work)
    assert seen == [first]


def test_a_program_with_a_handler_of_its_own_decides_itself():
    seen = []
    signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    with deferred() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert (seen, stop.number) == ([], signal.SIGTERM)
        stop.deliver(stop.number)
        assert (seen, stop.number) == ([signal.SIGTERM], 0)
    assert seen == [signal.SIGTERM]


def test_a_signal_that_is_ignored_stays_so():
    """As of a command that was started in the background of a shell script."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with deferred() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.number == 0
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_in_another_thread_nothing_changes():
    seen = []

    def work():
        with deferred() as stop:
            seen.append((stop.number, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(0, signal.SIG_DFL)]


def test_a_process_ends_in_good_order_unless_it_has_a_handler():
    program = (
        "import signal, sys; from gkd_core.training.interruption import ending_in_good_order\n"
        "with ending_in_good_order():\n"
        "    try: signal.raise_signal(signal.SIGTERM)\n"
        "    finally: print('swept')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (143, "swept\n", "")
    signal.signal(signal.SIGTERM, mine := lambda number, frame: None)
    with ending_in_good_order():
        assert signal.getsignal(signal.SIGTERM) is mine
