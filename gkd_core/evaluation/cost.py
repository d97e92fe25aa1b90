"""What a network costs: parameters, and latency on this machine; multiply-accumulates are `gkd_core.models.macs`.

Imports no torch: what is served is timed where there is none (`deploy_bench.py`).
"""

import platform
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from gkd_core.cores import usable_cores
from gkd_core.export.session import as_input, session

if TYPE_CHECKING:
    from torch import nn

Key = TypeVar("Key")
BLOCK = 5  # timed runs in a row, after one that warms the caches for this model


def parameter_count(network: "nn.Module") -> int:
    """Trained numbers in the network; running statistics are none."""
    return sum(parameter.numel() for parameter in network.parameters())


def measure_latency(
    models: dict[str, Path], image: NDArray[np.uint8], *, runs: int, threads: int
) -> dict[str, dict[str, float]]:
    """Median and 95th percentile in milliseconds for one image, by model; timed in turns.

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
    calls = {name: partial(model.run, None, feeds[name]) for name, model in sessions.items()}
    times = time_in_turns(calls, runs=runs)
    return {name: percentiles(taken, (50, 95)) for name, taken in times.items()}


def time_in_turns(
    calls: Mapping[Key, Callable[[], object]],
    *,
    runs: int,
    warmup: int = BLOCK,
    advance: Callable[[int], None] = lambda timed: None,
) -> dict[Key, NDArray[np.float64]]:
    """Milliseconds of each run of each call, [runs].

    They take turns in short blocks, in rotating order, so that another program on the machine slows all of them; a
    block begins with a run that is not counted.

    Args:
        runs: timed runs a call.
        warmup: runs of each call before any is timed.
        advance: told after each block how many runs were timed.
    """
    for call in calls.values():
        for _ in range(warmup):
            call()
    keys = list(calls)
    times: dict[Key, list[int]] = {key: [] for key in keys}
    for start in range(0, runs, BLOCK):
        turn = start // BLOCK % len(keys)
        timed = min(BLOCK, runs - start)
        for key in keys[turn:] + keys[:turn]:
            calls[key]()
            for _ in range(timed):
                begin = time.perf_counter_ns()
                calls[key]()
                times[key].append(time.perf_counter_ns() - begin)
            advance(timed)
    return {key: np.array(taken) / 1e6 for key, taken in times.items()}


def percentiles(milliseconds: NDArray[np.float64], which: tuple[int, ...]) -> dict[str, float]:
    """{"latency_ms_p50": …}, interpolated between the two runs nearest to each."""
    values = np.percentile(milliseconds, which)
    return {f"latency_ms_p{percent}": round(float(value), 4) for percent, value in zip(which, values, strict=True)}


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
