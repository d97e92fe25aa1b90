"""One picture, whatever its mode, as a square uint8 array: what every image goes through, also when served.

The rules, kept in `dataset.json` too: the first frame counts; the EXIF orientation is applied; transparency is laid
over white; 16-bit grey is scaled by 255/65535; the centre square is scaled to size (the shorter side is resized, then
the centre cropped), bilinear with antialiasing; colour becomes grey by ITU-R BT.601, grey becomes colour by repetition.

A file says how large it is before it is decoded: what would need gigabytes is refused, and so is every format but
those in `FORMATS` (Pillow knows some forty, and runs Ghostscript for one of them).
"""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

PREPARATION = (
    "first frame; EXIF orientation applied; transparency over white; 16-bit grey by 255/65535; "
    "shorter side resized and centre cropped, bilinear, antialiased; grey by ITU-R BT.601"
)
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
MAX_PIXELS = 1 << 26  # 67 million, 8192 × 8192: up to some 600 MB while it is decoded, whatever its mode
STRIP = 1 << 18  # pixels that are brought to their final mode together: this takes several copies of them

# Pillow warns of large pictures on stderr, and refuses larger ones; here one limit refuses, in one sentence.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class Unreadable(Exception):
    """A picture that cannot be decoded; the message says why, without the file's name."""


def read_image(file: Path | IO[bytes], size: int, channels: int, *, max_pixels: int | None = None) -> NDArray[np.uint8]:
    """Decode a file, or an open stream of its bytes, and `fit` it.

    Args:
        max_pixels: which more are not decoded; None is `MAX_PIXELS`.
    Returns:
        uint8 [size, size, channels].
    Raises:
        Unreadable: not an image of a known format, truncated, damaged, too large, or of a depth without an agreed range
            (32 bit).
    """
    with opened(file, max_pixels) as image:
        # A JPEG decodes faster at half, a quarter, an eighth; twice the final size keeps the resampling honest.
        image.draft(None, (2 * size, 2 * size))
        ImageOps.exif_transpose(image, in_place=True)
        return fit(image, size, channels)


@contextlib.contextmanager
def opened(file: Path | IO[bytes], max_pixels: int | None = None) -> Iterator[Image.Image]:
    """A file, or an open stream of its bytes, as Pillow opens it; what fails within the block is `Unreadable`, too."""
    try:
        with Image.open(file, formats=FORMATS) as image:
            _refuse_huge(image, MAX_PIXELS if max_pixels is None else max_pixels)
            yield image
    except Unreadable:
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, EOFError, …
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, UnidentifiedImageError) and not isinstance(file, Path):
            # Pillow would name the stream by its address in memory.
            reason = "cannot identify it: no image of a known format"
        if isinstance(file, Path):
            reason = reason.replace(str(file), file.name)
        raise Unreadable(reason) from None


def fit(image: Image.Image | NDArray[np.uint8], size: int, channels: int) -> NDArray[np.uint8]:
    """Bring one picture to size and number of channels by the rules above.

    Args:
        image: a Pillow image, or uint8 [H, W] or [H, W, 1 or 3].
        size: side of the result in pixels.
        channels: 1 or 3.
    Returns:
        uint8 [size, size, channels]; the same values where nothing had to change.
    Raises:
        Unreadable: it is too large (`MAX_PIXELS`), or has 32-bit integer or floating-point pixels, which have no agreed
            range.
    """
    if isinstance(image, np.ndarray):
        if image.ndim == 2:
            image = image[:, :, None]
        if image.shape == (size, size, channels):
            return image
        image = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    _refuse_huge(image, MAX_PIXELS)
    image = in_mode(image, "RGB" if channels == 3 else "L")
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), method=Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.uint8).reshape(size, size, channels)


def _refuse_huge(image: Image.Image, most: int) -> None:
    width, height = image.size
    if width * height > most:
        raise Unreadable(
            f"it is {width} × {height} pixels large, and more than {most:,} are not decoded: make it smaller"
        )


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    """The picture in RGB or L; a large one strip by strip, since no pixel has to do with another."""
    if image.mode == mode and not image.has_transparency_data:
        return image
    width, height = image.size
    rows = max(1, STRIP // width)
    if height <= rows:
        return _plain(image).convert(mode)
    whole = Image.new(mode, image.size)
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(top + rows, height)))
        whole.paste(_plain(strip).convert(mode), (0, top))
    return whole


def _plain(image: Image.Image) -> Image.Image:
    """The picture without transparency and with 8 bits a channel."""
    if image.mode.startswith("I;16"):
        sixteen = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((sixteen * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise Unreadable("its pixels are 32 bits deep, which has no agreed range: convert it to 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image
