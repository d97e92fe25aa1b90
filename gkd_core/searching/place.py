"""Where a study's workers meet on one machine: locks that end with the process that holds them, however it ends."""

import contextlib
import fcntl
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO


class Place:
    """A folder that the workers of a study on this machine share.

    Args:
        folder: made where it is not there; None is nobody but this process.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.name = "" if folder is None else f"{socket.gethostname()}:{folder.resolve()}"
        """Says of a trial who holds its lock: workers on this machine, or somebody else's."""

    @contextlib.contextmanager
    def tried(self) -> Iterator[None]:
        """What is made of the folder meanwhile is gone again if this ends in an error."""
        folders = [] if self.folder is None else [self.folder, *self.folder.parents]
        new = [folder for folder in folders if not folder.exists()]
        try:
            yield
        except BaseException:
            for folder in new[:1]:
                shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # others have something in it
                for folder in new[1:]:
                    folder.rmdir()
            raise

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """One worker at a time."""
        with self._locked("study", wait=True):
            yield

    @contextlib.contextmanager
    def holding(self, trial: int) -> Iterator[None]:
        """A trial is at work as long as this is not left, and its process lives."""
        with self._locked(_of(trial), wait=True):
            yield

    @contextlib.contextmanager
    def training(self, settings: str) -> Iterator[None]:
        """Nobody else trains with these settings: whoever comes second finds the result."""
        with self._locked(f"settings-{settings}", wait=True):
            yield

    def left(self, trial: int) -> bool:
        """Whether the worker of a trial of this place is no more."""
        try:
            with self._locked(_of(trial), wait=False):
                return True
        except BlockingIOError:
            return False

    @contextlib.contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """A folder for one training, gone afterwards; what a killed one left under this name goes first.

        Args:
            name: of the training, at which one worker is at a time.
        """
        with contextlib.ExitStack() as stack:
            if self.folder is None:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gkd-")))
            else:
                folder = self.folder / name
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                stack.callback(shutil.rmtree, folder, ignore_errors=True)
            yield folder

    @contextlib.contextmanager
    def _locked(self, name: str, *, wait: bool) -> Iterator[None]:
        if self.folder is None:
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{name}.lock").open("w") as file:
            _lock(file, wait)
            yield


def _of(trial: int) -> str:
    return f"trial-{trial}"


def _lock(file: IO[str], wait: bool) -> None:
    fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
