"""Where a picture is decoded: in a process, since few bytes may be many pixels, and its decoder is not ours."""

import io

import numpy as np
from numpy.typing import NDArray

from gkd_core.data.images import read_image
from gkd_core.serving.limits import Limits, Overloaded
from gkd_core.serving.worker import Begun, Worker, process


class Decoder:
    """One process from the first picture on, and a bounded number of pictures before it."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._worker = Worker("decodes pictures", process)

    async def decode(self, body: bytes, size: int, channels: int, *, begun: Begun) -> NDArray[np.uint8]:
        """As `read_image` of the bytes of a file.

        Raises:
            Overloaded: too many pictures wait to be decoded, or the process was ended from outside.
            Unreadable: it is no picture, or too large.
        """
        if self._worker.load >= self._limits.pictures:
            raise Overloaded("pictures", f"{self._worker.load} pictures are waiting to be decoded already")
        return await self._worker.run(begun, _decode, body, size, channels, self._limits.pixels)

    def close(self) -> None:
        """After what is being decoded is decoded."""
        self._worker.close()


def _decode(body: bytes, size: int, channels: int, pixels: int) -> NDArray[np.uint8]:
    return read_image(io.BytesIO(body), size, channels, max_pixels=pixels)
