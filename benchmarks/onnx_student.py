"""An exported student in onnxruntime beside the same network in torch, from pixels to logits."""

import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.synthetic import synthetic_network
from benchmarks.table import Goal, Row, Table
from benchmarks.timing import in_turns, milliseconds, ratio
from gkd_core.export.deploy import export_onnx
from gkd_core.export.session import session
from gkd_core.models.network import Network

ROUNDS = 15
STUDENTS = (("resnet8x4", 32), ("mobilenet_v3_small", 128))
BATCHES = (1, 64)
THREADS = 1
ONNX, EAGER = "ONNX", "torch, eager"


def eager(network: Network, images: np.ndarray) -> np.ndarray:
    """Logits [B, classes] of uint8 images [B, H, W, C], as the graph takes them."""
    with torch.inference_mode():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        logits: np.ndarray = network(pixels).logits.numpy()
    return logits


def measure(rounds: int = ROUNDS) -> Table:
    torch.set_num_threads(THREADS)
    rows = []
    for name, side in STUDENTS:
        torch.manual_seed(0)
        network = synthetic_network(name, side=side).to(memory_format=torch.channels_last).eval()
        with tempfile.TemporaryDirectory() as folder:
            exported = session(Path(export_onnx(network, Path(folder, "deploy"))), THREADS)
        for batch in BATCHES:
            images = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
            seconds = in_turns(
                {
                    ONNX: lambda model=exported, images=images: model.run(["logits"], {"image": images}),
                    EAGER: lambda network=network, images=images: eager(network, images),
                },
                rounds,
                warmup=2,
            )
            for runtime, found in seconds.items():
                cells = (f"{name}, {side} px, batch {batch}", runtime, milliseconds(found))
                rows.append(Row(cells, ratio(found, seconds[EAGER]), Goal(1.0) if runtime == ONNX else None))
    return Table(
        f"From uint8 pixels to logits, float32, {THREADS} thread in either; {rounds} turns.",
        ("student", "runtime", "ms of CPU"),
        "÷ torch",
        rows,
        named=2,
    )
