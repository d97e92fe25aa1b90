"""The Gompertz method: feature, gradient and soft-label losses together; β(t) is applied by the training loop."""

import hashlib
import reprlib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, PlainValidator
from torch import Tensor

from gkd_core.data import shards
from gkd_core.errors import GkdError
from gkd_core.losses.base import Loss, Traits, batch_mean, required
from gkd_core.losses.dist import relation_losses
from gkd_core.losses.dkd import decoupled_kl
from gkd_core.losses.feature_maps import ChannelAdapter, ChannelRemap, last_stage_of
from gkd_core.losses.gradient import gradient_loss, head_gradient
from gkd_core.losses.logit_standardisation import standardise
from gkd_core.losses.soft_labels import TEMPERATURE, soft_label_kl
from gkd_core.losses.term_scale import RunningScale
from gkd_core.losses.wasserstein import Normalisation, Solver, wasserstein_loss
from gkd_core.models.classifier import Output, StagedNetwork

Positive = Annotated[float, Field(gt=0.0)]
NotNegative = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


def _known_stages(given: Any) -> Any:
    numbers = isinstance(given, list) and all(type(number) is int and number > 0 for number in given)
    if given not in ("last", "all") and not (given and numbers and len(set(given)) == len(given)):
        raise ValueError(
            f"stages is {reprlib.repr(given)}: take last, all, or a list of different stages, counted from 1 at the "
            "shallow end"
        )
    return given


Stages = Annotated[Literal["last", "all"] | list[int], PlainValidator(_known_stages)]
SoftLabels = Literal["kl", "standardised", "dist", "decoupled"]
TermScale = Literal["fixed", "running_mean"]

# Every choice by preset. "Assumed": the paper does not give it. Its schedule's b and c are assumed as well (see
# gkd_core/schedules.py), and so is where channels are adapted (see ChannelAdapter).
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "stages": "last",  # assumed: §3.2 speaks of "feature maps"
        "solver": "sinkhorn",  # assumed: eq. 1 names the distance, no way to compute it
        "epsilon": 0.02,  # assumed, with the solver
        "iterations": 30,  # assumed, with the solver
        "projections": 64,  # assumed; read by solver sliced only
        "position_weight": 0.0,  # assumed: §3.2 wants spatial patterns to count, eq. 1 has no positions
        "normalise": "none",  # eq. 1 literally
        "r": 0.5,  # assumed: "a weight coefficient r", §3.3
        "soft_labels": "kl",
        "temperature": TEMPERATURE,  # assumed: "the distillation temperature parameter", §3.5
        "scale_tau2": False,  # eq. 7 literally: no τ²
        "weight_non_target": 8.0,  # assumed: DKD's; read by soft_labels decoupled only
        "term_scale": "fixed",  # eq. 7 literally
        "weight_wasserstein": 1.0,  # eq. 7: a plain sum
        "weight_gradient": 1.0,
        "weight_kd": 1.0,
    },
}
ASSUMED = (
    "stages",
    "solver",
    "epsilon",
    "iterations",
    "projections",
    "position_weight",
    "r",
    "temperature",
    "weight_non_target",
)
# Where ours departs from the paper: a scale-free feature term, because the raw one drowns cross-entropy, and τ².
PRESETS["tuned"] = PRESETS["paper"] | {"normalise": "teacher_rms", "scale_tau2": True}


READ_BY: dict[str, tuple[str, tuple[str, ...]]] = {
    "epsilon": ("solver", ("sinkhorn",)),
    "iterations": ("solver", ("sinkhorn",)),
    "projections": ("solver", ("sliced",)),
    "position_weight": ("solver", ("sinkhorn", "exact")),
    "weight_non_target": ("soft_labels", ("decoupled",)),
}
"""Options that are read with some values of another option only."""


class Gompertz(Loss):
    """CE(z_S, y) and, for β(t) to multiply, L_wass + L_grad + L_kd.

    Where channels differ, a trained 1×1 adapter for each stage brings the student's features to the teacher's channels
    for L_wass (it belongs to the loss, not to the student), and a fixed semi-orthogonal map brings the teacher's
    gradient to the student's channels for L_grad, which is the last stage's. A term of weight 0 is not computed. Of a
    transformer's last stage the tokens are matched, which are what its head sees. Images without a label have a part in
    L_wass and L_kd alone.

    Every choice of `soft_labels` reads `temperature`, and `scale_tau2` multiplies it by τ², whichever it is:

    - `kl`: KL(σ(z_T/τ) ‖ σ(z_S/τ)), the paper's.
    - `standardised`: the same of z-scored logits, which needs three classes. Its authors take τ = 2, τ² and a weight of
      9 (Sun et al. 2024, arXiv:2403.01427).
    - `dist`: 1 − Pearson's correlation over the classes, mean over samples, plus the same over the samples, mean over
      classes. Its authors take τ² and a weight of 2 (Huang et al. 2022, arXiv:2205.10536). No mean over samples, so
      `train.balance: weights` is refused.
    - `decoupled`: TCKD + weight_non_target·NCKD. Its authors take τ² (Zhao et al. 2022, arXiv:2203.08679). It needs the
      class of every image: mixup, cutmix and images without a label are refused, as by dkd.

    Args:
        seed: of adapters and map, and of sliced's directions.
        preset: `paper` is the literal form of the paper; `tuned` has a scale-free feature term and τ², chosen from few
            measurements, no full ablation yet. Every option below that is None takes the preset's value.
        stages: which stages L_wass compares, the mean over them: `last` is what the head sees; `all`; or a list of the
            student's, counted from 1 at the shallow end. Stages are paired from the deepest backwards, as by at and
            reviewkd; where one network has more, its shallowest have no partner: `all` leaves them out, a list that
            names one is refused. Shallow stages have many atoms: sinkhorn and exact compare each with each, quantile
            and sliced sort them.
        solver: how W1 is computed: sinkhorn, sliced, quantile or exact.
        epsilon: of sinkhorn, strength of the entropy relative to the mean cost.
        iterations: of sinkhorn.
        projections: of sliced, number of directions; drawn anew at every step.
        position_weight: λ_pos, weight of the distance between positions in the ground cost (sinkhorn and exact).
        normalise: `teacher_rms` measures each stage's features in units of the teacher's RMS norm, `none` takes them
            as they are.
        r: share of the Euclidean distance in the gradient loss; the cosine has 1 − r.
        soft_labels: what L_kd is: kl, standardised, dist or decoupled.
        temperature: τ of the soft labels.
        scale_tau2: multiply the soft-label term by τ².
        weight_non_target: of decoupled, weight of the other classes' part beside the target's.
        term_scale: `fixed` takes the terms as they are; `running_mean` scales each, before its weight, to the size of
            cross-entropy (see `RunningScale`), so that a weight of 1 makes it as large as that; τ² cancels then.
        weight_wasserstein, weight_gradient, weight_kd: weights of the three terms.
    Raises:
        GkdError: there is no teacher, a network has neither feature maps nor tokens or not those stages, or options
            contradict each other.
    Source: Yang & Qin 2025, eqs. 1–4 and 7 (arXiv:2510.21649).

    Example:
        >>> loss = Gompertz(student, teacher, temperature=4.0)
        >>> sorted(loss(student(images), teacher(images), labels, epoch=0.5))
        ['ce', 'gradient', 'kd', 'wasserstein']
    """

    feature_maps = True
    unlabelled = True
    weighs_samples = True

    @classmethod
    def contradictions(cls, given: Mapping[str, Any]) -> Iterator[str]:
        """An option that the chosen value of another one leaves unread."""
        chosen = _chosen(given)
        for option, (by, values) in READ_BY.items():
            value = given.get(option)
            # A 0 that the presets have too says nothing.
            if value is not None and (value or PRESETS["paper"][option]) and chosen[by] not in values:
                yield (
                    f"{option} is {value:g} but {by} {chosen[by]} does not read it: take {by} "
                    f"{' or '.join(values)}, or leave {option} out"
                )

    @classmethod
    def traits(cls, given: Mapping[str, Any]) -> Traits:
        """Decoupled soft labels need the class of every image; dist compares the samples of a batch."""
        match _chosen(given)["soft_labels"]:
            case "decoupled":
                return Traits(True, False, cls.weighs_samples, "soft_labels decoupled")
            case "dist":
                return Traits(cls.hard_labels, cls.unlabelled, False, "soft_labels dist")
        return super().traits(given)

    def __init__(
        self,
        student: StagedNetwork,
        teacher: StagedNetwork | None,
        *,
        seed: int = 0,
        preset: Literal["paper", "tuned"] = "tuned",
        stages: Stages | None = None,
        solver: Solver | None = None,
        epsilon: Positive | None = None,
        iterations: Count | None = None,
        projections: Count | None = None,
        position_weight: NotNegative | None = None,
        normalise: Normalisation | None = None,
        r: Share | None = None,
        soft_labels: SoftLabels | None = None,
        temperature: Positive | None = None,
        scale_tau2: bool | None = None,
        weight_non_target: NotNegative | None = None,
        term_scale: TermScale | None = None,
        weight_wasserstein: NotNegative | None = None,
        weight_gradient: NotNegative | None = None,
        weight_kd: NotNegative | None = None,
    ) -> None:
        super().__init__()
        options = {
            "stages": stages,
            "solver": solver,
            "epsilon": epsilon,
            "iterations": iterations,
            "projections": projections,
            "position_weight": position_weight,
            "normalise": normalise,
            "r": r,
            "soft_labels": soft_labels,
            "temperature": temperature,
            "scale_tau2": scale_tau2,
            "weight_non_target": weight_non_target,
            "term_scale": term_scale,
            "weight_wasserstein": weight_wasserstein,
            "weight_gradient": weight_gradient,
            "weight_kd": weight_kd,
        }
        given = {"preset": preset, **options}
        for sentence in self.contradictions(given):
            raise GkdError(f"gompertz.{sentence}")
        chosen = _chosen(given)
        self.stages: Stages = chosen["stages"]
        self.solver: Solver = chosen["solver"]
        self.epsilon: float = chosen["epsilon"]
        self.iterations: int = chosen["iterations"]
        self.projections: int = chosen["projections"]
        self.position_weight: float = chosen["position_weight"]
        self.normalise: Normalisation = chosen["normalise"]
        self.r: float = chosen["r"]
        self.soft_labels: SoftLabels = chosen["soft_labels"]
        self.temperature: float = chosen["temperature"]
        self.scale_tau2: bool = chosen["scale_tau2"]
        self.weight_non_target: float = chosen["weight_non_target"]
        self.term_scale: TermScale = chosen["term_scale"]
        self.weight_wasserstein: float = chosen["weight_wasserstein"]
        self.weight_gradient: float = chosen["weight_gradient"]
        self.weight_kd: float = chosen["weight_kd"]
        traits = self.traits(given)
        self.hard_labels, self.unlabelled = traits.hard_labels, traits.unlabelled
        self.weighs_samples = traits.weighs_samples
        teacher = required(teacher, "gompertz")
        if self.soft_labels == "standardised" and student.num_classes < 3:
            raise GkdError(
                f"gompertz.soft_labels is standardised, which leaves nothing to learn with {student.num_classes} "
                "classes: take kl, or data with at least 3"
            )
        # In a tuple, because a network assigned to an attribute would become part of the loss: its parameters would
        # enter the optimiser twice and the loss's checkpoint.
        self._networks = (student, teacher)
        self.seed = seed
        networks = {"student": student, "teacher": teacher}
        shapes = {role: _compared_shapes(network, role) for role, network in networks.items()}
        self._adapters: dict[int, str] = {}
        self.adapter: ChannelAdapter | None = None
        for place in _places(self.stages, len(shapes["student"]), len(shapes["teacher"])):
            for role, network in networks.items():
                if self.position_weight and len(shapes[role][place]) == 2:
                    raise GkdError(
                        f"gompertz.position_weight is {self.position_weight:g} but the {role} {network.name} gives "
                        "tokens, which lie in no grid: set position_weight to 0"
                    )
            (ours, *_), (theirs, *_) = shapes["student"][place], shapes["teacher"][place]
            name = self._adapters[place] = "adapter" if place == -1 else f"adapter_{len(shapes['student']) + place + 1}"
            differ = self.weight_wasserstein and ours != theirs
            setattr(self, name, ChannelAdapter(ours, theirs, seed=seed - 1 - place) if differ else None)
        self.remap = ChannelRemap(shapes["teacher"][-1][0], shapes["student"][-1][0], seed=seed)
        terms = sum(weight > 0 for weight in (self.weight_wasserstein, self.weight_gradient, self.weight_kd))
        self.scale = RunningScale(terms) if self.term_scale == "running_mean" else None

    def forward(
        self, student: Output, teacher: Output | None, labels: Tensor, *, epoch: float = 0.0, **unused: object
    ) -> dict[str, Tensor]:
        """Terms "ce", "wasserstein", "gradient" and "kd"."""
        teacher = required(teacher, "gompertz")
        ce, weights = self.cross_entropy(student.logits, labels), self.sample_weights(labels)
        given = {"wasserstein": self.weight_wasserstein, "gradient": self.weight_gradient, "kd": self.weight_kd}
        terms: dict[str, Tensor] = {}
        if self.weight_wasserstein:
            terms["wasserstein"] = self._wasserstein(student, teacher, epoch, weights)
        if self.weight_gradient:
            terms["gradient"] = self._gradient(student, teacher, labels, weights)
        if self.weight_kd:
            terms["kd"] = self._soft_labels(student, teacher, labels, weights)
        if self.scale is not None:
            terms = self.scale(ce, terms)
        return {"ce": ce} | {name: given[name] * term for name, term in terms.items()}

    def _wasserstein(self, student: Output, teacher: Output, epoch: float, weights: Tensor | None) -> Tensor:
        losses = []
        for place, name in self._adapters.items():
            adapter, features = getattr(self, name), _compared(student, place)
            losses.append(
                wasserstein_loss(
                    features if adapter is None else adapter(features),
                    _compared(teacher, place),
                    solver=self.solver,
                    epsilon=self.epsilon,
                    iterations=self.iterations,
                    projections=self.projections,
                    seed=_step_seed(self.seed - 1 - place, epoch),
                    position_weight=self.position_weight,
                    normalise=self.normalise,
                    weights=weights,
                )
            )
        return losses[0] if len(losses) == 1 else torch.stack(losses).mean()

    def _soft_labels(self, student: Output, teacher: Output, labels: Tensor, weights: Tensor | None) -> Tensor:
        ours, theirs, temperature = student.logits, teacher.logits, self.temperature
        match self.soft_labels:
            case "kl":
                loss = soft_label_kl(ours, theirs, temperature, weights=weights)
            case "standardised":
                loss = soft_label_kl(standardise(ours), standardise(theirs), temperature, weights=weights)
            case "dist":
                gather = shards.current().gather  # samples are compared with each other, whichever process has them
                inter, intra = relation_losses(gather(ours), gather(theirs), temperature)
                loss = inter + intra
            case "decoupled":
                target, others = decoupled_kl(ours, theirs, labels, temperature)
                loss = batch_mean(target + self.weight_non_target * others, weights)
        return temperature**2 * loss if self.scale_tau2 else loss

    def _gradient(self, student: Output, teacher: Output, labels: Tensor, weights: Tensor | None) -> Tensor:
        student_network, teacher_network = self._networks
        return gradient_loss(
            head_gradient(student_network, student, labels, differentiable=True),
            self.remap(head_gradient(teacher_network, teacher, labels, differentiable=False)),
            labels=labels,
            r=self.r,
            weights=weights,
        )


def _chosen(given: Mapping[str, Any]) -> dict[str, Any]:
    """Every option: what is given, else the preset's."""
    return PRESETS[given.get("preset", "tuned")] | {name: value for name, value in given.items() if value is not None}


def _compared_shapes(network: StagedNetwork, role: str) -> list[tuple[int, ...]]:
    """(C, H, W) of the stages from shallow to deep, the last one as the head sees it: (C, N) of tokens."""
    return [*network.stage_shapes()[:-1], last_stage_of(network, role, "gompertz")]


def _compared(output: Output, place: int) -> Tensor:
    """The stage at a place counted from the end, −1 the last one."""
    return output.last_stage if place == -1 else output.stages[place]


def _places(stages: Stages, student_count: int, teacher_count: int) -> list[int]:
    """Where the compared stages stand, counted from the end, −1 the last one: the same places in both networks.

    Raises:
        GkdError: a stage is not there, or has no partner.
    """
    pairs = min(student_count, teacher_count)
    if isinstance(stages, str):
        return [-1] if stages == "last" else list(range(-pairs, 0))
    for number in stages:
        if number > student_count:
            raise GkdError(
                f"gompertz.stages names stage {number}, but the student has {student_count}: choose from "
                f"{student_count - pairs + 1} to {student_count}"
            )
        if number <= student_count - pairs:
            raise GkdError(
                f"gompertz.stages names stage {number} of the student's {student_count}, which has no partner among "
                f"the teacher's {teacher_count}, for they are paired from the deepest backwards: choose from "
                f"{student_count - pairs + 1} to {student_count}"
            )
    return [number - 1 - student_count for number in sorted(stages)]


def _step_seed(seed: int, epoch: float) -> int:
    """A seed of its own for each step, a pure function of time: a resumed run draws the same directions."""
    return int.from_bytes(hashlib.sha256(f"{seed} {epoch!r}".encode()).digest()[:7])
