"""Static int8 quantisation of an exported network, the same bytes every time.

QDQ form: the graph keeps its operators and gains QuantizeLinear / DequantizeLinear pairs, which a runtime fuses into
integer kernels where it has them. Weights are int8 per output channel, activations uint8 per tensor, preprocessing
stays in float inside the graph. Never dynamic quantisation: on convolutions it is many times slower than float32.
"""

import tempfile
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorData, TensorsData, create_calibrator
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

    Args:
        source: an ONNX file of `write_onnx`.
        images: [N, H, W, C] uint8 for calibration.
        calibration: how a range follows from the values seen.
        percentile: where the range of `percentile` ends; None is 99.99.
        reduce_range: 7-bit weights, see `export.int8.reduce_range`.
    Raises:
        GkdError: onnxruntime cannot quantise this graph.
    """
    with tempfile.TemporaryDirectory(prefix="gkd-") as name:
        prepared = Path(name) / "prepared.onnx"
        try:
            with quiet():
                # Symbolic inference is for transformers with odd shapes; ours have one free axis, the batch.
                quant_pre_process(source, prepared, skip_symbolic_shape=True)
                model = onnx.load(prepared)
                ranges = _ranges(prepared, Path(name), images, calibration, percentile)
                model = _with_pairs(model, ranges, reduce_range)
        except Exception as error:  # onnxruntime and its quantiser raise plain Python errors of all kinds
            raise GkdError(f"{source.name} cannot be quantised: {first_line(error)}") from None
    write_derived(model, target, source=source, precision="int8")


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


def _with_pairs(model: onnx.ModelProto, ranges: TensorsData, reduce_range: bool) -> onnx.ModelProto:
    last = next(node for node in model.graph.node if "logits" in node.output)
    quantizer = QDQQuantizer(
        model,
        True,  # per channel
        reduce_range,
        QuantType.QInt8,
        QuantType.QUInt8,
        ranges,
        [],
        _first_convolutions(model),
        _operators(),
        {"OpTypesToExcludeOutputQuantization": [last.op_type]} if last.op_type in ("Gemm", "MatMul") else {},
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
