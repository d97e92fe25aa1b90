"""An exported model with the resizing inside: RGB pixels of any size in, what the model answers out.

The graph does what Pillow does, and so what `gkd prepare` and `/classify` do (`gkd_core.data.images.fit`): the box that
`ImageOps.fit` or `ImageOps.pad` takes, in fractions of a pixel; a triangle filter as wide as the reduction; weights of
22 bits; one direction, rounded to whole levels, then the other. ONNX's own `Resize` cannot do the first of these: a
centre square may begin at half a pixel.

Each direction is a product with a matrix of weights, made in the graph from the picture's size. Its columns come in
blocks, each of which sees its own part of the picture alone, since a filter is narrow. A weight of 22 bits times a
pixel of 8 does not fit into a float32's 24, so weights are two numbers of 11 bits (which TF32 holds as well), whose
sums are exact.

Decoding stays with whoever sends the pixels: file formats, EXIF's orientation, transparency, other colour modes
(`gkd_core.data.images.read_pixels`). Imports no torch.

Source: Pillow 13.0, src/libImaging/Resample.c and src/PIL/ImageOps.py.
"""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.compose
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from gkd_core.data.images import BORDER, Crop, fit
from gkd_core.errors import GkdError
from gkd_core.export.manifest import CHANNELS, PIXELS_FORM, PIXELS_INPUT
from gkd_core.export.session import as_input, open_session, session
from gkd_core.export.strip import strip, write_model
from gkd_core.files import file_digest

BLOCK = 32  # columns of the result that are made together
WEIGHT_BITS = 22  # Pillow's
HALF_BITS = 11
GREY = (19595, 38470, 7471)  # ITU-R BT.601 in parts of 65536, as Pillow has it


class _Nodes:
    """Nodes and constants of a graph that grows; a name is what an operation returns."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []
        self._names = (f"pixels/{number}" for number in itertools.count())

    def __call__(self, operator: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        output = name or next(self._names)
        self.nodes.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    def constant(self, value: Any, dtype: Any = np.float64) -> str:
        name = next(self._names)
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def pair(self, values: str) -> tuple[str, str]:
        """The two halves of the last axis."""
        halves = next(self._names), next(self._names)
        self.nodes.append(helper.make_node("Split", [values], halves, axis=-1, num_outputs=2))
        return halves

    def turned(self, values: str, kind: int, condition: str, orders: tuple[tuple[int, ...], tuple[int, ...]]) -> str:
        """Values of one type with their axes in the first order where a bool [1] is true, else in the second."""
        branches = {}
        for key, perm in zip(("then_branch", "else_branch"), orders, strict=True):
            node = helper.make_node("Transpose", [values], [output := next(self._names)], perm=perm)
            turned = helper.make_tensor_value_info(output, kind, [None] * len(perm))
            branches[key] = helper.make_graph([node], key, [], [turned])
        return self("If", self("Squeeze", condition), **branches)

    def cast(self, value: str, to: int, name: str | None = None) -> str:
        return self("Cast", value, to=to, name=name)


class _Axis:
    """How one side of the result follows from one side of the picture. All numbers are double, in the graph.

    Attributes:
        centers: by block, where its columns lie in the picture [columns, 1].
        first, last: by block, int64 [1], which part of the picture it sees.
        support: half the width of the filter.
        inside: bool [size], which columns are not border; None where all are.
    """

    def __init__(self, nodes: _Nodes, own: str, other: str, size: int, crop: Crop) -> None:
        self.nodes = nodes
        self.centers: list[str] = []
        self.first: list[str] = []
        self.last: list[str] = []
        self.inside: str | None = None
        zero, half, one = nodes.constant(0), nodes.constant(0.5), nodes.constant(1)
        start, extent, count, offset = zero, own, nodes.constant(size), zero
        if crop == "center":
            extent = nodes("Min", own, other)
            start = nodes("Mul", nodes("Sub", own, extent), half)
        elif crop == "border":
            exact = _scaled(nodes, own, other, size)
            offset = nodes("Round", nodes("Mul", nodes("Sub", count, exact), half))
            places = nodes.constant(np.arange(size))
            above = nodes("GreaterOrEqual", places, offset)
            self.inside = nodes("And", above, nodes("Less", places, nodes("Add", offset, exact)))
            count = nodes("Max", exact, one)
        scale = nodes("Div", extent, count)
        self.support = nodes("Max", scale, one)
        length, begins, unit = (
            nodes.cast(own, TensorProto.INT64),
            nodes.constant(0, np.int64),
            nodes.constant(1, np.int64),
        )
        for begin in range(0, size, BLOCK):
            end = min(begin + BLOCK, size)
            places = nodes("Sub", nodes.constant(np.arange(begin, end)[:, None] + 0.5), offset)
            self.centers.append(nodes("Add", start, nodes("Mul", places, scale)))
            ends = [nodes("Gather", self.centers[-1], nodes.constant(i, np.int64)) for i in (0, end - begin - 1)]
            low = nodes.cast(nodes("Floor", nodes("Sub", ends[0], self.support)), TensorProto.INT64)
            high = nodes.cast(nodes("Ceil", nodes("Add", ends[1], self.support)), TensorProto.INT64)
            first = nodes("Max", begins, nodes("Min", low, nodes("Sub", length, unit)))
            self.first.append(first)
            self.last.append(nodes("Min", length, nodes("Max", high, nodes("Add", first, unit))))

    def resized(self, values: str, cut: bool) -> str:
        """Whole levels [N, C, L, size] of levels [N, C, L, side of the picture].

        Args:
            cut: `values` begin where the first block does, and not with the picture.
        """
        nodes = self.nodes
        last_axis, half = nodes.constant([3], np.int64), nodes.constant(0.5)
        scalar, step = nodes.constant([], np.int64), nodes.constant(1, np.int64)
        parts = []
        for centers, first, last in zip(self.centers, self.first, self.last, strict=True):
            begin, end = (nodes("Reshape", place, scalar) for place in (first, last))
            places = nodes.cast(nodes("Range", begin, end, step), TensorProto.DOUBLE)  # [seen]
            distance = nodes("Add", nodes("Sub", places, centers), half)  # [columns, seen]
            steps = nodes("Mul", nodes("Abs", distance), nodes("Reciprocal", self.support))
            shape = nodes("Sub", nodes.constant(1), steps)
            weights = nodes("Max", shape, nodes.constant(0))
            total = nodes("ReduceSum", weights, nodes.constant([1], np.int64), keepdims=1)
            # In the border nothing is seen; what comes out there is replaced.
            weights = nodes("Div", weights, nodes("Max", total, nodes.constant(1e-9)))
            whole = nodes("Floor", nodes("Add", nodes("Mul", weights, nodes.constant(1 << WEIGHT_BITS)), half))
            base = nodes.constant(1 << HALF_BITS)
            upper = nodes("Floor", nodes("Add", nodes("Div", whole, base), half))
            lower = nodes("Sub", whole, nodes("Mul", upper, base))
            both = nodes.cast(nodes("Concat", upper, lower, axis=0), TensorProto.FLOAT)
            span = [nodes("Sub", place, self.first[0]) if cut else place for place in (first, last)]
            seen = nodes.cast(nodes("Slice", values, *span, last_axis), TensorProto.FLOAT)
            sums = nodes("MatMul", seen, nodes("Transpose", both, perm=[1, 0]))  # [N, C, L, 2 · columns]
            parts.append(_whole(nodes, sums))
        return parts[0] if len(parts) == 1 else nodes("Concat", *parts, axis=3)


def _whole(nodes: _Nodes, sums: str) -> str:
    """(upper · 2¹¹ + lower) / 2²² to the nearest whole number, halves up, of both halves side by side."""
    count = nodes.constant(1 << HALF_BITS, np.float32)
    upper, lower = nodes.pair(sums)
    carried = nodes("Add", upper, nodes("Floor", nodes("Div", lower, count)))
    rounded = nodes("Add", carried, nodes.constant(1 << HALF_BITS - 1, np.float32))
    return nodes("Floor", nodes("Div", rounded, count))


def _resizing(form: str, side: int, channels: int, crop: Crop) -> _Nodes:
    """Nodes from `pixels` uint8 [N, H, W, 3] to `image`, the input of a model in one of its two forms."""
    nodes = _Nodes()
    shape = nodes("Shape", PIXELS_INPUT)
    height, width = (
        nodes.cast(nodes("Gather", shape, nodes.constant([axis], np.int64)), TensorProto.DOUBLE) for axis in (1, 2)
    )
    height_first = _height_first(nodes, height, width, side, crop)
    # `first` is the side that is resized first, and the last axis meanwhile.
    first = _Axis(
        nodes, nodes("Where", height_first, height, width), nodes("Where", height_first, width, height), side, crop
    )
    second = _Axis(
        nodes, nodes("Where", height_first, width, height), nodes("Where", height_first, height, width), side, crop
    )
    values, cut = PIXELS_INPUT, crop == "center"
    if cut:  # what no filter sees is not even converted
        spans = []
        for one, other in ((first.first[0], second.first[0]), (first.last[-1], second.last[-1])):
            ends = nodes("Where", height_first, one, other), nodes("Where", height_first, other, one)
            spans.append(nodes("Concat", *ends, axis=0))
        values = nodes("Slice", values, *spans, nodes.constant([1, 2], np.int64))
    if channels == 1:
        parts = nodes("Mul", nodes.cast(values, TensorProto.INT32), nodes.constant(GREY, np.int32))
        total = nodes("ReduceSum", parts, nodes.constant([3], np.int64), keepdims=1)
        rounded = nodes("Add", total, nodes.constant(1 << 15, np.int32))
        values = nodes.cast(nodes("Div", rounded, nodes.constant(1 << 16, np.int32)), TensorProto.UINT8)
    planes = nodes.turned(values, TensorProto.UINT8, height_first, ((0, 3, 2, 1), (0, 3, 1, 2)))
    half_way = nodes("Transpose", first.resized(planes, cut), perm=[0, 1, 3, 2])
    levels = second.resized(half_way, cut)  # [N, C, first, second]
    if first.inside is not None and second.inside is not None:
        inside = nodes("And", nodes("Unsqueeze", first.inside, nodes.constant([1], np.int64)), second.inside)
        levels = nodes("Where", inside, levels, nodes.constant(BORDER, np.float32))
    if form == "uint8_nhwc":
        nodes.cast(
            nodes.turned(levels, TensorProto.FLOAT, height_first, ((0, 2, 3, 1), (0, 3, 2, 1))),
            TensorProto.UINT8,
            "image",
        )
    else:
        square = nodes.turned(levels, TensorProto.FLOAT, height_first, ((0, 1, 2, 3), (0, 1, 3, 2)))
        nodes("Div", square, nodes.constant(255, np.float32), name="image")
    read = {name for node in nodes.nodes for name in node.input}
    nodes.constants = [constant for constant in nodes.constants if constant.name in read]
    return nodes


def _height_first(nodes: _Nodes, height: str, width: str, side: int, crop: Crop) -> str:
    """Whether the height is resized before the width: Pillow does so since 13.0 where the height shrinks by more than
    twice as many pixels as the width (in older ones the width always goes first: a level of difference here and there).
    """
    counts = [
        _scaled(nodes, *pair, side) if crop == "border" else nodes.constant(side)
        for pair in ((height, width), (width, height))
    ]
    lost = [nodes("Sub", length, count) for length, count in zip((height, width), counts, strict=True)]
    more = nodes("Greater", lost[0], nodes("Mul", lost[1], nodes.constant(2)))
    return nodes("And", nodes("Greater", lost[0], nodes.constant(0)), more)


def _scaled(nodes: _Nodes, own: str, other: str, size: int) -> str:
    """How many pixels a side has once the longer one has `size`; halves are rounded to even, as Python does it."""
    count = nodes.constant(size)
    return nodes("Min", nodes("Round", nodes("Mul", nodes("Div", own, other), count)), count)


def _taken(model: onnx.ModelProto, source: Path) -> tuple[str, int, int]:
    """Form of the model's input, side and channels of its pictures.

    Raises:
        GkdError: it takes no square pictures.
    """
    only = model.graph.input[0].type.tensor_type
    sides = [dim.dim_value for dim in only.shape.dim]
    form = "uint8_nhwc" if only.elem_type == TensorProto.UINT8 else "float_nchw"
    height, width, channels = sides[1:] if form == "uint8_nhwc" else (*sides[2:], sides[1])
    if height != width or channels not in (1, 3):
        raise GkdError(f"{source.name} takes no square grey or colour pictures, so nothing can be resized for it")
    return form, height, channels


def write_pixels(source: Path, target: Path, *, crop: Crop) -> None:
    """Write the form of `source` that takes pictures of any size; its outputs and metadata stay.

    `target` has one input, `pixels` uint8 [N, H, W, 3]: RGB, one size a batch, N, H and W free and at least 1. The same
    `source` gives the same bytes.

    Args:
        source: an ONNX file of `write_onnx`, or a smaller form of one.
        crop: how a picture becomes a square, as the model's data were prepared.
    Raises:
        GkdError: `source` takes no square grey or colour pictures.
    """
    model = onnx.load(source)
    form, side, channels = _taken(model, source)
    facts = {entry.key: entry.value for entry in model.metadata_props}
    # Whatever its own values are called.
    model = onnx.compose.add_prefix(model, "model/", rename_inputs=False, rename_outputs=False)
    nodes = _resizing(form, side, channels, crop)
    graph = model.graph
    before = list(graph.node)
    del graph.node[:], graph.input[:]
    graph.node.extend([*nodes.nodes, *before])
    graph.initializer.extend(nodes.constants)
    graph.input.append(_input())
    strip(model)
    facts |= {"input": PIXELS_FORM, "side": str(side), "channels": str(channels), "wraps_sha256": file_digest(source)}
    write_model(model, target, facts)


def _input() -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(PIXELS_INPUT, TensorProto.UINT8, ["batch", "height", "width", CHANNELS])


def picture_sizes(side: int) -> tuple[tuple[int, int], ...]:
    """Height and width of the pictures with which a file is compared.

    They are the model's own size, larger by odd and even differences, smaller, and as narrow as can be.
    """
    return (
        (side, side),
        (side, side + 1),
        (2 * side + 1, 3 * side),
        (4 * side + 3, side + 5),
        (side // 2 + 1, side // 3 + 1),
        (1, 3 * side),
        (6 * side, 2),
        (1, 1),
    )


def pixels_parity(
    source: Path, target: Path, images: NDArray[np.uint8], *, crop: Crop, tolerance: float
) -> dict[str, Any]:
    """Compare what the graph makes of pictures with what Pillow makes, and the answers of both files.

    Args:
        source, target: as of `write_pixels`.
        images: [N, S, S, C] uint8; pictures of `picture_sizes` are made of them, in order and around again, with noise.
        tolerance: largest difference allowed on an output, where the model is given the very pixels that Pillow makes.
    Returns:
        sizes (of the pictures compared), values (how many levels), differing (how many of them by one level), max_abs
        (of the outputs, two significant digits).
    Raises:
        GkdError: a level differs by more than one, or an output by more than `tolerance`.
    """
    form, side, channels = _taken(onnx.load(source), source)
    resize = open_session(_resizing_alone(form, side, channels, crop), target)
    plain, whole = session(source), session(target)
    random = np.random.default_rng(0)
    values = differing = 0
    largest = 0.0
    for place, (height, width) in enumerate(sizes := picture_sizes(side)):
        picture = fit(images[place % len(images)], max(height, width), CHANNELS)[:height, :width]
        picture = np.clip(picture + random.integers(-40, 41, picture.shape), 0, 255).astype(np.uint8)
        expected = as_input(plain, fit(picture, side, channels, crop)[None])
        found = resize.run(["image"], {PIXELS_INPUT: picture[None]})[0]
        levels = np.abs(found.astype(np.float32) - expected.astype(np.float32)) * (1 if form == "uint8_nhwc" else 255)
        if not levels.max() < 1.5:
            raise GkdError(
                f"{target.name} makes of a picture of {width} × {height} pixels what differs from Pillow's by "
                f"{levels.max():.0f} levels: another version of Pillow or onnxruntime than was tried with this gkd"
            )
        values, differing = values + levels.size, differing + int((levels > 0.5).sum())
        for one, other in zip(
            whole.run(None, {PIXELS_INPUT: picture[None]}), plain.run(None, {"image": found}), strict=True
        ):
            largest = max(largest, float(np.abs(one.astype(np.float64) - other).max()))
        if not largest <= tolerance:
            raise GkdError(
                f"{target.name} differs from {source.name} by {largest:.2g} on an output for a picture of {width} × "
                f"{height} pixels, and {tolerance:g} is allowed: raise export.parity_tolerance, for int8 and float16 "
                "export.fp16_tolerance, if that is acceptable"
            )
    return {
        "sizes": [list(size) for size in sizes],
        "values": values,
        "differing": differing,
        "max_abs": float(f"{largest:.1e}"),
    }


def _resizing_alone(form: str, side: int, channels: int, crop: Crop) -> bytes:
    nodes = _resizing(form, side, channels, crop)
    kind = TensorProto.UINT8 if form == "uint8_nhwc" else TensorProto.FLOAT
    output = helper.make_tensor_value_info("image", kind, ["batch", None, None, None])
    graph = helper.make_graph(nodes.nodes, "resize", [_input()], [output], nodes.constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    content: bytes = model.SerializeToString(deterministic=True)
    return content
