"""A model in memory: the onnxruntime session, its tensors, its class names and where it comes from."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from gkd_core.errors import GkdError
from gkd_core.export.session import as_input
from gkd_core.serving.tensors import DATATYPES, Array, TensorSpec

LINEAGE = ("data_sha256", "teacher_digest", "student_digest", "config_digest")
ABOUT = ("network", "method")
LARGEST_MODEL = 2 << 30  # bytes; one ONNX file cannot hold more

_DATATYPES = {
    "tensor(uint8)": "UINT8",
    "tensor(float)": "FP32",
    "tensor(float16)": "FP16",
    "tensor(double)": "FP64",
}


class InvalidModelError(GkdError):
    """The file was had whole, and what it is will not change: to fetch it again is of no use."""


class ModelUnavailableError(GkdError):
    """The file cannot be had now; nothing is said about what it holds."""


@dataclass(frozen=True)
class ModelFile:
    """A model's file, as a source names it.

    Attributes:
        file: the ONNX file.
        version: its name among the versions; None lets the server count.
        sha256: what the file must hash to; None where nobody said.
        manifest: of the deploy folder or bundle; empty for a lone file.
        precision: fp32, int8 or fp16.
    """

    file: Path
    version: str | None = None
    sha256: str | None = None
    manifest: Mapping[str, Any] | None = None
    precision: str = "fp32"


class Model:
    """One version of a model, ready to run.

    Attributes:
        version: its name among the versions.
        sha256: of the ONNX file.
        inputs, outputs: one of each: images, and logits FP32 [batch, C].
        classes: C names.
        facts: classes, digests and precision, as the metadata reply gives them.
    """

    def __init__(self, found: ModelFile, *, version: str, threads: int | None = None) -> None:
        """Read, check and try out.

        Raises:
            ModelUnavailableError: the file is not there, or cannot be read.
            GkdError: the file is not the one its manifest describes, no ONNX model, or no image classifier.
        """
        content = _read(found.file)
        self.version = version
        self.sha256 = hashlib.sha256(content).hexdigest()
        if found.sha256 is not None and self.sha256 != found.sha256:
            raise GkdError(f"{found.file} is not the file its manifest describes (sha256 differs): export it again")
        self._session = _open(content, found.file, threads)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1:
            raise GkdError(
                f"{found.file} has {len(inputs)} inputs and {len(outputs)} outputs: an image classifier has one of each"
            )
        self.inputs = (_spec(inputs[0], found.file),)
        self.outputs = (_spec(outputs[0], found.file),)
        if self.outputs[0].datatype != "FP32" or len(self.outputs[0].shape) != 2:
            raise GkdError(
                f"{found.file} does not answer with FP32 logits [batch, classes]: export it with `gkd export`"
            )

        known = self._session.get_modelmeta().custom_metadata_map
        manifest = found.manifest or {}
        self.classes = _classes(manifest, known, self.outputs[0].shape[1], found.file)
        self.facts: dict[str, Any] = {
            "classes": list(self.classes),
            "model_sha256": self.sha256,
            **{name: str(manifest.get(name, known.get(name, ""))) for name in (*LINEAGE, *ABOUT)},
            "precision": str(known.get("precision", found.precision)),
        }
        self._try_out(found.file)

    @property
    def picture(self) -> tuple[int, int] | None:
        """Side in pixels and channels of the pictures it takes; None when its input is no square image."""
        shape = self.inputs[0].shape
        if len(shape) != 4 or self.inputs[0].datatype not in ("UINT8", "FP32"):
            return None
        height, width, channels = shape[1:] if self.inputs[0].datatype == "UINT8" else (*shape[2:], shape[1])
        return (height, channels) if height == width and channels in (1, 3) else None

    def from_pictures(self, pictures: NDArray[np.uint8]) -> Array:
        """uint8 pictures [B, side, side, channels] in the form of the input."""
        return as_input(self._session, pictures)

    def run(self, images: Array) -> NDArray[np.float32]:
        """Logits [B, C] of a batch of inputs."""
        logits: NDArray[np.float32] = self._session.run([self.outputs[0].name], {self.inputs[0].name: images})[0]
        return logits

    def _try_out(self, file: Path) -> None:
        """Two images of zeros: what cannot run, or not in batches, is found before anybody asks."""
        spec = self.inputs[0]
        try:
            logits = self.run(np.zeros((2, *spec.shape[1:]), DATATYPES[spec.datatype]))
        except Exception as error:  # onnxruntime's errors have no common base
            raise GkdError(f"{file} opens but does not run ({_first_line(error)}): export it again") from None
        if logits.shape != (2, len(self.classes)) or not np.isfinite(logits).all():
            raise GkdError(f"{file} does not give {len(self.classes)} finite logits an image: export it again")


def _read(file: Path) -> bytes:
    try:
        if file.stat().st_size > LARGEST_MODEL:
            raise GkdError(f"{file} is larger than an ONNX file can be")
        return file.read_bytes()
    except FileNotFoundError:
        raise ModelUnavailableError(f"{file} does not exist: run `gkd export`, or name the ONNX file") from None
    except OSError as error:
        raise ModelUnavailableError(f"{file} cannot be read ({error.strerror})") from None


def _open(content: bytes, file: Path, threads: int | None) -> onnxruntime.InferenceSession:
    """From the bytes that were hashed: nothing can change in between, and they are all that is read.

    Raises:
        GkdError: they are no ONNX model, or one with a tensor in another file.
    """
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's errors have no common base either
        raise _unreadable(file, error) from None
    for tensor in _tensors(model):
        if tensor.data_location or tensor.external_data:
            raise GkdError(
                f"{file} keeps the tensor {tensor.name[:100]!r} in another file, which no digest covers: "
                "export it as one file"
            )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.inter_op_num_threads = 1
    # Threads that spin while they wait would take the time in which requests are read.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.load_model_format", "ONNX")  # and not its own, which was not looked at
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common base
        raise _unreadable(file, error) from None


def _unreadable(file: Path, error: Exception) -> GkdError:
    return GkdError(f"{file} is not an ONNX model that onnxruntime can open ({_first_line(error)}): export it again")


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


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _spec(argument: Any, file: Path) -> TensorSpec:
    sides = list(argument.shape)
    if argument.type not in _DATATYPES or not sides or any(not isinstance(side, int) for side in sides[1:]):
        raise GkdError(
            f"{file}: {argument.name!r} is {argument.type} {sides}, not a batch of images or logits of fixed size"
        )
    if isinstance(sides[0], int):
        raise GkdError(
            f"{file} takes batches of {sides[0]} only: export it with a free batch axis, as `gkd export` does"
        )
    return TensorSpec(argument.name, _DATATYPES[argument.type], (-1, *sides[1:]))


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
        raise GkdError(f"{file} has {count} logits, and its class names are not {count} texts: export it again")
    return tuple(names)
