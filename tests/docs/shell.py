"""A shell for the blocks of the pages, in which `gkd` and `dvc` start at once.

`python -m tests.docs.shell SOCKET` is a process that has imported what they need. The commands in the folder that
`commands` makes connect to it and hand over their arguments, folder, environment and streams; it forks a process that
is the command. So the blocks run in a real bash, with its pipes, redirections and exit codes, some seconds sooner.
"""

import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.forked import HEAVY

ROOT = Path(__file__).parents[2]
BESIDE = ("dvc.cli", "dvc.repo", "dvc.commands.repro", "dvc.repo.experiments")

# What stands in the folder of commands: a client in the plainest Python there is.
CLIENT = """\
#!{python} -SE
import json, os, signal, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect({address!r})
program = os.path.basename(sys.argv[0])
request = {{"program": program, "arguments": sys.argv[1:], "cwd": os.getcwd(), "env": dict(os.environ)}}
socket.send_fds(connection, [b"!"], [0, 1, 2])
connection.sendall(json.dumps(request).encode() + b"\\n")
answers = connection.makefile()
process = int(answers.readline())
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: os.kill(process, number))
sys.exit(int(answers.readline()))
"""


@contextmanager
def commands(folder: Path) -> Iterator[Path]:
    """A folder with the commands `gkd`, `dvc` and `run-python FILE`, to stand first in PATH, while it is open."""
    address = folder / "socket"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-m", "tests.docs.shell", str(address)]
    process = subprocess.Popen(program, cwd=ROOT, env=environment, stdin=subprocess.PIPE)
    try:
        while not address.exists():
            assert process.poll() is None, "the process to fork from has ended"
            time.sleep(0.05)
        for name in ("gkd", "dvc", "run-python"):
            client = folder / name
            client.write_text(CLIENT.format(python=sys.executable, address=str(address)))
            client.chmod(0o755)
        yield folder
    finally:
        process.stdin.close()
        process.wait()


def main(address: str) -> None:
    """Accept commands and fork a process for each, until the standard input ends, which is with whoever started it."""
    for name in (*HEAVY, *BESIDE):
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait for the commands
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{address}.new")
        listening.listen(16)
        Path(f"{address}.new").rename(address)
        while sys.stdin not in select.select([listening, sys.stdin], [], [])[0]:
            connection, _ = listening.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                listening.close()
                _attend(connection)
            connection.close()


def _attend(connection: socket.socket) -> None:
    """Be the command in a process of its own, and tell its number and its exit code. Does not return."""
    _, descriptors, *_ = socket.recv_fds(connection, 1, 3)
    request = json.loads(connection.makefile().readline())
    process = os.fork()
    if process == 0:
        connection.close()
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
            os.close(descriptor)
        _become(request)
    for descriptor in descriptors:
        os.close(descriptor)
    connection.sendall(b"%d\n" % process)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    connection.sendall(b"%d\n" % (code if code >= 0 else 128 - code))
    os._exit(0)


def _become(request: dict) -> None:
    """Run the command as its own interpreter would. Does not return."""
    code = 1
    try:
        sys.stdin, sys.stdout = os.fdopen(0), os.fdopen(1, "w", buffering=1)
        sys.stderr = os.fdopen(2, "w", buffering=1)
        os.environ.clear()
        os.environ.update(request["env"])
        os.chdir(request["cwd"])
        sys.argv = [request["program"], *request["arguments"]]
        code = _call(request["program"], request["arguments"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _call(program: str, arguments: list[str]) -> int:
    if program == "gkd":
        from pipelines import cli

        cli.main()
        return 0
    if program == "dvc":
        from dvc.cli import main as dvc

        return int(dvc(arguments))
    (file,) = arguments
    exec(compile(Path(file).read_text(), file, "exec"), {"__name__": "__main__"})
    return 0


if __name__ == "__main__":
    main(sys.argv[1])
