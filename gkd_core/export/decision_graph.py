"""A decision as part of an ONNX graph: the outputs `probabilities`, `score` and `decision` behind `logits`.

So it is the same wherever the file runs, on a server that knows nothing of it too. What is added computes in float32,
also behind a network in int8 or float16.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from gkd_core.decision import LEAST, METADATA, NONE_OF_THESE, OF_FEATURES, OUTPUTS, Decision, Spread
from gkd_core.export.class_distance import SHORTEST, ClassDistance
from gkd_core.export.strip import write_model

EMBEDDING = "embedding"
OWN = "gkd_decision_"  # what is added is called so


def append_decision(
    file: Path, decision: Decision, distance: ClassDistance | None = None, metadata: dict[str, str] | None = None
) -> None:
    """Rewrite an ONNX file of `write_onnx` with the decision in it, in its metadata too.

    Args:
        file: with the output `logits` [B, C], and `embedding` [B, D] where the score is one of `OF_FEATURES`; the
            latter is no output any more afterwards.
        distance: for these scores.
        metadata: entries that replace the file's.
    """
    model = onnx.load(file)
    graph = model.graph
    _free_names(graph)
    logits = next(output for output in graph.output if output.name == "logits")
    batch, classes = logits.type.tensor_type.shape.dim
    added = _Nodes(graph)
    probabilities = "logits"
    if decision.temperature != 1.0:
        probabilities = added.node("Div", "logits", added.constant("temperature", np.float32(decision.temperature)))
    added.node("Softmax", probabilities, output="probabilities", axis=1)
    named = added.node("ArgMax", "logits", axis=1, keepdims=0)
    if decision.score in OF_FEATURES:
        assert distance is not None
        if decision.distance is None:
            _distance(added, distance, output="score")
        else:
            _combined(added, named, classes.dim_value, _distance(added, distance), decision.distance)
    elif decision.score == "energy":
        added.node("ReduceLogSumExp", "logits", added.axis(), output="score", keepdims=0)
    else:
        added.node("ReduceMax", "probabilities", added.axis(), output="score", keepdims=0)
    limits = decision.limits(classes.dim_value)
    if decision.thresholds is None:
        limit = added.constant("threshold", limits[0])
    else:
        limit = added.node("Gather", added.constant("thresholds", limits), named)
    sure = added.node("GreaterOrEqual", "score", limit)
    none = added.constant("none", np.int64(NONE_OF_THESE))
    added.node("Where", sure, named, none, output="decision")
    kinds = {"probabilities": (TensorProto.FLOAT, [batch.dim_param, classes.dim_value])}
    kinds |= {"score": (TensorProto.FLOAT, [batch.dim_param]), "decision": (TensorProto.INT64, [batch.dim_param])}
    outputs = [logits, *(helper.make_tensor_value_info(name, *kinds[name]) for name in OUTPUTS)]
    outputs = [onnx.ValueInfoProto.FromString(output.SerializeToString()) for output in outputs]
    del graph.output[:]
    graph.output.extend(outputs)
    facts = {entry.key: entry.value for entry in model.metadata_props}
    write_model(model, file, {**facts, **(metadata or {}), METADATA: decision.as_json()})


class _Nodes:
    """What is added to a graph."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph

    def node(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """The name of its output."""
        output = output or f"{OWN}{len(self.graph.node)}"
        self.graph.node.append(helper.make_node(kind, list(inputs), [output], name=f"{OWN}{output}", **attributes))
        return output

    def constant(self, name: str, value: "NDArray[np.float32] | np.generic") -> str:
        name = f"{OWN}{name}"
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def axis(self) -> str:
        return self.constant("axis", np.array([1], np.int64))


def _distance(added: _Nodes, distance: ClassDistance, output: str | None = None) -> str:
    """From `embedding`, as `ClassDistance.scores` computes it."""
    directions = added.constant("directions", distance.directions)
    axis = added.axis()
    length = added.node("ReduceL2", EMBEDDING, axis, keepdims=1)
    length = added.node("Max", length, added.constant("shortest", np.float32(SHORTEST)))
    centred = added.node("Sub", added.node("Div", EMBEDDING, length), added.constant("centre", distance.centre))
    along = added.node("MatMul", centred, directions)
    own = added.node("Mul", along, added.constant("widths", distance.widths))
    if distance.rest:
        back = added.node("Gemm", along, directions, transB=1)
        beside = added.node("Sub", centred, back)
        beside = added.node("Mul", beside, added.constant("rest", np.float32(distance.rest)))
        own = added.node("Concat", own, beside, axis=1)
    size = added.node("ReduceSumSquare", own, axis, keepdims=1)
    means = added.constant("means", (-2 * distance.means.T).astype(np.float32))
    across = added.node("MatMul", own, means)
    squares = added.constant("squares", (distance.means**2).sum(1).astype(np.float32))
    squared = added.node("Add", added.node("Add", size, across), squares)
    return added.node("Neg", added.node("ReduceMin", squared, axis, keepdims=0), output=output)


def _combined(added: _Nodes, named: str, classes: int, distance: str, usual: Spread) -> None:
    """`score` from `probabilities` and the distance, as `Decision.scores` computes it."""
    size, values = added.constant("classes", np.int64(classes)), added.constant("others", np.array([1, 0], np.float32))
    others = added.node("Mul", "probabilities", added.node("OneHot", named, size, values))
    others = added.node("ReduceSum", others, added.constant("over_classes", np.array([1], np.int64)), keepdims=0)
    others = added.node("Max", others, added.constant("least", np.float32(LEAST)))
    far = added.constant("far", np.float32(usual.mean - 3 * usual.deviation))
    deviation = added.constant("deviation", np.float32(usual.deviation))
    beyond = added.node("Div", added.node("Sub", far, distance), deviation)
    surprise = added.node("Add", added.node("Log", others), added.node("Softplus", beyond))
    added.node("Neg", surprise, output="score")


def _free_names(graph: onnx.GraphProto) -> None:
    """Rename what is called like an output that is added, inside the network."""
    for node in graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name in OUTPUTS:
                    names[place] = f"network_{name}"
    for weight in graph.initializer:
        if weight.name in OUTPUTS:
            weight.name = f"network_{weight.name}"
