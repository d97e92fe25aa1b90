"""Pictures of the test split in the report: what goes wrong, where the networks differ, and what each class looks like.

Sections of rows of shots, as the page and the sheets for MLflow draw them. Nothing names a file: an image is its row in
the test split.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gkd_core.decision import WORDS
from gkd_core.report import choice, thumbnails
from gkd_core.report.choice import Answers
from gkd_core.report.thumbnails import Thumbnail

MISTAKES = 12
DISAGREEMENTS = 6  # of each kind
LEAST_SURE = 16
PAIRS = 6
OF_A_PAIR = 4  # pictures, each way
OF_A_CLASS = 8  # pictures, fewer where there are many classes
OF_CLASSES = 480  # pictures, all classes together
MOST_CLASSES = 120  # that have a row
FOLDED_FROM = 20  # classes: their rows are behind a click
ROLES = ("student", "teacher")


@dataclass(frozen=True)
class Line:
    """A line below a picture. `tone` is "right", "wrong" or "": a sign before the words, never the colour alone."""

    words: str
    tone: str = ""


@dataclass(frozen=True)
class Shot:
    """A picture with its lines, and the heat maps beside it.

    Attributes:
        index: of the image in the test split.
        alt: for who does not see it.
        heat: by role what its map shows, in words.
    """

    index: int
    lines: tuple[Line, ...]
    alt: str
    heat: dict[str, str] = field(default_factory=dict)

    def thumbnails(self) -> Iterator[Thumbnail]:
        """The picture, then its maps."""
        yield Thumbnail(self.index)
        yield from (Thumbnail(self.index, role) for role in self.heat)


@dataclass(frozen=True)
class Row:
    """Shots under a title ("" for none); `note` is said beside it, and in place of shots where there are none."""

    title: str
    note: str
    shots: tuple[Shot, ...]


@dataclass(frozen=True)
class Section:
    """Rows under a heading.

    Attributes:
        key: its name in addresses and files.
        folded: its rows are behind a click.
        columns: how many rows stand beside each other, where there is room.
    """

    key: str
    heading: str
    caption: str
    rows: tuple[Row, ...]
    folded: bool = False
    columns: int = 1

    def thumbnails(self) -> Iterator[Thumbnail]:
        """All that it shows, in order."""
        return (asked for row in self.rows for shot in row.shots for asked in shot.thumbnails())

    def reduced(self, there: Iterable[Thumbnail]) -> "Section":
        """The same with those shots alone all of whose pictures are there."""
        known = set(there)
        kept = [
            replace(row, shots=tuple(s for s in row.shots if known.issuperset(s.thumbnails()))) for row in self.rows
        ]
        missing = sum(len(row.shots) for row in self.rows) - sum(len(row.shots) for row in kept)
        if not missing:
            return self
        rows = tuple(new for new, old in zip(kept, self.rows, strict=True) if new.shots or not old.shots)
        more = f"{missing} more would make this page too large."
        return replace(self, rows=rows, caption=f"{self.caption} {more}")


@dataclass(frozen=True)
class Pictures:
    """What the report shows of the test images.

    Attributes:
        images: uint8 [N, S, S, 1 or 3], perhaps memory-mapped; read one at a time.
        labels: [N].
        classes: names in label order.
        student, teacher: what they answered.
        views: how the networks see the images, in sentences.
        heat: by role and image its heat map [h, w] in [0, 1]; a role that has none is missing.
        notes: why a role has none.
    """

    images: Any
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    student: Answers
    teacher: Answers
    views: tuple[str, ...] = ()
    heat: dict[str, dict[int, NDArray[np.float32]]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def few_pixels(self) -> bool:
        """The images are so small that they are shown pixel by pixel."""
        return bool(max(self.images.shape[1:3]) <= thumbnails.FEW_PIXELS)

    @property
    def scale(self) -> list[str]:
        """The colours of a heat map, from little to most, as CSS has them."""
        return thumbnails.colors()

    def with_heat(self) -> list[int]:
        """The images beside which heat maps are shown."""
        groups = choice.disagreements(self.student, self.teacher, self.labels).values()
        wrong = choice.mistakes(self.student, self.labels)[:MISTAKES].tolist()
        return sorted({*wrong, *(index for group in groups for index in group[:DISAGREEMENTS].tolist())})

    def sections(self) -> list[Section]:
        """All sections, in the order of the page."""
        return [self._mistakes(), self._pairs(), self._disagreements(), self._least_sure(), self._classes()]

    def draw(self, asked: Thumbnail) -> Image.Image:
        """One picture in full size."""
        pixels = np.array(self.images[asked.index])
        return thumbnails.picture(pixels, self.heat[asked.over][asked.index] if asked.over else None)

    def fit(self, budget: int) -> tuple[list[Section], dict[Thumbnail, str]]:
        """The sections as far as their pictures fit into so many bytes, and the pictures' addresses."""
        sections = self.sections()
        asked = [each for section in sections for each in section.thumbnails()]
        addresses = thumbnails.fit(asked, self.draw, budget)
        return [section.reduced(addresses) for section in sections], addresses

    def _mistakes(self) -> Section:
        wrong = choice.mistakes(self.student, self.labels)
        caption = (
            f"The student is wrong on {len(wrong):,} of {len(self.labels):,} test images. Shown are those it is surest "
            "of. Where the picture is what the student says, the label may be wrong: gkd check looks for such labels."
        )
        withheld = int(self.student.withheld[wrong].sum())
        if withheld:
            caption += f" On {withheld:,} of the {len(wrong):,} the model says “{WORDS}”: they come last."
        shots = tuple(self._in_full(index) for index in wrong[:MISTAKES].tolist())
        row = Row("", "" if shots else "The student is right on every test image.", shots)
        return Section("mistakes", "Worst mistakes", caption, (row,))

    def _pairs(self) -> Section:
        rows = []
        for pair in choice.confused_pairs(self.student, self.labels, PAIRS):
            ways = [(pair.first, pair.second, pair.first_as_second), (pair.second, pair.first, pair.second_as_first)]
            for actual, other, images in sorted(ways, key=lambda way: -len(way[2])):
                name, total = self.classes[actual], int((self.labels == actual).sum())
                if len(images):
                    title, note = f"{name} taken for {self.classes[other]}", f"{len(images)} of {total}"
                else:
                    title, note = f"{name}, recognised", f"none of {total} was taken for {self.classes[other]}"
                    images = np.flatnonzero((self.labels == actual) & (self.student.named == actual))
                    images = images[np.argsort(-self.student.confidence[images], kind="stable")]
                rows.append(Row(title, note, tuple(self._in_short(index) for index in images[:OF_A_PAIR].tolist())))
        text = "No two classes were taken for each other more than once." if not rows else ""
        caption = "Pairs of classes with the most mistakes of the student between them, the surest mistakes first."
        if self.student.withheld.any():
            caption += f" Those on which the model says “{WORDS}” come last."
        shown = tuple(rows) or (Row("", text, ()),)
        return Section("confused", "Most confused classes", caption, shown, columns=2)

    def _disagreements(self) -> Section:
        found = choice.disagreements(self.student, self.teacher, self.labels)
        count = {who: len(images) for who, images in found.items()}
        caption = (
            f"Student and teacher name different classes on {sum(count.values()):,} of {len(self.labels):,} test "
            f"images: the teacher is right on {count['teacher']:,}, the student on {count['student']:,}, neither on "
            f"{count['neither']:,}. Shown are those on which both are sure."
        )
        titles = {"teacher": "The teacher is right", "student": "The student is right", "neither": "Neither is right"}
        rows = tuple(
            Row(title, f"{count[who]:,}", tuple(self._in_full(i) for i in found[who][:DISAGREEMENTS].tolist()))
            for who, title in titles.items()
        )
        return Section("disagreements", "Where student and teacher disagree", caption, rows)

    def _least_sure(self) -> Section:
        student, shots = self.student, []
        for index in choice.least_sure(student)[:LEAST_SURE].tolist():
            second = self.classes[student.second[index]]
            short = self._in_short(index)
            shots.append(replace(short, lines=(*short.lines, Line(f"next: {second}"))))
        caption = "The test images whose likeliest class has the smallest probability by the student."
        return Section("unsure", "The least sure", caption, (Row("", "", tuple(shots)),))

    def _classes(self) -> Section:
        counts = np.bincount(self.labels, minlength=len(self.classes))
        right = np.bincount(self.labels[self.student.named == self.labels], minlength=len(self.classes))
        order = list(range(len(self.classes)))
        caption = "From the picture whose class is clearest to the student to the one where it is least so."
        if len(order) > MOST_CLASSES:
            recall = right / np.maximum(counts, 1)
            worst = [label for label in np.argsort(recall, kind="stable").tolist() if counts[label]][:MOST_CLASSES]
            caption += f" Of {len(order):,} classes the {len(worst)} with the lowest recall, worst first."
            order = worst
        each = min(OF_A_CLASS, max(OF_CLASSES // max(len(order), 1), 1))
        rows = []
        for label in order:
            images = choice.spread(self.student, self.labels, label, each)
            note = f"recall {right[label]} of {counts[label]}" if counts[label] else "no test image"
            rows.append(Row(self.classes[label], note, tuple(self._of_class(i) for i in images.tolist())))
        return Section("classes", "Every class", caption, tuple(rows), folded=len(rows) > FOLDED_FROM)

    def _in_full(self, index: int) -> Shot:
        """With what both say, and where they look."""
        actual = self.classes[self.labels[index]]
        lines = [Line(f"#{index}: {actual}")]
        heat = {}
        for role in ROLES:
            answers = getattr(self, role)
            lines += self._says(role, answers, index)
            if index in self.heat.get(role, {}):
                named = self.classes[answers.named[index]]
                nothing = "" if self.heat[role][index].any() else ": nowhere"
                heat[role] = f"where the {role} sees {named}{nothing}"
        alt = f"Test image {index}, {actual}; " + "; ".join(line.words for line in lines[1:])
        return Shot(index, tuple(lines), alt, heat)

    def _in_short(self, index: int) -> Shot:
        """With what the student says."""
        actual, lines = self.classes[self.labels[index]], self._says("", self.student, index)
        said = "; ".join(line.words for line in lines)
        return Shot(index, (Line(f"#{index}: {actual}"), *lines), f"Test image {index}, {actual}; the student: {said}")

    def _of_class(self, index: int) -> Shot:
        """In a row that names its class."""
        short = self._in_short(index)
        if short.lines[1].tone == "right":
            sure = Line(percent(float(self.student.confidence[index])), "right")
            return replace(short, lines=(sure, *short.lines[2:]))
        return replace(short, lines=short.lines[1:])

    def _says(self, role: str, answers: Answers, index: int) -> tuple[Line, ...]:
        """The likeliest class, and below it whether the answer is none of the classes."""
        named = int(answers.named[index])
        tone = "right" if named == self.labels[index] else "wrong"
        who = f"{role}: " if role else ""
        likeliest = Line(f"{who}{self.classes[named]}, {percent(float(answers.confidence[index]))}", tone)
        return (likeliest, Line(f"{who}{WORDS}")) if answers.withheld[index] else (likeliest,)


def percent(probability: float) -> str:
    """97 %; what would be rounded to 100 % without being it is "> 99 %"."""
    rounded = f"{100 * probability:.0f}"
    return "> 99\N{NO-BREAK SPACE}%" if rounded == "100" and probability < 1 else f"{rounded}\N{NO-BREAK SPACE}%"
