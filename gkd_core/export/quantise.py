"""Static int8 quantisation of an exported network, the same bytes every time.

QDQ form: the graph keeps its operators and gains QuantizeLinear / DequantizeLinear pairs, which a runtime fuses into
integer kernels where it has them. Weights are int8 per output channel, activations uint8 per tensor, preprocessing
stays in float inside the graph. Never dynamic quantisation: on convolutions it is many times slower than float32.
"""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorData, TensorsData, create_calibrator
from onnxruntime.quantization.qdq_loss_debug import (
    collect_activations,
    compute_activation_error,
    create_activation_matching,
    modify_model_output_intermediate_tensors,
)
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry
from onnxruntime.quantization.shape_inference import quant_pre_process

from gkd_core.errors import GkdError
from gkd_core.export.quiet import quiet
from gkd_core.export.session import as_input, first_line, session
from gkd_core.export.strip import write_derived

Calibration = Literal["minmax", "entropy", "percentile"]

METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
BATCH = 16  # images at once: every intermediate value of a batch is in memory
DIGITS = 4  # significant ones of a range: what CPUs with other instructions compute differs in the seventh
# With onnxruntime's default of 128 bins there are as many levels as bins, and entropy cuts nothing; the time it takes
# grows with the square.
BINS = {"entropy": 256, "percentile": 2048}
PERCENTILE = 99.99
IMAGE_CHANNELS = 4
LISTENED_TO = 8  # images over which the noise of layers is measured: all their activations are in memory
LAYERS = ("Conv", "Gemm", "MatMul")


def stratified_pick(labels: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """`count` positions, rising, drawn at random with every class in proportion; all when there are fewer.

    Args:
        labels: [N].
    """
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    place = np.empty(len(labels))
    for label in np.unique(labels):
        own = shuffled[labels[shuffled] == label]
        place[own] = (np.arange(len(own)) + 0.5) / len(own)
    return np.sort(shuffled[np.argsort(place[shuffled], kind="stable")[:count]])


def quantise(
    source: Path,
    target: Path,
    images: NDArray[np.uint8],
    *,
    calibration: Calibration = "minmax",
    percentile: float | None = None,
    reduce_range: bool = True,
) -> None:
    """Write the int8 form of `source` to `target`; input, output and metadata stay, `precision` and the digest of
    `source` join them.

    In float stay the first convolution (with one to four input channels integer kernels gain nothing, and the pixels
    are where rounding costs most) and the logits.

    Args: as of `Quantiser`.
    Raises:
        GkdError: onnxruntime cannot quantise this graph.
    """
    Quantiser(source, images, calibration=calibration, percentile=percentile, reduce_range=reduce_range).write(target)


class Quantiser:
    """Int8 forms of one file: the ranges of its activations are measured once.

    Args:
        source: an ONNX file of `write_onnx`.
        images: [N, H, W, C] uint8 for calibration.
        calibration: how a range follows from the values seen.
        percentile: where the range of `percentile` ends; None is 99.99.
        reduce_range: 7-bit weights, see `export.int8.reduce_range`.
    Raises:
        GkdError: onnxruntime cannot quantise this graph.
    """

    def __init__(
        self,
        source: Path,
        images: NDArray[np.uint8],
        *,
        calibration: Calibration = "minmax",
        percentile: float | None = None,
        reduce_range: bool = True,
    ) -> None:
        self.source, self.images, self.reduce_range = source, images, reduce_range
        with tempfile.TemporaryDirectory(prefix="gkd-") as name, _one_sentence(source):
            prepared = Path(name) / "prepared.onnx"
            # Symbolic inference is for transformers with odd shapes; ours have one free axis, the batch.
            quant_pre_process(source, prepared, skip_symbolic_shape=True)
            self.prepared = prepared.read_bytes()
            self.ranges = _ranges(prepared, Path(name), images, calibration, percentile)

    def write(self, target: Path, *, symmetric: bool = False, in_float: Sequence[str] = ()) -> None:
        """Write an int8 form.

        Args:
            symmetric: activations are int8 around zero; else uint8 with a zero of their own, which is faster.
            in_float: names of layers (see `noisiest`) that stay as they are.
        Raises:
            GkdError: onnxruntime cannot quantise this graph.
        """
        write_derived(self._quantised(symmetric, in_float), target, source=self.source, precision="int8")

    def noisiest(self) -> list[str]:
        """Names of the layers that can be quantised, first those that add most noise to what they are given.

        Noise is what an activation lacks of float32's, as a part of its size (onnxruntime's `qdq_loss_debug`), over a
        few of the calibration images.

        Raises:
            GkdError: onnxruntime cannot tell.
        """
        images = self.images[:: max(1, len(self.images) // LISTENED_TO)][:LISTENED_TO]
        with tempfile.TemporaryDirectory(prefix="gkd-") as name, _one_sentence(self.source):
            outputs = []
            for kind, content in (
                ("float", self.prepared),
                ("int8", self._quantised(False, ()).SerializeToString(deterministic=True)),
            ):
                plain, watched = Path(name) / f"{kind}.onnx", Path(name) / f"{kind}-watched.onnx"
                plain.write_bytes(content)
                modify_model_output_intermediate_tensors(str(plain), str(watched))
                feeds = _Batches({"image": as_input(session(plain), images)})
                outputs.append(collect_activations(str(watched), feeds))
            found = compute_activation_error(create_activation_matching(outputs[1], outputs[0]))
        noise = {name: 10 ** (-each["xmodel_err"] / 20) for name, each in found.items() if "xmodel_err" in each}
        return _by_added_noise(onnx.load_from_string(self.prepared), noise)

    def _quantised(self, symmetric: bool, in_float: Sequence[str]) -> onnx.ModelProto:
        with _one_sentence(self.source):
            model = onnx.load_from_string(self.prepared)
            return _with_pairs(model, self.ranges, self.reduce_range, symmetric, in_float)


@contextlib.contextmanager
def _one_sentence(source: Path) -> Iterator[None]:
    """A quiet block. Raises: GkdError: for whatever is raised in it."""
    try:
        with quiet():
            yield
    except Exception as error:  # onnxruntime and its quantiser raise plain Python errors of all kinds
        raise GkdError(f"{source.name} cannot be quantised: {first_line(error)}") from None


def _by_added_noise(model: onnx.ModelProto, noise: dict[str, float]) -> list[str]:
    """The graph's convolutions and products, first those whose output is noisier than their input by most.

    Args:
        noise: of activations by name; an activation that is not there is as noisy as the one it comes from.
    """
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    heard: dict[str, float] = {}
    added: dict[str, float] = {}
    for node in model.graph.node:
        before = max((heard.get(name, 0.0) for name in node.input), default=0.0)
        for name in node.output:
            heard[name] = noise.get(name, before)
        if node.op_type not in LAYERS or node.name in _first_convolutions(model):
            continue
        out = node.output[0]
        while out not in noise and len(readers.get(out, ())) == 1:  # an activation function was drawn into the layer
            out = readers[out][0].output[0]
        # Two digits: other CPUs compute the last ones differently, and the order must be the same.
        added[node.name] = float(f"{noise.get(out, before) - before:.1e}")
    return sorted(added, key=lambda name: -added[name])


class _Batches(CalibrationDataReader):  # type: ignore[misc]
    """One batch, in the form the model wants; onnxruntime asks until it gets None."""

    def __init__(self, feed: dict[str, NDArray[np.uint8] | NDArray[np.float32]]) -> None:
        self._feed: dict[str, NDArray[np.uint8] | NDArray[np.float32]] | None = feed

    def get_next(self) -> dict[str, NDArray[np.uint8] | NDArray[np.float32]] | None:
        feed, self._feed = self._feed, None
        return feed


def _ranges(
    model: Path, folder: Path, images: NDArray[np.uint8], calibration: Calibration, percentile: float | None
) -> TensorsData:
    """Smallest and largest value of every activation, to `DIGITS` digits."""
    options = {"symmetric": False, "percentile": percentile or PERCENTILE, "num_bins": BINS.get(calibration)}
    calibrator = create_calibrator(
        model,
        _operators(),
        augmented_model_path=str(folder / "observed.onnx"),
        calibrate_method=METHODS[calibration],
        extra_options=options,
    )
    wanted = session(model)
    for start in range(0, len(images), BATCH):
        calibrator.collect_data(_Batches({"image": as_input(wanted, images[start : start + BATCH])}))
    found = calibrator.compute_data()
    rounded = {
        name: TensorData(**dict(zip(("lowest", "highest"), map(_rounded, data.range_value), strict=True)))
        for name, data in found.items()
    }
    return TensorsData(CalibrationMethod.MinMax, rounded)


def _rounded(value: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.array(float(f"{float(np.asarray(value).item()):.{DIGITS - 1}e}"), dtype=np.float32)


def _with_pairs(
    model: onnx.ModelProto, ranges: TensorsData, reduce_range: bool, symmetric: bool, in_float: Sequence[str]
) -> onnx.ModelProto:
    last = next(node for node in model.graph.node if "logits" in node.output)
    options: dict[str, Any] = {"ActivationSymmetric": True} if symmetric else {}
    if last.op_type in ("Gemm", "MatMul"):
        options["OpTypesToExcludeOutputQuantization"] = [last.op_type]
    quantizer = QDQQuantizer(
        model,
        True,  # per channel
        reduce_range,
        QuantType.QInt8,
        QuantType.QInt8 if symmetric else QuantType.QUInt8,
        ranges,
        [],
        [*_first_convolutions(model), *in_float],
        _operators(),
        options,
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    quantised: onnx.ModelProto = quantizer.model.model
    return quantised


def _operators() -> list[str]:
    """What can be quantised, in one order: sets of text differ in theirs from process to process."""
    return sorted({*QLinearOpsRegistry, *QDQRegistry})


def _first_convolutions(model: onnx.ModelProto) -> list[str]:
    """Names of the convolutions that see the image itself. A depthwise one has few channels too, but many groups."""
    shapes = {weight.name: list(weight.dims) for weight in model.graph.initializer}
    found = []
    for node in model.graph.node:
        if node.op_type == "Conv" and shapes.get(node.input[1], [0, IMAGE_CHANNELS + 1])[1] <= IMAGE_CHANNELS:
            groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
            if groups == 1:
                found.append(node.name)
    return found
