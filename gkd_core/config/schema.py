"""The sections of `params.yaml`: what each field means, its limits, and what contradicts what within a section.

The text under each field is its documentation: the docs' table is made from it (`make docs`). Config objects stop at
the step; losses, models and loops take plain arguments.
"""

import importlib.util
import re
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from gkd_core import methods, schemes
from gkd_core.data import own as own_augmentations
from gkd_core.decision import Score
from gkd_core.errors import GkdError, unknown
from gkd_core.files import json_digest
from gkd_core.mistakes import ContradictionsError
from gkd_core.plugins import Name, lineage, unknown_name

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Positive = Annotated[float, Field(gt=0.0)]
FILES = ("folder", "list", "huggingface")  # sources of files of one's own: here, in an archive or at an address
RecipeName = Literal["cifar", "fine-tune", "photos-from-scratch"]


def _known_device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", value):
        raise ValueError(unknown("device", value, ["auto", "cpu", "cuda", "cuda:N", "mps"]))
    return value


Device = Annotated[str, AfterValidator(_known_device)]


def _model_name(value: str) -> str:
    if not value or "/" in value or ":" in value:
        raise ValueError(
            f"model_name is {value!r}, but / and : separate the parts of MLflow's addresses: leave them out"
        )
    return value


def _or_empty(content: Any) -> Any:
    return {} if content is None else content  # a key with nothing below it


Options = Annotated[dict[str, Annotated[dict[str, Any], BeforeValidator(_or_empty)]], BeforeValidator(_or_empty)]


def whole(value: Any) -> Any:
    """Numbers without a fraction as whole numbers, which is what they were before JSON."""
    if isinstance(value, dict):
        return {key: whole(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [whole(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def _whole_options(given: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """4.0 is 4 and null is the default: the same options have one digest, before a pipeline's JSON and after."""
    return {
        owner: {name: whole(one) for name, one in chosen.items() if one is not None} for owner, chosen in given.items()
    }


class Section(BaseModel):
    """A part of params.yaml. Unknown keys and wrong types are refused, never coerced or dropped.

    Class attributes:
        unwritten: fields that are left out while they are empty when it is written, so that those who do not use them
            have the records and digests that they had before these were there.
    """

    unwritten: ClassVar[tuple[str, ...]] = ()

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, strict=True, allow_inf_nan=False
    )

    def contradictions(self) -> Iterator[str]:
        """What its fields say against each other, a sentence each."""
        yield from ()

    def unread(self) -> Iterator[str]:
        """What was given although the rest of the section leaves it without effect, a sentence each."""
        yield from ()

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, content: Any) -> Any:
        return _or_empty(content)

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = write(self)
        return {key: value for key, value in content.items() if value or key not in self.unwritten}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if found := list(self.contradictions()):
            raise ContradictionsError(found)
        return self


class DataConfig(Section):
    """Where the images come from and how they are prepared."""

    source: str = "digits"
    """`digits`, `cifar10`, `cifar100`, `folder` (of images), `list` (a table of images, CSV or Parquet), `huggingface`
    (a folder that `save_to_disk` of the package datasets wrote), or `torchvision:NAME` (any torchvision classification
    set)."""
    root: str | None = None
    """Where the data is. Of `folder`, `list` and `huggingface`: a place here, an archive of it (zip, tar), or the
    address of either (`s3://`, `gs://`, `https://`). Else the folder it is downloaded to, unpacked in and read from
    (null: gkd's folder in the user's cache). Enters no digest."""
    columns: dict[Literal["image", "label", "split"], str] = {}
    """Names of the columns of a list (or of a Hugging Face data set: image and label), where they are none of the
    usual, such as `{label: breed}`."""
    group: str | None = None
    """What belongs together (a patient, a burst of shots) and so is kept in one split: the column that says so; of
    `folder`, a regular expression for the path of each file below the root, whose first group is meant, such as
    `([^/]*)/[^/]*$` for the folder a file lies in. A list's column `group` needs no word."""
    image_size: Annotated[int, Field(ge=4, le=1024)] | None = None
    """Side of the prepared square images in pixels; null keeps the source's own (`folder`: 64)."""
    store: Literal["auto", "squares", "raw", "compressed"] = "auto"
    """How the training pictures of a source of files are kept: whole, as pixels (`raw`) or JPEG (`compressed`), so that
    training draws its windows from all of each; or as `squares`. `auto`: squares up to 64 pixels of `image_size`, whole
    above, compressed where pixels would take more than 8 GiB."""
    store_size: Annotated[int, Field(ge=4, le=2048)] | None = None
    """Shorter side of whole pictures in pixels, to which larger ones are brought down; null is 1.15 × `image_size`."""
    crop: Literal["center", "squash", "border"] = "center"
    """How a square is made of a picture that is looked at, by evaluation, `gkd predict` and servers: its centre, all of
    it out of proportion, or all of it between grey borders. timm's `crop_mode` of weights says what they expect."""
    channels: Literal[1, 3] | None = None
    """1 for greyscale, 3 for colour; null keeps the source's own (`folder`: 3)."""
    validation_fraction: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.1
    """Part of the training images set aside for validation, stratified by class."""
    test_fraction: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.2
    """Part set aside for the test where the source has no test split of its own (digits, a plain folder)."""
    train_images: Annotated[int, Field(ge=2)] | None = None
    """Keep this many of the training images, stratified by class and drawn by `seed`; validation and test stay whole.
    Null keeps all."""
    unlabelled: str | None = None
    """Folder of pictures without classes, at any depth, on which a teacher's answers teach (see
    `train.unlabelled_fraction`); one that is also in validation or test is left out. Enters no digest: the pictures
    do."""
    unreadable: Literal["refuse", "drop"] = "refuse"
    """What to do with image files that cannot be decoded: stop and list them, or leave them out and list them."""
    leakage: Literal["refuse", "allow"] = "refuse"
    """What to do with copies of one picture, exact or near (`gkd check`): refuse those in two ready splits and keep the
    others together where splits are taken from train, or decide the splits without regard to them. Digits, CIFAR and
    torchvision's sets are taken as they are published."""
    seed: Seed = 0
    """Seed of the splits."""
    topology: bool = False
    """Also compute persistence features of every image, for `teacher.topological` (needs the extra `gkd[topology]`;
    some milliseconds an image)."""

    def contradictions(self) -> Iterator[str]:
        if self.root is not None and self.source == "digits":
            yield f"root is {self.root} but source is digits, which reads no folder: set source to folder"
        if self.store == "squares" and self.store_size is not None:
            yield f"store_size is {self.store_size} but store is squares: only whole pictures have a store_size"
        if None not in (self.store_size, self.image_size) and self.store_size < self.image_size:  # type: ignore[operator]
            yield f"store_size is {self.store_size}, below image_size ({self.image_size}): raise it, or leave it out"
        for name, given in {"unreadable": self.unreadable == "drop", "group": self.group is not None}.items():
            if given and self.source not in FILES and (name != "unreadable" or self.unlabelled is None):
                own = "folder, list and huggingface"
                yield f"{name} is {getattr(self, name)} but source is {self.source}: only {own} have files of your own"
        if self.columns and self.source not in FILES[1:]:
            yield f"columns are given but source is {self.source}, which has none: leave them out"
        if self.group is not None and self.source == "folder":
            try:
                re.compile(self.group)
            except re.error as error:
                yield f"group {self.group} is no regular expression ({error}): correct it"
        if self.topology and self.unlabelled is not None:
            yield (
                "unlabelled names pictures, but topology is true, and persistence features are made of labelled images "
                "alone: set one of them to its default"
            )


def _parts_of_an_area(value: Any) -> Any:
    if value is None or value is False:
        return value
    numbers = isinstance(value, list) and len(value) == 2 and all(type(part) in (int, float) for part in value)
    if not numbers or not 0 < value[0] <= value[1] <= 1:
        raise ValueError(
            f"random_resized_crop is {value!r}: give the smallest and the largest part of the area, as [0.35, 1], or "
            "false"
        )
    return [float(part) for part in value]


class AugmentConfig(Section):
    """Random changes to training images, in this order; teacher and student see the same pixels.

    Null takes the default of the data's source, or where it says so the recipe's.
    """

    crop_padding: Annotated[int, Field(ge=0)] | None = None
    """Pixels of zero padding for a random crop back to size, i.e. the largest shift (CIFAR 4, digits 1)."""
    random_resized_crop: Annotated[list[float] | Literal[False] | None, BeforeValidator(_parts_of_an_area)] = None
    """Smallest and largest part of a picture's area that is seen, `[0.35, 1]` say: a random window, of 3:4 to 4:3, is
    resized to the image (torchvision's RandomResizedCrop), in place of `crop_padding`. `false` is off. Null takes the
    recipe's, which draws windows where pictures are kept whole (`data.store`) and `crop_padding` is not given."""
    flip: bool | None = None
    """Mirror left-right with probability one half (CIFAR yes, digits no)."""
    auto: Literal["none", "trivial", "rand"] | None = None
    """`trivial` is TrivialAugment (one change of brightness, colour, contrast, sharpness, place or shape an image, of
    any strength), `rand` RandAugment; as torchvision has them. Null takes the recipe's."""
    rand_operations: Annotated[int, Field(ge=1, le=14)] = 2
    """With `rand`: changes one after another."""
    rand_magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    """With `rand`: their strength, of 0…30."""
    color_jitter: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    """Brightness, contrast and saturation change by factors in 1 ± this (timm's `--color-jitter`); 0 is off. Null takes
    the recipe's."""
    hue: Annotated[float, Field(ge=0.0, le=0.5)] = 0.0
    """The hue shifts by up to this part of the colour circle either way; 0 is off. Three to four times as slow as all
    of `color_jitter`."""
    cutout: Annotated[int, Field(ge=0)] = 0
    """Side in pixels of a random square set to the mean; 0 is off."""
    erasing: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    """Probability that a random rectangle (2 to 33 % of the area) is set to the mean; 0 is off. Null takes the
    recipe's."""
    mixup: Annotated[float, Field(ge=0.0)] = 0.0
    """α of mixup's Beta(α, α); 0 is off."""
    cutmix: Annotated[float, Field(ge=0.0)] = 0.0
    """α of cutmix's Beta(α, α); 0 is off. Where mixup is on too, each batch has one of them, as likely as the other."""
    own: Options = {}
    """Augmentations of plugins by name, with their options: `{my-blur: {strength: 0.5}}`. They come last, mixup and
    cutmix apart."""

    unwritten = ("own",)

    @field_validator("own")
    @classmethod
    def _own(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        given = _whole_options(value)
        if found := list(own_augmentations.wrong(given)):
            raise ValueError("; ".join(found))
        return given

    def contradictions(self) -> Iterator[str]:
        if self.random_resized_crop and self.crop_padding:
            yield (
                f"crop_padding is {self.crop_padding} but random_resized_crop is {self.random_resized_crop}, which "
                "takes its place: leave one of them out"
            )

    def unread(self) -> Iterator[str]:
        for name in ("rand_operations", "rand_magnitude"):
            if name in self.model_fields_set and self.auto != "rand":
                said = "null" if self.auto is None else self.auto
                yield f"{name} is given but auto is {said}: only rand reads it, so set auto to rand, or leave it out"


class TrainingConfig(Section):
    """One training: optimiser, learning rate over time, regularisation, hardware.

    A field that says so takes what the recipe says while it is null; `gkd params --effective` shows what that comes to.
    """

    epochs: Annotated[int, Field(ge=1)] | None = None
    """Passes over the training split; null takes the recipe's."""
    recipe: Literal["auto", "cifar", "fine-tune", "photos-from-scratch"] = "auto"
    """Defaults that belong together, for the fields that are null: `cifar` (small images, from scratch), `fine-tune`
    (from learnt weights), `photos-from-scratch`; `auto` takes fine-tune for a network with weights, else cifar up to 64
    pixels and photos-from-scratch above."""
    batch_size: Annotated[int, Field(ge=2)] | None = None
    """Images a step, all devices together; `unlabelled_fraction` adds to them. Null takes the recipe's."""
    unlabelled_fraction: Fraction | None = None
    """Part of every batch that images of `data.unlabelled` are, in a training with a teacher (in `teacher.train`: of an
    assistant): they join the `batch_size` labelled ones, so 0.5 doubles a step. 0 leaves them out; null is 0.5 where
    there are any."""
    optimizer: Literal["sgd", "adamw"] | None = None
    """SGD with momentum, or AdamW; null takes the recipe's."""
    learning_rate: Positive | None = None
    """Peak learning rate, of the head where `backbone_lr_factor` or `layer_decay` say something; null takes the
    recipe's."""
    momentum: Fraction = 0.9
    """SGD's momentum."""
    nesterov: bool = False
    """Nesterov's form of momentum."""
    weight_decay: Annotated[float, Field(ge=0.0)] | None = None
    """Weight decay (decoupled with AdamW); null takes the recipe's."""
    decay_norms: bool | None = None
    """Whether weight decay holds for biases and norm layers too (and a transformer's class token and positions); null
    takes the recipe's. What a method trains beside the network has its own rule."""
    schedule: Literal["multistep", "cosine", "onecycle", "constant"] = "cosine"
    """Learning rate over time."""
    milestones: list[Annotated[int, Field(ge=1)]] = []
    """Epochs after which `multistep` multiplies the learning rate by `decay_factor`."""
    decay_factor: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """`multistep`'s factor."""
    warmup_epochs: Annotated[float, Field(ge=0.0)] | None = None
    """Epochs of linear rise from 0 to the learning rate; what `freeze_epochs` held still rises in the same way
    afterwards. Null takes the recipe's."""
    freeze_epochs: Annotated[int, Field(ge=0)] | None = None
    """For so many epochs the head alone is trained (and what the method trains beside the network): all else, running
    statistics of batch norms included, stays as it is. Null takes the recipe's."""
    backbone_lr_factor: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Learning rate of everything below the head, as a part of `learning_rate`; null takes the recipe's."""
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Factor on the learning rate for each block further below the head; 1 is the same for all."""
    freeze_batch_norm: bool | None = None
    """Keep the running statistics of batch norms as the weights brought them, and normalise by them, in the whole
    training: for batches too small to tell statistics. Their weights and biases are trained. Null takes the
    recipe's."""
    label_smoothing: Fraction | None = None
    """ε of label smoothing in the cross-entropy; null takes the recipe's."""
    balance: Literal["none", "weights", "sampler", "logit-adjustment"] = "none"
    """For classes of very different size: `weights` counts each image by the inverse of its class's frequency, in
    cross-entropy and in all that is distilled; `sampler` shows all classes equally often, small ones by repeating their
    images; `logit-adjustment` adds the logarithm of the classes' frequencies to the logits in the cross-entropy of the
    training (Menon et al. 2021)."""
    clip_norm: Positive | None = None
    """Largest gradient norm; null does not clip."""
    ema_decay: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Decay of an exponential moving average of the weights, which is then what is evaluated and kept; null is off."""
    select: Literal["last", "best"] = "last"
    """Which epoch's weights are kept: the last, or the best on the validation split."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """`bf16` autocast, full `float32`, or bf16 exactly where the device has it (`auto`; CPU: float32)."""
    device: Device = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps`."""
    devices: Annotated[int, Field(ge=1, le=1024)] = 1
    """GPUs of one machine to train on, a process each, every one with its part of each batch; on a CPU so many
    processes. Inside a job that torchrun started (a Kubeflow TrainJob, say) the job's number counts instead."""
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Threads that a process computes with on the CPU; their number changes results in the last bits. Null takes one
    for each 400 million multiply-accumulates of a step's forward pass (largest network, teachers included, × images),
    at least one, at most the cores: those the process is bound to, within its CPU quota, at most `OMP_NUM_THREADS`. It
    is in training.json, and a training that goes on keeps it."""
    teacher_cache: bool = False
    """Keep what a single frozen teacher answers in `teacher-cache` in the work folder, and read it there the next time
    the same view of an image is seen, in this training or another (`gkd compare`): the weights stay the same, bit for
    bit. For methods that ask for logits or embeddings, with no other random changes than `crop_padding` and `flip`, or
    with `teacher_views`; where it cannot be, the training says so and does without."""
    teacher_cache_gb: Positive = 20.0
    """Most disk that the files of `teacher_cache` may come to, in GB (10⁹ bytes), all together; those longest unused
    make way."""
    teacher_views: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """How many views of each training image there are, whatever `augment` does: epoch n shows view n modulo this, drawn
    from (seed, image, view) alone, so that `teacher_cache` finds each again. The student sees no others either. Null
    draws every view anew."""
    seed: Seed = 0
    """Seed of the initial weights, of the order of images and of augmentation."""
    augment: AugmentConfig = AugmentConfig()
    """Random changes to the images."""

    def contradictions(self) -> Iterator[str]:
        if self.schedule == "multistep" and not self.milestones:
            yield "schedule is multistep but milestones is empty: name the epochs, or take cosine"
        if self.schedule != "multistep" and self.milestones:
            yield f"milestones is set but schedule is {self.schedule}: only multistep reads milestones"
        if self.epochs is not None and any(m >= self.epochs for m in self.milestones):
            yield f"milestones {self.milestones} reach past epochs ({self.epochs})"
        if sorted(set(self.milestones)) != self.milestones:
            yield f"milestones {self.milestones} must rise"
        for name in ("warmup_epochs", "freeze_epochs"):
            value = getattr(self, name)
            if None not in (value, self.epochs) and value >= self.epochs:
                yield f"{name} ({value:g}) must be below epochs ({self.epochs})"
        if self.schedule == "onecycle" and self.warmup_epochs:
            yield "warmup_epochs is set but schedule is onecycle, which warms up by itself"
        if self.nesterov and (self.optimizer == "adamw" or self.momentum == 0.0):
            yield "nesterov needs optimizer sgd and momentum above 0"
        size = self.batch_size
        if size is not None and (size % self.devices or size < 2 * self.devices):
            yield (
                f"batch_size ({size}) must be a multiple of devices ({self.devices}) with at least 2 images "
                "for each: it counts all devices together"
            )
        if self.devices > 1 and ":" in self.device:
            yield f"device {self.device} names one device but devices is {self.devices}: set device to cuda"
        for name in ("mixup", "cutmix") if self.teacher_views is not None else ():
            if getattr(self.augment, name):
                yield f"teacher_views is {self.teacher_views}, but augment.{name} mixes images of a batch: set it to 0"
        if self.devices > 1 and self.device == "mps":
            yield f"device is mps, of which there is one, but devices is {self.devices}: set devices to 1"

    def unread(self) -> Iterator[str]:
        if "momentum" in self.model_fields_set and self.optimizer == "adamw":
            yield f"momentum is given but optimizer is {self.optimizer}: only sgd reads momentum, so leave it out"
        if "decay_factor" in self.model_fields_set and self.schedule != "multistep":
            yield f"decay_factor is given but schedule is {self.schedule}: only multistep reads it, so leave it out"
        if "teacher_cache_gb" in self.model_fields_set and not self.teacher_cache:
            yield "teacher_cache_gb is given but teacher_cache is false: set that to true, or leave it out"


CHANGES_NOTHING = ("teacher_cache", "teacher_cache_gb")
"""Fields of a training that its result does not depend on, so that they are in no digest and no record."""


def can_train() -> bool:
    """Whether torch is installed, which networks, methods and schemes need to be looked at."""
    return importlib.util.find_spec("torch") is not None


def _known_network(name: str) -> str:
    """A name of the CIFAR families needs no torch to be known; any other has torchvision imported."""
    if can_train():
        # By its name: what is only checked must not have a step depend on the sources of all networks (`gkd sources`).
        registry = importlib.import_module("gkd_core.models.registry")
        try:
            registry.refuse_unknown_name(name, "name")
        except GkdError as error:
            raise ValueError(str(error)) from None
    return name


class NetworkConfig(Section):
    """Which network to build."""

    name: str = "resnet8"
    """A CIFAR family (resnet8…110, resnet8x4, resnet32x4, wrn_D_W, vgg8…19, MobileNetV2, ShuffleNetV2), any
    torchvision classification model by name (`torchvision:NAME` where both have one, as with vgg13), or `timm:NAME`,
    any of timm's (needs the extra `gkd[hub]`)."""
    stem: Literal["auto", "cifar", "imagenet"] = "auto"
    """First layers of a torchvision model: strided for large images, or not for small ones (`auto`: by image size,
    cifar up to 64 pixels)."""
    weights: str | None = None
    """What it starts from: null is random weights; `pretrained` the network's published default; else a name of
    torchvision's (`IMAGENET1K_V2`), a tag of timm's (`in22k_ft_in1k`), `hf-hub:OWNER/NAME` (timm's networks), a file
    (.safetensors, .pth), a folder of ours, or `models:/NAME@ALIAS`. Mean, standard deviation, size and crop of the
    images come with the weights."""
    head: Literal["auto", "new", "keep"] = "auto"
    """With `weights`, the classification layer: `new` for the data's classes, `keep` that of the weights, or `auto`:
    kept where the weights know all of the data's classes by name."""

    def contradictions(self) -> Iterator[str]:
        if self.weights is None and self.head != "auto":
            yield f"head is {self.head} but weights is null: there is no head to keep or to replace without them"

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if value.startswith("topological:"):
            raise ValueError(f"name {value!r}: only a teacher can be topological, by teacher.topological: true")
        return _known_network(value)


class StudentConfig(NetworkConfig):
    """The small network. Its view of the images is what the references see too."""

    channels: Literal[1, 3] | None = None
    """1 shows it greyscale, 3 colour, a grey picture three times; null shows it what the data has, or with `weights`
    what they were made for, and nothing else goes with them. Scheme `single` refuses a number where a teacher teaches;
    where nobody does (method `ce`), and in other schemes (`cross_modal` is made for it), the student sees it so."""
    image_size: Annotated[int, Field(ge=4, le=1024)] | None = None
    """Side in pixels of the images it sees, to which the data's are resized; null is the weights', without them the
    data's. Without `weights`, scheme `single` refuses a number where a teacher teaches; where nobody does (method
    `ce`), and in other schemes (`cross_modal` is made for it), the student sees it so."""

    @property
    def has_own_view(self) -> bool:
        """Whether it sees the images otherwise than the data has them."""
        return self.channels is not None or self.image_size is not None


class CurveConfig(Section):
    """Shape of the distillation weight β(t) over training; see METHODS, Schedule."""

    beta_min: Annotated[float, Field(ge=0.0)] = 0.1
    """β before the rise."""
    beta_max: Annotated[float, Field(ge=0.0)] = 1.0
    """β after the rise; also the value of `constant`."""
    b: float | None = None
    """Displacement of the Gompertz curve; null is 2."""
    c: Positive | None = None
    """Rate of the Gompertz curve per epoch; null is 7 / epochs."""
    inflection: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Instead of b and c: fraction of training at which the curve stands at 1/e of its rise."""
    saturation: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """With `inflection`: fraction of training at which 99 % of the rise is done."""

    def contradictions(self) -> Iterator[str]:
        if self.beta_min > self.beta_max:
            yield f"beta_min ({self.beta_min:g}) must not be above beta_max ({self.beta_max:g})"
        if (self.inflection is None) != (self.saturation is None):
            yield "inflection and saturation go together: give both or neither"
        if self.inflection is not None and self.saturation is not None:
            if self.b is not None or self.c is not None:
                yield "inflection and saturation replace b and c: give one pair, not both"
            if self.inflection >= self.saturation:
                yield f"inflection ({self.inflection:g}) must lie before saturation ({self.saturation:g})"


class MethodConfig(Section):
    """How one network learns from another."""

    method: str = "kd"
    """One of `gkd methods`."""
    schedule: str | None = None
    """Weight β(t) on everything but cross-entropy: gompertz, reversed-gompertz, adaptive-gompertz, linear, cosine,
    constant; null takes the method's own."""
    curve: CurveConfig = CurveConfig()
    """Shape of β(t)."""
    temperature: Positive | None = None
    """τ of the soft labels; null takes the method's own."""
    options: Options = {}
    """Hyperparameters by method, e.g. `options.gompertz.solver: sliced`; only the chosen method's are used."""

    @field_validator("method")
    @classmethod
    def _method(cls, value: str) -> str:
        if not methods.is_method(value):
            raise ValueError(unknown_name("method", value, methods.METHODS))
        return value

    @field_validator("schedule")
    @classmethod
    def _schedule(cls, value: str | None) -> str | None:
        if value is not None and value not in methods.SCHEDULES:
            raise ValueError(unknown("schedule", value, methods.SCHEDULES))
        return value

    @field_validator("options")
    @classmethod
    def _options(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for method in value:
            if not methods.is_method(method):
                raise ValueError(unknown_name("options: method", method, methods.METHODS))
        return _whole_options(value)

    def unread(self) -> Iterator[str]:
        schedule = self.schedule or methods.METHODS[self.method].schedule
        if self.method == "ce" and self.schedule is not None:
            yield f"schedule is {schedule} but method ce has no term for it to weigh: set schedule to null"
        reads = () if self.method == "ce" else methods.SCHEDULES[schedule]
        for name, field in CurveConfig.model_fields.items():
            # The defaults stand in many files, whatever their method, and say nothing.
            if name not in reads and (value := getattr(self.curve, name)) != field.default:
                yield (
                    f"curve.{name} is {value:g} but method {self.method} with schedule {schedule} does not read it: "
                    "leave it out, or take another schedule"
                )

    def hyperparameters(self) -> dict[str, Any]:
        """The chosen method's arguments: its options, with `temperature` put in."""
        temperature = {} if self.temperature is None else {"temperature": self.temperature}
        return self.options.get(self.method, {}) | temperature


class DistillConfig(MethodConfig):
    """How the student learns from the teacher."""

    scheme: str = schemes.DEFAULT
    """Who teaches whom: one of the schemes that `gkd methods` lists."""
    scheme_options: Options = {}
    """Settings by scheme, e.g. `scheme_options.mutual.peers: 3`; only the chosen one's are used."""

    @field_validator("scheme")
    @classmethod
    def _scheme(cls, value: str) -> str:
        if value not in schemes.names():
            raise ValueError(unknown("scheme", value, schemes.names()))
        return value

    @field_validator("scheme_options")
    @classmethod
    def _scheme_options(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name in value:
            if name not in schemes.names():
                raise ValueError(unknown("scheme_options: scheme", name, schemes.names()))
        return value


class MemberConfig(NetworkConfig):
    """One of several teachers."""

    name: str = "resnet20"
    """Network to train."""
    seed: Seed | None = None
    """Seed of its weights and of the order of its images; null is `teacher.train.seed` plus its place in the list."""
    classes: Annotated[list[str], Field(min_length=2)] | None = None
    """Names of the classes it is trained on and knows; null is all."""

    @field_validator("classes")
    @classmethod
    def _classes(cls, value: list[str] | None) -> list[str] | None:
        if value is not None and len(set(value)) < len(value):
            raise ValueError(f"classes {value} names one twice")
        return value


class TeacherConfig(NetworkConfig):
    """The large network: trained here, or imported."""

    name: str = "resnet20"
    """Network to train; for a state-dict file, the network it belongs to."""
    source: str | None = None
    """null trains one; else a folder of ours, `models:/NAME@ALIAS`, a state-dict file (.pt, .pth, .safetensors), or
    `torchvision:WEIGHTS` such as `torchvision:ResNet18_Weights.IMAGENET1K_V1`."""
    classes: list[str] | None = None
    """Class names, in the order of its outputs, of a state-dict file that does not carry them."""
    mean: list[float] | None = None
    """Per-channel mean a state-dict file was trained with, for images in [0, 1]; null takes the data's. With `weights`
    it replaces theirs, and so do the two below."""
    std: list[float] | None = None
    """Per-channel standard deviation, likewise."""
    image_size: Annotated[int, Field(ge=4, le=1024)] | None = None
    """Image side a state-dict file was trained with; null takes the data's."""
    train: TrainingConfig = TrainingConfig()
    """How to train it, each of its members, and each assistant."""
    topological: bool = False
    """Join the network's pooled features with the image's persistence features before the last layer (the Gompertz
    paper's TCNN, reconstructed); needs `data.topology`."""
    members: list[MemberConfig] = []
    """Several teachers instead of the one above: for the scheme `ensemble`, or, with parts of the classes,
    `amalgamation`."""
    assistants: list[Annotated[str, AfterValidator(_known_network)]] = []
    """Networks between teacher and student, from large to small, each taught by the one before; the last is handed on
    as the teacher (scheme `assistant`)."""
    assistant_distill: MethodConfig = MethodConfig()
    """How assistants learn; must say what `distill` says. It stands here because the teacher step reads only this
    section, so that another method retrains no teacher that does not depend on it."""

    def contradictions(self) -> Iterator[str]:
        yield from super().contradictions()
        if self.weights is not None and self.source is not None:
            yield "source takes a network as it is and weights start a training: give one of them"
        if self.weights is not None and self.members:
            yield "weights starts one teacher, but members lists several: give each member its own"
        if (self.mean is None) != (self.std is None):
            yield "mean and std go together: give both or neither"
        if self.topological and self.source is not None:
            yield "topological says how to build a teacher trained here, but source is set: give one"
        if self.topological and self.members:
            yield "topological describes one teacher, but members lists several: give one or the other"
        if self.members and self.assistants:
            yield "members and assistants are both given: an assistant chain starts from one teacher"
        if len(self.members) == 1:
            yield "members lists one teacher: give at least two, or name and train instead"
        if (self.members or self.assistants) and self.source is not None:
            yield "members and assistants are trained here, but source is set: give one or the other"
        if self.source is None and self.classes:
            yield "classes describes an imported state-dict, but source is null"
        if self.source is None and self.weights is None and (self.mean or self.image_size):
            yield "mean, std and image_size describe an imported state-dict or weights, but source and weights are null"

    def unread(self) -> Iterator[str]:
        if self.train.unlabelled_fraction and not self.assistants:
            yield (
                f"train.unlabelled_fraction is {self.train.unlabelled_fraction:g} but assistants is empty, and a "
                "teacher learns from labels alone: leave it out"
            )
        if self.assistant_distill.model_fields_set and not self.assistants:
            yield "assistant_distill is given but assistants is empty: name them, or leave assistant_distill out"


class ReferencesConfig(Section):
    """What the student is compared with: the same network on the same budget, trained without the method."""

    baseline: bool = True
    """Train the student alone (method `ce`)."""
    kd: bool = True
    """Train the student by plain soft-label distillation (method `kd`)."""
    kd_weight: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Weight of the soft labels in plain KD, cross-entropy has the rest; null is the default of method `kd`."""
    kd_temperature: Positive | None = None
    """τ of plain KD; null is the default of method `kd`."""

    def unread(self) -> Iterator[str]:
        for name in ("kd_weight", "kd_temperature"):
            if not self.kd and (value := getattr(self, name)) is not None:
                yield f"{name} is {value:g} but kd is false, so nothing is trained by it: leave it out"


class EvaluateConfig(Section):
    """What is measured, and how carefully."""

    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95
    """Level of the confidence intervals."""
    calibration_bins: Annotated[int, Field(ge=2, le=100)] = 15
    """Bins of the expected calibration error."""
    latency_runs: Annotated[int, Field(ge=10)] = 200
    """Timed single-image inferences a network."""
    device: Device = "auto"
    """Where the networks are evaluated: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`; the ONNX file always on the CPU."""
    latency_threads: Annotated[int, Field(ge=1)] = 1
    """onnxruntime threads while timing."""
    frontier: str | None = None
    """Folder of `gkd frontier`, made with this data and teacher, that the report shows: students by accuracy and cost,
    and which is recommended. Null shows none."""
    pictures: bool = True
    """Show test images: in the report, and as sheets in `report/pictures`, which MLflow gets too: the worst mistakes,
    the most confused classes, where student and teacher disagree, the least sure, each class, with heat maps. `false`
    for private data: then there is not one pixel in any of them."""


class Int8Config(Section):
    """Static int8 quantisation, and what the smaller file must show on the validation split to be kept."""

    enabled: bool = True
    """Try it; model_int8.onnx is there only when it passed."""
    calibration_images: Annotated[int, Field(ge=1, le=100_000)] = 256
    """Training images, stratified by class, on which the ranges of activations are measured; all when there are
    fewer."""
    calibration: Literal["minmax", "entropy", "percentile"] = "minmax"
    """How a range follows from the values seen: all of them; what loses least information (KL divergence); all but
    the rarest on either side."""
    percentile: Annotated[float, Field(gt=50.0, lt=100.0)] | None = None
    """With `percentile`: where the range ends, in percent; null is 99.99."""
    reduce_range: bool = True
    """Weights in 7 bits. x86 CPUs without VNNI add products of 8 bits up in 16, which overflow; 7 bits do not, and
    cost little elsewhere. Never taken from the CPU at hand: the same inputs must give the same file everywhere.
    `false` where all servers have VNNI, or are ARM."""
    min_agreement: Annotated[float, Field(ge=0.0, le=1.0)] = 0.98
    """Part of the validation images on which int8 and float32 must name the same class."""
    max_accuracy_drop: Annotated[float, Field(ge=0.0, le=1.0)] = 0.01
    """Top-1 on the validation images that int8 may lose."""
    seed: Seed = 0
    """Seed of the choice of calibration images."""

    def contradictions(self) -> Iterator[str]:
        if self.percentile is not None and self.calibration != "percentile":
            yield f"percentile is set but calibration is {self.calibration}: set calibration to percentile"


class ExportConfig(Section):
    """How the student is packaged."""

    input: Literal["uint8_nhwc", "float_nchw"] = "uint8_nhwc"
    """Raw pixels as an image library gives them, or floats in [0, 1] with channels first; normalisation is inside
    the graph either way."""
    opset: Annotated[int, Field(ge=18, le=23)] = 18
    """ONNX operator set; asserted on the finished file."""
    parity_tolerance: Positive = 1e-4
    """Largest |onnxruntime − torch| allowed on the logits of validation images."""
    int8: Int8Config = Int8Config()
    """The smaller file for CPUs."""
    fp16: bool = False
    """Also write model_fp16.onnx, half the size, for GPUs; input and output keep their types."""
    fp16_tolerance: Positive = 0.05
    """Largest |float16 − float32| allowed on the logits of validation images; a file that exceeds it is not kept.
    Far looser than `parity_tolerance`: a half has eleven bits, so a logit of 16 is off by 0.008 from rounding alone."""
    pixels: bool = False
    """Also write model_pixels.onnx, and one of each smaller file, which takes RGB pictures of any size: the resizing is
    inside, level by level what Pillow does for `gkd prepare`. For servers and clients that cannot resize."""


class DecideConfig(Section):
    """When a picture is none of the classes: where the model's score is below a threshold that validation gives.

    Null, the default, leaves the section out: every picture is given a class.
    """

    precision: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Of the pictures that are given a class, the part that shall be right; as many as possible are given one."""
    coverage: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Or: of all pictures like those of validation, the part that shall be given a class, the surest ones."""
    by_class: bool = False
    """A threshold for each class, so that the wish holds of the pictures taken for each; a class that is named fewer
    than ten times on validation has the threshold that is for all."""
    score: Score = "probability_and_distance"
    """What says how sure the model is: `probability_and_distance`, the largest probability, lowered where the features
    are farther from every class than those of validation; `max_probability`, the largest probability alone; `energy`,
    the logsumexp of the logits; `feature_distance`, the distance (Mahalanobis) of the features to the nearest class.
    The scores with a distance add up to 64 numbers a feature to the file."""
    calibrate: bool = True
    """Divide the logits by a temperature that makes the probabilities those of validation; kept only where it lowers
    NLL there, cross-fitted."""
    unknown: str | None = None
    """Folder of pictures, at any depth, that are none of the classes: `evaluate` measures how many are recognised as
    such (AUROC, FPR at 95 % TPR). Nothing is chosen by them. Enters no digest: the pictures do."""

    @property
    def wish(self) -> tuple[Literal["precision", "coverage"], float]:
        """Which of the two is asked for, and how much of it."""
        if self.precision is not None:
            return "precision", self.precision
        assert self.coverage is not None
        return "coverage", self.coverage

    def contradictions(self) -> Iterator[str]:
        if (self.precision is None) == (self.coverage is None):
            both = "both given" if self.precision is not None else "both null"
            yield f"precision and coverage are {both}: give one of them, such as {{precision: 0.95}}"


class GateConfig(Section):
    """What a challenger must show before it becomes champion."""

    metric: Literal["top1", "balanced_accuracy", "macro_f1"] = "top1"
    """What the next two compare: the part of the test images that is right, or, where classes are of very different
    size, the mean over classes of recall or of F1."""
    min_gain_over_baseline: Annotated[float, Field(ge=-1.0, le=1.0)] = 0.0
    """How much of `metric` the student must gain over the student alone, in [0, 1]; the paired standard error gives the
    slack."""
    max_drop_to_champion: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """How much of it the student may lose to the current champion on the same data, beyond what chance explains."""
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95
    """One-sided level: a shortfall counts only when the test set is large enough to show it at this level."""
    max_parity: Positive = 1e-3
    """Largest difference between ONNX and torch logits."""
    max_size_mb: Positive | None = None
    """Largest ONNX file in megabytes (10⁶ bytes); null does not limit."""
    max_latency_ms: Positive | None = None
    """Largest median latency of one image in milliseconds; null does not limit."""
    min_coverage: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """With `decide`: part of the test images that each file that is shipped must give a class, in [0, 1], and where a
    precision was asked for, with that precision, both as far as the test set can tell; null asks no more than that any
    is given one."""
    deploy_bench: str | None = None
    """File of `gkd bench deploy`, measured where the model will run: `max_latency_ms` limits its first case with one
    image. Null takes what `gkd evaluate` measured on its own machine."""
    new_data: Literal["refuse", "promote"] = "refuse"
    """What to do when the champion was measured on other data, so that no comparison is possible."""
    on_refusal: Literal["report", "fail"] = "report"
    """A refusal is a result (`report`, exit 0) or an error (`fail`, exit 1)."""

    def unread(self) -> Iterator[str]:
        if self.deploy_bench is not None and self.max_latency_ms is None:
            yield "deploy_bench is given but max_latency_ms is null: set a limit, or leave deploy_bench out"


class TrackingConfig(Section):
    """Where runs and models are kept. Enters no digest."""

    uri: str | None = None
    """MLflow tracking server; null takes MLFLOW_TRACKING_URI, else sqlite:///mlflow.db."""
    experiment: str = "gkd"
    """MLflow experiment."""
    model_name: Annotated[str, AfterValidator(_model_name)] = "gkd-student"
    """Registered model."""
    attempts: Annotated[int, Field(ge=1, le=20)] = 4
    """Tries to reach the server before giving up, with growing pauses."""
    live: bool | None = None
    """Log every epoch while a training runs; null does where `uri` or MLFLOW_TRACKING_URI names a place."""
    system_metrics: bool = True
    """With `live`: log also what the machine is busy with (CPU, memory, disk, network, GPUs), by MLflow's own means."""


def networks(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The networks among sections as JSON: teacher, its members, and student."""
    for section in ("teacher", "student"):
        if section in content:
            yield content[section]
            yield from content[section].get("members", ())


def is_module(name: str) -> bool:
    """Whether a module can have this name."""
    return all(part.isidentifier() for part in name.split("."))


def _module(value: str) -> str:
    if not is_module(value):
        raise ValueError(f"{value!r} is no name of a module: write it as Python imports it, my_package.losses")
    return value


def _once(modules: list[str]) -> list[str]:
    """Each in its first place, as pytest, Sphinx and pylint take plugins: importing a module again does nothing."""
    return list(dict.fromkeys(modules))


class Params(Section):
    """All of params.yaml."""

    plugins: Annotated[list[Annotated[str, AfterValidator(_module)]], AfterValidator(_once)] = []
    """Modules to import, which register methods, networks and augmentations of your own (docs/plugins.md):
    `[my_package.losses]`. Importing one runs its code; one that is listed twice counts once. Those of installed
    packages with an entry point are found without."""
    data: DataConfig = DataConfig()
    teacher: TeacherConfig = TeacherConfig()
    student: StudentConfig = StudentConfig()
    distill: DistillConfig = DistillConfig()
    train: TrainingConfig = TrainingConfig()
    references: ReferencesConfig = ReferencesConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    export: ExportConfig = ExportConfig()
    decide: DecideConfig | None = None
    gate: GateConfig = GateConfig()
    tracking: TrackingConfig = TrackingConfig()

    unwritten = ("plugins",)

    def names(self, *sections: str) -> list[Name]:
        """Methods, networks and augmentations that the named sections use, gkd's own and plugins'."""
        found: list[Name] = []
        if "teacher" in sections:
            teacher = self.teacher
            networks = [teacher.name, *(member.name for member in teacher.members), *teacher.assistants]
            found += [("network", name) for name in networks]
            found += [("method", teacher.assistant_distill.method)] if teacher.assistants else []
            found += own_augmentations.names(teacher.train.augment.own)
        if "student" in sections:
            found.append(("network", self.student.name))
        if "distill" in sections:
            found.append(("method", self.distill.method))
        return found + (own_augmentations.names(self.train.augment.own) if "train" in sections else [])

    def digest(self, *sections: str) -> str:
        """sha256 of the named sections as they came out of validation, defaults included.

        Left out is what does not change the result: where data, teacher and weights were read from (their own digests
        tell what they are), `head` where there are no weights, and the options of methods and schemes that were not
        chosen. `devices` stays out while it is 1;
        several add up numbers in another order and, on a CPU, give batch norms smaller batches, so they are another
        configuration. So is another number of `threads`; null, which leaves it to the work and the cores, stays out.
        `teacher_cache` is a way to the same weights. `decide` stays out while it is null, `pixels` while it is off. The
        list `plugins` stays out, too; of those that the sections use there is a digest of the sources.
        """
        content = self.model_dump(mode="json", include=set(sections))
        for place in ("root", "unlabelled"):
            content.get("data", {}).pop(place, None)
        content.get("teacher", {}).pop("source", None)
        for network in networks(content):
            if network.pop("weights", None) is None:
                network.pop("head", None)
        for training in (content.get("teacher", {}).get("train", {}), content.get("train", {})):
            if training.get("devices") == 1:
                del training["devices"]
            if training.get("threads", 1) is None:
                del training["threads"]
            for name in CHANGES_NOTHING:
                training.pop(name, None)
        if content.get("decide", {}) is None:
            del content["decide"]
        content.get("decide", {}).pop("unknown", None)
        if content.get("export", {}).get("pixels") is False:
            del content["export"]["pixels"]
        if "distill" in content:
            distill = content["distill"]
            for options, chosen in (("options", self.distill.method), ("scheme_options", self.distill.scheme)):
                distill[options] = {name: each for name, each in distill[options].items() if name == chosen}
        if used := lineage(self.names(*sections)):
            content["plugins"] = used
        return json_digest(content)
