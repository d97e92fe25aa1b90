"""METHODS: the distillation methods by name. Adding one = one file in `losses/` and one entry here.

Importing this module imports no torch: an entry names its loss module, which is imported when it is built. Other
packages add theirs with `register_method` (docs/plugins.md).
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.errors import PydanticUserError

from gkd_core import plugins
from gkd_core.errors import GkdError, unknown
from gkd_core.mistakes import Mistake, mistakes, unknown_key, warn_renamed

if TYPE_CHECKING:
    from torch import Tensor

    from gkd_core.losses.base import Loss
    from gkd_core.models.classifier import StagedNetwork

    LossClass = TypeVar("LossClass", bound=type[Loss])

_GOMPERTZ = ("beta_min", "beta_max", "b", "c", "inflection", "saturation")
Reads = Literal["logits", "embeddings", "feature maps"]
SCHEDULES: dict[str, tuple[str, ...]] = {
    "gompertz": _GOMPERTZ,
    "reversed-gompertz": _GOMPERTZ,
    "adaptive-gompertz": _GOMPERTZ,
    "linear": ("beta_min", "beta_max"),
    "cosine": ("beta_min", "beta_max"),
    "constant": ("beta_max",),
}
"""β(t) by name, and which parts of `curve` it reads."""


@dataclass(frozen=True)
class Method:
    """One entry of the registry.

    Attributes:
        summary: one line.
        source: where it was published.
        loss: "module:Class" of the nn.Module that computes it (see `gkd_core.losses.base.Loss`).
        published: the formula was read in the paper or its authors' code; else it is a reconstruction.
        schedule: weight over time when the user names none.
        teacher: it learns from a teacher.
        reads: how far it looks into the networks; schemes with several teachers have only logits to offer.
        own: a plugin's class itself, which may be of a notebook.
    """

    summary: str
    source: str
    loss: str
    published: bool = True
    schedule: str = "constant"
    teacher: bool = True
    reads: Reads = "logits"
    own: type[Loss] | None = None

    def load(self) -> type[Loss]:
        """The loss's class."""
        if self.own is not None:
            return self.own
        module, _, name = self.loss.partition(":")
        loss_class: type[Loss] = getattr(importlib.import_module(module), name)
        return loss_class


METHODS: dict[str, Method] = {
    "ce": Method(
        summary="Cross-entropy alone: the student without a teacher.",
        source="the baseline of every comparison",
        loss="gkd_core.losses.cross_entropy:CrossEntropy",
        teacher=False,
    ),
    "kd": Method(
        summary="Soft labels of the teacher at a temperature.",
        source="Hinton et al. 2015, arXiv:1503.02531",
        loss="gkd_core.losses.kd:KnowledgeDistillation",
    ),
    "gompertz": Method(
        summary="Wasserstein feature loss, gradient matching and soft labels, weighted by a Gompertz curve.",
        source="Yang & Qin 2025, arXiv:2510.21649",
        loss="gkd_core.losses.gompertz:Gompertz",
        schedule="gompertz",
        reads="feature maps",
    ),
    "dynamickd": Method(
        summary="Soft labels against the student's logits times a learned factor, which corrects its entropy.",
        source="reconstruction of the idea of Zhu et al. 2024, arXiv:2305.05233",
        published=False,
        loss="gkd_core.losses.dynamickd:DynamicKD",
    ),
    "cmkd": Method(
        summary="Pearson and Spearman correlation with the teacher's logits, weighted by each sample's difficulty.",
        source="reconstruction of the idea of Niu et al. 2024, arXiv:2410.06561",
        published=False,
        loss="gkd_core.losses.cmkd:CorrelationMatching",
    ),
    "crd": Method(
        summary="Contrast of the embeddings with a memory of the other network's, over all training images.",
        source="Tian et al. 2020, arXiv:1910.10699",
        loss="gkd_core.losses.crd:ContrastiveRepresentation",
        reads="embeddings",
    ),
    "dkd": Method(
        summary="Soft labels decoupled into the target's part and the other classes' part.",
        source="Zhao et al. 2022, arXiv:2203.08679",
        loss="gkd_core.losses.dkd:DecoupledKD",
    ),
    "dist": Method(
        summary="Pearson correlation of the predictions between classes and within them.",
        source="Huang et al. 2022, arXiv:2205.10536",
        loss="gkd_core.losses.dist:Dist",
    ),
    "logit-standardisation": Method(
        summary="Soft labels of z-scored logits, free of the teacher's scale.",
        source="Sun et al. 2024, arXiv:2403.01427",
        loss="gkd_core.losses.logit_standardisation:LogitStandardisation",
    ),
    "ctkd": Method(
        summary="Soft labels at a temperature that learns against the student, step by step.",
        source="Li et al. 2023, arXiv:2211.16231",
        loss="gkd_core.losses.ctkd:CurriculumTemperature",
    ),
    "fitnet": Method(
        summary="The teacher's middle feature map as a hint for the student's, through a trained regressor.",
        source="Romero et al. 2015, arXiv:1412.6550",
        loss="gkd_core.losses.fitnet:FitNet",
        reads="feature maps",
    ),
    "at": Method(
        summary="Attention transfer: where the feature maps of each stage are large.",
        source="Zagoruyko & Komodakis 2017, arXiv:1612.03928",
        loss="gkd_core.losses.attention:AttentionTransfer",
        reads="feature maps",
    ),
    "rkd": Method(
        summary="Distances and angles between the embeddings of a batch.",
        source="Park et al. 2019, arXiv:1904.05068",
        loss="gkd_core.losses.rkd:RelationalDistillation",
        reads="embeddings",
    ),
    "reviewkd": Method(
        summary="Each of the teacher's stages from the student's same stage and all its deeper ones, fused.",
        source="Chen et al. 2021, arXiv:2104.09044",
        loss="gkd_core.losses.reviewkd:ReviewKD",
        reads="feature maps",
    ),
    "self-distillation": Method(
        summary="Be Your Own Teacher: heads on the shallow stages learn from labels and from the network's end.",
        source="Zhang et al. 2019, arXiv:1905.08094",
        loss="gkd_core.losses.self_distillation:SelfDistillation",
        teacher=False,
        reads="feature maps",
    ),
}


def list_methods() -> list[str]:
    """Names of the distillation methods, for `distill` and for `gkd_core.losses`; those of installed plugins too.

    Example:
        >>> "gompertz" in list_methods()
        True
    """
    plugins.load_installed()
    return list(METHODS)


def is_method(name: object) -> bool:
    """Whether there is a method of this name; one that is not gkd's own has the installed plugins imported."""
    if not isinstance(name, str):
        return False
    return name in METHODS or (bool(plugins.load_installed()) and name in METHODS)


def register_method(
    name: str,
    *,
    summary: str = "",
    source: str = "",
    published: bool = True,
    schedule: str = "constant",
    teacher: bool = True,
    reads: Reads = "feature maps",
) -> Callable[[LossClass], LossClass]:
    """Add a distillation method of your own: a decorator of its class, a subclass of `gkd.losses.Loss`.

    From then on it is used like any other: `gkd.distill(…, method=name)`, `distill.method`, compare, search. The
    keyword-only arguments of its constructor are its options, with their types, limits and defaults.

    Args:
        name: for params.yaml.
        summary: one line; the first of the class's docstring unless given.
        source: where it was published.
        published: the formula was read in the paper; else it is a reconstruction.
        schedule: weight over time when the user names none.
        teacher: it learns from a teacher.
        reads: how far it looks into the teacher: "logits" alone (it then goes with several teachers, and
            `train.teacher_cache` can keep them), "embeddings", or "feature maps".
    Raises:
        GkdError: the name is taken, the class is no loss, its constructor takes something but student and teacher by
            position, an option has no type that can be read, or `schedule` or `reads` is unknown.

    Example:
        >>> import gkd_core as gkd
        >>> @gkd.register_method("gap", source="an example")
        ... class Gap(gkd.losses.Loss):
        ...     "The mean difference of the logits."
        ...     def __init__(self, student, teacher, *, weight: float = 1.0):
        ...         super().__init__()
        ...         self.weight = weight
        ...     def forward(self, student, teacher, labels, *, epoch=0.0, indices=None):
        ...         gap = (student.logits - teacher.logits).abs().mean()
        ...         return {"ce": self.cross_entropy(student.logits, labels), "gap": self.weight * gap}
        >>> "gap" in gkd.list_methods()
        True
    """
    owner = plugins.caller()

    def register(loss_class: LossClass) -> LossClass:
        _refuse_unfit(name, loss_class, owner, schedule=schedule, reads=reads)
        entry = Method(
            summary=summary or (inspect.getdoc(loss_class) or "").partition("\n")[0],
            source=source or f"plugin {owner}",
            loss=f"{loss_class.__module__}:{loss_class.__qualname__}",
            published=published,
            schedule=schedule,
            teacher=teacher,
            reads=reads,
            own=loss_class,
        )
        builtin = name in METHODS and plugins.owner("method", name) is None
        plugins.claim("method", name, entry, METHODS, owner, builtin=builtin)
        options_model.cache_clear()
        return loss_class

    return register


def _refuse_unfit(name: str, loss: Any, owner: str, *, schedule: str, reads: str) -> None:
    base = importlib.import_module("gkd_core.losses.base").Loss  # which imports this module

    if not (isinstance(loss, type) and issubclass(loss, base)):
        raise GkdError(f"method {name!r} of {owner} is {loss!r}: give a subclass of gkd_core.losses.Loss")
    for key, value, known in (("schedule", schedule, SCHEDULES), ("reads", reads, get_args(Reads))):
        if value not in known:
            raise GkdError(unknown(f"{key} of method {name!r} of {owner}", value, known))
    try:
        model_of(loss, name)
    except (NameError, PydanticUserError) as error:
        reason = str(error).partition("\n")[0]
        raise GkdError(
            f"the options of method {name!r} of {owner} cannot be read ({reason}): correct their types"
        ) from None
    taken, any_number = positional(loss)
    if len(taken) > 2 or (len(taken) < 2 and not any_number):
        names = ", ".join(parameter.name for parameter in taken) or "nothing"
        raise GkdError(
            f"the constructor of method {name!r} of {owner} takes {names} by position: let it take student and teacher "
            "so, and its options by keyword only, behind a *"
        )


RENAMED: dict[str, dict[str, str]] = {
    "kd": {"alpha": "weight"},
    "dkd": {"alpha": "weight_target", "beta": "weight_non_target"},
    "dist": {"beta": "weight_inter", "gamma": "weight_intra"},
    "self-distillation": {"alpha": "weight"},
}
"""Method → {old name: name}. The old one may still be used."""

# Keyword-only arguments of a loss that are facts of the training, not choices: whoever trains passes those it takes.
RUN_FACTS = ("seed", "epochs", "train_labels")


def _keywords(loss: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    signature = inspect.signature(loss, eval_str=True)
    return {n: p for n, p in signature.parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}


def positional(maker: Callable[..., Any]) -> tuple[list[inspect.Parameter], bool]:
    """What a class's constructor, or a function, takes by position; whether it takes any number so (`*args`)."""
    parameters = inspect.signature(maker, eval_str=True).parameters.values()
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    any_number = any(each.kind is inspect.Parameter.VAR_POSITIONAL for each in parameters)
    return [each for each in parameters if each.kind in by_position], any_number


def hyperparameters(method: str) -> dict[str, inspect.Parameter]:
    """A method's hyperparameters: the keyword-only arguments of its loss that are no facts of the training."""
    return _hyperparameters(METHODS[method].load())


def _hyperparameters(loss: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    return {name: parameter for name, parameter in _keywords(loss).items() if name not in RUN_FACTS}


def create_loss(
    method: str,
    student: StagedNetwork,
    teacher: StagedNetwork | None,
    hyperparameters: dict[str, Any],
    *,
    seed: int,
    epochs: int,
    train_labels: Tensor,
) -> Loss:
    """The method's loss, with those facts of the training that it takes.

    Args:
        teacher: None for a method without one.
        hyperparameters: the others have their defaults.
        seed: of all that is random in the loss.
        epochs: length of the training.
        train_labels: [N] int64, labels of the training split by position.
    Raises:
        GkdError: the method does not go with these networks, or hyperparameters contradict each other.
    """
    facts = {"seed": seed, "epochs": epochs, "train_labels": train_labels}
    create: Callable[..., Loss] = METHODS[method].load()
    taken = {name: fact for name, fact in facts.items() if name in _keywords(create)}
    return create(student, teacher, **taken, **hyperparameters)


@functools.cache
def options_model(method: str) -> type[BaseModel]:
    """A method's hyperparameters as a model: types and limits from the signature of its loss."""
    return model_of(METHODS[method].load(), f"{method} options")


def model_of(loss: Callable[..., Any], name: str) -> type[BaseModel]:
    """The hyperparameters of a loss's class, or of its constructor, as a model.

    Raises:
        NameError: an annotation names what is not there when the program runs.
    """
    fields: dict[str, Any] = {
        key: (Any if p.annotation is p.empty else p.annotation, p.default if p.default is not p.empty else Field())
        for key, p in _hyperparameters(loss).items()
    }
    return create_model(
        name,
        __config__=ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True),
        **fields,
    )


def check_hyperparameters(method: str, given: dict[str, Any]) -> dict[str, Any]:
    """`given` by today's names, checked against the types and limits in the signature of the method's loss.

    Raises:
        GkdError: unknown names, wrong types, values out of range: all of them, a line each.
    """
    at = ("distill", "options", method)
    renamed = RENAMED.get(method, {})
    for old in given.keys() & renamed.keys():
        if renamed[old] in given:
            raise GkdError(f"{'.'.join(at)}.{old} is the old name of {renamed[old]}, and both are given: leave it out")
        warn_renamed(old, renamed[old])
    given = {renamed.get(name, name): value for name, value in given.items()}
    if wrong := list(wrong_hyperparameters(method, given, at)):
        raise GkdError("\n".join(mistake.sentence for mistake in wrong))
    checked = options_model(method).model_validate(given)
    return {name: getattr(checked, name) for name in given}


def wrong_hyperparameters(method: str, given: dict[str, Any], at: tuple[str, ...]) -> Iterator[Mistake]:
    """All that is wrong with them.

    Args:
        at: where the user gave them.
    """
    model = options_model(method)
    for name in given:
        if name not in model.model_fields:
            place = (*at, str(name))
            yield Mistake(place, unknown_key(place, model.model_fields, "option", RENAMED.get(method)))
    try:
        model.model_validate({name: value for name, value in given.items() if name in model.model_fields})
    except ValidationError as error:
        yield from mistakes(error, model, at=at)
        return
    for sentence in METHODS[method].load().contradictions(given):
        yield Mistake(at, f"{'.'.join(at)}.{sentence}", contradiction=True)
