"""`gkd` in a process of its own that has its imports behind it: forked from one that did nothing but import.

As real as a new one (its own environment, folder, signals, exit code), and there some seconds sooner. What a new
interpreter does (what is imported, and when) cannot be seen by it.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from pathlib import Path

HEAVY = (
    "pipelines.cli",
    "components.register",
    "mlflow.onnx",
    "components.compare",
    "components.teacher",
    "torchvision",
    "kfp",
)


def gkd(
    *arguments: str, cwd: Path, timeout: float = 280, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, as `subprocess.run` would, with one thread for torch."""
    return run(command, *arguments, cwd=cwd, timeout=timeout, env=env)


def run(
    program: Callable[..., None],
    *arguments: str,
    cwd: Path,
    timeout: float = 280,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Call a function of a module, `program(*arguments)`, in such a process."""
    with tempfile.TemporaryDirectory() as folder:
        process = start(program, *arguments, cwd=cwd, said=Path(folder), env=env)
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(list(arguments), timeout)
        output, errors = ((Path(folder) / name).read_text() for name in ("stdout", "stderr"))
    return subprocess.CompletedProcess(list(arguments), process.exitcode, output, errors)


def start(
    program: Callable[..., None], *arguments: str, cwd: Path, said: Path, env: Mapping[str, str] | None = None
) -> multiprocessing.process.BaseProcess:
    """The same without waiting for its end; its output is in `stdout` and `stderr` in the folder `said`."""
    context = multiprocessing.get_context("forkserver")
    _have_a_server(context)
    files = [said / "stdout", said / "stderr"]
    for file in files:
        file.touch()
    settings = dict(os.environ if env is None else env)
    process = context.Process(target=_begin, args=(program, arguments, str(cwd), settings, *map(str, files)))
    process.start()
    return process


def command(*arguments: str) -> None:
    """The command line."""
    from pipelines import cli

    sys.argv = ["gkd", *arguments]
    cli.main()


def _have_a_server(context: multiprocessing.context.ForkServerContext) -> None:
    """The process to fork from, whose torch computes in one thread."""
    context.set_forkserver_preload(list(HEAVY))
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _begin(
    program: Callable[..., None],
    arguments: tuple[str, ...],
    cwd: str,
    environment: dict[str, str],
    output: str,
    errors: str,
) -> None:
    for number, file in ((1, output), (2, errors)):
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    try:
        program(*arguments)
    finally:
        sys.stdout.flush()
