"""PNGs of 16 bits a value, of which Pillow writes the grey ones alone."""

import struct
import zlib

import numpy as np


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of_16_bits(values: np.ndarray, _: str = "", significant: int = 0) -> bytes:
    """A PNG of 16-bit greys or colours, of which Pillow does not write the latter, with sBIT if that is told."""
    height, width, bands = values.shape
    head = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 3: 2, 4: 6}[bands], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    bits = chunk(b"gAMA", struct.pack(">I", 45455)) + chunk(b"sBIT", bytes([significant] * bands)) * bool(significant)
    content = bits + chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + content + chunk(b"IEND", b"")
