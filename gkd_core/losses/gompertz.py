"""The Gompertz method: feature, gradient and soft-label losses together; β(t) is applied by the training loop."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor

from gkd_core.errors import GkdError
from gkd_core.losses.base import Loss, required
from gkd_core.losses.feature_maps import ChannelAdapter, ChannelRemap, last_stage_of
from gkd_core.losses.gradient import gradient_loss, head_gradient
from gkd_core.losses.soft_labels import TEMPERATURE, kd_loss, soft_label_kl
from gkd_core.losses.wasserstein import Normalisation, Solver, wasserstein_loss
from gkd_core.models.classifier import Output, StagedNetwork

Positive = Annotated[float, Field(gt=0.0)]
NotNegative = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]

# Every choice by preset. "Assumed": the paper does not give it. Its schedule's b and c are assumed as well (see
# gkd_core/schedules.py), and so is where channels are adapted (see ChannelAdapter).
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "solver": "sinkhorn",  # assumed: eq. 1 names the distance, no way to compute it
        "epsilon": 0.02,  # assumed, with the solver
        "iterations": 30,  # assumed, with the solver
        "projections": 64,  # assumed; read by solver sliced only
        "position_weight": 0.0,  # assumed: §3.2 wants spatial patterns to count, eq. 1 has no positions
        "normalise": "none",  # eq. 1 literally
        "r": 0.5,  # assumed: "a weight coefficient r", §3.3
        "temperature": TEMPERATURE,  # assumed: "the distillation temperature parameter", §3.5
        "scale_tau2": False,  # eq. 7 literally: no τ²
        "weight_wasserstein": 1.0,  # eq. 7: a plain sum
        "weight_gradient": 1.0,
        "weight_kd": 1.0,
    },
}
ASSUMED = ("solver", "epsilon", "iterations", "projections", "position_weight", "r", "temperature")
# Where ours departs from the paper: a scale-free feature term, because the raw one drowns cross-entropy, and τ².
PRESETS["tuned"] = PRESETS["paper"] | {"normalise": "teacher_rms", "scale_tau2": True}


READ_BY: dict[str, tuple[Solver, ...]] = {
    "epsilon": ("sinkhorn",),
    "iterations": ("sinkhorn",),
    "projections": ("sliced",),
    "position_weight": ("sinkhorn", "exact"),
}
"""Options of some solvers only."""


class Gompertz(Loss):
    """CE(z_S, y) and, for β(t) to multiply, L_wass + L_grad + L_kd.

    Where channels differ, a trained 1×1 adapter brings the student's features to the teacher's channels for L_wass (it
    belongs to the loss, not to the student), and a fixed semi-orthogonal map brings the teacher's gradient to the
    student's channels for L_grad. A term of weight 0 is not computed. Of a transformer the tokens are matched,
    which are what its head sees. Images without a label have a part in L_wass and L_kd alone.

    Args:
        seed: of adapter and map, and of sliced's directions.
        preset: `paper` is the literal form of the paper; `tuned` has a scale-free feature term and τ², chosen from few
            measurements, no full ablation yet. Every option below that is None takes the preset's value.
        solver: how W1 is computed: sinkhorn, sliced, quantile or exact.
        epsilon: of sinkhorn, strength of the entropy relative to the mean cost.
        iterations: of sinkhorn.
        projections: of sliced, number of directions; drawn anew at every step.
        position_weight: λ_pos, weight of the distance between positions in the ground cost (sinkhorn and exact).
        normalise: `teacher_rms` measures features in units of the teacher's RMS norm, `none` takes them as they are.
        r: share of the Euclidean distance in the gradient loss; the cosine has 1 − r.
        temperature: τ of the soft labels.
        scale_tau2: multiply the soft-label term by τ².
        weight_wasserstein, weight_gradient, weight_kd: weights of the three terms.
    Raises:
        GkdError: there is no teacher, a network has neither feature maps nor tokens, or options contradict each other.
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
        """An option of another solver than the chosen one."""
        solver = given.get("solver") or PRESETS[given.get("preset", "tuned")]["solver"]
        for option, solvers in READ_BY.items():
            if given.get(option) and solver not in solvers:
                yield (
                    f"{option} is {given[option]:g} but solver {solver} does not read it: take solver "
                    f"{' or '.join(solvers)}, or leave {option} out"
                )

    def __init__(
        self,
        student: StagedNetwork,
        teacher: StagedNetwork | None,
        *,
        seed: int = 0,
        preset: Literal["paper", "tuned"] = "tuned",
        solver: Solver | None = None,
        epsilon: Positive | None = None,
        iterations: Count | None = None,
        projections: Count | None = None,
        position_weight: NotNegative | None = None,
        normalise: Normalisation | None = None,
        r: Share | None = None,
        temperature: Positive | None = None,
        scale_tau2: bool | None = None,
        weight_wasserstein: NotNegative | None = None,
        weight_gradient: NotNegative | None = None,
        weight_kd: NotNegative | None = None,
    ) -> None:
        super().__init__()
        default = PRESETS[preset]
        self.solver: Solver = default["solver"] if solver is None else solver
        self.epsilon: float = default["epsilon"] if epsilon is None else epsilon
        self.iterations: int = default["iterations"] if iterations is None else iterations
        self.projections: int = default["projections"] if projections is None else projections
        self.position_weight: float = default["position_weight"] if position_weight is None else position_weight
        self.normalise: Normalisation = default["normalise"] if normalise is None else normalise
        self.r: float = default["r"] if r is None else r
        self.temperature: float = default["temperature"] if temperature is None else temperature
        self.scale_tau2: bool = default["scale_tau2"] if scale_tau2 is None else scale_tau2
        self.weight_wasserstein: float = (
            default["weight_wasserstein"] if weight_wasserstein is None else weight_wasserstein
        )
        self.weight_gradient: float = default["weight_gradient"] if weight_gradient is None else weight_gradient
        self.weight_kd: float = default["weight_kd"] if weight_kd is None else weight_kd
        for sentence in self.contradictions(
            {
                "solver": solver,
                "preset": preset,
                "epsilon": epsilon,
                "iterations": iterations,
                "projections": projections,
                "position_weight": position_weight,
            }
        ):
            raise GkdError(f"gompertz.{sentence}")
        teacher = required(teacher, "gompertz")
        # In a tuple, because a network assigned to an attribute would become part of the loss: its parameters would
        # enter the optimiser twice and the loss's checkpoint.
        self._networks = (student, teacher)
        self.seed = seed
        networks = {"student": student, "teacher": teacher}
        shapes = {role: last_stage_of(network, role, "gompertz") for role, network in networks.items()}
        for role, shape in shapes.items():
            if self.position_weight and len(shape) == 2:
                raise GkdError(
                    f"gompertz.position_weight is {self.position_weight:g} but the {role} {networks[role].name} gives "
                    "tokens, which lie in no grid: set position_weight to 0"
                )
        student_channels, teacher_channels = shapes["student"][0], shapes["teacher"][0]
        self.adapter: ChannelAdapter | None = None
        if self.weight_wasserstein and student_channels != teacher_channels:
            self.adapter = ChannelAdapter(student_channels, teacher_channels, seed=seed)
        self.remap = ChannelRemap(teacher_channels, student_channels, seed=seed)

    def forward(
        self, student: Output, teacher: Output | None, labels: Tensor, *, epoch: float = 0.0, **unused: object
    ) -> dict[str, Tensor]:
        """Terms "ce", "wasserstein", "gradient" and "kd"."""
        teacher = required(teacher, "gompertz")
        terms, weights = {"ce": self.cross_entropy(student.logits, labels)}, self.sample_weights(labels)
        if self.weight_wasserstein:
            terms["wasserstein"] = self.weight_wasserstein * self._wasserstein(student, teacher, epoch, weights)
        if self.weight_gradient:
            terms["gradient"] = self.weight_gradient * self._gradient(student, teacher, labels, weights)
        if self.weight_kd:
            soft = kd_loss if self.scale_tau2 else soft_label_kl
            terms["kd"] = self.weight_kd * soft(student.logits, teacher.logits, self.temperature, weights=weights)
        return terms

    def _wasserstein(self, student: Output, teacher: Output, epoch: float, weights: Tensor | None) -> Tensor:
        features = student.last_stage
        return wasserstein_loss(
            features if self.adapter is None else self.adapter(features),
            teacher.last_stage,
            solver=self.solver,
            epsilon=self.epsilon,
            iterations=self.iterations,
            projections=self.projections,
            seed=_step_seed(self.seed, epoch),
            position_weight=self.position_weight,
            normalise=self.normalise,
            weights=weights,
        )

    def _gradient(self, student: Output, teacher: Output, labels: Tensor, weights: Tensor | None) -> Tensor:
        student_network, teacher_network = self._networks
        return gradient_loss(
            head_gradient(student_network, student, labels, differentiable=True),
            self.remap(head_gradient(teacher_network, teacher, labels, differentiable=False)),
            labels=labels,
            r=self.r,
            weights=weights,
        )


def _step_seed(seed: int, epoch: float) -> int:
    """A seed of its own for each step, a pure function of time: a resumed run draws the same directions."""
    return int.from_bytes(hashlib.sha256(f"{seed} {epoch!r}".encode()).digest()[:7])
