"""The report's pictures as sheets, one JPEG a section, for who shows files and no pages (MLflow's artifacts)."""

from pathlib import Path

import matplotlib as mpl
from PIL import Image, ImageDraw, ImageFont

from gkd_core.report.pictures import Pictures, Row, Section, Shot
from gkd_core.report.thumbnails import ENLARGED

SIDE = 124  # of a picture, in pixels: three with their heat maps beside each other
GAP = 12
WIDTH = 1200
MOST_ROWS = 40  # a row a class would make a sheet that no viewer opens
LINE = 17
BACKGROUND, INK, MUTED = "white", "#1b1f26", "#667080"
TONES = {"": INK, "right": "#13804a", "wrong": "#c03537"}
SIGNS = {"": "", "right": "✓ ", "wrong": "✗ "}


def write_sheets(folder: Path, pictures: Pictures) -> None:
    """Write KEY.jpg for each section that shows a picture into an existing folder; the same pictures give the same."""
    for section in pictures.sections():
        if any(row.shots for row in section.rows):
            sheet(section, pictures).save(folder / f"{section.key}.jpg", "JPEG", quality=85)


def sheet(section: Section, pictures: Pictures) -> Image.Image:
    """A section as one picture, `WIDTH` wide."""
    rows = [row for row in section.rows if row.shots][:MOST_ROWS]
    heights = [_height(row) for row in rows]
    page = Image.new("RGB", (WIDTH, 3 * GAP + 2 * LINE + sum(heights)), BACKGROUND)
    pen = ImageDraw.Draw(page)
    pen.text((GAP, GAP), section.heading, INK, _font(20, bold=True))
    top = 2 * GAP + 2 * LINE
    for row, height in zip(rows, heights, strict=True):
        _draw(page, pen, top, row, pictures)
        top += height
    return page


def _columns(row: Row) -> int:
    return max(1, (WIDTH - GAP) // (_width(row.shots[0]) + GAP))


def _width(shot: Shot) -> int:
    return (1 + len(shot.heat)) * (SIDE + 4) - 4


def _cell(row: Row) -> int:
    return SIDE + LINE * max(len(shot.lines) for shot in row.shots) + GAP + (LINE if row.shots[0].heat else 0)


def _height(row: Row) -> int:
    return (LINE + GAP) * bool(row.title) + -(-len(row.shots) // _columns(row)) * _cell(row) + GAP


def _draw(page: Image.Image, pen: ImageDraw.ImageDraw, top: int, row: Row, pictures: Pictures) -> None:
    if row.title:
        bold = _font(14, bold=True)
        pen.text((GAP, top), _cut(f"{row.title}, {row.note}", WIDTH - 2 * GAP, bold), INK, bold)
        top += LINE + GAP
    columns = _columns(row)
    for place, shot in enumerate(row.shots):
        x = GAP + place % columns * (_width(shot) + GAP)
        y = top + place // columns * _cell(row)
        for position, asked in enumerate(shot.thumbnails()):
            left = x + position * (SIDE + 4)
            page.paste(_square(pictures.draw(asked)), (left, y))
            if shot.heat:
                pen.text((left, y + SIDE), asked.over or "picture", MUTED, _font(12))
        y += SIDE + (LINE if shot.heat else 0)
        for number, line in enumerate(shot.lines):
            words = _cut(SIGNS[line.tone] + line.words, _width(shot), _font(12))
            pen.text((x, y + number * LINE), words, TONES[line.tone], _font(12))


def _square(image: Image.Image) -> Image.Image:
    few = max(image.size) < ENLARGED
    return image.resize((SIDE, SIDE), Image.Resampling.NEAREST if few else Image.Resampling.LANCZOS)


def _cut(words: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    if font.getlength(words) <= width:
        return words
    while words and font.getlength(f"{words}…") > width:
        words = words[:-1]
    return f"{words}…"


def _font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(mpl.get_data_path()) / "fonts" / "ttf" / name, size)
