"""One picture, whatever its mode, as a square uint8 array: what every image goes through, also when served.

The rules, kept in `dataset.json` too: the first frame counts; the EXIF orientation is applied; transparency is laid
over white; 16-bit values are scaled from the range they are of, which a PNG may name (its chunk sBIT), and which else
is the smallest of 8, 10, 12, 14 and 16 bits that holds the picture's largest value; the centre square is scaled to size
(the shorter side is resized, then the centre cropped), bilinear with antialiasing; colour becomes grey by ITU-R BT.601,
grey becomes colour by repetition.

A file is known by its content, not by its ending, and says how large it is before it is decoded: what would need
gigabytes is refused, and so is every format but those in `FORMATS` (Pillow knows some forty, and runs Ghostscript for
one of them).

This file needs numpy and Pillow alone (and pillow-heif for HEIC): a bundle has a copy of it.
"""

import contextlib
import io
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile, jpeg_factory

PREPARATION = (
    "first frame; EXIF orientation applied; transparency over white; 16-bit values by a PNG's sBIT, else by the "
    "smallest of 8, 10, 12, 14, 16 bits that holds the largest; shorter side resized and centre cropped, bilinear, "
    "antialiased; grey by ITU-R BT.601"
)
Crop = Literal["center", "squash", "border"]
PREPARED_BY: dict[Crop, str] = {
    "center": "shorter side resized and centre cropped",
    "squash": "resized to a square",
    "border": "longer side resized, and bordered with grey (128) to a square",
}
"""What `PREPARATION` says of the way to a square."""
BORDER = 128  # grey: near the mean of most photos
LONGEST = 4  # times the shorter side: what reaches further is cut off, or one panorama would take the room of hundreds
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # and HEIF, where pillow-heif is installed
BEGINNINGS = (b"\x89PNG", b"GIF8", b"II*\0", b"MM\0*")  # of formats that say no more in the first bytes
CUT_OFF = ("truncated", "unexpected end", "ended prematurely", "not enough data", "unpack requires", "bytes missing")
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
MAX_PIXELS = 1 << 26  # 67 million, 8192 × 8192: up to some 600 MB while it is decoded, whatever its mode
STRIP = 1 << 18  # pixels that are brought to their final mode together: this takes several copies of them
ORIENTATION = 0x0112  # the number of EXIF's field
DEPTHS = (8, 10, 12, 14, 16)  # bits that cameras and scanners put into 16
SIGNIFICANT = "significant bits"  # under which Pillow's `info` has what a PNG's sBIT says

# Pillow warns of large pictures on stderr, and refuses larger ones; here one limit refuses, in one sentence.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# Nor is what it says of metadata and palettes for users: what cannot be decoded is refused in a sentence here.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class Unreadable(Exception):
    """A picture that cannot be decoded; the message says why, without the file's name."""


def is_picture(file: Path) -> bool:
    """Whether the file's content is a picture of a format that is read (HEIC also where its package is missing)."""
    try:
        with file.open("rb") as stream:
            if _is_heif(stream.read(12)):
                return True
            with opened(stream):
                return True
    except (OSError, Unreadable):
        return False


@contextlib.contextmanager
def opened(file: Path | IO[bytes], max_pixels: int | None = None) -> Iterator[ImageFile]:
    """A file, or a stream of its bytes, with its header read: size and mode are known, nothing is decoded yet.

    Args:
        max_pixels: which more are refused; None is `MAX_PIXELS`. A JPEG that can be decoded at a fraction of its size
            is let through: `decoded` looks at what is decoded of it.
    Raises:
        Unreadable: not an image of a known format, too large; and whatever goes wrong with it within the block.
    """
    try:
        given = file.open("rb") if isinstance(file, Path) else contextlib.nullcontext(file)
        with given as stream, _recognised(stream) as image:
            if not (isinstance(image, JpegImageFile) and _decodes_in_one_pass(image)):
                _refuse_huge(image, max_pixels)
            yield image
    except Unreadable:
        raise
    except Image.DecompressionBombError:
        most = min(MAX_PIXELS if max_pixels is None else max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or MAX_PIXELS))
        raise Unreadable(f"it is larger than {most:,} pixels, and more are not decoded: make it smaller") from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, EOFError, …
        raise Unreadable(_fault(error, file)) from None


def not_opened(error: OSError) -> str:
    """Why a file cannot be read at all, as `Unreadable` says it."""
    if isinstance(error, FileNotFoundError):
        return "it is not there, or a link that leads nowhere: remove it from where it is named"
    return f"it cannot be read from the disk ({error.strerror or error}): make it readable, or remove it"


def _fault(error: Exception, file: Path | IO[bytes]) -> str:
    """What is wrong with a picture that began like one. Pillow says no more of most faults than where it gave up."""
    if isinstance(error, OSError) and error.strerror:  # Pillow's own have none
        return not_opened(error)
    if isinstance(error, MemoryError):
        return "it takes more memory than there is: make it smaller"
    said = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, EOFError) or any(words in said.lower() for words in CUT_OFF):
        return "it is cut off, and its end is missing: copy it again"
    said = said.replace(str(file), file.name) if isinstance(file, Path) else said
    return f"it is damaged: copy it again (Pillow: {said})"


def decoded(image: ImageFile, side: int, max_pixels: int | None = None) -> Image.Image:
    """The pixels of what `opened` gives, upright.

    Args:
        side: a JPEG is decoded at a half, a quarter or an eighth of its size where both its sides stay twice as long.
        max_pixels: which more are not decoded.
    Raises:
        Unreadable: it is too large, also so.
    """
    if isinstance(image, JpegImageFile):
        image.draft(None, (2 * side, 2 * side))  # twice: it keeps the resampling honest
        _refuse_huge(image, max_pixels)
    of_16_bits = bool(image.tile) and _raw_mode(image.tile[0].args)[:-1] in ("RGB;16", "RGBA;16")
    stream = image.fp
    if image.format == "PNG" and (of_16_bits or image.mode.startswith("I;16")) and (bits := _significant_bits(image)):
        image.info[SIGNIFICANT] = bits
    image.load()
    # Pillow keeps the upper byte of such colours, in which next to nothing is where their values have 12 bits.
    if of_16_bits and stream is not None and (white := _white_by_band(image)).min() < 65535:
        with _recognised(stream) as lower:
            lower.tile = [tile._replace(args=_other_byte(tile.args)) for tile in lower.tile]
            lower.load()
            white[:3] = _white_of(np.asarray(lower)[:, :, :3], int(white[0]), image.info.get(SIGNIFICANT))
            joined = _joined(image, lower, white)
        joined.getexif()[ORIENTATION] = image.getexif().get(ORIENTATION, 1)
        return ImageOps.exif_transpose(joined)
    ImageOps.exif_transpose(image, in_place=True)
    return image


def read_image(
    file: Path | IO[bytes], size: int, channels: int, *, max_pixels: int | None = None, crop: Crop = "center"
) -> NDArray[np.uint8]:
    """Decode a file, or an open stream of its bytes, and `fit` it.

    Args:
        max_pixels: which more are not decoded; None is `MAX_PIXELS`.
        crop: see `fit`.
    Returns:
        uint8 [size, size, channels].
    Raises:
        Unreadable: not an image of a known format, truncated, damaged, too large, or of a depth without an agreed range
            (32 bit).
    """
    with opened(file, max_pixels) as image:
        return fit(decoded(image, size, max_pixels), size, channels, crop)


def _recognised(stream: IO[bytes]) -> ImageFile:
    stream.seek(0)
    head = stream.read(12)
    stream.seek(0)
    if not head:
        raise Unreadable("it is empty: copy it again")
    if head.startswith(b"\xff\xd8\xff"):
        # Image.open refuses 179 million pixels and more, which a JPEG of a telephone has: it is decoded at a fraction.
        return jpeg_factory(stream)
    if not _is_heif(head):
        return _identified(stream, head, FORMATS)
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        raise Unreadable(
            "it is HEIC, which takes the package pillow-heif: pip install 'gkd[photos]', or convert it to JPEG"
        ) from None
    register_heif_opener()
    return _identified(stream, head, (*FORMATS, "HEIF"))


def _identified(stream: IO[bytes], head: bytes, formats: tuple[str, ...]) -> ImageFile:
    try:
        return Image.open(stream, formats=formats)
    except UnidentifiedImageError:  # Pillow would name the stream by its address in memory
        pass
    in_box = head[4:8] == b"ftyp" or (head[:4], head[8:]) == (b"RIFF", b"WEBP")
    if head.startswith(BEGINNINGS) or in_box or (head[:2], head[6:10]) == (b"BM", bytes(4)):
        raise Unreadable("it is cut off or damaged soon after its beginning: copy it again")
    raise Unreadable(f"it is no picture of a format that is read ({', '.join(formats)}): save it as one of these")


def _is_heif(head: bytes) -> bool:
    return head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS


def _decodes_in_one_pass(image: JpegImageFile) -> bool:
    """Whether a JPEG is decoded row by row. A progressive one, or one scan a colour, is held whole meanwhile."""
    stream, components = image.fp, 0
    assert stream is not None
    before = stream.tell()
    stream.seek(2)
    try:
        while len(head := stream.read(4)) == 4 and head[0] == 0xFF:
            body = stream.read(max(0, int.from_bytes(head[2:]) - 2))
            if head[1] in (0xC0, 0xC1):  # frame: sequential
                components = body[5]
            elif head[1] == 0xDA:  # first scan
                return components > 0 and body[0] == components
        return False
    finally:
        stream.seek(before)


def read_whole(file: Path | IO[bytes], shorter: int, channels: int) -> NDArray[np.uint8]:
    """Decode a file, and bring its shorter side down to `shorter` pixels; a smaller picture keeps its size.

    Of one that is more than four times as long as it is wide, the ends are cut off.

    Returns:
        uint8 [H, W, channels].
    Raises:
        Unreadable: as of `read_image`.
    """
    with opened(file) as image:
        plain = in_mode(decoded(image, shorter), "RGB" if channels == 3 else "L")
        width, height = plain.size
        most = LONGEST * min(width, height)
        if max(width, height) > most:
            left, top = max(0, width - most) // 2, max(0, height - most) // 2
            plain = plain.crop((left, top, left + min(width, most), top + min(height, most)))
            width, height = plain.size
        if min(width, height) > shorter:
            scale = shorter / min(width, height)
            plain = plain.resize((round(width * scale), round(height * scale)), Image.Resampling.BILINEAR)
        return np.asarray(plain, dtype=np.uint8).reshape(plain.size[1], plain.size[0], channels)


def read_pixels(file: Path | IO[bytes], side: int, *, max_pixels: int | None = None) -> NDArray[np.uint8]:
    """Decode a file for a model that resizes by itself (`export.pixels`), which gives what `read_image` and `fit` give.

    Args:
        side: of the squares that the model makes of it: a large JPEG is decoded at a fraction of its size.
        max_pixels: which more are not decoded; None is `MAX_PIXELS`.
    Returns:
        uint8 [H, W, 3]: upright, 8 bits, RGB.
    Raises:
        Unreadable: as of `read_image`.
    """
    with opened(file, max_pixels) as image:
        return np.asarray(in_mode(decoded(image, side, max_pixels), "RGB"), dtype=np.uint8)


def fit(image: Image.Image | NDArray[np.uint8], size: int, channels: int, crop: Crop = "center") -> NDArray[np.uint8]:
    """Bring one picture to size and number of channels by the rules above.

    Args:
        image: a Pillow image, or uint8 [H, W] or [H, W, 1 or 3].
        size: side of the result in pixels.
        channels: 1 or 3.
        crop: the centre square; all of it, out of proportion (`squash`); or all of it between grey borders (`border`).
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
    _refuse_huge(image)
    image = in_mode(image, "RGB" if channels == 3 else "L")
    if image.size != (size, size):
        image = _square(image, size, crop)
    return np.asarray(image, dtype=np.uint8).reshape(size, size, channels)


def _square(image: Image.Image, size: int, crop: Crop) -> Image.Image:
    if crop == "squash":
        return image.resize((size, size), Image.Resampling.BILINEAR)
    if crop == "border":
        grey = (BORDER,) * len(image.getbands())
        return ImageOps.pad(image, (size, size), method=Image.Resampling.BILINEAR, color=grey)
    return ImageOps.fit(image, (size, size), method=Image.Resampling.BILINEAR)


def _refuse_huge(image: Image.Image, most: int | None = None) -> None:
    width, height = image.size
    most = MAX_PIXELS if most is None else most
    if width * height > most:
        raise Unreadable(
            f"it is {width} × {height} pixels large, and more than {most:,} are not decoded: make it smaller"
        )


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    """The picture in RGB or L; a large one strip by strip, since no pixel has to do with another."""
    if image.mode == mode and not image.has_transparency_data:
        return image
    white = 255
    if image.mode.startswith("I;16"):
        values, bits = np.asarray(image), image.info.get(SIGNIFICANT)
        white = _white_of(values, _white(int(values.max()), bits), bits)
    width, height = image.size
    rows = max(1, STRIP // width)
    if height <= rows:
        return _plain(image, white).convert(mode)
    whole = Image.new(mode, image.size)
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(top + rows, height)))
        whole.paste(_plain(strip, white).convert(mode), (0, top))
    return whole


def _significant_bits(image: ImageFile) -> int | None:
    """How many of the bits of a PNG's values mean something, as its chunk sBIT says (at least 8); None without one."""
    stream = image.fp
    assert stream is not None
    before = stream.tell()
    stream.seek(8)
    try:
        while len(head := stream.read(8)) == 8 and head[4:] not in (b"IDAT", b"IEND"):
            if head[4:] == b"sBIT":
                bits = max(stream.read(min(3, int.from_bytes(head[:4]))), default=0)  # the fourth is of transparency
                return min(max(bits, DEPTHS[0]), DEPTHS[-1])
            stream.seek(int.from_bytes(head[:4]) + 4, io.SEEK_CUR)
        return None
    finally:
        stream.seek(before)


def _white(highest: int, significant: int | None = None) -> int:
    """The largest value of the range that 16-bit values are of: cameras put 10, 12 or 14 bits into 16."""
    return next(
        (1 << bits) - 1 for bits in (DEPTHS if significant is None else (significant, 16)) if highest < 1 << bits
    )


def _white_of(values: NDArray[np.integer], white: int, significant: int | None) -> int:
    """The same for values of which a PNG says how many bits mean something.

    PNG wants them scaled to all 16 bits, the lower ones 0 or those of the value again, and many programs write the
    value as it is. Below 2^bits both are told apart by the lower bits.

    Args:
        values: or their lower bytes.
    """
    unscaled = significant is not None and (values & ((1 << 16 - significant) - 1)).any()
    return white if significant is None or unscaled else 65535


def _scaled(values: NDArray[np.uint16], white: int | NDArray[np.uint32]) -> NDArray[np.uint8]:
    """16-bit values in 8 bits, `white` (for all, or by band) becoming 255."""
    return ((values.astype(np.uint32) * 255 + white // 2) // white).astype(np.uint8)


def _white_by_band(image: Image.Image) -> NDArray[np.uint32]:
    """`_white` of RGB, alike for the colours, or RGBA [bands], told from the upper bytes of 16-bit values."""
    highest = [int(band[1]) * 256 + 255 for band in image.getextrema() if isinstance(band, tuple)]
    colours = _white(max(highest[:3]), image.info.get(SIGNIFICANT))
    return np.array([colours] * 3 + [_white(alpha) for alpha in highest[3:]], np.uint32)


def _joined(upper: Image.Image, lower: Image.Image, white: NDArray[np.uint32]) -> Image.Image:
    """The picture in 8 bits whose 16-bit values these are the bytes of, row by row."""
    whole = np.array(upper)
    for row, low in zip(whole, np.asarray(lower), strict=True):
        row[:] = _scaled(row.astype(np.uint16) << 8 | low, white)
    return Image.fromarray(whole)


def _raw_mode(arguments: Any) -> str:
    """How the pixels lie in the file, from the arguments of Pillow's decoder."""
    raw = arguments[0] if isinstance(arguments, tuple) else arguments
    return raw if isinstance(raw, str) else ""


def _other_byte(arguments: Any) -> Any:
    """The same arguments with the bytes of a 16-bit value in the other order: Pillow takes the other one of them."""
    raw = _raw_mode(arguments)
    order = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}[raw[-1]]
    return (raw[:-1] + order, *arguments[1:]) if isinstance(arguments, tuple) else raw[:-1] + order


def _plain(image: Image.Image, white: int) -> Image.Image:
    """The picture without transparency and with 8 bits a channel.

    Args:
        white: of 16-bit values, which becomes 255.
    """
    if image.mode.startswith("I;16"):
        return Image.fromarray(_scaled(np.asarray(image), white))
    if image.mode in ("I", "F"):
        raise Unreadable("its pixels are 32 bits deep, which has no agreed range: convert it to 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image
