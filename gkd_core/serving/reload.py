"""Which model is served now, and how another one takes its place without anybody noticing.

A source is asked every few seconds what ought to be served. A new model is fetched, opened and tried out in a thread
while the old one goes on answering; then one reference changes. Requests that were read for the old model end on it.
What cannot be served is said once, and the old model stays. What cannot be fetched is tried again at every poll.
"""

import asyncio
from collections.abc import Hashable
from pathlib import Path
from typing import Protocol

from gkd_core.errors import GkdError
from gkd_core.serving.logs import log
from gkd_core.serving.metrics import Metrics
from gkd_core.serving.model import InvalidModelError, Model, ModelFile, ModelUnavailableError


class Source(Protocol):
    """Where models come from."""

    def poll(self) -> Hashable:
        """A fingerprint that changes when something else ought to be served, or the same has become readable; cheap.

        Raises:
            GkdError: nobody can say.
        """

    def fetch(self) -> ModelFile:
        """The model's file, on this machine.

        Raises:
            InvalidModelError: it was had, and must not be served.
            GkdError: it cannot be had now.
        """


class Served:
    """The model being served.

    Args:
        source: where it comes from.
        threads: within an operator of the model.
    Raises:
        GkdError: there is nothing to begin with.
    """

    def __init__(self, source: Source, metrics: Metrics, *, threads: int | None = None) -> None:
        self._source = source
        self._metrics = metrics
        self._threads = threads
        self._count = 0
        self._silent = False
        self._failure: str | None = None  # why the last fetch came to nothing; while there is one, it is tried again
        self._fingerprint: Hashable = source.poll()
        self.model = self._open(source.fetch())
        metrics.serving(self.model)

    def refresh(self) -> bool:
        """Look, and change the model if another ought to be served; whether it did. Blocks: call it in a thread."""
        try:
            fingerprint = self._source.poll()
        except GkdError as error:
            self._metrics.reloads.labels("unreachable").inc()
            if not self._silent:  # once for each time it falls silent
                log.warning("source-silent", extra={"reason": str(error), "kept": self.model.version})
            self._silent = True
            return False
        self._silent = False
        if fingerprint == self._fingerprint and self._failure is None:
            return False
        try:
            model = self._open(self._fetch())
        except ModelUnavailableError as error:  # it may be there at the next poll: the fingerprint stays what it was
            self._metrics.reloads.labels("failed").inc()
            self._metrics.stale.set(1)
            if self._failure != str(error):
                log.error("model-not-fetched", extra={"reason": str(error), "kept": self.model.version})
            self._failure = str(error)
            return False
        except GkdError as error:  # it was read, and would be no better the next time
            self._fingerprint, self._failure = fingerprint, None
            self._metrics.reloads.labels("refused").inc()
            self._metrics.stale.set(1)
            log.error("model-refused", extra={"reason": str(error), "kept": self.model.version})
            return False
        self._fingerprint, self._failure = fingerprint, None
        self._metrics.stale.set(0)
        if (model.sha256, model.version) == (self.model.sha256, self.model.version):
            return False
        before, self.model = self.model, model
        self._metrics.reloads.labels("loaded").inc()
        self._metrics.serving(model)
        log.info(
            "model-changed", extra={"before": before.version, "version": model.version, "model_sha256": model.sha256}
        )
        return True

    async def watch(self, seconds: float) -> None:
        """Refresh every so many seconds, for ever."""
        while True:
            await asyncio.sleep(seconds)
            try:
                await asyncio.to_thread(self.refresh)
            except Exception as error:  # the server outlives whatever a source may raise
                self._metrics.reloads.labels("failed").inc()
                log.error("reload-failed", extra={"reason": f"{type(error).__name__}: {error}"})

    def _fetch(self) -> ModelFile:
        try:
            return self._source.fetch()
        except InvalidModelError:
            raise
        except GkdError as error:
            raise ModelUnavailableError(str(error)) from None
        except Exception as error:  # networks and disks raise what they like
            raise ModelUnavailableError(f"the model cannot be fetched ({type(error).__name__}: {error})") from error

    def _open(self, found: ModelFile) -> Model:
        if found.version is not None:
            return Model(found, version=found.version, threads=self._threads)
        model = Model(found, version=str(self._count + 1), threads=self._threads)
        if self._count and model.sha256 == self.model.sha256:  # touched, not changed
            model.version = self.model.version
            return model
        self._count += 1
        return model


def file_fingerprint(*files: Path) -> tuple[tuple[int, int, int, int], ...]:
    """A fingerprint of files that changes when one is written, replaced or made readable.

    Raises:
        GkdError: one is not there.
    """
    fingerprints = []
    for file in files:
        try:
            facts = file.stat()
        except OSError as error:
            raise GkdError(f"{file} cannot be read ({error.strerror})") from None
        fingerprints.append((facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns))
    return tuple(fingerprints)
