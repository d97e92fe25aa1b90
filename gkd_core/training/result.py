"""What a training gives back: the network, its history as a table and a plot, and facts about it."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from rich.console import Console
from rich.table import Table
from torch import Tensor

from gkd_core.files import read_json, write_json
from gkd_core.models.network import Network, load_network, save_network
from gkd_core.run_facts import run_facts
from gkd_core.tables import write_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, float]


class History(Sequence[Row]):
    """One row an epoch: learning_rate, beta, train_loss, train_<term>, train_top1, validation_top1, …

    A sequence of dicts, so `pandas.DataFrame(history)` takes it as it is.
    """

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        """The row of an epoch, counted from 0."""
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __repr__(self) -> str:
        console = Console(file=io.StringIO(), width=160, record=True)
        console.print(self.table())
        return console.export_text()

    def table(self) -> Table:
        """Epoch by epoch, for a terminal or a notebook."""
        table = Table()
        for name in self.rows[0] if self.rows else ():
            table.add_column(name, justify="right")
        for row in self.rows:
            table.add_row(*(f"{value:.4g}" for value in row.values()))
        return table

    def plot(self) -> "Figure":
        """Loss terms on the left, accuracies with β(t) on the right."""
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator

        figure = Figure(figsize=(10, 3.5), layout="constrained")
        losses, accuracies = figure.subplots(1, 2)
        epochs = [row["epoch"] for row in self.rows]
        names = list(self.rows[0])
        for name in names:
            if name.startswith("train_") and name not in ("train_top1", "train_gradient_norm"):
                losses.plot(epochs, [row[name] for row in self.rows], label=name.removeprefix("train_"))
        for name in ("train_top1", "validation_top1"):
            accuracies.plot(epochs, [100 * row[name] for row in self.rows], label=name)
        weight = accuracies.twinx()
        weight.plot(epochs, [row["beta"] for row in self.rows], color="grey", linestyle=":")
        weight.set_ylabel("β")
        losses.set(xlabel="epoch", ylabel="loss")
        accuracies.set(xlabel="epoch", ylabel="top-1 [%]")
        for axis in (losses.xaxis, accuracies.xaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
        losses.legend()
        accuracies.legend()
        return figure


@dataclass(frozen=True)
class Result:
    """A finished training.

    Attributes:
        network: trained, in eval mode.
        history: a row an epoch.
        facts: what training.json holds: epochs, selected_epoch, validation_top1, how it was taught, digests. Nothing in
            it varies from run to run.
        checkpoint: the file of the last epoch in `work`; None without one.
        steps: [steps, 2] float64: learning rate and β at every step.
        seconds: wall time of this run (an interrupted run's earlier part left out).
        images_per_second: training throughput of this run.
        teacher_cache_hits: part of the teacher's answers that were read from `train.teacher_cache` in this run; None
            without one.
    """

    network: Network
    history: History
    facts: dict[str, Any]
    checkpoint: Path | None
    steps: Tensor
    seconds: float
    images_per_second: float
    teacher_cache_hits: float | None = None

    def __repr__(self) -> str:
        facts = self.facts
        top1 = f"validation top-1 {100 * facts['validation_top1']:.2f} %"
        return f"Result({facts['network']} by {facts['method']}, {len(self.history)} epochs, {top1})"

    def save(self, folder: Path | str) -> None:
        """Fill an existing folder: model.safetensors, model.json, history.csv, steps.csv, training.json; and run.json,
        where all that varies from run to run is."""
        folder = Path(folder)
        save_network(self.network, folder)
        write_table(folder / "history.csv", self.history)
        per_epoch = len(self.steps) // len(self.history)
        steps = (
            {"step": i + 1, "epoch": i / per_epoch, "learning_rate": rate, "beta": beta}
            for i, (rate, beta) in enumerate(self.steps.tolist())
        )
        write_table(folder / "steps.csv", steps)
        write_json(folder / "training.json", self.facts)
        write_json(folder / "run.json", self.run_facts())

    def run_facts(self) -> dict[str, Any]:
        """What run.json holds: where and how fast this ran, and of which commit."""
        device = self.network.mean.device
        how = {"images_per_second": round(self.images_per_second, 1)}
        how |= {name: self.facts[name] for name in ("threads",) if name in self.facts}
        if self.teacher_cache_hits is not None:
            how["teacher_cache_hits"] = round(self.teacher_cache_hits, 4)
        return run_facts(seconds=self.seconds, device=device) | how


def reopen(folder: Path, classes: tuple[str, ...]) -> tuple[Network, dict[str, Any]]:
    """Network and facts of a finished training from its folder."""
    return load_network(folder, classes), read_json(folder / "training.json", "the finished training")
