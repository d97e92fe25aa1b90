"""Pictures in the page: what is said below them, and that the page stays small whatever they are."""

import base64
import io
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gkd_core.report import figures, render_report
from gkd_core.report.choice import Answers
from gkd_core.report.page import PAGE_BYTES
from gkd_core.report.pictures import Pictures, Shot, percent
from gkd_core.report.sheets import sheet, write_sheets
from gkd_core.report.thumbnails import Thumbnail, fit, picture
from tests.unit.report.test_report import CLASSES, NASTY, findings


class Noise:
    """Pictures that nothing compresses, made when they are asked for, one at a time."""

    def __init__(self, count: int, side: int) -> None:
        self.shape = (count, side, side, 3)
        self.noise = np.random.default_rng(0).integers(0, 256, (2 * side, side, 3), dtype=np.uint8)

    def __getitem__(self, index: int) -> np.ndarray:
        assert isinstance(index, int)
        side = self.shape[1]
        return self.noise[index % side : index % side + side]


def some(images: Any, classes: tuple[str, ...] = CLASSES, *, errors: float = 0.5, heat: bool = True) -> Pictures:
    """Answers at random to pictures, the part `errors` of them wrong in the mean."""
    random, count = np.random.default_rng(1), images.shape[0]
    labels = np.arange(count) % len(classes)
    answers = []
    for _ in range(2):
        logits = random.normal(size=(count, len(classes))).astype(np.float32)
        logits[np.arange(count), labels] += 9 * (random.random(count) > errors)
        answers.append(Answers.of(logits, labels))
    found = Pictures(images, labels, classes, *answers, views=("The student sees them in <grey>.",))
    ramp = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
    maps = dict.fromkeys(found.with_heat(), ramp)
    return replace(found, heat={"student": maps, "teacher": maps} if heat else {})


def small(count: int = 40) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)


@pytest.fixture(scope="module")
def page() -> str:
    return render_report(replace(findings(), pictures=some(small())))


def addresses(page: str) -> list[str]:
    return re.findall(r'<img src="([^"]*)"', page)


def test_without_pictures_there_is_not_one_pixel():
    page = render_report(findings())
    assert "<img" not in page
    assert "data:image" not in page
    assert "Worst mistakes" not in page


def test_every_picture_is_in_the_page_and_said_in_words(page):
    tags = re.findall(r"<img[^>]*>", page)
    assert len(tags) > 60
    assert all(re.search(r' alt="[^"]{10,}"', tag) for tag in tags)
    assert NASTY not in page
    assert "&lt;grey&gt;" in page
    for address in set(addresses(page)):
        kind, content = address.split(",", 1)
        assert kind == "data:image/webp;base64"
        with Image.open(io.BytesIO(base64.b64decode(content))) as image:
            assert max(image.size) <= 224
    for heading in ("Worst mistakes", "Most confused classes", "Where student and teacher disagree", "The least sure"):
        assert page.count(f"<h2>{heading}</h2>") == 1
    assert "Every class" in page
    assert set(re.findall(r'href="(#[^"]*)"', page)) >= {"#mistakes", "#confused", "#classes"}


def test_a_small_picture_is_kept_to_the_last_pixel(page):
    images = small()
    wrong = int(re.search(r"Test image (\d+),", page).group(1))
    content = base64.b64decode(addresses(page)[0].partition(",")[2])
    with Image.open(io.BytesIO(content)) as image:
        np.testing.assert_array_equal(np.asarray(image.convert("L")), images[wrong, :, :, 0])
    assert 'class="pixels"' in page


def test_what_is_said_below_a_picture():
    images = np.zeros((4, 8, 8, 1), np.uint8)
    labels = np.array([0, 1, 1, 0])
    student = Answers.of(np.log(np.array([[0.97, 0.03], [0.8, 0.2], [0.1, 0.9], [0.4, 0.6]], np.float32)), labels)
    teacher = Answers.of(np.log(np.array([[0.9, 0.1], [0.3, 0.7], [0.2, 0.8], [0.45, 0.55]], np.float32)), labels)
    heat = {"student": {1: np.ones((4, 4), np.float32), 3: np.zeros((4, 4), np.float32)}}
    mistakes, confused, disagree, unsure, classes = Pictures(
        images, labels, ("cat", "dog"), student, teacher, heat=heat
    ).sections()
    first, second = mistakes.rows[0].shots
    assert [(line.words.replace("\u00a0", " "), line.tone) for line in first.lines] == [
        ("#1: dog", ""), ("student: cat, 80 %", "wrong"), ("teacher: dog, 70 %", "right"),
    ]  # fmt: skip
    assert first.alt.replace("\u00a0", " ") == "Test image 1, dog; student: cat, 80 %; teacher: dog, 70 %"
    assert first.heat == {"student": "where the student sees cat"}
    assert second.heat == {"student": "where the student sees dog: nowhere"}
    assert "wrong on 2 of 4" in mistakes.caption
    assert [(row.title, row.note) for row in confused.rows] == [
        ("cat taken for dog", "1 of 2"),
        ("dog taken for cat", "1 of 2"),
    ]
    assert [row.note for row in disagree.rows] == ["1", "0", "0"]
    assert [shot.index for shot in unsure.rows[0].shots] == [3, 1, 2, 0]
    assert unsure.rows[0].shots[0].lines[-1].words == "next: cat"
    assert [(row.title, row.note) for row in classes.rows] == [("cat", "recall 1 of 2"), ("dog", "recall 1 of 2")]
    assert classes.rows[0].shots[0].lines[0].words.replace("\u00a0", " ") == "97 %"


def test_a_picture_whose_answer_is_withheld_says_so():
    images, labels = np.zeros((4, 8, 8, 1), np.uint8), np.array([0, 1, 1, 0])
    logits = np.log(np.array([[9, 1], [81, 1], [1, 16], [1, 9]], np.float32))
    withheld = np.array([True, True, False, False])
    student = Answers.of(logits, labels, temperature=2.0, withheld=withheld)  # 3:1, 9:1, 1:4, 1:3
    pictures = Pictures(images, labels, ("cat", "dog"), student, Answers.of(logits, labels))
    mistakes, confused, _, unsure, classes = pictures.sections()

    def words(shot: Shot) -> list[str]:
        return [line.words.replace("\u00a0", " ") for line in shot.lines]

    answered, refused = mistakes.rows[0].shots
    assert words(answered) == ["#3: cat", "student: dog, 75 %", "teacher: dog, 90 %"]
    assert words(refused) == ["#1: dog", "student: cat, 90 %", "student: none of these", "teacher: cat, 99 %"]
    assert "student: none of these" in refused.alt
    assert "none of these" not in answered.alt
    assert mistakes.caption.endswith("On 1 of the 2 the model says “none of these”: they come last.")
    assert confused.caption.endswith("Those on which the model says “none of these” come last.")
    assert words(unsure.rows[0].shots[0]) == ["#0: cat", "cat, 75 %", "none of these", "next: dog"]
    assert [words(shot) for shot in classes.rows[0].shots] == [["75 %", "none of these"], ["dog, 75 %"]]


def test_a_pair_confused_one_way_shows_the_other_class_as_well():
    labels = np.array([0, 0, 0, 1, 1])
    logits = np.eye(2, dtype=np.float32)[[1, 1, 0, 1, 1]] * np.array([[2], [3], [1], [1], [4]], np.float32)
    answers = Answers.of(logits, labels)
    pair = Pictures(np.zeros((5, 8, 8, 1), np.uint8), labels, ("cat", "dog"), answers, answers).sections()[1]
    assert [(row.title, row.note) for row in pair.rows] == [
        ("cat taken for dog", "2 of 3"), ("dog, recognised", "none of 2 was taken for cat"),
    ]  # fmt: skip
    assert [shot.index for shot in pair.rows[0].shots] == [1, 0]
    assert [shot.index for shot in pair.rows[1].shots] == [4, 3]


def test_a_student_that_is_always_right_has_a_page_all_the_same():
    page = render_report(replace(findings(), pictures=some(small(), errors=0.0)))
    assert "The student is right on every test image." in page
    assert "No two classes were taken for each other more than once." in page


@pytest.mark.parametrize(("probability", "shown"), [(0.974, "97 %"), (0.9999, "> 99 %"), (1.0, "100 %"), (0.0, "0 %")])
def test_percent(probability, shown):
    assert percent(probability).replace("\u00a0", " ") == shown


def test_pictures_shrink_until_they_fit_and_the_last_are_left_out_where_they_do_not():
    pictures = some(Noise(60, 256), heat=False)
    sizes = []
    for budget in (3_000_000, 600_000, 40_000):
        sections, found = pictures.fit(budget)
        shown = [asked for section in sections for asked in section.thumbnails()]
        assert 0.3 * budget < sum(len(found[asked]) for asked in shown) <= budget
        with Image.open(io.BytesIO(base64.b64decode(found[shown[0]].partition(",")[2]))) as image:
            sizes.append(image.width)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1] == 64
    assert "more would make this page too large" in sections[-1].caption
    assert len(sections[0].rows[0].shots) == 12, "what comes first is dropped last"


def test_one_that_is_shown_twice_takes_its_room_twice():
    image = picture(Noise(1, 64)[0])
    once = len(fit([Thumbnail(0)], lambda _: image, 10**6)[Thumbnail(0)])
    assert fit([Thumbnail(0)] * 2, lambda _: image, 2 * once - 1) == {}
    assert len(fit([Thumbnail(0)] * 2, lambda _: image, 2 * once)) == 1


@pytest.mark.slow
def test_the_page_is_five_megabytes_at_most_of_many_classes_and_photos_of_noise():
    classes = tuple(f"a class of its own, number {number}" for number in range(600))
    noise = Noise(3000, 150)
    page = render_report(replace(findings(classes), pictures=some(noise, classes))).encode()
    assert 2_500_000 < len(page) <= PAGE_BYTES
    assert b"Of 600 classes the 120 with the lowest recall" in page


def test_a_large_confusion_matrix_is_one_picture(monkeypatch):
    monkeypatch.setattr(figures, "RASTER", 100)
    count = 150
    counts = np.random.default_rng(0).integers(0, 2, (count, count))
    np.fill_diagonal(counts, count)
    drawing = figures.confusion(replace(findings(), classes=tuple(map(str, range(count))), confusion=counts))
    assert "<title>" not in drawing
    content = re.search(r'<image [^>]*href="data:image/png;base64,([^"]*)"', drawing).group(1)
    with Image.open(io.BytesIO(base64.b64decode(content))) as image:
        cells = np.asarray(image.convert("RGBA")).astype(int)
    assert cells.shape == (100, 100, 4)
    on = np.eye(100, dtype=bool)
    assert (cells[on][:, 2] > cells[on][:, 0]).all(), "violet"
    shown = cells[~on & (cells[..., 3] > 0)]
    assert len(shown) > 4000
    assert (shown[:, 0] > shown[:, 2]).mean() > 0.98, "red, but where a place holds a bit of the diagonal"


def test_a_heat_map_colours_the_hot_places_and_leaves_the_cold_ones_grey():
    pixels = np.full((128, 128, 3), (200, 100, 50), np.uint8)
    heat = np.zeros((64, 64), np.float32)
    heat[:, 32:] = 1
    found = np.asarray(picture(pixels, heat)).astype(int)
    assert np.ptp(found[64, 5]) == 0
    assert found[64, 120, 0] - found[64, 120, 2] > 100, "yellow"
    assert picture(np.zeros((8, 8, 1), np.uint8), heat).size == (128, 128)


def test_a_sheet_for_each_section(tmp_path):
    pictures = some(small(), tuple(f"class {number}" for number in range(60)), errors=0.5)
    write_sheets(tmp_path, pictures)
    names = {file.stem for file in tmp_path.iterdir()}
    assert names == {section.key for section in pictures.sections() if any(row.shots for row in section.rows)}
    for file in tmp_path.iterdir():
        assert file.stat().st_size < 1_500_000
        with Image.open(file) as image:
            assert image.width == 1200
    first = pictures.sections()[0]
    drawn = np.asarray(sheet(first, pictures))
    shot = first.rows[0].shots[0]
    expected = np.asarray(pictures.draw(Thumbnail(shot.index)).resize((124, 124), Image.Resampling.NEAREST))
    np.testing.assert_array_equal(drawn[58:182, 12:136], expected)
