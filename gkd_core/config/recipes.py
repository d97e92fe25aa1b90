"""Recipes: defaults of a training that belong together. A field that is given overrides its recipe's; null takes it.

`cifar` is the small network on small images that everything here began with. `fine-tune` starts from learnt weights: a
new head first, then everything, gently below the head, so that few photos suffice and few epochs.
`photos-from-scratch` starts from noise on larger images, which takes many more steps. `auto` chooses among them by what
the network starts from and by the size of its images; the number of images then says how many epochs there are, and how
large batches.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from gkd_core.config.schema import (
    AugmentConfig,
    DataConfig,
    MemberConfig,
    NetworkConfig,
    Params,
    RecipeName,
    TrainingConfig,
)
from gkd_core.errors import GkdError
from gkd_core.mistakes import Mistake, mistakes

SMALL_UP_TO = 64  # pixels: what the benchmarks of small images have, and where a stem without strides ends
FINE_TUNE_STEPS, FINE_TUNE_EPOCHS = 1000, (5, 20)
PHOTO_STEPS, PHOTO_EPOCHS = 3000, (15, 100)
UNLABELLED_FRACTION = 0.5
SIZES_KNOWN = {"digits": 8, "cifar10": 32, "cifar100": 32, "folder": 64, "list": 64, "huggingface": 64}
"""Side in pixels of the images of a source where `data.image_size` is null."""
NO_COLOURS = {"auto": "none", "color_jitter": 0.0, "erasing": 0.0}


class ResolvedAugment(AugmentConfig):
    """An `AugmentConfig` in which nothing is left to a recipe."""

    random_resized_crop: list[float] | Literal[False]
    auto: Literal["none", "trivial", "rand"]
    color_jitter: float
    erasing: float


class ResolvedTraining(TrainingConfig):
    """A `TrainingConfig` in which nothing is left to a recipe."""

    recipe: RecipeName
    epochs: int
    batch_size: int
    optimizer: Literal["sgd", "adamw"]
    learning_rate: float
    weight_decay: float
    decay_norms: bool
    warmup_epochs: float
    label_smoothing: float
    freeze_epochs: int
    backbone_lr_factor: float
    freeze_batch_norm: bool
    augment: ResolvedAugment
    unlabelled_fraction: float


@dataclass(frozen=True)
class Start:
    """What a training starts from, as far as a recipe asks.

    Attributes:
        weights: the network's were learnt before; None: nobody knows (a module of one's own).
        image_size: side in pixels of the images it works on.
        images: how many there are to train on.
        network: its name, for errors.
        unlabelled: there are images without labels that it may learn from.
        whole: the images to train on are kept whole, so that windows can be drawn from all of each.
    """

    weights: bool | None
    image_size: int
    images: int
    network: str = "the network"
    unlabelled: bool = False
    whole: bool = False


def resolve(config: TrainingConfig, start: Start, section: str = "train") -> ResolvedTraining:
    """The training with the values of its recipe wherever it gives none.

    Args:
        section: where the user wrote `config`, for errors.
    Raises:
        GkdError: what is given and what the recipe says contradict each other, or the recipe needs learnt weights.
    """
    recipe, _ = choose(config, start)
    _refuse_noise(config, start, section)
    if config.unlabelled_fraction and not start.unlabelled:
        raise GkdError(
            f"{section}.unlabelled_fraction is {config.unlabelled_fraction:g}, but the data has no unlabelled images: "
            "name their folder in data.unlabelled, or leave it out"
        )
    given = {name: value for name, value in config.model_dump().items() if value is not None}
    chosen = RECIPES[recipe](given, start) | {"unlabelled_fraction": UNLABELLED_FRACTION if start.unlabelled else 0.0}
    augment = {name: value for name, value in given["augment"].items() if value is not None}
    content = {
        **config.model_dump(), **chosen, **given, "augment": {**given["augment"], **chosen["augment"], **augment},
        "recipe": recipe,
    }  # fmt: skip
    try:
        return ResolvedTraining.model_validate(content)
    except ValidationError as error:
        wrong = [found.sentence for found in mistakes(error, ResolvedTraining, at=(section,))]
        said = "" if recipe == "cifar" else f" (recipe {recipe})"
        raise GkdError("\n".join(f"{sentence}{said}" for sentence in wrong)) from None


def choose(config: TrainingConfig, start: Start) -> tuple[RecipeName, str]:
    """Which recipe holds, and why."""
    if config.recipe != "auto":
        return config.recipe, "as given"
    if start.weights:
        return "fine-tune", "auto: the network starts from learnt weights"
    noise = f"auto: the network starts from noise, on images of {start.image_size} pixels"
    if start.image_size <= SMALL_UP_TO:
        return "cifar", f"{noise}, at most {SMALL_UP_TO}"
    return "photos-from-scratch", f"{noise}, more than {SMALL_UP_TO}"


@dataclass(frozen=True)
class Planned:
    """A training that parameters ask for, and all it may start from as far as they tell.

    Attributes:
        section: where `config` was written.
        network: name of what is trained.
    """

    section: str
    network: str
    config: TrainingConfig
    starts: tuple[Start, ...]

    def outcomes(self) -> list[ResolvedTraining | str]:
        """What each start comes to: the training, or why it is refused."""
        found: list[ResolvedTraining | str] = []
        for start in self.starts:
            try:
                found.append(resolve(self.config, start, self.section))
            except GkdError as error:
                found.append(str(error))
        return found


def planned(
    params: Params,
    image_size: int | None = None,
    images: int | None = None,
    unlabelled: bool | None = None,
    whole: bool | None = None,
) -> list[Planned]:
    """The trainings of the teacher step, then the student's, which its references have too.

    Args:
        image_size: side of the prepared images in pixels; None: as far as the parameters tell.
        images: how many there are to train on; None: not known.
        unlabelled: there are images without labels; None: as the parameters say.
        whole: whether they are kept whole; None: as the parameters tell.
    """
    some = params.data.unlabelled is not None if unlabelled is None else unlabelled
    side = image_size or params.data.image_size or SIZES_KNOWN.get(params.data.source)
    whole = _kept_whole(params.data) if whole is None else whole
    teacher, student = params.teacher, params.student
    assistants = [NetworkConfig(name=name) for name in teacher.assistants]
    networks: list[NetworkConfig] = [*teacher.members] or [teacher, *assistants]
    trained = [("teacher.train", teacher.train, network) for network in networks if teacher.source is None]
    plans = []
    for section, config, network in [*trained, ("train", params.train, student)]:
        part = isinstance(network, MemberConfig) and network.classes is not None  # of the images, nobody knows how many
        seen = student.image_size or side if network is student else side
        sizes = [seen] if seen else [1, SMALL_UP_TO + 1]
        counts = [images] if images and not part else [1, 10**9]
        taught = network is student or bool(assistants)
        starts = tuple(
            Start(network.weights is not None, size, count, network.name, unlabelled=some and taught, whole=whole)
            for size in sizes
            for count in counts
        )
        plans.append(Planned(section, network.name, config, starts))
    return plans


def _kept_whole(data: DataConfig) -> bool:
    """Whether `gkd prepare` keeps training pictures whole, as far as the parameters tell."""
    benchmark = data.source in ("digits", "cifar10", "cifar100") or data.source.startswith("torchvision:")
    asked = data.store in ("raw", "compressed") or data.store_size is not None or (data.image_size or 0) > SMALL_UP_TO
    return asked and not benchmark and data.store != "squares"


def untrainable(params: Params) -> Iterator[Mistake]:
    """What a step would refuse to train whatever its images are, said before anything is trained."""
    told: set[str] = set()
    for plan in planned(params):
        outcomes, section = plan.outcomes(), plan.section
        trainings = [outcome for outcome in outcomes if not isinstance(outcome, str)]
        try:
            refuse_unread_momentum(plan.config, *trainings, section=section)
        except GkdError as error:
            sentence = str(error)
        else:
            if trainings:
                continue
            sentence = str(outcomes[0])
        if sentence not in told:
            told.add(sentence)
            yield Mistake(tuple(section.split(".")), sentence, contradiction=True)


def refuse_unread_momentum(config: TrainingConfig, *resolved: ResolvedTraining, section: str = "train") -> None:
    """See that momentum, where somebody wrote it, is read by the optimizer that a recipe chooses.

    Args:
        config: as it was written; an optimizer in it was asked before (`TrainingConfig.unread`).
        resolved: what it may come to.
        section: where the user wrote `config`, for the error.
    Raises:
        GkdError: all of them take adamw.
    """
    given = "momentum" in config.model_fields_set and config.optimizer is None
    if given and resolved and all(training.optimizer == "adamw" for training in resolved):
        raise GkdError(
            f"{section}: momentum is given but the recipe's optimizer is adamw: only sgd reads momentum, so leave it "
            "out, or set optimizer"
        )


def _refuse_noise(config: TrainingConfig, start: Start, section: str) -> None:
    """Raises: GkdError: what makes sense for learnt weights alone is asked of a network that starts from noise."""
    asked = {
        "recipe": config.recipe if config.recipe == "fine-tune" else None,
        "freeze_epochs": config.freeze_epochs,
        "freeze_batch_norm": config.freeze_batch_norm,
    }
    for name, value in asked.items():
        if value and start.weights is False:
            raise GkdError(
                f"{section}.{name} is {str(value).lower()}, but {start.network} starts from noise: give it weights, or "
                f"leave {section}.{name} out"
            )


def _cifar(given: Mapping[str, Any], start: Start) -> dict[str, Any]:
    """The defaults of the CIFAR benchmarks, shortened: SGD with momentum, the same rate for all."""
    return {
        "epochs": 20,
        "batch_size": 64,
        "optimizer": "sgd",
        "learning_rate": 0.05,
        "weight_decay": 5e-4,
        "decay_norms": True,
        "warmup_epochs": 0.0,
        "label_smoothing": 0.0,
        "freeze_epochs": 0,
        "backbone_lr_factor": 1.0,
        "freeze_batch_norm": False,
        "augment": {"random_resized_crop": False, **NO_COLOURS},
    }


def _fine_tune(given: Mapping[str, Any], start: Start) -> dict[str, Any]:
    """From learnt weights: the new head alone for the first epochs, then all, below the head at a tenth of its rate.

    Statistics of batch norms stay: those of a few small batches are worse (449 flowers of 96 pixels, batches of 16, an
    ImageNet EfficientNet-Lite0, 10 epochs, one seed: 84.0 against 78.7 % of 188 test images). No label smoothing: a
    teacher trained with it teaches less (Müller et al. 2019, arXiv:1906.02629). With optimizer sgd the learning rate is
    0.01 and weight decay 1e-4. The colour jitter, on images above 64 pixels, is the default of timm's train.py. Of
    whole pictures the images are windows of at least 35 % of them, with which a new head still sees what it is to name.
    """
    epochs, batch_size = _length(given, start.images, FINE_TUNE_STEPS, FINE_TUNE_EPOCHS)
    sgd = given.get("optimizer") == "sgd"
    return {
        "epochs": epochs,
        "batch_size": batch_size,
        "optimizer": "adamw",
        "learning_rate": 0.01 if sgd else 1e-3,
        "weight_decay": 1e-4 if sgd else 0.05,
        "decay_norms": False,
        "warmup_epochs": _warmup(given, epochs, 1.0),
        "label_smoothing": 0.0,
        "freeze_epochs": min(2, epochs // 5),
        "backbone_lr_factor": 0.1,
        "freeze_batch_norm": True,
        "augment": {
            "random_resized_crop": _windows(given, start, 0.35),
            **({"auto": "none", "color_jitter": 0.4, "erasing": 0.0} if _photos(start) else NO_COLOURS),
        },
    }


def _photos_from_scratch(given: Mapping[str, Any], start: Start) -> dict[str, Any]:
    """From noise, on photos: AdamW with a warm-up and label smoothing, for thousands of steps.

    With optimizer sgd the learning rate is 0.05 and weight decay 1e-4. TrivialAugment and erasing, on images above 64
    pixels, are those of torchvision's reference training; its mixup and cutmix are left out, for they suit hundreds of
    epochs, and methods that need plain labels refuse them. Of whole pictures the images are windows of at least 25 % of
    them: less suits longer trainings.
    """
    epochs, batch_size = _length(given, start.images, PHOTO_STEPS, PHOTO_EPOCHS)
    sgd = given.get("optimizer") == "sgd"
    return {
        "epochs": epochs,
        "batch_size": batch_size,
        "optimizer": "adamw",
        "learning_rate": 0.05 if sgd else 2e-3,
        "weight_decay": 1e-4 if sgd else 0.05,
        "decay_norms": False,
        "warmup_epochs": _warmup(given, epochs, 5.0),
        "label_smoothing": 0.1,
        "freeze_epochs": 0,
        "backbone_lr_factor": 1.0,
        "freeze_batch_norm": False,
        "augment": {
            "random_resized_crop": _windows(given, start, 0.25),
            **({"auto": "trivial", "color_jitter": 0.0, "erasing": 0.1} if _photos(start) else NO_COLOURS),
        },
    }


def _windows(given: Mapping[str, Any], start: Start, smallest: float) -> list[float] | Literal[False]:
    """Windows of whole pictures, unless shifts of squares were asked for."""
    shifts = given.get("augment", {}).get("crop_padding")
    return [smallest, 1.0] if start.whole and not shifts else False


def _photos(start: Start) -> bool:
    """Whether the images are large enough to be photos; what changes colours and shapes was not made for digits."""
    return start.image_size > SMALL_UP_TO


RECIPES: dict[RecipeName, Callable[[Mapping[str, Any], Start], dict[str, Any]]] = {
    "cifar": _cifar,
    "fine-tune": _fine_tune,
    "photos-from-scratch": _photos_from_scratch,
}


def _length(given: Mapping[str, Any], images: int, steps: int, limits: tuple[int, int]) -> tuple[int, int]:
    """Epochs for so many steps, within limits, and a batch size for so many images."""
    batch_size = given.get("batch_size") or next(
        size for size, most in ((16, 500), (32, 2000), (64, 20_000), (128, images + 1)) if images < most
    )
    fewest, most = limits
    return given.get("epochs") or min(most, max(fewest, round(steps * batch_size / images))), batch_size


def _warmup(given: Mapping[str, Any], epochs: int, longest: float) -> float:
    """A tenth of the training at most; none for a schedule that warms up by itself."""
    return 0.0 if given.get("schedule") == "onecycle" else min(longest, epochs / 10)
