"""Progress goes to stderr, as plain lines where there is no terminal."""

import pytest

from gkd_core.data import progress as module
from gkd_core.data.progress import progress


def test_plain_lines_without_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PLAIN_SECONDS", 0.0)
    monkeypatch.setenv("FORCE_COLOR", "")
    with progress("prepare toy", 3000, unit="images") as advance:
        advance(1000)
        advance(500)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "prepare toy: 1,000 images of 3,000 images",
        "prepare toy: 1,500 images of 3,000 images",
    ]


def test_short_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("prepare toy", 10) as advance:
        advance(10)
    assert capsys.readouterr().err == ""


def test_a_bar_in_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes stderr for a terminal
    with progress("prepare toy", 4) as advance:
        advance(4)
    captured = capsys.readouterr()
    assert "prepare toy" in captured.err
    assert captured.out == ""
