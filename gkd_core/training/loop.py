"""The training loop, one for teacher, baseline and student.

    L = CE + β(t) · Σ other terms

Read it top to bottom. Order and augmentation of images are a pure function of (seed, epoch), learning rate and β of
time; so what a checkpoint holds at the end of an epoch is all there is, and a run that was killed and started again
ends with the same bits as one that was not (CPU).

Several processes (`distributed.py`) go through it side by side, each with its rows of every batch. What they decide on
is reduced over all of them first, so they take every turn together.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gkd_core.data.loader import Loader
from gkd_core.data.shards import Shards
from gkd_core.errors import GkdError
from gkd_core.losses.base import Loss, at_least_float32
from gkd_core.models.network import Network
from gkd_core.schedules import Observer
from gkd_core.training import distributed
from gkd_core.training.checkpoint import load_checkpoint, save_checkpoint
from gkd_core.training.learner import Learner
from gkd_core.training.learning_rate import Factor
from gkd_core.training.progress import TrainingProgress
from gkd_core.training.teacher import Teacher

# Reading a number from an accelerator makes it wait; on the CPU it costs nothing.
STEPS_BETWEEN_READS = {"cpu": 1}
STEPS_BETWEEN_READS_ELSEWHERE = 50


@dataclass
class Trained:
    """What a training leaves beside the weights, which are in the network.

    Attributes:
        history: one row an epoch: learning_rate, beta, train_loss, train_<term>, train_top1, validation_top1, …
        steps: [steps, 2] float64: learning rate and β at every step.
        selected_epoch: whose weights the network holds, counted from 1.
        seconds: wall time of this run (an interrupted run's earlier part left out).
        images_per_second: training throughput of this run.
    """

    history: list[dict[str, float]]
    steps: Tensor
    selected_epoch: int
    seconds: float = 0.0
    images_per_second: float = 0.0


@dataclass
class _State:
    """Everything that a checkpoint must hold beyond modules and optimiser."""

    epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    steps: list[tuple[float, float]] = field(default_factory=list)
    best_epoch: int = 0
    best_weights: dict[str, Tensor] | None = None


def train(
    network: Network,
    loss: Loss,
    *,
    name: str,
    loader: Loader,
    validation: Loader,
    teacher: Teacher | None,
    optimizer: torch.optim.Optimizer,
    learning_rate: Factor,
    weight: Callable[[float], float],
    epochs: int,
    checkpoint: Path,
    fingerprint: str,
    label_smoothing: float = 0.0,
    clip_norm: float | None = None,
    ema_decay: float | None = None,
    select: str = "last",
    autocast: bool = False,
) -> Trained:
    """Train `network` in place, resuming from `checkpoint` when it is there.

    Args:
        name: what is trained, for the progress bar and for errors.
        loader: training batches; `validation`: the same without augmentation.
        optimizer: over the network's and the loss's parameters, at peak learning rate.
        learning_rate: factor on it at time t in epochs.
        weight: β(t) on the sum of all terms but "ce"; one that observes is told the validation accuracies so far before
            every epoch, which after a resume are the checkpoint's.
        checkpoint: file written at the end of every epoch, and read, by the first process alone.
        fingerprint: digest of inputs and configuration; a checkpoint of another one is refused.
        clip_norm: largest gradient norm, over network and loss together; a companion of the loss, which is a network
            in a training of its own, is clipped by itself.
        ema_decay: keep an exponential moving average of weights and buffers, evaluate it, and return it.
        select: "last" epoch or "best" on validation.
        autocast: run the network in bf16.
    Raises:
        GkdError: the loss, a gradient or the validation loss is not finite (the step and the terms are named; the
            last checkpoint stays), or the checkpoint is damaged or foreign.
        TypeError: the loss registered the student or the teacher as its own submodule.
    """
    outsiders = [network] if teacher is None else [network, *teacher.networks]
    if any(module is outsider for module in loss.modules() for outsider in outsiders):
        raise TypeError(f"{type(loss).__name__} holds a network as a submodule: it would be trained and saved with it")
    loss.label_smoothing = label_smoothing
    device = network.mean.device
    peak = [float(group["lr"]) for group in optimizer.param_groups]
    clipped_together = _clipped_together(optimizer, loss)
    average = None
    if ema_decay is not None:
        moving = get_ema_multi_avg_fn(ema_decay)  # type: ignore[no-untyped-call]
        average = AveragedModel(network, multi_avg_fn=moving, use_buffers=True)
    schedule: object = weight
    state = _State()
    if (saved := distributed.of_first(lambda: load_checkpoint(checkpoint, fingerprint))) is not None:
        _restore(saved, state, network, loss, optimizer, average)
    learner = distributed.replicated(Learner(network, loss, autocast=autocast))

    start = time.monotonic()
    shown = distributed.rank() == 0
    with TrainingProgress(name, steps=epochs * loader.steps_per_epoch, done=len(state.steps), shown=shown) as progress:
        for epoch in range(state.epoch, epochs):
            if isinstance(schedule, Observer):
                progress.epoch(schedule.observe([row["validation_top1"] for row in state.history]))
            learner.train()
            meter = _Meter(name, epoch, loader.steps_per_epoch, device)
            for i, batch in enumerate(loader.epoch(epoch)):
                t = epoch + i / loader.steps_per_epoch
                beta = float(weight(t))
                for group, base in zip(optimizer.param_groups, peak, strict=True):
                    group["lr"] = base * learning_rate(t)
                state.steps.append((float(optimizer.param_groups[0]["lr"]), beta))

                target = batch.labels if batch.targets is None else batch.targets
                taught = teacher(batch.images, batch.indices, target) if teacher else None
                terms, logits = learner(batch, target, taught, t)
                total = _total(terms, beta)
                optimizer.zero_grad(set_to_none=True)
                # Gradients are averaged over processes; the weight makes every sample count alike.
                (batch.shards.weight * total).backward()  # type: ignore[no-untyped-call]
                norm = _clip(clipped_together, math.inf if clip_norm is None else clip_norm)
                optimizer.step()
                if average is not None:
                    average.update_parameters(network)

                hits = (logits.argmax(1) == batch.labels).sum()
                meter.add(batch.shards, {"loss": total, **terms, "gradient_norm": norm}, hits)
                progress.advance(batch.shards.total, state=meter.state(beta))
            meter.check()
            distributed.share_buffers(network, loss, average)

            evaluated = network if average is None else cast("Network", average.module)
            top1, nll = validate(evaluated, validation, autocast=autocast)
            if not math.isfinite(nll):
                raise GkdError(
                    f"{name}: after epoch {epoch + 1} the validation loss is not finite: lower train.learning_rate or "
                    f"set train.clip_norm; {_kept(epoch)}"
                )
            row: dict[str, float] = {
                "epoch": epoch + 1,
                "learning_rate": state.steps[-1][0],
                "beta": state.steps[-1][1],
            }
            row |= meter.means() | {"validation_top1": top1, "validation_nll": nll}
            for companion, other in _companions(loss).items():
                others_top1, others_nll = validate(other, validation, autocast=autocast)
                row |= {f"validation_top1_{companion}": others_top1, f"validation_nll_{companion}": others_nll}
            state.history.append(row)
            state.epoch = epoch + 1
            if state.best_epoch == 0 or top1 > state.history[state.best_epoch - 1]["validation_top1"]:
                state.best_epoch = epoch + 1
                if select == "best":
                    state.best_weights = {k: v.detach().cpu().clone() for k, v in evaluated.state_dict().items()}
            content = _content(fingerprint, state, network, loss, optimizer, average)
            if distributed.rank() == 0:
                save_checkpoint(checkpoint, content)
            progress.epoch(_epoch_line(row, epochs))
        throughput = progress.images_per_second

    if average is not None:
        network.load_state_dict(average.module.state_dict())
    if select == "best" and state.best_weights is not None:
        network.load_state_dict(state.best_weights)
    network.eval()
    return Trained(
        history=state.history,
        steps=torch.tensor(state.steps, dtype=torch.float64),
        selected_epoch=state.best_epoch if select == "best" else epochs,
        seconds=time.monotonic() - start,
        images_per_second=throughput,
    )


@torch.no_grad()
def validate(network: Network, loader: Loader, *, autocast: bool = False) -> tuple[float, float]:
    """Top-1 accuracy in [0, 1] and mean negative log-likelihood in nats; the network is left in eval mode."""
    network.eval()
    device = network.mean.device
    hits = torch.zeros((), dtype=torch.int64, device=device)
    nll = torch.zeros((), dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)
    count = torch.zeros((), dtype=torch.int64)
    for batch in loader.epoch(0):
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            logits = network(batch.images, batch.topology).logits
        hits += (logits.argmax(1) == batch.labels).sum()
        nll += functional.cross_entropy(at_least_float32(logits), batch.labels, reduction="sum")
        count += len(batch.labels)
    images = int(distributed.total(count))
    return int(distributed.total(hits)) / images, float(distributed.total(nll)) / images


def _total(terms: dict[str, Tensor], beta: float) -> Tensor:
    """CE + β · (all other terms)."""
    total = terms["ce"]
    others = [term for name, term in terms.items() if name != "ce"]
    return total + beta * torch.stack(others).sum() if others else total


def _companions(loss: Loss) -> dict[str, Network]:
    """Networks that the loss trains along, by name."""
    companions: dict[str, Network] = getattr(loss, "companions", dict)()
    return companions


def _clipped_together(optimizer: torch.optim.Optimizer, loss: Loss) -> list[list[nn.Parameter]]:
    """The network and what else the loss trains; then each companion."""
    companions = [list(companion.parameters()) for companion in _companions(loss).values()]
    apart = {id(p) for parameters in companions for p in parameters}
    rest = [p for group in optimizer.param_groups for p in group["params"] if id(p) not in apart]
    return [rest, *companions]


def _clip(groups: list[list[nn.Parameter]], largest: float) -> Tensor:
    """Clip the gradients of each group to a norm of `largest`; their norm before, over all groups."""
    norms = [torch.nn.utils.clip_grad_norm_(group, largest) for group in groups]
    return torch.linalg.vector_norm(torch.stack(norms))  # type: ignore[no-any-return]


class _Meter:
    """Loss terms of one epoch, kept on the device until someone reads them."""

    def __init__(self, name: str, epoch: int, steps: int, device: torch.device) -> None:
        self._name, self._epoch, self._capacity, self._device = name, epoch, steps, device
        self._every = STEPS_BETWEEN_READS.get(device.type, STEPS_BETWEEN_READS_ELSEWHERE)
        self._names: list[str] = []
        self._values = torch.empty(0)
        self._sizes: list[int] = []
        self._hits = torch.zeros((), dtype=torch.int64, device=device)

    def add(self, shards: Shards, values: dict[str, Tensor], hits: Tensor) -> None:
        if not self._names:
            self._names = list(values)
            self._values = torch.zeros(self._capacity, len(self._names), device=self._device)
        self._values[len(self._sizes)] = shards.mean(torch.stack([v.detach().float() for v in values.values()]))
        self._sizes.append(shards.total)
        self._hits += hits

    def state(self, beta: float) -> str | None:
        """A short text of the latest terms every so many steps, else None; a term that is not finite raises."""
        if len(self._sizes) % self._every:
            return None
        self.check()
        latest = self._values[len(self._sizes) - 1].tolist()
        shown = [(n, v) for n, v in zip(self._names, latest, strict=True) if n != "gradient_norm"]
        return " ".join(f"{n} {v:.3f}" for n, v in shown) + f" β {beta:.2f}"

    def check(self) -> None:
        """Raises: GkdError naming the first step with a term that is not finite, and the terms."""
        bad = ~torch.isfinite(self._values[: len(self._sizes)])
        if not bool(bad.any()):
            return
        step = int(bad.any(1).nonzero()[0])
        terms = [n for n, wrong in zip(self._names, bad[step].tolist(), strict=True) if wrong]
        blamed = [n for n in terms if n != "loss"] or terms
        raise GkdError(
            f"{self._name}: at epoch {self._epoch + 1}, step {step + 1} of {self._capacity}, "
            f"{', '.join(blamed)} {'is' if len(blamed) == 1 else 'are'} not finite: lower train.learning_rate or set "
            f"train.clip_norm; {_kept(self._epoch)}"
        )

    def means(self) -> dict[str, float]:
        """Means over the epoch's images, each batch counted by its size."""
        sizes = torch.tensor(self._sizes, dtype=torch.float64)
        values = self._values[: len(self._sizes)].double().cpu()
        means = (values * sizes[:, None]).sum(0) / sizes.sum()
        row = {f"train_{n}": float(v) for n, v in zip(self._names, means, strict=True)}
        return row | {"train_top1": int(distributed.total(self._hits)) / sum(self._sizes)}


def _kept(epochs: int) -> str:
    return f"the checkpoint of epoch {epochs} is kept" if epochs else "no epoch was finished before"


def _epoch_line(row: dict[str, float], epochs: int) -> str:
    return (
        f"epoch {row['epoch']:.0f}/{epochs}  loss {row['train_loss']:.3f}  β {row['beta']:.2f}  "
        f"train {100 * row['train_top1']:.2f} %  validation {100 * row['validation_top1']:.2f} %"
    )


def _content(
    fingerprint: str,
    state: _State,
    network: Network,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    average: AveragedModel | None,
) -> dict[str, Any]:
    return {
        "fingerprint": fingerprint,
        "epoch": state.epoch,
        "history": state.history,
        "steps": torch.tensor(state.steps, dtype=torch.float64),
        "best_epoch": state.best_epoch,
        "best_weights": state.best_weights,
        "network": network.state_dict(),
        "loss": loss.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": None if average is None else average.state_dict(),
        "random": distributed.of_each(dict(_random_states(network.mean.device))),
    }


def _restore(
    saved: dict[str, Any],
    state: _State,
    network: Network,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    average: AveragedModel | None,
) -> None:
    state.epoch = saved["epoch"]
    state.history = saved["history"]
    state.steps = [(lr, beta) for lr, beta in saved["steps"].tolist()]
    state.best_epoch = saved["best_epoch"]
    state.best_weights = saved["best_weights"]
    network.load_state_dict(saved["network"])
    loss.load_state_dict(saved["loss"])
    optimizer.load_state_dict(copy.deepcopy(saved["optimizer"]))
    if average is not None:
        average.load_state_dict(saved["average"])
    random = saved["random"][distributed.rank()]
    torch.set_rng_state(random["cpu"])
    device = network.mean.device
    if "cuda" in random and device.type == "cuda":
        torch.cuda.set_rng_state(random["cuda"], device)


def _random_states(device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """Generators behind dropout and the like; the loader's are seeded anew each epoch."""
    yield "cpu", torch.get_rng_state()
    if device.type == "cuda":
        yield "cuda", torch.cuda.get_rng_state(device)
