"""Pictures small enough for a page: encoded as data addresses, all together within a number of bytes."""

import base64
import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.colors import to_hex
from numpy.typing import NDArray
from PIL import Image

# Longest side in pixels and quality of WebP, from what is wished for to what is legible still.
LEVELS = ((224, 80), (176, 72), (144, 64), (112, 55), (88, 45), (64, 35))
FEW_PIXELS = 64  # up to here a picture is kept pixel by pixel, and shown so
ENLARGED = 128  # pixels at least, of a heat map over one of those
DARKEST = 50  # of the grey picture, of 255: over black no colour would shine
STRENGTH = 0.75  # of a heat map's colours over the picture at its hottest place
COLORS = "plasma"  # matplotlib's; as bright as warm, so it reads without colours too


@dataclass(frozen=True)
class Thumbnail:
    """A picture that is asked for.

    Attributes:
        index: of the image.
        over: whose heat map lies over it; "" for none.
    """

    index: int
    over: str = ""


def picture(pixels: NDArray[np.uint8], heat: NDArray[np.float32] | None = None) -> Image.Image:
    """An image [H, W, 1 or 3] as a colour picture; with a heat map [h, w] in [0, 1] in grey, the map's colours over it.

    The map's colours run from dark blue over red to yellow; where it is 0 the grey picture is as it was.
    """
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    if heat is None:
        return image.convert("RGB")
    if max(image.size) <= FEW_PIXELS:
        times = -(-ENLARGED // max(image.size))
        image = image.resize((times * image.width, times * image.height), Image.Resampling.NEAREST)
    grey = DARKEST + (1 - DARKEST / 255) * np.asarray(image.convert("L").convert("RGB"), np.float32)
    values = np.asarray(Image.fromarray(heat).resize(image.size, Image.Resampling.BILINEAR))
    color = 255 * mpl.colormaps[COLORS](values)[..., :3]
    strength = STRENGTH * np.sqrt(values.clip(0, 1))[..., None]
    return Image.fromarray((grey * (1 - strength) + color * strength).round().astype(np.uint8))


def colors(count: int = 5) -> list[str]:
    """The colours of a heat map as #rrggbb, from little to most."""
    return [to_hex(mpl.colormaps[COLORS](place / (count - 1))) for place in range(count)]


def fit(wanted: Sequence[Thumbnail], draw: Callable[[Thumbnail], Image.Image], budget: int) -> dict[Thumbnail, str]:
    """Data addresses of as many pictures as there is room for, as large as there is room for.

    All have one size and quality: the best of `LEVELS` at which they fit. Where they do not even at the last, the first
    ones that do are taken.

    Args:
        wanted: the most wanted first; one that stands there twice takes its room twice.
        draw: reads and draws one in full size. They are drawn one at a time, again for each level that is tried.
        budget: bytes of all addresses.
    """
    times = Counter(wanted)
    found: dict[Thumbnail, str] = {}
    for side, quality in LEVELS:
        found, left = {}, budget
        for each, count in times.items():
            address = data_address(draw(each), side, quality)
            left -= count * len(address)
            if left < 0:
                break
            found[each] = address
        if len(found) == len(times):
            break
    return found


def data_address(image: Image.Image, side: int, quality: int) -> str:
    """As WebP, not longer than `side` pixels; without loss where it has few pixels to begin with."""
    few = max(image.size) <= FEW_PIXELS
    small = image.copy()
    small.thumbnail((side, side))
    content = io.BytesIO()
    small.save(content, "WEBP", lossless=few, quality=quality, method=4)
    return f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode()}"
