"""What an exported model costs where it will run: latency and throughput by provider, threads and batch.

`gkd bench deploy` writes it on the target, and the gate may read it (`gate.deploy_bench`). Imports no torch.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from pydantic import Field

from gkd_core.data.progress import progress
from gkd_core.errors import GkdError, refuse_doubled
from gkd_core.evaluation.cost import hardware, percentiles, time_in_turns
from gkd_core.export.session import session
from gkd_core.files import Shape, read_json
from gkd_core.serving.model import Model, ModelFile
from gkd_core.serving.tensors import DATATYPES

FORMAT = 1
PERCENTILES = (50, 95, 99)
SUFFIX = "ExecutionProvider"
NOWHERE = {"azure"}  # in every build, and runs nothing of an ordinary model
LARGEST_BATCH = 1024
LARGEST_THREADS = 1024
MOST_RUNS = 1_000_000
PHOTO = (750, 1000)  # height and width of pictures for models that take any
HEADINGS = ("provider", "threads", "batch", "median", "p95", "p99", "images a second")

Count = Annotated[int, Field(gt=0)]
Amount = Annotated[float, Field(gt=0)]
SHAPE: Shape = {
    "format": Literal[1],
    "model": {"file": str, "sha256": str, "precision": str},
    "hardware": {"processor": str, "cores": Count, "system": str, "onnxruntime": str},
    "runs": Count,
    "warmup": int,
    "cases": [
        {
            "provider": str,
            "threads": Count,
            "batch": Count,
            "latency_ms_p50": Amount,
            "latency_ms_p95": Amount,
            "latency_ms_p99": Amount,
            "images_per_second": Amount,
        }
    ],
}


@dataclass(frozen=True)
class Case:
    """One way to run a model, and how long that takes.

    Attributes:
        provider: onnxruntime's name of it.
        threads: within an operator.
        batch: images in a run.
        latency_ms_p50, latency_ms_p95, latency_ms_p99: of a run, whole batches.
        images_per_second: of one run after another, without a pause.
    """

    provider: str
    threads: int
    batch: int
    latency_ms_p50: float
    latency_ms_p95: float
    latency_ms_p99: float
    images_per_second: float

    def words(self) -> str:
        """How it was run: CPU, 2 threads."""
        return f"{self.provider.removesuffix(SUFFIX)}, {self.threads} thread{'s' * (self.threads > 1)}"


@dataclass(frozen=True)
class DeployBench:
    """What was measured on a machine.

    Attributes:
        model: file, sha256, precision, and what else is known of it.
        hardware: as `cost.hardware`.
        runs: timed runs of each case.
        warmup: runs of each case before any was timed.
        cases: in the order in which they were asked for.
    """

    model: dict[str, Any]
    hardware: dict[str, Any]
    runs: int
    warmup: int
    cases: Sequence[Case]

    @property
    def single(self) -> Case | None:
        """The first case that runs one image at a time: what the gate reads."""
        return next((case for case in self.cases if case.batch == 1), None)

    def as_dict(self) -> dict[str, Any]:
        """Content of deploy-bench.json."""
        return {"format": FORMAT, **asdict(self)}

    def table(self) -> list[list[str]]:
        """Headings, then the cells of each case."""
        return [
            [*HEADINGS],
            *(
                [case.provider.removesuffix(SUFFIX), str(case.threads), str(case.batch)]
                + [f"{getattr(case, f'latency_ms_p{percent}'):.3f} ms" for percent in PERCENTILES]
                + [f"{case.images_per_second:,.1f}"]
                for case in self.cases
            ),
        ]


def bench_deploy(
    found: ModelFile,
    *,
    providers: Sequence[str],
    threads: Sequence[int],
    batches: Sequence[int],
    runs: int,
    warmup: int,
) -> DeployBench:
    """Measure a model on this machine, every provider with every number of threads and every size of batch.

    All cases take turns (`cost.time_in_turns`), on random pixels: how long a network takes does not depend on what it
    sees. onnxruntime runs as `gkd serve` has it: one operator after another, threads that do not spin while they wait.

    Args:
        found: the model, checked as a server checks it.
        providers: names from `provider_names`, or onnxruntime's own.
        threads: within an operator.
        batches: images in a run.
        runs, warmup: of each case.
    Raises:
        GkdError: a provider is not in this onnxruntime or does not start, a number is out of range, one is
            named twice, or the model is no image classifier.
    """
    if not providers:
        raise GkdError(f"--providers is empty: name some of {', '.join(provider_names())}")
    named = [_provider(name) for name in providers]
    refuse_doubled(named, "--providers")
    for option, values, most in (("--threads", threads, LARGEST_THREADS), ("--batches", batches, LARGEST_BATCH)):
        if not values or not all(0 < value <= most for value in values):
            raise GkdError(f"{option} is {', '.join(map(str, values)) or 'empty'}: give numbers from 1 to {most}")
        refuse_doubled(values, option)
    for option, value, least in (("--runs", runs, 10), ("--warmup", warmup, 0)):
        if not least <= value <= MOST_RUNS:
            raise GkdError(f"{option} is {value}: give a number from {least} to {MOST_RUNS}")
    model = Model(found, version="1", threads=1)
    sessions = {(provider, count): session(found.file, count, provider) for provider in named for count in threads}
    images = {batch: _images(model, batch) for batch in batches}
    calls = {
        (*where, batch): partial(each.run, None, {model.input.name: pixels})
        for where, each in sessions.items()
        for batch, pixels in images.items()
    }
    with progress("bench deploy", runs * len(calls), unit="runs") as advance:
        times = time_in_turns(calls, runs=runs, warmup=warmup, advance=advance)
    cases = []
    for key, taken in times.items():
        median, high, highest = percentiles(taken, PERCENTILES).values()
        images_per_second = round(key[-1] * 1000 * len(taken) / float(taken.sum()), 2)
        cases.append(Case(*key, median, high, highest, images_per_second))
    about = {name: model.facts[name] for name in ("network", "student_digest")}
    described = {
        "file": found.file.name,
        "sha256": model.sha256,
        "precision": model.facts["precision"],
        "size_bytes": found.file.stat().st_size,
        "input_shape": list(_image_shape(model)),
        **about,
    }
    return DeployBench(described, hardware(), runs, warmup, cases)


def read_bench(path: Path) -> DeployBench:
    """What `gkd bench deploy` wrote.

    Raises:
        GkdError: the file is missing, or is another.
    """
    if not path.is_file():
        raise GkdError(f"{path} does not exist: run `gkd bench deploy` on the target and copy its file, or correct it")
    content = read_json(path, "the measurement", shape=SHAPE)
    cases = [Case(**{name: case[name] for name in Case.__dataclass_fields__}) for case in content["cases"]]
    return DeployBench(content["model"], content["hardware"], content["runs"], content["warmup"], cases)


def provider_names() -> dict[str, str]:
    """onnxruntime's name by the short one, of what its build here can run on: {"cpu": "CPUExecutionProvider"}."""
    named = {name.removesuffix(SUFFIX).lower(): name for name in onnxruntime.get_available_providers()}
    return {short: name for short, name in named.items() if short not in NOWHERE}


def _provider(name: str) -> str:
    names = provider_names()
    found = names.get(name.lower().removesuffix(SUFFIX.lower()))
    if found is None:
        raise GkdError(
            f"--providers: {name!r} is not in this onnxruntime {onnxruntime.__version__}, which has "
            f"{', '.join(names)}: install the build that has it (such as onnxruntime-gpu), or leave it out"
        )
    return found


def _image_shape(model: Model) -> tuple[int, ...]:
    """Of one image that is measured: the model's, or where it takes any size, that of a photo from the web."""
    return (*PHOTO, model.input.shape[-1]) if model.input.of_any_size else model.input.shape[1:]


def _images(model: Model, batch: int) -> NDArray[Any]:
    shape, kind = (batch, *_image_shape(model)), DATATYPES[model.input.datatype]
    random = np.random.default_rng(0)
    if model.input.datatype == "UINT8":
        return random.integers(0, 256, shape, np.uint8)
    return random.random(shape, np.float32).astype(kind)
