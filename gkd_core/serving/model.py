"""A model in memory: the onnxruntime session, its tensors, its class names and where it comes from."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from gkd_core.data.images import Crop
from gkd_core.decision import Decision
from gkd_core.errors import GkdError
from gkd_core.export.manifest import CHANNELS, OPTIONAL, PIXELS_FORM
from gkd_core.export.session import as_input, first_line, open_session
from gkd_core.serving.answers import Answers, Decisions
from gkd_core.serving.tensors import DATATYPES, Array, TensorSpec

LINEAGE = ("data_sha256", "teacher_digest", "student_digest", "config_digest")
ABOUT = ("network", "method")
TRIED = 7  # side of the pictures that a model for any size is tried out with

_DATATYPES = {
    "tensor(uint8)": "UINT8",
    "tensor(float)": "FP32",
    "tensor(float16)": "FP16",
    "tensor(double)": "FP64",
}
_OF_DECISION = {"probabilities": ("FP32", 2), "score": ("FP32", 1), "decision": ("INT64", 1)}  # datatype, axes


class InvalidModelError(GkdError):
    """The file was had whole, and what it is will not change: to fetch it again is of no use."""


@dataclass(frozen=True)
class ModelFile:
    """A model's file, as a source names it.

    Attributes:
        file: the ONNX file.
        version: its name among the versions; None lets the server count.
        sha256: what the file must hash to; None where nobody said.
        manifest: of the deploy folder or bundle; empty for a lone file.
        precision: fp32, int8 or fp16.
        pixels: the file beside it that takes pictures of any size; None where there is none.
    """

    file: Path
    version: str | None = None
    sha256: str | None = None
    manifest: Mapping[str, Any] | None = None
    precision: str = "fp32"
    pixels: "ModelFile | None" = None


class Model:
    """One version of a model, ready to run.

    Attributes:
        version: its name among the versions.
        sha256: of the ONNX file.
        input, output: images, and logits FP32 [batch, C].
        outputs: `output`, and where the model decides `probabilities`, `score` and `decision`.
        classes: C names.
        decision: when an image is none of the classes; None where the model has no word for it.
        crop: how a picture is made a square for it.
        facts: classes, digests and precision, as the metadata reply gives them.
        answers: counts what it answers; None where the manifest does not say what it answered on the validation images.
        decisions: counts what it decides; None where it has no decision.
        pixels: the same model for pictures of any size; None where there is none. Its answers are counted here.
    """

    def __init__(self, found: ModelFile, *, version: str, threads: int | None = None) -> None:
        """Read, check and try out.

        Raises:
            InvalidModelError: the file is not the one its manifest describes, no ONNX model, or no image classifier.
            GkdError: the file is not there, or cannot be read.
        """
        content = _read(found.file)
        self.version = version
        self.sha256 = hashlib.sha256(content).hexdigest()
        if found.sha256 is not None and self.sha256 != found.sha256:
            raise InvalidModelError(
                f"{found.file} is not the file its manifest describes (sha256 differs): export it again"
            )
        self._session = _open(content, found.file, threads)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        known = self._session.get_modelmeta().custom_metadata_map
        self.decision = _decision(known, found.file)
        wanted = 1 if self.decision is None else 1 + len(_OF_DECISION)
        if len(inputs) != 1 or len(outputs) != wanted:
            raise InvalidModelError(
                f"{found.file} has {len(inputs)} inputs and {len(outputs)} outputs: an image classifier has one of each"
                f"{'' if wanted == 1 else f', and {wanted} outputs where it decides: export it again'}"
            )
        of_any_size = known.get("input") == PIXELS_FORM
        self.input = _spec(inputs[0], found.file, free=(1, 2) if of_any_size else ())
        self.output = _spec(outputs[0], found.file)
        self._side = _side(known, found.file) if of_any_size else None
        self._inside = 1 if known.get("channels") == "1" else CHANNELS  # of the pictures that are made of any
        self.outputs = (self.output, *(_decided(each, self.output, found.file) for each in outputs[1:]))
        if self.output.datatype != "FP32" or len(self.output.shape) != 2:
            raise InvalidModelError(
                f"{found.file} does not answer with FP32 logits [batch, classes]: export it with `gkd export`"
            )

        self.crop = _crop(known, found.file)
        manifest = found.manifest or {}
        self.classes = _classes(manifest, known, self.output.shape[1], found.file)
        self.facts: dict[str, Any] = {
            "classes": list(self.classes),
            "model_sha256": self.sha256,
            **{name: str(manifest.get(name, known.get(name, ""))) for name in (*LINEAGE, *ABOUT)},
            **{name: str(value) for name in OPTIONAL if (value := manifest.get(name, known.get(name)))},
            "precision": str(known.get("precision", found.precision)),
            **({} if self.decision is None else {"decision": self.decision.model_dump(mode="json")}),
        }
        self.answers: Answers | None = None
        self.decisions: Decisions | None = None
        self._try_out(found.file)
        self.answers = _answers(self.classes, manifest, found.file)  # from here on: nobody asked for what was tried out
        if self.decision is not None:
            self.decisions = Decisions(1 - self.decision.validation.coverage)
        self.pixels: Model | None = None
        if found.pixels is not None:
            self.pixels = Model(found.pixels, version=version, threads=threads)
            self.pixels.answers, self.pixels.decisions = self.answers, self.decisions

    def renumber(self, version: str) -> None:
        """Take another name among the versions."""
        for model in (self, self.pixels):
            if model is not None:
                model.version = version

    @property
    def picture(self) -> tuple[int, int] | None:
        """Side in pixels and channels of the pictures it takes, or makes of any; None when these are not square."""
        shape, datatype = self.input.shape, self.input.datatype
        if self._side is not None:
            return self._side, self._inside
        if len(shape) != 4 or datatype not in ("UINT8", "FP32"):
            return None
        height, width, channels = shape[1:] if datatype == "UINT8" else (*shape[2:], shape[1])
        return (height, channels) if height == width and channels in (1, 3) else None

    def from_pictures(self, pictures: NDArray[np.uint8]) -> Array:
        """uint8 pictures [B, side, side, channels] in the form of the input."""
        if self._side is not None:  # grey as three equal colours, which are that grey again inside
            pictures = np.broadcast_to(pictures, (*pictures.shape[:3], CHANNELS))
        return as_input(self._session, pictures)

    def run(self, images: Array) -> NDArray[np.float32]:
        """Logits [B, C] of a batch of inputs, counted in `answers`."""
        logits: NDArray[np.float32] = self.answer(images)[self.output.name]
        return logits

    def answer(self, images: Array) -> dict[str, Array]:
        """All outputs [B, …] by name of a batch of inputs, counted in `answers` and `decisions`."""
        names = [output.name for output in self.outputs]
        found = dict(zip(names, self._session.run(names, {self.input.name: images}), strict=True))
        if self.answers is not None:
            self.answers.add(found[self.output.name])
        if self.decisions is not None:
            self.decisions.add(found["decision"])
        return found

    def _try_out(self, file: Path) -> None:
        """Two images of zeros: what cannot run, or not in batches, is found before anybody asks."""
        try:
            sides = [TRIED if side == -1 else side for side in self.input.shape[1:]]
            logits = self.run(np.zeros((2, *sides), DATATYPES[self.input.datatype]))
        except Exception as error:  # onnxruntime's errors have no common base
            raise InvalidModelError(f"{file} opens but does not run ({first_line(error)}): export it again") from None
        if logits.shape != (2, len(self.classes)) or not np.isfinite(logits).all():
            raise InvalidModelError(f"{file} does not give {len(self.classes)} finite logits an image: export it again")


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise GkdError(f"{file} does not exist: run `gkd export`, or name the ONNX file") from None
    except OSError as error:
        raise GkdError(
            f"{file} cannot be read ({error.strerror}): make it readable, or run `gkd export` again"
        ) from None


def _open(content: bytes, file: Path, threads: int | None) -> onnxruntime.InferenceSession:
    """From the bytes that were hashed: nothing can change in between, and they are all that is read.

    Raises:
        InvalidModelError: they are no ONNX model, or one with a tensor in another file.
    """
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's errors have no common base
        reason = first_line(error)
        raise InvalidModelError(
            f"{file} is not an ONNX model that onnxruntime can open ({reason}): export it again"
        ) from None
    for tensor in _tensors(model):
        if tensor.data_location or tensor.external_data:
            raise InvalidModelError(
                f"{file} keeps the tensor {tensor.name[:100]!r} in another file, which no digest covers: "
                "export it as one file"
            )
    try:
        return open_session(content, file, threads)
    except GkdError as error:
        raise InvalidModelError(str(error)) from None


def _tensors(message: Any) -> Iterator[onnx.TensorProto]:
    """All tensors of a protobuf message, wherever they are: initializers, attributes, subgraphs, functions."""
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for part in [value] if hasattr(value, "ListFields") else value:
            if isinstance(part, onnx.TensorProto):
                yield part
            else:
                yield from _tensors(part)


def _spec(argument: Any, file: Path, free: tuple[int, ...] = ()) -> TensorSpec:
    """What the file says of a tensor; `free` are the axes besides the batch that may be of any length."""
    sides = list(argument.shape)
    fixed = [side for axis, side in enumerate(sides) if axis > 0 and axis not in free]
    if argument.type not in _DATATYPES or not sides or any(not isinstance(side, int) for side in fixed):
        raise InvalidModelError(
            f"{file}: {argument.name!r} is {argument.type} {sides}, not a batch of images or logits of fixed size"
        )
    if isinstance(sides[0], int):
        raise InvalidModelError(
            f"{file} takes batches of {sides[0]} only: export it with a free batch axis, as `gkd export` does"
        )
    shape = (-1 if axis == 0 or axis in free else side for axis, side in enumerate(sides))
    return TensorSpec(argument.name, _DATATYPES[argument.type], tuple(shape))


def _side(known: dict[str, str], file: Path) -> int:
    side = known.get("side", "")
    if not (side.isascii() and side.isdigit() and len(side) <= 6 and int(side) > 0):
        raise InvalidModelError(f"{file} does not say how large the pictures are that it makes: export it again")
    return int(side)


def _decision(known: dict[str, str], file: Path) -> Decision | None:
    try:
        return Decision.read(known)
    except GkdError as error:
        raise InvalidModelError(f"{file}: {error}") from None


def _decided(argument: Any, logits: TensorSpec, file: Path) -> TensorSpec:
    """An output that follows from the logits.

    Raises:
        InvalidModelError: it is none that a decision has, or of another type or shape.
    """
    name, axes = argument.name, list(argument.shape)
    datatype, count = _OF_DECISION.get(name, ("", 0))
    kind = {"FP32": "tensor(float)", "INT64": "tensor(int64)"}.get(datatype)
    if argument.type != kind or len(axes) != count or (count == 2 and axes[1] != logits.shape[1]):
        raise InvalidModelError(
            f"{file} has the output {name!r} of {argument.type} {axes}, which is no part of a decision: export it again"
        )
    return TensorSpec(name, datatype, (-1, *axes[1:]))


def _crop(known: dict[str, str], file: Path) -> Crop:
    name = known.get("crop", "center")
    if name not in get_args(Crop):
        raise InvalidModelError(f"{file} wants its pictures cropped by {name[:40]!r}: export it again")
    return cast(Crop, name)


def _classes(manifest: Mapping[str, Any], known: dict[str, str], count: int, file: Path) -> tuple[str, ...]:
    """The manifest's, else the file's own, else their numbers."""
    names: Any = manifest.get("classes")
    if names is None:
        try:
            names = json.loads(known.get("classes", "null"))
        except ValueError:
            names = None
    if names is None:
        return tuple(str(number) for number in range(count))
    if not isinstance(names, list) or len(names) != count or not all(isinstance(name, str) for name in names):
        raise InvalidModelError(
            f"{file} has {count} logits, and its class names are not {count} texts: export it again"
        )
    return tuple(names)


def _answers(classes: tuple[str, ...], manifest: Mapping[str, Any], file: Path) -> Answers | None:
    reference = manifest.get("reference")
    if reference is None or len(set(classes)) < len(classes):  # Prometheus tells classes apart by name
        return None
    predicted = reference["predicted"]
    if len(predicted) != len(classes) or min(predicted) < 0 or sum(predicted) == 0:
        raise InvalidModelError(
            f"{file}: the reference in its manifest counts no images of {len(classes)} classes: export it again"
        )
    return Answers(classes, reference)
