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
from gkd_core.serving.model import InvalidModelError, Model, ModelFile


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
        self._told: tuple[str, Hashable] | None = None  # the trouble that the log has, so that it is said once
        self._fingerprint: Hashable = source.poll()
        self.model = self._open(source.fetch())
        metrics.serving(self.model)

    def refresh(self) -> bool:
        """Look, and change the model if another ought to be served; whether it did. Blocks: call it in a thread."""
        try:
            fingerprint = self._source.poll()
        except Exception as error:  # networks and disks raise what they like
            return self._keep("unreachable", "source-silent", error)
        if fingerprint == self._fingerprint:
            self._told = None
            return False
        try:
            model = self._open(self._source.fetch())
        except InvalidModelError as error:  # it was read, and would be no better the next time
            self._fingerprint = fingerprint
            self._metrics.stale.set(1)
            return self._keep("refused", "model-refused", error, fingerprint)
        except Exception as error:  # it may be there at the next poll
            self._fingerprint = None
            self._metrics.stale.set(1)
            return self._keep("failed", "model-not-fetched", error, fingerprint)
        self._fingerprint = fingerprint
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
            await asyncio.to_thread(self.refresh)

    def _keep(self, outcome: str, event: str, error: Exception, fingerprint: Hashable = None) -> bool:
        """Count and log why the old model stays."""
        self._metrics.reloads.labels(outcome).inc()
        if self._told != (event, fingerprint):
            reason = str(error) if isinstance(error, GkdError) else f"{type(error).__name__}: {error}"
            log.error(event, extra={"reason": reason, "kept": self.model.version})
        self._told = event, fingerprint
        return False

    def _open(self, found: ModelFile) -> Model:
        if found.version is not None:
            return Model(found, version=found.version, threads=self._threads)
        model = Model(found, version=str(self._count + 1), threads=self._threads)
        if self._count and model.sha256 == self.model.sha256:  # touched, not changed
            model.renumber(self.model.version)
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
            raise GkdError(
                f"{file} cannot be read ({error.strerror}): put it back, or run `gkd export` again"
            ) from None
        fingerprints.append((facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns))
    return tuple(fingerprints)
