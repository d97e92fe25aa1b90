"""A network straight from a notebook to a folder that `gkd serve` takes."""

import tempfile
from pathlib import Path
from typing import Literal, overload

import numpy as np

from gkd_core.data.images import Crop
from gkd_core.errors import GkdError
from gkd_core.export.manifest import MODEL_FILE, PIXELS_INPUT, build_manifest, kept_file, pixels_file, write_manifest
from gkd_core.export.onnx import InputForm, input_shape, parity, preprocessing, write_onnx
from gkd_core.export.pixels import pixels_parity, write_pixels
from gkd_core.files import whole_folder
from gkd_core.models.network import Network, expect_network

TOLERANCE = 1e-4  # of a logit, between onnxruntime and torch
LINEAGE = ("data_sha256", "teacher_digest", "student_digest", "config_digest")


@overload
def export_onnx(
    network: Network,
    folder: None = ...,
    *,
    image_size: int | None = ...,
    channels: int | None = ...,
    input: InputForm = ...,
    opset: int = ...,
    crop: Crop = ...,
    pixels: Literal[False] = ...,
) -> bytes: ...
@overload
def export_onnx(
    network: Network,
    folder: str | Path,
    *,
    image_size: int | None = ...,
    channels: int | None = ...,
    input: InputForm = ...,
    opset: int = ...,
    crop: Crop = ...,
    pixels: bool = ...,
) -> Path: ...
def export_onnx(
    network: Network,
    folder: str | Path | None = None,
    *,
    image_size: int | None = None,
    channels: int | None = None,
    input: InputForm = "uint8_nhwc",
    opset: int = 18,
    crop: Crop = "center",
    pixels: bool = False,
) -> Path | bytes:
    """The network as one ONNX file, preprocessing and class names inside, compared with torch on random images.

    Args:
        network: left as it was.
        folder: model.onnx and manifest.json are written there, whole or not at all; `gkd serve` takes it. What a
            pipeline knows of data, teacher and configuration is empty in this manifest.
        image_size: side in pixels of the images that will be sent; None is what the network works on. It brings them to
            its own size.
        channels: 1 or 3 of these images, likewise.
        input: `uint8_nhwc` takes pixels uint8 [B, H, W, C], `float_nchw` float32 [B, C, H, W] in [0, 1].
        opset: ONNX operator set.
        crop: how `gkd predict` and servers make a square of a picture, as `load_data` did for this network.
        pixels: model_pixels.onnx is written too, which takes RGB pictures of any size and makes the square itself; it
            is compared with Pillow.
    Returns:
        The path of model.onnx; without a folder its bytes.
    Raises:
        GkdError: `network` is none of gkd's; an operation that cannot be exported, or a logit that differs by more than
            1e-4; `pixels` without a folder; `folder` holds something that must not be lost.

    Example:
        >>> content = export_onnx(create_model("resnet8", classes=["cat", "dog"], image_size=16))
        >>> type(content), len(content) > 300_000
        (<class 'bytes'>, True)
    """
    expect_network(network, "network")
    if pixels and folder is None:
        raise GkdError("pixels=True writes a second file: give a folder")
    size, depth = image_size or network.spec.image_size, channels or network.spec.in_channels

    images = np.random.default_rng(0).integers(256, size=(8, size, size, depth), dtype=np.uint8)

    def write(path: Path) -> dict[str, object]:
        write_onnx(
            network,
            path,
            classes=network.classes,
            channels=depth,
            image_size=size,
            input=input,
            opset=opset,
            metadata={"network": network.name, "precision": "fp32", **({} if crop == "center" else {"crop": crop})},
            name=f"the network {network.name}",
        )
        return parity(network, path, images, tolerance=TOLERANCE, batch_sizes=(1, 7))

    if folder is None:
        with tempfile.TemporaryDirectory(prefix="gkd-") as name:
            write(path := Path(name) / MODEL_FILE)
            return path.read_bytes()
    with whole_folder(Path(folder), kind="deploy", option="folder") as building:
        found, any_size = write(path := building / MODEL_FILE), None
        if pixels:
            write_pixels(path, file := building / pixels_file("fp32"), crop=crop)
            agreement = pixels_parity(path, file, images, crop=crop, tolerance=TOLERANCE)
            any_size = {"fp32": kept_file(file, {"input": PIXELS_INPUT, "parity": agreement})}
        manifest = build_manifest(
            path,
            input=input,
            input_shape=input_shape(input, depth, size),
            opset=opset,
            classes=network.classes,
            lineage=dict.fromkeys(LINEAGE, ""),
            method="",
            network=network.name,
            preprocessing=preprocessing(network),
            parity=found,
            pixels=any_size,
        )
        write_manifest(building, manifest)
    return Path(folder) / MODEL_FILE
