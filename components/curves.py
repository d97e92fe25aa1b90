"""A training's curves as DVCLive writes them, so that `dvc exp show`, `dvc plots` and editors show them as they grow.

    FOLDER/metrics.json                  the latest value of each metric, and the step
    FOLDER/plots/metrics/NAME.tsv        step and value

Not by DVCLive itself, which appends: a training that was killed and goes on would have steps twice. These files are
made of the whole history at every epoch.
"""

import csv
import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gkd_core.files import write_bytes

METRICS = "metrics.json"
PLOTS = "plots/metrics"


class Curves:
    """The files in a folder, which is emptied of those of an earlier training.

    Args:
        folder: what else is in it stays.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._latest: dict[str, Any] = {}
        shutil.rmtree(folder / PLOTS, ignore_errors=True)
        (folder / PLOTS).mkdir(parents=True)
        self._write_latest()

    def write(self, label: str, history: Sequence[dict[str, Any]]) -> None:
        """All epochs of a training.

        Args:
            label: tells the trainings of one step apart; empty where there is one.
            history: `epoch` is the step, the other columns are metrics, None where there is no value.
        """
        names = dict.fromkeys(name for row in history for name in row if name != "epoch")
        for name in names:
            text = io.StringIO(newline="")
            table = csv.writer(text, delimiter="\t", lineterminator="\n")
            table.writerow(["step", name])
            table.writerows([int(row["epoch"]), row[name]] for row in history if row.get(name) is not None)
            file = self.folder / PLOTS / label / f"{name}.tsv"
            file.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(file, text.getvalue().encode())
        if history:
            latest = {name: value for name, value in history[-1].items() if name != "epoch" and value is not None}
            self._latest.pop("step", None)
            self._latest |= {label: latest} if label else latest
            self._latest["step"] = int(history[-1]["epoch"])
            self._write_latest()

    def _write_latest(self) -> None:
        write_bytes(self.folder / METRICS, (json.dumps(self._latest, indent=4) + "\n").encode())
