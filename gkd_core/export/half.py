"""An exported network in float16, for GPUs: half the size, input and output of the same types as before."""

from pathlib import Path

import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from gkd_core.errors import GkdError
from gkd_core.export.quiet import quiet
from gkd_core.export.session import first_line
from gkd_core.export.strip import write_derived


def to_half(source: Path, target: Path) -> None:
    """Write the float16 form of `source` to `target`; the metadata stays, `precision` and the digest of `source` join.

    The same input gives the same bytes. CPUs run it too, by casting back and forth: that is for checking it.

    Args:
        source: an ONNX file of `write_onnx`.
    Raises:
        GkdError: the graph cannot be converted.
    """
    try:
        with quiet():
            model = convert_float_to_float16(onnx.load(source), keep_io_types=True)
            # The converter puts its casts at the end, wherever they are needed.
            OnnxModel(model).topological_sort(is_deterministic=True)
    except Exception as error:  # plain Python errors of all kinds
        raise GkdError(f"{source.name} cannot be converted to float16: {first_line(error)}") from None
    write_derived(model, target, source=source, precision="fp16")
