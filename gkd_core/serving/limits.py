"""What one client, and all of them together, may take."""

from dataclasses import dataclass

from gkd_core.serving.tensors import ProtocolError


class Overloaded(ProtocolError):
    """503: nothing is wrong with the request, there is no room for it now. `reason` is for the metrics."""

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(f"{sentence}: try again in a moment", 503)
        self.reason = reason


@dataclass(frozen=True)
class Limits:
    """The server's bounds; seconds, bytes and images.

    Attributes:
        max_batch: images in one request, and in one run of the model.
        queue: images that may wait for the model.
        max_request_bytes: of one body, packed or unpacked.
        memory_bytes: of all bodies being received and worked on.
        timeout: from the end of a request to its answer.
        header_seconds, body_seconds: for a client to send them; a body has to come whole in that time.
        write_seconds: for a client to take its answer.
        idle_seconds: for which a connection may be kept open without a request.
        connections: open at the same time; the next ones are told 503.
        pictures: that may wait to be decoded.
        pixels: of a picture.
    """

    max_batch: int = 64
    queue: int = 512
    max_request_bytes: int = 16 << 20
    memory_bytes: int = 256 << 20
    timeout: float = 30.0
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    write_seconds: float = 30.0
    idle_seconds: float = 75.0
    connections: int = 1000
    pictures: int = 16
    pixels: int = 16_000_000


class Budget:
    """Bytes of all bodies that are in the house."""

    def __init__(self, limits: Limits) -> None:
        self._free = max(limits.memory_bytes, limits.max_request_bytes)

    def take(self, size: int) -> None:
        """Reserve.

        Raises:
            Overloaded: others hold too much.
        """
        if size > self._free:
            raise Overloaded("memory", "the requests of all clients together hold too many bytes")
        self._free -= size

    def give_back(self, size: int) -> None:
        """Free what was reserved."""
        self._free += size
