"""What the teacher step and the distill step share: from a `train` section to a trained network's folder."""

from pathlib import Path
from typing import Any

import torch

from gkd_core.config import Curve, Training
from gkd_core.data.augment import Augmentation
from gkd_core.data.loader import Loader
from gkd_core.data.prepared import DatasetInfo, PreparedData
from gkd_core.errors import GkdError
from gkd_core.files import json_digest, write_json
from gkd_core.losses.base import Context
from gkd_core.methods import METHODS, check_hyperparameters
from gkd_core.models.network import Network, NetworkSpec, save_network
from gkd_core.run_facts import run_facts
from gkd_core.schedules import create_schedule
from gkd_core.training.device import choose_device, use_bf16
from gkd_core.training.learning_rate import learning_rate_factor
from gkd_core.training.loop import train
from gkd_core.training.optimizer import create_optimizer
from gkd_core.training.record import write_record
from gkd_core.training.teacher import OnlineTeacher


def new_network(name: str, stem: str, info: DatasetInfo, seed: int) -> Network:
    """An untrained network for a data set; the same seed gives the same weights."""
    torch.manual_seed(seed)
    return Network(
        NetworkSpec(
            name=name,
            stem=stem,
            classes=info.classes,
            in_channels=info.channels,
            image_size=info.image_size,
            mean=info.mean,
            std=info.std,
        )
    )


def fit(
    *,
    role: str,
    network: Network,
    data: PreparedData,
    training: Training,
    folder: Path,
    work: Path,
    inputs: dict[str, str],
    method: str = "ce",
    hyperparameters: dict[str, Any] | None = None,
    schedule: str | None = None,
    curve: Curve | None = None,
    teacher: Network | None = None,
) -> dict[str, Any]:
    """Train `network` and write its folder: weights, curves, facts.

    Args:
        role: what it is, for progress and errors: "teacher", "student", …
        folder: existing folder to fill.
        work: the checkpoint lives in a folder in there, named by the digest of `inputs`.
        inputs: digests of everything the result depends on.
    Returns:
        What training.json holds.
    Raises:
        GkdError: a hyperparameter is wrong, the method does not go with these networks or with mixup, or training
            came to numbers that are not finite.
    """
    curve = curve or Curve()
    checked = check_hyperparameters(method, hyperparameters or {})
    schedule = schedule or METHODS[method].schedule
    device = choose_device(training.device)
    autocast = use_bf16(training.precision, device)
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # 1.4 × on a CPU

    augment = training.augment
    augmentation = Augmentation(
        crop_padding=data.info.augment["crop_padding"] if augment.crop_padding is None else augment.crop_padding,
        flip=data.info.augment["flip"] if augment.flip is None else augment.flip,
        cutout=augment.cutout,
        mixup=augment.mixup,
    )
    loader = Loader(
        data.train,
        batch_size=training.batch_size,
        device=device,
        seed=training.seed,
        augmentation=augmentation,
        shuffle=True,
        num_classes=len(data.info.classes),
    )
    validation = Loader(
        data.validation,
        batch_size=max(training.batch_size, 256),
        device=device,
        augmentation=None,
        shuffle=False,
        num_classes=len(data.info.classes),
    )

    loss_class = METHODS[method].load()
    if loss_class.hard_labels and augment.mixup:
        raise GkdError(f"distill.method {method} needs plain labels, train.augment.mixup mixes them: set it to 0")
    if loss_class.feature_maps:
        for who, net in (("student", network), ("teacher", teacher if METHODS[method].teacher else None)):
            if net is not None and not net.stage_shapes():
                raise GkdError(
                    f"distill.method {method} compares feature maps, and the {who} {net.spec.name} has none: "
                    f"choose a method that needs logits only (kd, say) or another {who}"
                )
    frozen = None
    if teacher is not None and METHODS[method].teacher:
        frozen = OnlineTeacher(teacher, device=device, autocast=autocast, topology=data.train.topology)
    torch.manual_seed(training.seed)
    context = Context(
        student=network,
        teacher=frozen.network if frozen else None,
        train_labels=torch.from_numpy(data.train.labels),
        epochs=training.epochs,
        seed=training.seed,
    )
    loss = loss_class(context, **checked).to(device)
    fingerprint = json_digest(inputs)
    checkpoint = work / fingerprint[:16] / "checkpoint.pt"
    trained = train(
        network,
        loss,
        name=f"{role} {network.spec.name}" + ("" if method == "ce" else f" ({method})"),
        loader=loader,
        validation=validation,
        teacher=frozen,
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
        weight=create_schedule(schedule, epochs=training.epochs, **curve.model_dump()),
        epochs=training.epochs,
        checkpoint=checkpoint,
        fingerprint=fingerprint,
        label_smoothing=training.label_smoothing,
        clip_norm=training.clip_norm,
        ema_decay=training.ema_decay,
        select=training.select,
        autocast=autocast,
    )
    save_network(network, folder)
    facts = {
        "role": role,
        "network": network.spec.name,
        "method": method,
        "hyperparameters": checked,
        "schedule": schedule,
        "seed": training.seed,
        **inputs,
    }
    write_record(folder, trained, facts, steps_per_epoch=loader.steps_per_epoch)
    write_json(
        folder / "run.json",
        run_facts(seconds=trained.seconds, device=device) | {"images_per_second": round(trained.images_per_second, 1)},
    )
    return {**facts, "validation_top1": trained.history[trained.selected_epoch - 1]["validation_top1"]}


def forget_checkpoint(work: Path, inputs: dict[str, str]) -> None:
    """Remove the checkpoint of a training whose folder is complete; one that is not there is no error."""
    folder = work / json_digest(inputs)[:16]
    for file in folder.glob("*checkpoint.pt*"):
        file.unlink()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
