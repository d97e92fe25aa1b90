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
        max_request_bytes: of one body, packed or unpacked; one of pictures of any size may have what `pixels` need.
        memory_bytes: of all bodies together.
        timeout: from the end of a request to its answer.
        idle_seconds: for which a connection is kept open without a request.
        connections: open at the same time.
        pictures: that may wait to be decoded.
        pixels: of a picture, and of all pictures of any size in one request or one run of the model.
    """

    max_batch: int = 64
    queue: int = 512
    max_request_bytes: int = 16 << 20
    memory_bytes: int = 256 << 20
    timeout: float = 30.0
    idle_seconds: int = 75
    connections: int = 1000
    pictures: int = 16
    pixels: int = 16_000_000
