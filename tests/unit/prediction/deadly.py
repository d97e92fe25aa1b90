"""What takes the process that reads a picture with it; imported by name in that process."""

import os
import signal

from gkd_core.prediction import reading


def read_task(task, form):
    """As the real one, but for pictures whose name says what they do."""
    if any("deadly" in entry.name for entry in task):
        os.kill(os.getpid(), signal.SIGKILL)
    return reading.read_task(task, form)
