"""What a network costs: parameters, and latency on this machine; multiply-accumulates are `gkd_core.models.macs`."""

import platform
import time
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from torch import nn

from gkd_core.cores import usable_cores
from gkd_core.export.session import as_input, session

BLOCK = 5  # timed runs in a row, after one that warms the caches for this model


def parameter_count(network: nn.Module) -> int:
    """Trained numbers in the network; running statistics are none."""
    return sum(parameter.numel() for parameter in network.parameters())


def measure_latency(
    models: dict[str, Path], image: NDArray[np.uint8], *, runs: int, threads: int
) -> dict[str, dict[str, float]]:
    """Median and 95th percentile in milliseconds for one image, by model.

    The models take turns in short blocks, in rotating order, so that another program on the machine slows all of them;
    the first run of a block is not counted, nor is the first block of each.

    Args:
        models: ONNX files by name.
        image: [1, H, W, C] uint8.
        runs: timed inferences a model.
        threads: of onnxruntime within an operator.
    Returns:
        {name: {"latency_ms_p50", "latency_ms_p95"}}.
    """
    sessions = {name: session(path, threads) for name, path in models.items()}
    feeds = {name: {"image": as_input(model, image)} for name, model in sessions.items()}
    names = list(sessions)
    times: dict[str, list[int]] = {name: [] for name in names}
    blocks = -(-runs // BLOCK)
    for block in range(blocks + 1):
        turn = block % len(names)
        for name in names[turn:] + names[:turn]:
            model, feed = sessions[name], feeds[name]
            model.run(None, feed)
            for _ in range(BLOCK):
                start = time.perf_counter_ns()
                model.run(None, feed)
                elapsed = time.perf_counter_ns() - start
                if block > 0:
                    times[name].append(elapsed)
    percentiles = {name: np.percentile(np.array(taken[:runs]) / 1e6, (50, 95)) for name, taken in times.items()}
    return {
        name: {"latency_ms_p50": round(float(p50), 4), "latency_ms_p95": round(float(p95), 4)}
        for name, (p50, p95) in percentiles.items()
    }


def hardware() -> dict[str, str | int]:
    """What the latency was measured on."""
    return {
        "processor": _processor(),
        "cores": usable_cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "onnxruntime": onnxruntime.__version__,
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()
