"""The trainer: one loop for teacher, student and references.

    L = CE + β(t) · Σ other terms

Read it top to bottom. Order and augmentation of images are a pure function of (seed, epoch), learning rate and β of
time; so what a checkpoint holds at the end of a step is all there is, and a run that was killed and started again
ends with the same bits as one that was not (CPU). One is written after every epoch; within an epoch every five
minutes, and when SIGTERM or Ctrl-C asks the training to end (`interruption.py`).

Several processes (`distributed.py`) go through it side by side, each with its rows of every batch. What they decide on
is reduced over all of them first, so they take every turn together.
"""

import contextlib
import copy
import functools
import hashlib
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gkd_core import plugins, schemes
from gkd_core.config import (
    CHANGES_NOTHING,
    DistillConfig,
    TrainingConfig,
    parse_section,
    refuse_unfit_augmentation,
    unlabelled_refused,
    unmixable,
    unweighable,
)
from gkd_core.config.recipes import ResolvedTraining, Start, choose, refuse_unread_momentum, resolve
from gkd_core.cores import usable_cores
from gkd_core.data import own
from gkd_core.data.augment import Augmentation
from gkd_core.data.balance import class_counts, class_weights, log_priors
from gkd_core.data.loader import Batch, Loader
from gkd_core.data.prepared import PreparedData
from gkd_core.data.shards import Shards
from gkd_core.errors import DivergedError, GkdError
from gkd_core.files import json_digest, refuse_to_replace
from gkd_core.losses.base import at_least_float32
from gkd_core.methods import METHODS, RENAMED, hyperparameters
from gkd_core.models.classifier import Output
from gkd_core.models.macs import multiply_accumulates
from gkd_core.models.network import Network, expect_network
from gkd_core.models.topological import images_only
from gkd_core.models.wrap import WRAPPED
from gkd_core.schedules import Observer, create_schedule
from gkd_core.schemes import DistillationSpec
from gkd_core.training import distributed, interruption
from gkd_core.training.cached_teacher import CachedTeacher, with_cache
from gkd_core.training.checkpoint import load_checkpoint, save_checkpoint
from gkd_core.training.device import use_bf16
from gkd_core.training.learner import Learner
from gkd_core.training.learning_rate import learning_rate_factor, thawing_factor
from gkd_core.training.optimizer import backbone_parameters, create_optimizer
from gkd_core.training.progress import TrainingProgress
from gkd_core.training.result import History, Result
from gkd_core.training.teacher import Teacher
from gkd_core.training.threads import computing_with, cores_of, threads_for, torch_limit
from gkd_core.training.watcher import Watcher
from gkd_core.training.workspace import TEACHER_CACHE, remove_workspace, step_folder, workspace

# Reading a number from an accelerator makes it wait; on the CPU it costs nothing.
STEPS_BETWEEN_READS = {"cpu": 1}
STEPS_BETWEEN_READS_ELSEWHERE = 50
CHECKPOINT = "checkpoint.pt"
# Within an epoch, which may take an hour: not everything that ends a training sends a signal first.
SECONDS_BETWEEN_CHECKPOINTS = 300.0
KEEP = 1  # among the numbers of signals: write a checkpoint and go on; that of no signal that is waited for

EpochHook = Callable[[dict[str, float], int], None]
"""Is told the history's new row after every epoch, and how many epochs there will be; may raise `StopTraining`. A
training that goes on tells the rows of its checkpoint first. Each of several processes calls its own."""


class StopTraining(Exception):
    """Raised by an `EpochHook`: the training ends, for good, and its checkpoint goes."""


def train(
    network: Network,
    data: PreparedData,
    *,
    work: Path | str | None = None,
    out: Path | str | None = None,
    seed: int = 0,
    on_epoch: EpochHook | None = None,
    **settings: Any,
) -> Result:
    """Train a network on labels alone, in place.

    Args:
        network: from `create_model`, `wrap` or `load_model`; its classes are the data's.
        data: from `load_data`.
        work: folder for checkpoints; the same call again goes on from there and ends with the same weights.
        out: folder to write the finished network to; it appears whole or not at all. None writes nothing.
        seed: of the order of images and of augmentation.
        on_epoch: called after every epoch with the history's new row and the number of epochs; see `EpochHook`.
        settings: fields of `train` in params.yaml: epochs, batch_size, learning_rate, optimizer, device, …
    Raises:
        GkdError: an argument or a setting is unknown or wrong, or the training came to NaN or infinity.

    Example:
        >>> import gkd_core as gkd
        >>> data = gkd.load_data("digits", train_images=200)
        >>> teacher = gkd.create_model("resnet8", data=data)
        >>> result = gkd.train(teacher, data, epochs=1, device="cpu")
        >>> len(result.history)
        1
    """
    expect_network(network, "network")
    _expect_data(data)
    training = Training(
        network,
        data,
        _config(network, data, seed, settings),
        facts={"role": "teacher"},
        title="network",
        on_epoch=on_epoch,
    )
    return _run_alone(training, work, out)


def distill(
    student: Network,
    teacher: Network | Sequence[Network] | None,
    data: PreparedData,
    *,
    method: str = "kd",
    options: dict[str, Any] | None = None,
    schedule: str | None = None,
    curve: dict[str, float | None] | None = None,
    scheme: str = schemes.DEFAULT,
    scheme_options: dict[str, Any] | None = None,
    work: Path | str | None = None,
    out: Path | str | None = None,
    seed: int = 0,
    on_epoch: EpochHook | None = None,
    **settings: Any,
) -> Result:
    """Train a student that learns from a teacher, in place.

    Args:
        student, data: as in `train`.
        teacher: frozen here; several for schemes in which several teach, None for methods without one.
        method: one of `list_methods()`.
        options: hyperparameters of the method.
        schedule, curve: β(t) by name and shape, see `gkd_core.schedules.create_schedule`; None is the method's own.
        scheme, scheme_options: who teaches whom.
        work, out, seed, on_epoch, settings: as in `train`.
    Raises:
        GkdError: method, scheme, networks and settings do not go together, or the training came to NaN or infinity.

    Example:
        >>> import gkd_core as gkd
        >>> data = gkd.load_data("digits", train_images=200)
        >>> teacher, student = (gkd.create_model(name, data=data) for name in ("resnet14", "resnet8"))
        >>> result = gkd.distill(student, teacher, data, method="kd", epochs=1, device="cpu")
        >>> result.facts["method"]
        'kd'
    """
    given: dict[str, Any] = {"method": method, "schedule": schedule, "curve": curve, "scheme": scheme}
    given |= {} if options is None else {"options": {method: options}}
    given |= {} if scheme_options is None else {"scheme_options": {scheme: scheme_options}}
    parse_section(DistillConfig, given, "distill")
    spec = DistillationSpec(method, options or {}, schedule, curve or {}, scheme, scheme_options or {})
    expect_network(student, "student")
    _expect_data(data)
    several = teacher if isinstance(teacher, list | tuple) else [] if teacher is None else [teacher]
    teachers = [expect_network(each, "teacher") for each in several]
    if any(each is student for each in teachers):
        raise GkdError("student and teacher are the same network: create the student by itself")
    schemes.get(scheme).check_teachers(spec, teachers, student, "the argument teacher")
    refuse_options(settings, method, scheme)
    config = _config(student, data, seed, settings, method)
    training = Training(student, data, config, spec, tuple(teachers), {"role": "student"}, "student", on_epoch=on_epoch)
    return _run_alone(training, work, out)


def _expect_data(data: object) -> None:
    if not isinstance(data, PreparedData):
        raise GkdError(f"data is a {type(data).__name__}: give what load_data returns")


def refuse_options(settings: dict[str, Any], method: str, scheme: str = schemes.DEFAULT) -> None:
    """Raises: GkdError: among the settings of the training is one of the method or the scheme."""
    places = {
        "options": (f"method {method}", {*hyperparameters(method), *RENAMED.get(method, {})}),
        "scheme_options": (f"scheme {scheme}", {*schemes.get(scheme).options.model_fields}),
    }
    for argument, (owner, names) in places.items():
        for name in settings.keys() & names - TrainingConfig.model_fields.keys():
            raise GkdError(f"{name} is an option of {owner}: pass {argument}={{{name!r}: {settings[name]!r}}}")


def _config(
    network: Network, data: PreparedData, seed: int, settings: dict[str, Any], method: str = "ce"
) -> TrainingConfig:
    config = parse_section(TrainingConfig, settings | {"seed": seed}, "train")
    if config.devices > distributed.processes():
        raise GkdError(
            f"train.devices is {config.devices}, but this program is one process: start it with torchrun "
            f"--nproc-per-node {config.devices}, or run the step (`gkd distill`), which starts them by itself"
        )
    if config.unlabelled_fraction and method == "ce":
        raise GkdError(
            f"unlabelled_fraction is {config.unlabelled_fraction:g}, but without a teacher a network learns from "
            "labels alone: leave it out, or distill"
        )
    refuse_unread_momentum(config, resolve(config, start_of(network, data)))
    return config


def _run_alone(training: "Training", work: Path | str | None, out: Path | str | None) -> Result:
    """A training that no step has prepared: its digests are taken here."""
    network, data = training.network, training.data
    if network.classes != data.info.classes:
        raise GkdError(
            f"the network has {len(network.classes)} classes, the data {data.info.source} has "
            f"{len(data.info.classes)}, or in another order: create it with classes=data.classes"
        )
    kind = "student" if training.facts["role"] == "student" else "network"
    for place in [] if work is None else [Path(work), *Path(work).parents]:
        if place.exists() and not place.is_dir():
            raise GkdError(f"work {work} cannot be a folder, for {place} is a file: name a folder")
    if out is not None:
        refuse_to_replace(Path(out), kind=kind, option="out")  # before hours of training
    if training.config.teacher_cache and training.teachers and work is None:
        raise GkdError("teacher_cache is true, but there is no folder for it: give work=FOLDER")
    training = replace(
        training,
        facts=training.facts
        | {
            "data_sha256": data.info.sha256,
            "initial_weights": weights_digest(network),
            "teacher_digest": json_digest([weights_digest(teacher) for teacher in training.teachers]),
            **training.plugin_facts,
            "config_digest": json_digest(
                {"train": training.config.model_dump(exclude={*CHANGES_NOTHING}), "distill": asdict(training.spec)}
            ),
        },
        cache=None if work is None else Path(work) / TEACHER_CACHE,
    )
    space = None if work is None else workspace(Path(work), training.facts)
    training = replace(training, space=space)
    with removed_when_stopped(space):
        result = training.in_scheme(network.sibling, space)
    if result.network is not network:
        network.load_state_dict(result.network.state_dict())
        result = replace(result, network=network.eval())
    if out is not None:
        with step_folder(Path(out), kind=kind, option="out") as folder:
            result.save(folder)
    return result


@contextlib.contextmanager
def removed_when_stopped(space: Path | None) -> Iterator[None]:
    """A training that `StopTraining` ends leaves no checkpoint in its workspace."""
    try:
        yield
    except StopTraining:
        if space is not None:
            remove_workspace(space)
        raise


def start_of(network: Network, data: PreparedData) -> Start:
    """What a recipe asks about a training of this network on this data, before it begins."""
    unknown = network.name.startswith(WRAPPED) and not network.pretrained
    return Start(
        None if unknown else network.pretrained,
        network.spec.image_size,
        len(data.train),
        network.name,
        unlabelled=data.info.unlabelled is not None,
        whole=data.info.photos is not None,
    )


def _of_labels_alone(training: "Training") -> TrainingConfig:
    """Its settings; where the method has no use for images without labels, these are left out.

    Raises:
        GkdError: the method cannot be trained beside them, and nobody said that they stay out.
    """
    method, given, config = training.spec.method, training.spec.hyperparameters, training.config
    unlabelled = METHODS[method].load().traits(given).unlabelled
    if training.data.info.unlabelled is None or unlabelled or config.unlabelled_fraction == 0:
        return config
    for sentence in unlabelled_refused(method, given, training.section):
        raise GkdError(sentence)
    return config.model_copy(update={"unlabelled_fraction": 0.0})


def weights_digest(network: Network) -> str:
    """sha256 of names and values of all weights."""
    digest = hashlib.sha256()
    for name, value in network.classifier.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Training:
    """One training: what, on what, how.

    Attributes:
        network: trained in place.
        data: images and labels.
        config: optimiser, learning rate over time, regularisation, hardware.
        spec: how it learns.
        teachers: the networks it learns from.
        facts: digests of everything that the result depends on, and more for the record; a checkpoint written under
            others is refused.
        title: what to call it in progress and errors.
        section: where the user wrote `config`, for errors.
        space: workspace of the step that this training is one of; None: the training's own.
        cache: folder for what the teacher answers, where `config` asks for that; other trainings may have it too.
        on_epoch: called after every epoch; of a scheme with several trainings, of the last.
        watcher: is told of every epoch.
    """

    network: Network
    data: PreparedData
    config: TrainingConfig
    spec: DistillationSpec = field(default_factory=DistillationSpec)
    teachers: tuple[Network, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    title: str = "network"
    section: str = "train"
    space: Path | None = None
    cache: Path | None = None
    on_epoch: EpochHook | None = None
    watcher: Watcher | None = None

    @property
    def plugin_facts(self) -> dict[str, str]:
        """What of it is a plugin's, with the digest of the plugin's sources; nothing where all is gkd's own."""
        networks = (self.network, *self.teachers)
        names: list[plugins.Name] = [("method", self.spec.method), *(("network", each.name) for each in networks)]
        used = plugins.lineage([*names, *own.names(self.config.augment.own)])
        return {"plugins": used} if used else {}

    def in_scheme(self, create_student: Callable[[int], Network], work: Path | None) -> Result:
        """Train as the scheme wants it: once, or in generations.

        Args:
            create_student: seed → an untrained student.
            work: see `run`.
        """
        return schemes.get(self.spec.scheme).train(self, create_student, work)

    def run(self, work: Path | None = None) -> Result:
        """Train once.

        Args:
            work: the checkpoint lives there; None keeps none.
        Raises:
            GkdError: the method does not go with these networks or with mixup or cutmix, the checkpoint is damaged or
                foreign, or a term, a gradient or the validation loss is NaN or infinite (the step and the terms are
                named; the last checkpoint stays).
        """
        return Trainer(self, work).run()


@dataclass
class _State:
    """Everything that a checkpoint must hold beyond modules and optimiser."""

    epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    steps: list[tuple[float, float]] = field(default_factory=list)
    best_epoch: int = 0
    best_weights: dict[str, Tensor] | None = None
    meter: dict[str, Any] | None = None
    """Of an epoch that is not over: what its steps came to so far, and so how many there were."""


class Trainer:
    """What takes part in a training, and the loop over it.

    Args:
        training: what, on what, how.
        work: the checkpoint lives there, written and read by the first process alone.
    """

    def __init__(self, training: Training, work: Path | None = None) -> None:
        spec, data = training.spec, training.data
        start = start_of(training.network, data)
        self.config = config = resolve(_of_labels_alone(training), start, training.section)
        recipe, reason = choose(training.config, start)
        self.recipe = f"recipe {recipe} ({reason}), {start.images:,} images to train on"
        unlabelled = data.unlabelled if config.unlabelled_fraction else None
        if unlabelled is not None:
            self.recipe += f", {len(unlabelled):,} without labels ({config.unlabelled_fraction:g} of every batch)"
        self.device = distributed.own_device(config.device)
        self.autocast = use_bf16(config.precision, self.device)
        # 1.4 × on a CPU
        self.network = network = training.network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        scheme = schemes.get(spec.scheme)
        scheme.check_training(config)
        image_size, channels = data.info.image_size, data.info.channels
        refuse_unfit_augmentation(config.augment, image_size, channels, section=training.section)
        self.loader, self.validation = loaders(data, config, self.device)
        self.teacher = scheme.create_teacher(
            spec,
            training.teachers,
            classes=network.classes,
            device=self.device,
            autocast=self.autocast,
            topology=data.train.topology,
        )
        torch.manual_seed(config.seed)
        known = {
            "seed": config.seed,
            "epochs": config.epochs,
            "train_labels": torch.from_numpy(data.train.labels),
        }
        self.learner: Learner = scheme.create_learner(
            spec, network, training.teachers, known, autocast=self.autocast
        ).to(self.device)
        self.learner.loss.label_smoothing = config.label_smoothing
        self._balance(training)
        for sentence in unmixable(spec.method, spec.hyperparameters, config.augment, training.section):
            raise GkdError(sentence)
        distributed.own_random_numbers(config.seed)
        self.optimizer = self.create_optimizer()
        self.peak_rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.thawing = thawing_factor(config.freeze_epochs, config.warmup_epochs)
        self.backbone = [p for n in self.learner.networks().values() for p in backbone_parameters(n) if p.requires_grad]
        self.learning_rate = learning_rate_factor(
            config.schedule,
            epochs=config.epochs,
            warmup_epochs=config.warmup_epochs,
            milestones=tuple(config.milestones),
            decay_factor=config.decay_factor,
        )
        assert spec.schedule is not None
        shape: dict[str, Any] = spec.curve
        self.weight: Callable[[float], float] = create_schedule(spec.schedule, epochs=config.epochs, **shape)
        self.average: AveragedModel | None = None
        if config.ema_decay is not None:
            moving = get_ema_multi_avg_fn(config.ema_decay)  # type: ignore[no-untyped-call]
            self.average = AveragedModel(network, multi_avg_fn=moving, use_buffers=True)
        by = "" if spec.method == "ce" else f" ({spec.method})"
        self.name = f"{training.title} {network.name}{by}"
        how = self._threads(training, work)
        if distributed.processes() > 1:
            how["processes"] = distributed.processes()
        self.facts = {
            "network": network.name,
            "method": spec.method,
            "hyperparameters": spec.hyperparameters,
            "schedule": spec.schedule,
            "scheme": spec.scheme,
            "scheme_options": spec.scheme_options,
            "seed": config.seed,
            "recipe": recipe,
            "recipe_reason": reason,
            "training": config.model_dump(mode="json", exclude={*CHANGES_NOTHING}),
            **({} if unlabelled is None else {"unlabelled_images": len(unlabelled)}),
            **training.facts,
            **training.plugin_facts,
            **how,
        }
        self.checkpoint = None if work is None else work / CHECKPOINT
        given = training.facts | training.plugin_facts
        self.fingerprint = json_digest(given | how | {"training": self.facts["training"]})
        self.state = _State()
        self.cached: CachedTeacher | None = None
        self.data, self._cache, self._on_epoch = data, training.cache, training.on_epoch
        self._vote = distributed.Vote()
        self._kept = 0.0
        self.work, self.watcher = work, training.watcher if distributed.rank() == 0 else None

    def _threads(self, training: Training, work: Path | None) -> dict[str, int]:
        """Choose the number of threads; {"threads"} where it changes results, which a GPU's do not."""
        config, data = self.config, training.data
        if self.device.type != "cpu":
            self.threads = config.threads or torch_limit()
            return {}
        began, here = cores_of(training.space or work), torch_limit()
        step = self._work(data) if config.threads is None and max(began, here) > 1 else 0
        self.threads, now = (config.threads or threads_for(step, cores) for cores in (began, here))
        self.recipe += f", {self.threads} thread{'s' * (self.threads > 1)}"
        if self.threads != now:
            self.recipe += f" as where it began (a training that began here would take {now})"
        elif self.threads > usable_cores():
            self.recipe += f" (more than the {usable_cores()} cores there are: they wait for each other)"
        return {"threads": self.threads}

    def _work(self, data: PreparedData) -> int:
        """Multiply-accumulates of the largest network's forward pass in a step, for this process's images."""
        networks = [*self.learner.networks().values(), *(self.teacher.networks if self.teacher else ())]
        view = data.info.channels, data.info.image_size
        macs = max(multiply_accumulates(images_only(network), *view) for network in networks)
        images = min(self.config.batch_size, len(data.train)) / (1 - self.config.unlabelled_fraction)
        return round(macs * images / distributed.processes())

    def create_optimizer(self) -> torch.optim.Optimizer:
        """Over all that is trained, at the peak learning rate."""
        config = self.config
        return create_optimizer(
            self.learner,
            name=config.optimizer,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            nesterov=config.nesterov,
            backbone_lr_factor=config.backbone_lr_factor,
            layer_decay=config.layer_decay,
            decay_norms=config.decay_norms,
            head_first=config.freeze_epochs > 0,
        )

    def _balance(self, training: Training) -> None:
        """Tell the loss how large the classes are, as far as `train.balance` asks it; the sampler is the loader's.

        Raises:
            GkdError: samples are to be weighted, and the loss has terms in which they cannot be.
        """
        loss, balance = self.learner.loss, self.config.balance
        counts = class_counts(training.data.train.labels, len(self.network.classes))
        if balance == "weights":
            if not loss.weighs_samples:
                raise GkdError(unweighable(training.spec.method, training.spec.hyperparameters, training.section))
            loss.class_weights = torch.from_numpy(class_weights(counts)).float().to(self.device)
        elif balance == "logit-adjustment":
            loss.log_priors = torch.from_numpy(log_priors(counts)).float().to(self.device)

    def run(self) -> Result:
        """Train to the end, from the checkpoint's step on where there is one."""
        # Without a checkpoint there is nothing to do first: whatever asks it to end, ends it.
        signals: contextlib.AbstractContextManager[interruption.Interruption]
        signals = interruption.deferred() if self.checkpoint else contextlib.nullcontext(interruption.Interruption())
        with computing_with(self.threads), signals as stop:
            return self._run(stop)

    def _run(self, stop: interruption.Interruption) -> Result:
        config, state, epochs = self.config, self.state, self.config.epochs
        if self.checkpoint is not None:
            path = self.checkpoint
            saved = distributed.of_first(lambda: load_checkpoint(path, self.fingerprint))
            if saved is not None:
                self._restore(saved)
        frozen = self._freeze(state.epoch < config.freeze_epochs)
        learner = distributed.replicated(self.learner)
        groups = self._clip_groups()
        schedule: object = self.weight

        start = self._kept = time.monotonic()
        steps = epochs * self.loader.steps_per_epoch
        shown = distributed.rank() == 0
        with TrainingProgress(self.name, steps=steps, done=len(state.steps), shown=shown) as progress, self._thawed():
            progress.epoch(self.recipe)
            if self.watcher is not None:
                rows = [self.learner.live_row(row) for row in state.history]
                self.watcher.begin(self.name, self.facts, self.work, rows)
            for row in state.history:
                self._tell(row)
            if config.teacher_cache and self.teacher is not None and state.epoch < epochs:
                progress.epoch(self.open_cache(self.teacher))
            for epoch in range(state.epoch, epochs):
                if frozen and epoch >= config.freeze_epochs:
                    frozen = self._freeze(False)
                    del learner  # before another is made around the same parameters
                    learner = distributed.replicated(self.learner)  # which gradients there are, it asks but once
                if isinstance(schedule, Observer):
                    progress.epoch(schedule.observe([row["validation_top1"] for row in state.history]))
                learner.train()
                self._keep_statistics(frozen)
                meter = _Meter(self.name, epoch, self.loader.steps_per_epoch, self.device)
                if state.meter is not None:
                    meter.load_state_dict(state.meter)
                    progress.epoch(f"goes on in epoch {epoch + 1} after step {meter.steps}")
                began, before = time.monotonic(), meter.images
                heed = functools.partial(self._heed, stop, meter, progress)
                for i, batch in enumerate(self.loader.epoch(epoch, meter.steps), start=meter.steps):
                    t = epoch + i / self.loader.steps_per_epoch
                    beta = float(self.weight(t))
                    for group, base in zip(self.optimizer.param_groups, self.peak_rates, strict=True):
                        group["lr"] = base * self.learning_rate(t)
                        if "backbone" in group:
                            group["lr"] *= self.thawing(t)
                    state.steps.append((float(self.optimizer.param_groups[0]["lr"]), beta))

                    labels = batch.labels if batch.targets is None else batch.targets
                    terms, logits = learner(batch, labels, self._teacher_output(batch, labels), t)
                    total = _total(terms, beta)
                    self.optimizer.zero_grad(set_to_none=True)
                    # Gradients are averaged over processes; the weight makes every sample count alike.
                    (batch.shards.weight * total).backward()  # type: ignore[no-untyped-call]
                    norm = _clip(groups, math.inf if config.clip_norm is None else config.clip_norm)
                    self.optimizer.step()
                    if self.average is not None:
                        self.average.update_parameters(self.network)

                    hits = (logits.argmax(1) == batch.labels).sum()
                    meter.add(batch.shards, {"loss": total, **terms, "gradient_norm": norm}, hits)
                    progress.advance(batch.shards.total, state=meter.state(beta))
                    heed()
                meter.check()
                speed = (meter.images - before) / max(time.monotonic() - began, 1e-9)
                distributed.share_buffers(self.learner, self.average)
                row = self._end_of_epoch(epoch, meter.means(), heed)
                progress.epoch(_epoch_line(row, epochs))
                if self.watcher is not None:
                    self.watcher.epoch(self.learner.live_row(row), speed)
                self._tell(row)
            if self.cached is not None:
                progress.epoch(self.cached.summary)
            throughput = progress.images_per_second
            if (number := self._vote.settle()) > KEEP:  # after the last step, and the checkpoint of the last epoch
                stop.deliver(number)
        return self._result(time.monotonic() - start, throughput)

    def _tell(self, row: dict[str, float]) -> None:
        if self._on_epoch is not None:
            self._on_epoch(dict(row), self.config.epochs)

    def _heed(self, stop: interruption.Interruption, meter: "_Meter", progress: TrainingProgress) -> None:
        """After a step: write a checkpoint where one is due or a signal came, and act on the signal.

        Several processes decide together, so that all of them stand at the same step.
        """
        if self.checkpoint is None:
            return
        due = time.monotonic() - self._kept >= SECONDS_BETWEEN_CHECKPOINTS and distributed.rank() == 0
        if due:
            self._kept = time.monotonic()  # the answer comes a step later, and one question is enough
        if not (asked := self._vote(stop.number or (KEEP if due else 0))):
            return
        meter.check()  # what has come to NaN is not gone on from
        self.state.meter = meter.state_dict()
        self._save(self.checkpoint)
        distributed.wait_for_all()  # whoever ends now would take the one that writes along
        if asked > KEEP:
            what = f"{signal.Signals(asked).name}: ends after step {meter.steps} of epoch {self.state.epoch + 1}"
            progress.epoch(f"{what}, which is in the checkpoint")
            stop.deliver(asked)

    def open_cache(self, teacher: Teacher) -> str:
        """Have the teacher's answers kept where that can be; one sentence about it. As many threads as in the training
        must be at work, for they change bits.
        """
        info, labels = self.data.info, self.data.train.labels
        known = {
            "data": info.sha256,
            "labels": hashlib.sha256(labels.tobytes()).hexdigest(),  # which part of the data it is
            "teacher": [(asdict(network.spec), weights_digest(network)) for network in teacher.networks],
        }
        self.cached, line = with_cache(
            teacher,
            self.loader,
            reads=METHODS[str(self.facts["method"])].reads,
            folder=self._cache,
            facts={name: json_digest(content) for name, content in known.items()},
            limit_gb=self.config.teacher_cache_gb,
        )
        return line

    def _teacher_output(self, batch: Batch, labels: Tensor) -> Output | None:
        """What the teacher says of the images as they are in the batch; None without one."""
        if self.cached is not None:
            return self.cached(batch)
        return self.teacher(batch.images, batch.indices, labels) if self.teacher else None

    def _freeze(self, frozen: bool) -> bool:
        """Whether everything below the heads is left as it is: no gradient reaches it, so no optimiser moves it."""
        for parameter in self.backbone:
            parameter.requires_grad_(not frozen)
        return frozen

    @contextlib.contextmanager
    def _thawed(self) -> Iterator[None]:
        """However the block ends, everything may be trained after it."""
        try:
            yield
        finally:
            self._freeze(False)

    def _keep_statistics(self, frozen: bool) -> None:
        """Batch norms whose running statistics are to stay go by them, and into eval mode for that."""
        for network in self.learner.networks().values() if frozen or self.config.freeze_batch_norm else ():
            head = network.classifier.head_layers
            for name, module in network.classifier.named_modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    in_head = any(f"{name}.".startswith(f"{layer}.") for layer in head)
                    if self.config.freeze_batch_norm or not in_head:
                        module.eval()

    def _end_of_epoch(self, epoch: int, means: dict[str, float], heed: Callable[[], None]) -> dict[str, float]:
        """Validate, take note, write the checkpoint; the history's new row."""
        state = self.state
        evaluated = self.network if self.average is None else cast("Network", self.average.module)
        row: dict[str, float] = {
            "epoch": epoch + 1,
            "learning_rate": state.steps[-1][0],
            "beta": state.steps[-1][1],
            **means,
        }
        for name, network in (self.learner.networks() | {"": evaluated}).items():
            top1, nll = validate(network, self.validation, autocast=self.autocast, between=heed)
            if not math.isfinite(nll):
                raise DivergedError(
                    f"{self.name}: after epoch {epoch + 1} the validation loss is NaN or infinite: lower "
                    f"train.learning_rate or set train.clip_norm; {self._last_checkpoint(epoch)}"
                )
            suffix = f"_{name}" if name else ""
            row |= {f"validation_top1{suffix}": top1, f"validation_nll{suffix}": nll}
        state.history.append(row)
        state.epoch = epoch + 1
        if state.best_epoch == 0 or row["validation_top1"] > state.history[state.best_epoch - 1]["validation_top1"]:
            state.best_epoch = epoch + 1
            if self.config.select == "best":
                state.best_weights = {k: v.detach().cpu().clone() for k, v in evaluated.state_dict().items()}
        state.meter = None
        if self.checkpoint is not None:
            self._save(self.checkpoint)
        return row

    def _save(self, checkpoint: Path) -> None:
        content = self._content()
        if distributed.rank() == 0:
            save_checkpoint(checkpoint, content)
        self._kept = time.monotonic()

    def _result(self, seconds: float, images_per_second: float) -> Result:
        """The kept weights into the network, and the record."""
        state, best = self.state, self.config.select == "best"
        if self.average is not None:
            self.network.load_state_dict(self.average.module.state_dict())
        if best and state.best_weights is not None:
            self.network.load_state_dict(state.best_weights)
        self.network.eval()
        history = copy.deepcopy(state.history)
        facts = self.facts | self.learner.on_train_end(history)
        if self.watcher is not None:
            self.watcher.end(copy.deepcopy(history))
        epoch = state.best_epoch if best else self.config.epochs
        selected = history[epoch - 1]
        return Result(
            network=self.network,
            history=History(history),
            facts={
                "trained": True,
                "epochs": len(history),
                "selected_epoch": epoch,
                "validation_top1": selected["validation_top1"],
                "validation_nll": selected["validation_nll"],
                **facts,
            },
            checkpoint=self.checkpoint,
            steps=torch.tensor(state.steps, dtype=torch.float64),
            seconds=seconds,
            images_per_second=images_per_second,
            teacher_cache_hits=None if self.cached is None else self.cached.hits,
        )

    def _last_checkpoint(self, epochs: int) -> str:
        return f"the checkpoint of epoch {epochs} is kept" if epochs and self.checkpoint else "no epoch was kept before"

    def _clip_groups(self) -> list[list[nn.Parameter]]:
        """The student with what its loss trains; then each network trained beside it, whose gradients are its own."""
        beside = [list(network.parameters()) for name, network in self.learner.networks().items() if name]
        apart = {id(p) for parameters in beside for p in parameters}
        together = [p for group in self.optimizer.param_groups for p in group["params"] if id(p) not in apart]
        return [together, *beside]

    def _content(self) -> dict[str, Any]:
        return {
            "fingerprint": self.fingerprint,
            **vars(self.state),
            "steps": torch.tensor(self.state.steps, dtype=torch.float64),
            "learner": self.learner.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "random": distributed.of_each(dict(_random_states(self.device))),
        }

    def _restore(self, saved: dict[str, Any]) -> None:
        for name in vars(self.state).keys() & saved.keys():  # what an earlier gkd wrote has no meter
            setattr(self.state, name, saved[name])
        self.state.steps = [(lr, beta) for lr, beta in saved["steps"].tolist()]
        self.learner.load_state_dict(saved["learner"])
        self.optimizer.load_state_dict(copy.deepcopy(saved["optimizer"]))
        if self.average is not None:
            self.average.load_state_dict(saved["average"])
        random = saved["random"][distributed.rank()]
        torch.set_rng_state(random["cpu"])
        if "cuda" in random and self.device.type == "cuda":
            torch.cuda.set_rng_state(random["cuda"], self.device)


def loaders(data: PreparedData, config: ResolvedTraining, device: torch.device) -> tuple[Loader, Loader]:
    """Batches to train on and to validate on.

    Raises:
        GkdError: the batch cannot be shared by the processes there are.
    """
    processes = distributed.processes()
    if config.batch_size % processes or config.batch_size < 2 * processes:
        raise GkdError(
            f"train.batch_size is {config.batch_size}, but {processes} processes share each batch: make it a multiple "
            f"of {processes}, at least {2 * processes}"
        )
    default: dict[str, Any] = {**data.info.augment}
    if config.augment.random_resized_crop:
        default["crop_padding"] = 0  # a window is a shift already
    augmentation = Augmentation(**{name: default[name] if value is None else value for name, value in config.augment})
    share: dict[str, Any] = {
        "device": device,
        "num_classes": len(data.info.classes),
        "processes": processes,
        "rank": distributed.rank(),
    }
    return (
        Loader(
            data.train,
            batch_size=config.batch_size,
            seed=config.seed,
            augmentation=augmentation,
            shuffle=True,
            balanced=config.balance == "sampler",
            unlabelled=data.unlabelled if config.unlabelled_fraction else None,
            unlabelled_fraction=config.unlabelled_fraction,
            views=config.teacher_views,
            **share,
        ),
        Loader(data.validation, batch_size=max(config.batch_size, 256), augmentation=None, shuffle=False, **share),
    )


@torch.no_grad()
def validate(
    network: Network, loader: Loader, *, autocast: bool = False, between: Callable[[], None] = lambda: None
) -> tuple[float, float]:
    """Top-1 accuracy in [0, 1] and mean negative log-likelihood in nats; the network is left in eval mode.

    Args:
        between: called between batches, as often in every process.
    """
    network.eval()
    device = loader.device
    hits = torch.zeros((), dtype=torch.int64, device=device)
    nll = torch.zeros((), dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)
    count = torch.zeros((), dtype=torch.int64)
    for number, batch in enumerate(loader.epoch(0)):
        if number < loader.steps_per_epoch - 1:  # of the last batch a process may have nothing
            between()
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
        self._labelled = 0
        self._hits = torch.zeros((), dtype=torch.int64, device=device)

    @property
    def steps(self) -> int:
        """How many were counted."""
        return len(self._sizes)

    def add(self, shards: Shards, values: dict[str, Tensor], hits: Tensor) -> None:
        if not self._names:
            self._names = list(values)
            self._values = torch.zeros(self._capacity, len(self._names), device=self._device)
        self._values[len(self._sizes)] = shards.mean(torch.stack([v.detach().float() for v in values.values()]))
        self._sizes.append(shards.total)
        self._labelled += shards.total if shards.labelled is None else shards.labelled
        self._hits += hits

    @property
    def images(self) -> int:
        """Images so far, of all processes."""
        return sum(self._sizes)

    def state(self, beta: float) -> str | None:
        """A short text of the latest terms every so many steps, else None; a term that is not finite raises."""
        if len(self._sizes) % self._every:
            return None
        self.check()
        latest = self._values[len(self._sizes) - 1].tolist()
        shown = [(n, v) for n, v in zip(self._names, latest, strict=True) if n != "gradient_norm"]
        return " ".join(f"{n} {v:.3f}" for n, v in shown) + f" β {beta:.2f}"

    def check(self) -> None:
        """Raises: GkdError naming the first step with a term that is NaN or infinite, and the terms."""
        bad = ~torch.isfinite(self._values[: len(self._sizes)])
        if not bool(bad.any()):
            return
        step = int(bad.any(1).nonzero()[0])
        terms = [n for n, wrong in zip(self._names, bad[step].tolist(), strict=True) if wrong]
        blamed = [n for n in terms if n != "loss"] or terms
        last = f"the checkpoint of epoch {self._epoch} is kept" if self._epoch else "no epoch was finished before"
        raise DivergedError(
            f"{self._name}: at epoch {self._epoch + 1}, step {step + 1} of {self._capacity}, "
            f"{', '.join(blamed)} {'is' if len(blamed) == 1 else 'are'} NaN or infinite: lower train.learning_rate or "
            f"set train.clip_norm; {last}"
        )

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint; `load_state_dict` makes another meter go on from it."""
        return {
            "names": self._names,
            "values": self._values[: self.steps].cpu(),
            "sizes": self._sizes,
            "labelled": self._labelled,
            "hits": int(distributed.total(self._hits)),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Before the first `add`."""
        self._names, self._sizes, self._labelled = list(saved["names"]), list(saved["sizes"]), saved["labelled"]
        self._values = torch.zeros(self._capacity, len(self._names), device=self._device)
        self._values[: self.steps] = saved["values"].to(self._device)
        self._hits += saved["hits"] if distributed.rank() == 0 else 0  # they are summed over processes

    def means(self) -> dict[str, float]:
        """Means over the epoch's images, each batch counted by its size; top-1 over those with a label."""
        sizes = torch.tensor(self._sizes, dtype=torch.float64)
        values = self._values[: len(self._sizes)].double().cpu()
        means = (values * sizes[:, None]).sum(0) / sizes.sum()
        row = {f"train_{n}": float(v) for n, v in zip(self._names, means, strict=True)}
        return row | {"train_top1": int(distributed.total(self._hits)) / self._labelled}


def _epoch_line(row: dict[str, float], epochs: int) -> str:
    return (
        f"epoch {row['epoch']:.0f}/{epochs}  loss {row['train_loss']:.3f}  β {row['beta']:.2f}  "
        f"train {100 * row['train_top1']:.2f} %  validation {100 * row['validation_top1']:.2f} %"
    )


def _random_states(device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """Generators behind dropout and the like; the loader's are seeded anew each epoch."""
    yield "cpu", torch.get_rng_state()
    if device.type == "cuda":
        yield "cuda", torch.cuda.get_rng_state(device)
