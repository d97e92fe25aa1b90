"""An exported network in float16, for GPUs: half the size, input and output of the same types as before."""

from pathlib import Path

import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from gkd_core.errors import GkdError
from gkd_core.export.quiet import quiet
from gkd_core.export.strip import metadata, set_metadata, strip
from gkd_core.files import file_digest, write_bytes


def to_half(source: Path, target: Path) -> None:
    """Write the float16 form of `source` to `target`; the metadata stays, `precision` and the digest of `source` join.

    The same input gives the same bytes. CPUs run it too, by casting back and forth: that is for checking it.

    Args:
        source: an ONNX file of `write_onnx`.
    Raises:
        GkdError: the graph cannot be converted.
    """
    original = onnx.load(source)
    facts = metadata(original)
    try:
        with quiet():
            model = convert_float_to_float16(original, keep_io_types=True)
            # The converter puts its casts at the end, wherever they are needed.
            OnnxModel(model).topological_sort(is_deterministic=True)
    except Exception as error:  # plain Python errors of all kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise GkdError(f"{source.name} cannot be converted to float16: {reason}") from None
    strip(model)
    set_metadata(model, {**facts, "precision": "fp16", "fp32_sha256": file_digest(source)})
    onnx.checker.check_model(model, full_check=True)
    write_bytes(target, model.SerializeToString(deterministic=True))
