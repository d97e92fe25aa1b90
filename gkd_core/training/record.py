"""What a training leaves beside its weights: curves for people and plots, facts for the next step."""

import csv
import io
from pathlib import Path
from typing import Any

from gkd_core.files import write_bytes, write_json
from gkd_core.training.loop import Trained


def write_record(folder: Path, trained: Trained, facts: dict[str, Any], *, steps_per_epoch: int) -> None:
    """Write history.csv (a row an epoch), steps.csv (a row a step) and training.json into an existing folder.

    Nothing in them varies from run to run.
    """
    _write_csv(folder / "history.csv", list(trained.history[0]), [list(row.values()) for row in trained.history])
    rows = [[i + 1, i / steps_per_epoch, rate, beta] for i, (rate, beta) in enumerate(trained.steps.tolist())]
    _write_csv(folder / "steps.csv", ["step", "epoch", "learning_rate", "beta"], rows)
    selected = trained.history[trained.selected_epoch - 1]
    write_json(
        folder / "training.json",
        {
            "trained": True,
            "epochs": len(trained.history),
            "selected_epoch": trained.selected_epoch,
            "validation_top1": selected["validation_top1"],
            "validation_nll": selected["validation_nll"],
            **facts,
        },
    )


def _write_csv(path: Path, header: list[str], rows: list[list[float]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode())
