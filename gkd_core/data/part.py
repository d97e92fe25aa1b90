"""Prepared data of some of the classes: what a teacher that knows only those is trained on."""

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from gkd_core.data.photos import pictures
from gkd_core.data.prepared import PreparedData, Split
from gkd_core.data.sources.base import SPLITS, SplitName
from gkd_core.errors import GkdError, unknown


class ClassPart(PreparedData):
    """The images of some classes of a prepared folder, labelled by position among these.

    Statistics, augmentation and digest are the whole's; images without a class are no part of it. Images stay in the
    memory map until they are asked for.

    Args:
        whole: the prepared data.
        classes: names of the classes, in the order wanted.
    Raises:
        GkdError: a class is not the data's, or a split has no image of them.
    """

    def __init__(self, whole: PreparedData, classes: tuple[str, ...]) -> None:
        for name in classes:
            if name not in whole.info.classes:
                raise GkdError(unknown("teacher.members: class", name, whole.info.classes))
        self._whole = whole
        self._labels = np.full(len(whole.info.classes), -1, dtype=np.int64)
        self._labels[[whole.info.classes.index(name) for name in classes]] = np.arange(len(classes))
        super().__init__(whole.folder, whole.info.model_copy(update={"classes": classes, "unlabelled": None}))
        counts = {name: len(self.split(name)) for name in SPLITS if name != "test"}
        if empty := [name for name, count in counts.items() if count == 0]:
            raise GkdError(
                f"the {empty[0]} split has no image of the classes {', '.join(classes)}: add images, or classes"
            )

    def split(self, name: SplitName) -> Split:
        """The part of one split."""
        whole = self._whole.split(name)
        labels = self._labels[whole.labels]
        rows = np.flatnonzero(labels >= 0)
        return Split(cast(NDArray[np.uint8], _Rows(whole.images, rows)), labels[rows], whole.mean)


class _Rows:
    """Some rows of an array, read when they are asked for."""

    def __init__(self, array: NDArray[np.uint8], rows: NDArray[np.int64]) -> None:
        self._array, self._rows = array, rows
        self.shape = (len(rows), *array.shape[1:])
        self.nbytes = array.nbytes // len(array) * len(rows) if len(array) else 0
        self._pictures = pictures(array)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> NDArray[np.uint8]:
        rows: NDArray[np.uint8] = self._array[self._rows[index]]
        return rows

    @property
    def sizes(self) -> NDArray[np.int64]:
        """See `gkd_core.data.photos.Pictures`."""
        return self._pictures.sizes[self._rows]

    def read(self, row: int, top: int = 0, height: int | None = None) -> NDArray[np.uint8]:
        """See `gkd_core.data.photos.Pictures`."""
        return self._pictures.read(int(self._rows[row]), top, height)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[np.uint8]:
        return self[:].astype(dtype) if dtype is not None else self[:]
