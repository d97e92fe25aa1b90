"""A teacher asked once for every image and view: what it answered is read back in later epochs and later trainings.

The student must come out the same, bit for bit, as from a teacher that is asked every time. A network's answer to an
image may differ in its last bits with how many others are asked beside it, for other sizes take other kernels. So this
is looked at, not assumed, with the very network, device, threads and batch sizes of the training: images that are not
known yet are asked in chunks of a fixed size whose answers are those of whole batches, and a batch of a size for which
that does not hold goes to the teacher as if there were no cache.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gkd_core.data.loader import Batch, Loader
from gkd_core.errors import GkdError
from gkd_core.models.classifier import Output
from gkd_core.training.answers import Answers, open_answers, readable, size_bytes
from gkd_core.training.teacher import OnlineTeacher, Teacher

CHUNKS = (16, 32, 64, 128, 256)  # on the CPUs looked at 16 and more go together; smaller ones take other kernels
FIRST_IMAGES = 64  # the answers to so many are part of a file's name: of other bits, another file
DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # what float32 holds exactly


def with_cache(
    teacher: Teacher, loader: Loader, *, reads: str, folder: Path | None, facts: Mapping[str, Any], limit_gb: float
) -> tuple["CachedTeacher | None", str]:
    """The teacher with its answers on disk where that can be, and a line that says so, or why not.

    Args:
        teacher, loader: of the training.
        reads: how far the method looks into the networks, as in METHODS.
        folder, facts: see `CachedTeacher`.
        limit_gb: most that all files in the folder may come to, in 10⁹ bytes.
    """
    try:
        if not isinstance(teacher, OnlineTeacher):
            raise GkdError("several networks teach")
        if reads == "feature maps":
            raise GkdError("the method reads feature maps, which are not kept")
        if loader.view_count is None:
            raise GkdError(
                "augment asks for more than crop_padding and flip, so hardly a view comes twice unless teacher_views "
                "says how many there are"
            )
        if folder is None:
            raise GkdError("there is no folder for it")
        cached = CachedTeacher(
            teacher,
            loader,
            folder=folder,
            facts=facts,
            embeddings=reads == "embeddings",
            limit_bytes=int(limit_gb * 1e9),
        )
    except (GkdError, OSError) as error:
        reason = f"{folder} cannot be written ({error.strerror})" if isinstance(error, OSError) else str(error)
        return None, f"teacher cache: not used, for {reason}"
    return cached, f"teacher cache: up to {readable(cached.size_bytes)} in {folder}"


class CachedTeacher:
    """Answers as an `OnlineTeacher` does, logits and perhaps the embedding alone, from files as far as they know.

    Attributes:
        size_bytes: of the files with all their rows.
    Args:
        teacher: who is asked.
        loader: of the training; its images have a finite number of views.
        folder: where the files are (see `open_answers`).
        facts: digests of all that the answers depend on beside the views.
        embeddings: keep the embedding too.
        limit_bytes: most that all files in the folder may come to.
    Raises:
        GkdError: it cannot be used here; the message is a reason, not a whole sentence.
        OSError: the folder cannot be written.
    """

    def __init__(
        self,
        teacher: OnlineTeacher,
        loader: Loader,
        *,
        folder: Path,
        facts: Mapping[str, Any],
        embeddings: bool,
        limit_bytes: int,
    ) -> None:
        assert loader.view_count is not None
        self._asked = self._found = 0
        self._failure = ""
        self._teacher, self._views = teacher, loader.view_count
        self._parts = ("logits", "embedding") if embeddings else ("logits",)
        usual, largest = loader.batch_rows
        self._images = loader.first_images(max(largest, min(FIRST_IMAGES, loader.images)))
        self._alike: dict[int, bool] = {}
        self._chunk = self._choose_chunk(usual)
        first = self._ask_in_chunks(self._images[:FIRST_IMAGES], torch.arange(len(self._images[:FIRST_IMAGES])))
        self._dtypes = [each.dtype for each in first]
        if any(dtype not in DTYPES for dtype in self._dtypes):
            raise GkdError(f"the teacher answers in {self._dtypes[0]}")
        self._files: list[Answers] = []
        self.size_bytes = 0
        for part, answers in zip(self._parts, first, strict=True):
            known = {"part": part, "views": loader.view_facts, "first_answers": _digest(answers), **facts}
            rows, width = loader.images * self._views, answers.shape[1]
            self.size_bytes += size_bytes(rows, width)
            self._files.append(open_answers(folder, known, rows=rows, width=width, limit_bytes=limit_bytes))

    @property
    def hits(self) -> float:
        """Part of the answers so far that were read, in [0, 1]."""
        return self._found / self._asked if self._asked else 0.0

    @property
    def summary(self) -> str:
        """What came of it, for the end of a training."""
        stopped = f"; nothing was kept since writing failed ({self._failure})" if self._failure else ""
        return f"teacher cache: {100 * self.hits:.1f} % of {self._asked:,} answers were read{stopped}"

    def __call__(self, batch: Batch) -> Output:
        """The output, without stages, and without the embedding where nobody wants it."""
        images, indices = batch.images, batch.indices
        self._asked += len(images)
        if not self._answers_alike(len(images)):
            return self._teacher(images, indices)
        assert batch.views is not None
        rows = (indices * self._views + batch.views).cpu().numpy()
        read = [file.read(rows) for file in self._files]
        there = np.logical_and.reduce([found for found, _ in read])
        answers = [self._to_device(values, dtype) for (_, values), dtype in zip(read, self._dtypes, strict=True)]
        missing = np.flatnonzero(~there)
        self._found += len(images) - len(missing)
        if len(missing) == len(images):
            answers = self._ask(images, indices)
            self._keep(rows, answers)
        elif len(missing):
            chosen = torch.from_numpy(missing).to(images.device)
            asked = self._ask_in_chunks(images[chosen], indices[chosen])
            for whole, some in zip(answers, asked, strict=True):
                whole[chosen] = some
            self._keep(rows[missing], asked)
        logits, *embedding = answers
        return Output(logits, (), embedding[0] if embedding else logits.new_empty(len(logits), 0))

    def _ask(self, images: Tensor, indices: Tensor) -> list[Tensor]:
        output = self._teacher(images, indices)
        return [getattr(output, part).contiguous() for part in self._parts]

    def _ask_in_chunks(self, images: Tensor, indices: Tensor) -> list[Tensor]:
        """The same in chunks of one size, the last one filled up with its first image."""
        chunks = []
        for start in range(0, len(images), self._chunk):
            rows = torch.arange(start, start + self._chunk, device=images.device)
            rows = torch.where(rows < len(images), rows, start)
            chunks.append(self._ask(images[rows], indices[rows.to(indices.device)]))
        return [torch.cat(parts)[: len(images)] for parts in zip(*chunks, strict=True)]

    def _choose_chunk(self, usual: int) -> int:
        """The smallest chunk whose answers are those of a batch of the usual size.

        Raises:
            GkdError: there is none, for an answer depends on where in the batch its image stands.
        """
        for chunk in [*(each for each in CHUNKS if each < usual), usual]:
            self._chunk = chunk
            self._alike.clear()
            if self._answers_alike(usual):
                return chunk
        raise GkdError("the teacher's answer to an image differs with the others in its batch")

    def _answers_alike(self, size: int) -> bool:
        """Whether batches of this size and chunks have the same answers, whatever the order of the images."""
        if size not in self._alike:
            images, indices = self._images[:size], torch.arange(size)
            chunks, whole = self._ask_in_chunks(images, indices), self._ask(images, indices)
            turned = [each.flip(0) for each in self._ask(images.flip(0), indices.flip(0))]
            pairs = zip([*chunks, *turned], [*whole, *whole], strict=True)
            self._alike[size] = all(torch.equal(ours, theirs) for ours, theirs in pairs)
        return self._alike[size]

    def _keep(self, rows: NDArray[np.int64], answers: list[Tensor]) -> None:
        if self._failure:
            return
        try:
            for file, values in zip(self._files, answers, strict=True):
                file.write(rows, values.float().cpu().numpy())
        except OSError as error:
            self._failure = error.strerror or str(error)

    def _to_device(self, values: NDArray[np.float32], dtype: torch.dtype) -> Tensor:
        return torch.from_numpy(values).to(self._teacher.device, dtype)


def _digest(answers: Tensor) -> str:
    """sha256 of type and bits."""
    return hashlib.sha256(f"{answers.dtype}".encode() + answers.float().cpu().numpy().tobytes()).hexdigest()
