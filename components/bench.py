"""An exported model measured on the machine that will serve it, into a file that the gate reads."""

import sys
from collections.abc import Sequence
from pathlib import Path

from components.model_source import open_source
from gkd_core.errors import GkdError
from gkd_core.evaluation.deploy_bench import DeployBench, bench_deploy
from gkd_core.files import kind_of, write_json


def run(
    *,
    model: str,
    out: Path,
    providers: Sequence[str] = ("cpu",),
    threads: Sequence[int] = (1,),
    batches: Sequence[int] = (1, 8, 32),
    runs: int = 200,
    warmup: int = 10,
    precision: str = "fp32",
    tracking_uri: str | None = None,
) -> DeployBench:
    """Measure and write `out`.

    Args:
        model, precision, tracking_uri: as `open_source` takes them.
        out: a JSON file.
        providers, threads, batches, runs, warmup: see `bench_deploy`.
    Raises:
        GkdError: see `open_source` and `bench_deploy`; or `out` cannot be written, told before anything is measured.
    """
    _refuse_place(out, model)
    if 1 not in batches:
        print(
            f"gkd: --batches has no 1, so {out} is nothing for gate.deploy_bench, which reads the case of one image",
            file=sys.stderr,
        )
    source = open_source(model, precision=precision, tracking_uri=tracking_uri)
    source.poll()
    found = bench_deploy(
        source.fetch(), providers=providers, threads=threads, batches=batches, runs=runs, warmup=warmup
    )
    write_json(out, found.as_dict())
    return found


def _refuse_place(out: Path, model: str) -> None:
    """Raises: GkdError: no file can be at `out`, or what is measured, or another of our folders, would be another."""
    if out.is_dir() or not out.parent.is_dir():
        wrong = "is a folder" if out.is_dir() else "would lie in a folder that is not there"
        raise GkdError(f"--out {out} {wrong}: name a file in a folder that is there")
    if out.resolve() == Path(model).resolve():
        raise GkdError(f"--out {out} would replace the model: name another file")
    for above in out.resolve().parents:
        if kind_of(above) is not None:
            raise GkdError(f"--out {out} lies in {above}, which gkd wrote and would be another then: name another file")
