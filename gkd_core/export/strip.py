"""Take out of a graph what tells of the machine and not of the model, so that equal models are equal files."""

from pathlib import Path

import onnx

from gkd_core.files import file_digest, write_bytes

OLDEST_IR = 8  # what opset 18 came with; onnxruntime reads it since 1.14, while 1.15 still refuses the exporter's 10


def strip(model: onnx.ModelProto) -> None:
    """Remove source lines, stack traces, tool versions, intermediate shapes and operator sets that no node uses.

    The file's format (`ir_version`) becomes the oldest that has its operator sets, since the exporter and the quantiser
    take the newest they know and older runtimes then refuse what they could run.
    """
    model.producer_name, model.producer_version = "gkd", ""
    model.doc_string = ""
    model.domain = ""
    model.model_version = 0
    del model.metadata_props[:]
    graph = model.graph
    graph.name = "gkd"
    graph.doc_string = ""
    del graph.metadata_props[:]
    del graph.value_info[:]
    for part in [*graph.node, *graph.initializer, *graph.input, *graph.output]:
        part.doc_string = ""
        del part.metadata_props[:]
    used = {node.domain for node in graph.node} | {""}
    kept = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    standard = [entry for entry in kept if entry.domain == ""]
    model.ir_version = max(OLDEST_IR, onnx.helper.find_min_ir_version_for(standard, ignore_unknown=True))


def write_model(model: onnx.ModelProto, path: Path, metadata: dict[str, str]) -> None:
    """Check the graph and write it, with `metadata` sorted by name; equal models are equal bytes."""
    onnx.helper.set_model_props(model, dict(sorted(metadata.items())))
    onnx.checker.check_model(model, full_check=True)
    write_bytes(path, model.SerializeToString(deterministic=True))


def write_derived(model: onnx.ModelProto, path: Path, *, source: Path, precision: str) -> None:
    """Strip and write what was made of `source`: its metadata stays, `precision` and the digest of `source` join."""
    strip(model)
    facts = {entry.key: entry.value for entry in onnx.load(source).metadata_props}
    write_model(model, path, {**facts, "precision": precision, "fp32_sha256": file_digest(source)})
