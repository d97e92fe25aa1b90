"""One picture in any mode becomes the same square uint8 array."""

import io
import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pillow_heif import register_heif_opener

from gkd_core.data.images import FORMATS, Unreadable, fit, is_picture, opened, read_image, read_pixels, read_whole
from tests.unit.deep_pictures import chunk, png_of_16_bits

RED, BLUE = (255, 0, 0), (0, 0, 255)


def halves(left: tuple[int, ...] | int, right: tuple[int, ...] | int, mode: str = "RGB") -> Image.Image:
    image = Image.new(mode, (8, 8), left)
    image.paste(right, (4, 0, 8, 8))
    return image


def tiff_of_16_bits(values: np.ndarray, kind: str) -> bytes:
    """The same as TIFF; `kind` is the order of the bytes, perhaps "compressed"."""
    end, (height, width, bands) = {"II": "<", "MM": ">"}[kind[:2]], values.shape
    data = values.astype(end + "u2").tobytes()
    packed = zlib.compress(data) if "compressed" in kind else data
    depths = struct.pack(f"{end}{bands}H", *[16] * bands)
    entries = [(256, width), (257, height), (258, 0), (259, 8 if "compressed" in kind else 1), (262, 2), (273, 0)]
    entries += [(277, bands), (278, height), (279, len(packed)), *([(338, 2)] if bands == 4 else [])]
    place = 8 + 2 + 12 * len(entries) + 4
    entries = [(tag, {258: place, 273: place + len(depths)}.get(tag, value)) for tag, value in entries]
    fields = b"".join(
        struct.pack(f"{end}HHII", tag, 3, bands, value) if tag == 258 else struct.pack(f"{end}HHII", tag, 4, 1, value)
        for tag, value in entries
    )
    head = kind[:2].encode() + struct.pack(f"{end}HIH", 42, 8, len(entries))
    return head + fields + bytes(4) + depths + packed


def test_an_array_of_the_right_shape_is_kept_as_it_is() -> None:
    array = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    assert fit(array, 4, 3) is array


def test_grey_becomes_colour_by_repetition_and_colour_grey_by_bt601() -> None:
    grey = np.arange(16, dtype=np.uint8).reshape(4, 4)
    assert np.array_equal(fit(grey, 4, 3), np.repeat(grey[:, :, None], 3, 2))
    pure = np.zeros((1, 1, 3), np.uint8)
    pure[0, 0] = RED
    assert fit(pure, 1, 1).item() == 76  # 0.299 · 255 = 76.2
    assert fit(grey, 4, 1).shape == (4, 4, 1)


def test_the_centre_square_is_what_remains() -> None:
    # 4×8: the columns 0–1 and 6–7 are cut, the square 2–5 stays as it is.
    wide = np.tile(np.arange(8, dtype=np.uint8) * 10, (4, 1))
    assert np.array_equal(fit(wide, 4, 1)[:, :, 0], wide[:, 2:6])
    assert np.array_equal(fit(wide.T.copy(), 4, 1)[:, :, 0], wide[:, 2:6].T)


def test_halving_averages_neighbours_with_antialiasing() -> None:
    checks = (np.indices((16, 16)).sum(0) % 2 * 255).astype(np.uint8)
    inner = fit(checks, 4, 1)[1:3, 1:3]
    assert np.abs(inner.astype(int) - 127).max() <= 2  # without antialiasing it would be 0 or 255


@pytest.mark.parametrize("shape", [(1, 300), (300, 1), (1, 1), (7, 5)])
def test_extreme_shapes_come_out_square(shape: tuple[int, int]) -> None:
    assert fit(np.full(shape, 9, np.uint8), 16, 3).tolist() == np.full((16, 16, 3), 9).tolist()


@pytest.mark.parametrize(
    ("image", "ending"),
    [
        (halves(RED, BLUE), "png"),
        (halves(RED, BLUE).quantize(4), "png"),
        (halves((*RED, 255), (*BLUE, 255), "RGBA"), "png"),
        (halves(RED, BLUE), "bmp"),
        (halves(RED, BLUE), "tiff"),
        (halves(RED, BLUE), "webp"),
        (halves((0, 255, 255, 0), (255, 255, 0, 0), "CMYK"), "tif"),
        (halves(RED, BLUE).quantize(4), "gif"),
        (halves(RED, BLUE), "jpg"),
        (halves((0, 255, 255, 0), (255, 255, 0, 0), "CMYK"), "jpg"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.mode,
)
def test_every_mode_and_format_gives_the_same_colours(image: Image.Image, ending: str, tmp_path: Path) -> None:
    options = {"quality": 95, "subsampling": 0} if ending == "jpg" else {"lossless": True} if ending == "webp" else {}
    image.save(tmp_path / f"a.{ending}", **options)
    array = read_image(tmp_path / f"a.{ending}", 8, 3)
    tolerance = 5 if ending == "jpg" else 0
    assert np.abs(array[:, :4].astype(int) - RED).max() <= tolerance
    assert np.abs(array[:, 4:].astype(int) - BLUE).max() <= tolerance


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    image = halves((*RED, 255), (0, 0, 0, 0), "RGBA")
    image.save(tmp_path / "alpha.png")
    grey = Image.new("LA", (8, 8), (0, 0))
    grey.save(tmp_path / "grey.png")
    palette = halves(RED, BLUE).quantize(4)
    transparent = palette.getpixel((7, 0))
    palette.save(tmp_path / "palette.png", transparency=transparent)
    for name in ("alpha.png", "palette.png"):
        array = read_image(tmp_path / name, 8, 3)
        assert (array[:, :4] == RED).all(), name
        assert (array[:, 4:] == 255).all(), name
    assert (read_image(tmp_path / "grey.png", 8, 1) == 255).all()
    half = fit(Image.new("RGBA", (1, 1), (0, 0, 0, 128)), 1, 1)
    assert half.item() == 127


def test_sixteen_bits_are_scaled_not_cut_off(tmp_path: Path) -> None:
    values = np.array([[0, 257, 32896, 65535]] * 4, dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    Image.fromarray(values).save(tmp_path / "deep.tiff")
    for name in ("deep.png", "deep.tiff"):
        assert read_image(tmp_path / name, 4, 1)[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_values_of_fewer_bits_in_sixteen_fill_the_range(bits: int, tmp_path: Path) -> None:
    white = (1 << bits) - 1
    values = np.array([[0, white // 5, white // 2 + 1, white]] * 4, dtype=np.uint16)
    for name in ("deep.png", "deep.tiff"):
        Image.fromarray(values).save(tmp_path / name)
        assert read_image(tmp_path / name, 4, 1)[0, :, 0].tolist() == [0, 51, 128, 255]


@pytest.mark.parametrize("kind", ["png", "II", "MM", "II compressed", "MM compressed"])
@pytest.mark.parametrize("bands", [3, 4])
def test_so_do_colours_of_which_pillow_keeps_the_upper_byte(kind: str, bands: int) -> None:
    values = np.random.default_rng(0).integers(0, 4096, (8, 8, bands))
    values[0, 0] = 4095
    values[:, :, 3:] = 4095
    write = png_of_16_bits if kind == "png" else tiff_of_16_bits
    got = read_image(io.BytesIO(write(values, kind)), 8, 3)
    assert np.array_equal(got, np.rint(values[:, :, :3] * 255 / 4095))
    got = read_image(io.BytesIO(write(values << 4, kind)), 8, 3)
    assert np.array_equal(got, values[:, :, :3] >> 4)


@pytest.mark.parametrize("bands", [1, 3, 4])
def test_a_png_may_say_how_many_bits_its_values_have(bands: int) -> None:
    dark = np.random.default_rng(0).integers(0, 200, (8, 8, bands))  # of 4095, so nobody could tell
    if bands == 4:
        dark[:, :, 3] = 4095
    for significant, white in ((12, 4095), (10, 1023), (14, 16383), (16, 65535)):
        if bands == 4 and significant < 12:
            continue
        got = read_image(io.BytesIO(png_of_16_bits(dark, significant=significant)), 8, 3)
        assert np.abs(got.astype(int) - np.rint(dark[:, :, :3] * 255 / white)).max() <= (significant == 16), significant
    # As the standard has it, they are scaled to all bits: by zeros below, or by the value's own first bits.
    for scaled in (dark << 4, dark << 4 | dark >> 8):
        got = read_image(io.BytesIO(png_of_16_bits(scaled, significant=12)), 8, 3)
        assert np.abs(got.astype(int) - scaled[:, :, :3] / 257).max() <= 1
    assert read_image(io.BytesIO(png_of_16_bits(dark)), 8, 3).max() > 190  # nothing said: of 8 bits


def test_twelve_bits_of_a_large_picture_are_of_one_range(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.linspace(0, 4095, 50 * 37).astype(np.uint16).reshape(50, 37)
    whole = fit(Image.fromarray(values), 9, 1)
    monkeypatch.setattr("gkd_core.data.images.STRIP", 7 * 37)
    assert np.array_equal(fit(Image.fromarray(values), 9, 1), whole)


def test_bilevel_is_black_and_white(tmp_path: Path) -> None:
    Image.fromarray(np.eye(4, dtype=bool)).save(tmp_path / "bits.png")
    assert np.array_equal(read_image(tmp_path / "bits.png", 4, 1)[:, :, 0], np.eye(4, dtype=np.uint8) * 255)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int, tmp_path: Path) -> None:
    upright = np.array([[0, 50], [100, 200]], dtype=np.uint8)
    # How a camera held this way stores the upright scene (the inverse of what a viewer does).
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "a.png", 2, 1)[:, :, 0], upright)


def test_a_large_jpeg_comes_out_as_when_decoded_in_full(tmp_path: Path) -> None:
    y, x = np.mgrid[0:600, 0:800]
    scene = np.stack([x * 255 / 800, y * 255 / 600, (x + y) * 255 / 1400], 2).astype(np.uint8)
    Image.fromarray(scene).save(tmp_path / "a.jpg", quality=95)
    quick = read_image(tmp_path / "a.jpg", 32, 3)
    full = fit(Image.open(tmp_path / "a.jpg").convert("RGB"), 32, 3)
    assert np.abs(quick.astype(int) - full).max() <= 3


def test_a_large_jpeg_counts_with_what_is_decoded_of_it(tmp_path: Path) -> None:
    scene = Image.linear_gradient("L").resize((4000, 3000))
    scene.save(tmp_path / "a.jpg", quality=90)
    array = read_image(tmp_path / "a.jpg", 32, 1, max_pixels=1 << 20)
    assert np.abs(array.astype(int) - fit(scene.resize((164, 123)), 32, 1)).max() <= 3
    with pytest.raises(Unreadable, match="it is 2000 × 1500 pixels large, and more than 1,048,576 are not decoded"):
        read_image(tmp_path / "a.jpg", 500, 1, max_pixels=1 << 20)
    # 202 million pixels, as telephones take them, of which Pillow's own limit knows nothing better than to refuse.
    content = bytearray((tmp_path / "a.jpg").read_bytes())
    frame = content.index(b"\xff\xc0")
    content[frame + 5 : frame + 9] = struct.pack(">HH", 12_300, 16_400)
    with opened(io.BytesIO(content)) as image:
        assert image.size == (16_400, 12_300)


def test_a_jpeg_that_is_held_whole_while_it_is_decoded_counts_in_full(tmp_path: Path) -> None:
    scene = Image.linear_gradient("L").resize((512, 512)).convert("RGB")
    scene.save(tmp_path / "plain.jpg")
    scene.save(tmp_path / "progressive.jpg", progressive=True)
    content = (tmp_path / "plain.jpg").read_bytes()
    scan = content.index(b"\xff\xda\x00\x0c\x03")
    (tmp_path / "a scan a colour.jpg").write_bytes(
        content[:scan] + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" + bytes(99)
    )
    assert read_image(tmp_path / "plain.jpg", 16, 3, max_pixels=1 << 16).shape == (16, 16, 3)
    for name in ("progressive.jpg", "a scan a colour.jpg"):
        with pytest.raises(Unreadable, match="it is 512 × 512 pixels large"):
            read_image(tmp_path / name, 16, 3, max_pixels=1 << 16)


@pytest.mark.parametrize("form", ["AVIF", "HEIF", "JPEG", "WEBP"])
def test_a_file_is_known_by_its_content(form: str, tmp_path: Path) -> None:
    register_heif_opener()
    halves(RED, BLUE).resize((64, 64)).save(tmp_path / "a.png", form, quality=95)
    array = read_image(tmp_path / "a.png", 8, 3).astype(int)
    assert np.abs(array[:, :3] - RED).max() <= 12
    assert np.abs(array[:, 5:] - BLUE).max() <= 12
    assert is_picture(tmp_path / "a.png")


def test_heic_without_its_package_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register_heif_opener()
    halves(RED, BLUE).save(tmp_path / "a.heic")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(Unreadable, match="it is HEIC, which takes the package pillow-heif: pip install"):
        read_image(tmp_path / "a.heic", 8, 3)
    assert is_picture(tmp_path / "a.heic")


def test_text_is_no_picture_whatever_it_begins_with(tmp_path: Path) -> None:
    for text in ("", "BMW and Audi, a list of cars", "GIF89a", "II*", "RIFF", "notes"):
        (tmp_path / "a.txt").write_text(text)
        assert not is_picture(tmp_path / "a.txt"), text


@pytest.mark.parametrize("ending", ["jpg", "png", "gif", "bmp", "tiff", "webp", "avif"])
def test_a_picture_that_was_cut_off_or_damaged_says_so_and_what_to_do(ending: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole, broken = tmp_path / f"whole.{ending}", tmp_path / f"broken.{ending}"
    Image.fromarray(noise).save(whole)
    content = whole.read_bytes()
    for part in (content[: len(content) // 2], content[:-30], content[:40], content[:13]):
        broken.write_bytes(part)
        for read in (read_image, read_whole, read_pixels):
            arguments = (broken, 8) if read is read_pixels else (broken, 8, 3)
            with pytest.raises(Unreadable, match=r"(cut off|damaged).*: copy it again( \(Pillow: .+\))?$") as error:
                read(*arguments)
            assert str(tmp_path) not in str(error.value)
    if ending in ("jpg", "png", "gif"):
        broken.write_bytes(content[: len(content) // 2])
        with pytest.raises(Unreadable, match=r"^it is cut off, and its end is missing: copy it again$"):
            read_image(broken, 8, 3)


def test_what_is_no_picture_says_so_and_what_to_do(tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("text.png", "empty.png", "float.tiff", "folder", "link.png")}
    files["text.png"].write_text("not an image")
    files["empty.png"].write_bytes(b"")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(files["float.tiff"])
    files["folder"].mkdir()
    files["link.png"].symlink_to("nowhere")
    wanted = {
        "text.png": f"it is no picture of a format that is read ({', '.join(FORMATS)}): save it as one of these",
        "empty.png": "it is empty: copy it again",
        "float.tiff": "its pixels are 32 bits deep, which has no agreed range: convert it to 8 or 16 bits",
        "folder": "it cannot be read from the disk (Is a directory): make it readable, or remove it",
        "link.png": "it is not there, or a link that leads nowhere: remove it from where it is named",
    }
    for name, sentence in wanted.items():
        with pytest.raises(Unreadable) as error:
            read_image(files[name], 8, 3)
        assert str(error.value) == sentence


def bomb(width: int, height: int) -> bytes:
    """A valid PNG of a few kilobytes that says it is this large."""
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # pytest undoes the filter of ours
@pytest.mark.parametrize("side", [8193, 12_000, 60_000])
def test_a_picture_that_would_fill_the_memory_is_refused_before_it_is_decoded(
    side: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bomb.png").write_bytes(bomb(side, side))
    tracemalloc.start()
    with pytest.raises(Unreadable, match=r"67,108,864.* are not decoded: make it smaller"):
        read_image(tmp_path / "bomb.png", 8, 3)
    assert tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()
    assert capsys.readouterr().err == ""


def test_one_pixel_more_than_allowed_is_too_many(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Image.new("RGB", (13, 5)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", 4, 3, max_pixels=65).shape == (4, 4, 3)
    with pytest.raises(Unreadable, match="13 × 5 pixels large, and more than 64 are not decoded"):
        read_image(tmp_path / "a.png", 4, 3, max_pixels=64)
    monkeypatch.setattr("gkd_core.data.images.MAX_PIXELS", 64)
    for read in (lambda: read_image(tmp_path / "a.png", 4, 3), lambda: fit(Image.new("RGB", (13, 5)), 4, 3)):
        with pytest.raises(Unreadable, match="13 × 5 pixels"):
            read()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB", "CMYK", "1", "I;16", "L+", "RGB+"])
def test_large_pictures_go_through_in_strips_as_they_would_whole(
    mode: str, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (50, 37, 4), dtype=np.uint8)
    image = {
        "LA": lambda: Image.fromarray(np.ascontiguousarray(noise[:, :, :2])),
        "P": lambda: Image.fromarray(noise).convert("RGB").quantize(99),
        "I;16": lambda: Image.fromarray(noise.view(np.uint16)[:, :, 0]),
        "CMYK": lambda: Image.fromarray(noise, "CMYK"),
    }.get(mode, lambda: Image.fromarray(noise).convert(mode.rstrip("+")))()
    if mode.endswith("+"):
        image.info["transparency"] = image.getpixel((3, 30))
    whole = fit(image.copy(), 9, channels)
    monkeypatch.setattr("gkd_core.data.images.STRIP", 7 * 37)
    assert np.array_equal(fit(image, 9, channels), whole)


def test_a_large_picture_is_in_memory_twice_and_no_more(tmp_path: Path) -> None:
    megabytes = 2048 * 2048 * 4 >> 20
    Image.new("RGBA", (2048, 2048), (1, 2, 3, 4)).save(tmp_path / "a.png", compress_level=1)
    Image.new("RGBA", (16, 16)).save(tmp_path / "small.png")
    program = (
        "import re; from pathlib import Path; from gkd_core.data.images import read_image\n"
        "def peak(): return int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]) >> 10\n"
        "read_image(Path('small.png'), 8, 3); before = peak()\n"
        "read_image(Path('a.png'), 8, 3); print(peak() - before)"
    )
    told = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    # The decoded picture, its RGB, and strips of 1 MB.
    assert megabytes < int(told.stdout) < 3 * megabytes


def test_a_stream_is_read_like_a_file(tmp_path: Path) -> None:
    halves(RED, BLUE).save(tmp_path / "a.png")
    with (tmp_path / "a.png").open("rb") as stream:
        assert np.array_equal(read_image(stream, 8, 3), read_image(tmp_path / "a.png", 8, 3))
    with pytest.raises(Unreadable, match="it is no picture of a format that is read"):
        read_image(io.BytesIO(b"nothing"), 8, 3)


def test_formats_that_run_other_programs_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n%%EOF\n")
    with pytest.raises(Unreadable, match="it is no picture of a format that is read"):
        read_image(tmp_path / "a.png", 8, 3)


def test_it_needs_no_torch() -> None:
    program = "import sys, gkd_core.data.images; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
