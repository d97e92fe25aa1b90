"""What the teacher step and the distill step share: from a `train` section to a trained network's folder."""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gkd_core.config import TrainingConfig, refuse_wide_augmentation
from gkd_core.data.augment import Augmentation
from gkd_core.data.loader import Loader
from gkd_core.data.prepared import PreparedData
from gkd_core.errors import GkdError
from gkd_core.files import json_digest, whole_folder, write_json
from gkd_core.losses.mutual import MutualLearning
from gkd_core.models.network import LUMA, Network, NetworkSpec, save_network
from gkd_core.run_facts import run_facts
from gkd_core.schedules import create_schedule
from gkd_core.training import distributed
from gkd_core.training.device import use_bf16
from gkd_core.training.learning_rate import learning_rate_factor
from gkd_core.training.lesson import Lesson
from gkd_core.training.loop import train
from gkd_core.training.optimizer import create_optimizer
from gkd_core.training.record import write_record

ALONE = Lesson()


def new_network(
    name: str,
    stem: str,
    data: PreparedData,
    seed: int,
    *,
    channels: int | None = None,
    image_size: int | None = None,
) -> Network:
    """An untrained network for a data set; the same seed gives the same weights.

    Args:
        channels, image_size: the view of the images it is shown; None is what the data has.
    """
    info = data.info
    mean, std = info.mean, info.std
    if channels == 1 and info.channels == 3:
        mean, std = _grey_statistics(data.train.images)
    elif channels == 3 and info.channels == 1:
        mean, std = mean * 3, std * 3
    torch.manual_seed(seed)
    return Network(
        NetworkSpec(
            name=name,
            stem=stem,
            classes=info.classes,
            in_channels=channels or info.channels,
            image_size=image_size or info.image_size,
            mean=mean,
            std=std,
        )
    )


def fit(
    *,
    role: str,
    network: Network,
    data: PreparedData,
    training: TrainingConfig,
    folder: Path,
    work: Path,
    inputs: dict[str, Any],
    lesson: Lesson = ALONE,
    teachers: Sequence[Network] = (),
    title: str | None = None,
) -> dict[str, Any]:
    """Train `network` and write its folder: weights, curves, facts.

    Args:
        role: what it is: "teacher", "student", …
        folder: existing folder to fill.
        work: the checkpoint lives there, see `workspace`.
        inputs: digests of everything the result depends on.
        lesson: how it learns.
        teachers: the networks it learns from, where the lesson has any.
        title: what to call it in progress and errors; None is the role.
    Returns:
        What training.json holds.
    Raises:
        GkdError: the method does not go with these networks or with mixup, or training came to numbers that are not
            finite.
    """
    device = distributed.own_device(training.device)
    autocast = use_bf16(training.precision, device)
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # 1.4 × on a CPU
    _refuse_unfit(lesson, network, teachers, training)
    section = "teacher.train" if role in ("teacher", "assistant") else "train"
    refuse_wide_augmentation(training.augment, data.info.image_size, section=section)
    loader, validation = _loaders(data, training, device)

    topology = data.train.topology
    teacher = lesson.create_teacher(
        teachers, classes=network.classes, device=device, autocast=autocast, topology=topology
    )
    torch.manual_seed(training.seed)
    loss = lesson.create_loss(
        network,
        teachers,
        autocast=autocast,
        seed=training.seed,
        epochs=training.epochs,
        train_labels=torch.from_numpy(data.train.labels),
    ).to(device)
    distributed.own_random_numbers(training.seed)
    several = {"processes": distributed.processes()} if distributed.processes() > 1 else {}
    by = "" if lesson.method == "ce" else f" ({lesson.method})"
    assert lesson.schedule is not None
    trained = train(
        network,
        loss,
        name=f"{title or role} {network.spec.name}{by}",
        loader=loader,
        validation=validation,
        teacher=teacher,
        optimizer=create_optimizer(
            network,
            loss,
            name=training.optimizer,
            learning_rate=training.learning_rate,
            weight_decay=training.weight_decay,
            momentum=training.momentum,
            nesterov=training.nesterov,
        ),
        learning_rate=learning_rate_factor(
            training.schedule,
            epochs=training.epochs,
            warmup_epochs=training.warmup_epochs,
            milestones=tuple(training.milestones),
            decay_factor=training.decay_factor,
        ),
        weight=create_schedule(lesson.schedule, epochs=training.epochs, **lesson.curve),
        epochs=training.epochs,
        checkpoint=work / "checkpoint.pt",
        fingerprint=json_digest(inputs | several),
        label_smoothing=training.label_smoothing,
        clip_norm=training.clip_norm,
        ema_decay=training.ema_decay,
        select=training.select,
        autocast=autocast,
    )
    facts = {
        "role": role,
        "network": network.spec.name,
        "method": lesson.method,
        "hyperparameters": lesson.hyperparameters,
        "schedule": lesson.schedule,
        "arrangement": lesson.arrangement,
        "arrangement_options": lesson.options,
        "seed": training.seed,
        **(loss.conclude(network, trained.history) if isinstance(loss, MutualLearning) else {}),
        **inputs,
        **several,
    }
    save_network(network, folder)
    write_record(folder, trained, facts, steps_per_epoch=loader.steps_per_epoch)
    write_json(
        folder / "run.json",
        run_facts(seconds=trained.seconds, device=device) | {"images_per_second": round(trained.images_per_second, 1)},
    )
    return {**facts, "validation_top1": trained.history[trained.selected_epoch - 1]["validation_top1"]}


def workspace(work: Path, inputs: dict[str, Any]) -> Path:
    """The folder in `work` for a step with these inputs: another configuration never meets what this one left there."""
    return work / json_digest(inputs)[:16]


def kept(folder: Path, make: Callable[[Path], Any]) -> Path:
    """A training that is one of several in a step: done once, its folder kept in the workspace until the step is done.

    Args:
        folder: in the workspace.
        make: fills an empty folder.
    """
    if not distributed.of_first(folder.exists):
        with step_folder(folder) as building:
            make(building)
    return folder


@contextlib.contextmanager
def step_folder(out: Path, inputs: Iterable[Path | None] = ()) -> Iterator[Path]:
    """`whole_folder` for a step that may run in several processes: the first one's folder becomes `out`.

    The others' are thrown away, and all see `out` after the block. That takes storage that every machine sees.
    """
    if distributed.rank():
        with tempfile.TemporaryDirectory(prefix="gkd-") as folder:
            yield Path(folder)
            distributed.wait_for_all()
    else:
        with whole_folder(out, inputs) as folder:
            yield folder
            distributed.wait_for_all()  # what stops one of them stops this one before the folder is `out`
    distributed.wait_for_all()


def forget(work: Path) -> None:
    """Remove the workspace of a step that is complete; one that is not there is no error."""
    if distributed.rank() == 0:
        shutil.rmtree(work, ignore_errors=True)


def _refuse_unfit(lesson: Lesson, network: Network, teachers: Sequence[Network], training: TrainingConfig) -> None:
    """Raises: GkdError: the lesson does not go with these networks, or with how they are to be trained."""
    loss_class, processes = lesson.loss_class, distributed.processes()
    if training.batch_size % processes or training.batch_size < 2 * processes:
        raise GkdError(
            f"train.batch_size is {training.batch_size}, but {processes} processes share each batch: make it a "
            f"multiple of {processes}, at least {2 * processes}"
        )
    if loss_class.hard_labels and training.augment.mixup:
        raise GkdError(
            f"distill.method {lesson.method} needs plain labels, train.augment.mixup mixes them: set it to 0"
        )
    if loss_class.feature_maps:
        for who, net in [
            ("student", network),
            *(("teacher", teacher) for teacher in teachers if lesson.teachers != "none"),
        ]:
            if not net.stage_shapes():
                raise GkdError(
                    f"distill.method {lesson.method} compares feature maps, and the {who} {net.spec.name} has none: "
                    f"choose a method that needs logits only (kd, say) or another {who}"
                )
    if lesson.arrangement == "mutual":
        if training.select != "last":
            raise GkdError(
                f"train.select is {training.select}, but distill.arrangement mutual keeps the best peer of the last "
                "epoch: set train.select to last"
            )
        if training.ema_decay is not None:
            raise GkdError(
                "train.ema_decay averages one network's weights, but distill.arrangement mutual trains several: set it "
                "to null"
            )


def _loaders(data: PreparedData, training: TrainingConfig, device: torch.device) -> tuple[Loader, Loader]:
    """Batches to train on and to validate on."""
    augment, default, classes = training.augment, data.info.augment, len(data.info.classes)
    augmentation = Augmentation(
        crop_padding=default["crop_padding"] if augment.crop_padding is None else augment.crop_padding,
        flip=default["flip"] if augment.flip is None else augment.flip,
        cutout=augment.cutout,
        mixup=augment.mixup,
    )
    share = {"processes": distributed.processes(), "rank": distributed.rank()}
    loader = Loader(
        data.train,
        batch_size=training.batch_size,
        device=device,
        seed=training.seed,
        augmentation=augmentation,
        shuffle=True,
        num_classes=classes,
        **share,
    )
    validation = Loader(
        data.validation,
        batch_size=max(training.batch_size, 256),
        device=device,
        augmentation=None,
        shuffle=False,
        num_classes=classes,
        **share,
    )
    return loader, validation


def _grey_statistics(images: NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the greyscale of colour images [N, H, W, 3], for pixels in [0, 1]."""
    total = squares = 0.0
    for start in range(0, len(images), 1024):
        grey = images[start : start + 1024].astype(np.float64) / 255 @ np.array(LUMA)
        total += float(grey.sum())
        squares += float(np.square(grey).sum())
    count = len(images) * images.shape[1] * images.shape[2]
    mean = total / count
    std = max(squares / count - mean**2, 0.0) ** 0.5
    return (mean,), (std or 1.0,)
