"""A network as one ONNX file: preprocessing, class names and lineage inside, the same bytes every time."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gkd_core.errors import GkdError
from gkd_core.export.decision_graph import EMBEDDING
from gkd_core.export.quiet import quiet
from gkd_core.export.session import first_line, run_session, session
from gkd_core.export.strip import strip, write_model
from gkd_core.models.network import Network

if TYPE_CHECKING:
    from gkd_core.data.prepared import DatasetInfo

InputForm = Literal["uint8_nhwc", "float_nchw"]


class _Deployed(nn.Module):
    """Images as a client sends them in, logits [B, C] out, and where they are wanted the features [B, D]."""

    def __init__(self, network: nn.Module, input_form: InputForm, embedding: bool) -> None:
        super().__init__()
        self.network = network
        self.pixels = input_form == "uint8_nhwc"
        self.embedding = embedding

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if self.pixels:
            image = image.permute(0, 3, 1, 2).to(torch.float32) / 255
        output = self.network(image)
        logits: Tensor = output.logits
        return (logits, output.embedding) if self.embedding else logits


def input_shape(input_form: InputForm, channels: int, image_size: int) -> tuple[int, int, int]:
    """Shape of one image in an input form, without the batch axis."""
    side = image_size
    return (side, side, channels) if input_form == "uint8_nhwc" else (channels, side, side)


def write_all(
    networks: Mapping[str, nn.Module],
    folder: Path,
    info: "DatasetInfo",
    *,
    input: InputForm,
    opset: int,
    called: str = "the {}",
) -> dict[str, Path]:
    """The files of several networks for images of one data set, in an existing folder; see `write_onnx`.

    Args:
        called: what each is called in errors, with {} for its name.
    """
    files = {name: folder / f"{place}.onnx" for place, name in enumerate(networks)}
    for name, network in networks.items():
        write_onnx(
            network,
            files[name],
            classes=info.classes,
            channels=info.channels,
            image_size=info.image_size,
            input=input,
            opset=opset,
            name=called.format(name),
        )
    return files


def preprocessing(network: Network) -> dict[str, Any]:
    """What the graph does to its input, as the manifest tells it."""
    spec = network.spec
    return {
        "image_size": spec.image_size,
        "channels": spec.in_channels,
        "mean": list(spec.mean),
        "std": list(spec.std),
        "interpolation": spec.interpolation,
        "crop_fraction": spec.crop_fraction,
    }


def write_onnx(
    network: nn.Module,
    path: Path,
    *,
    classes: tuple[str, ...],
    channels: int,
    image_size: int,
    input: InputForm = "uint8_nhwc",
    opset: int = 18,
    metadata: dict[str, str] | None = None,
    name: str = "the network",
    embedding: bool = False,
) -> None:
    """Write `network` to `path`: input `image`, any batch size; output `logits` float32 [B, C].

    The same weights and arguments give the same bytes, in any process and folder. The network is left as it was.

    Args:
        network: images float32 [B, C, H, W] in [0, 1] → `Output`; brings its own preprocessing along.
        classes: names in the order of the logits, kept in the file's metadata as JSON.
        channels, image_size: of the images that will be sent, in pixels; what the network wants is its own affair.
        input: `uint8_nhwc` takes pixels uint8 [B, H, W, C], `float_nchw` float32 [B, C, H, W] in [0, 1].
        opset: ONNX operator set; asserted on the finished graph.
        metadata: further entries for the file, lineage digests for one.
        name: of the network, for errors.
        embedding: the features before the last layer are a second output `embedding` [B, D].
    Raises:
        GkdError: the network has an operation that cannot be exported in this operator set.
    """
    deployed = _Deployed(copy.deepcopy(network).cpu(), input, embedding).eval()
    # Two images: torch.export takes a batch of one for a constant.
    shape = (2, *input_shape(input, channels, image_size))
    example = torch.zeros(shape, dtype=torch.uint8 if input == "uint8_nhwc" else torch.float32)
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                deployed,
                (example,),
                dynamo=True,
                external_data=False,
                opset_version=opset,
                input_names=["image"],
                output_names=["logits", EMBEDDING] if embedding else ["logits"],
                dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
                verbose=False,
            )
    except Exception as error:  # the exporter raises torch's, onnxscript's and plain Python errors
        raise GkdError(
            f"{name} cannot be exported to ONNX operator set {opset} ({first_line(error)}): choose another network or "
            "export.opset"
        ) from None
    assert program is not None
    model = program.model_proto
    strip(model)
    imported = {entry.domain: entry.version for entry in model.opset_import}
    if imported != {"": opset}:
        # The exporter keeps what it can do, silently, when the conversion to another operator set fails.
        found = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in sorted(imported.items()))
        raise GkdError(
            f"{name} exports to {found}, not to operator set {opset}: set export.opset to 18, or another network"
        )
    ends = [*model.graph.input, *model.graph.output]
    if any(not end.type.tensor_type.shape.dim[0].dim_param for end in ends):
        # len(images) in a forward pass does this: it is a plain number to the exporter, images.shape[0] is not.
        raise GkdError(f"{name} exports for one batch size only: take a network that handles any number of images")
    entries = {"classes": json.dumps(classes, ensure_ascii=False), "input": input}
    write_model(model, path, {**(metadata or {}), **entries})


def parity(
    network: nn.Module,
    path: Path,
    images: NDArray[np.uint8],
    *,
    tolerance: float,
    batch_sizes: tuple[int, ...] = (1, 2, 7, 32),
) -> dict[str, Any]:
    """Compare the file with torch, on the CPU, at several batch sizes.

    Args:
        network: what was exported.
        images: [N, H, W, C] uint8; the batches go through them in order, and around again if they are few.
        tolerance: largest |onnxruntime − torch| allowed on a logit.
    Returns:
        max_abs (two significant digits), batch_sizes, images (how many were compared).
    Raises:
        GkdError: a difference above the tolerance, or a logit that is not finite.
    """
    reference = copy.deepcopy(network).cpu().eval()
    model = session(path)
    largest, start = 0.0, 0
    for size in batch_sizes:
        batch = np.take(images, np.arange(start, start + size), axis=0, mode="wrap")
        start += size
        with torch.no_grad():
            expected = reference(torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255).logits.numpy()
        difference = float(np.abs(run_session(model, batch, size) - expected).max())
        if not difference <= tolerance:
            raise GkdError(
                f"{path.name} differs from torch by {difference:.2g} on the logits of a batch of {size}, and "
                f"export.parity_tolerance allows {tolerance:g}: raise it if that is acceptable, or change export.opset"
            )
        largest = max(largest, difference)
    return {"max_abs": float(f"{largest:.1e}"), "batch_sizes": list(batch_sizes), "images": min(start, len(images))}
