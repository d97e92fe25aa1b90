"""W1 solvers beside POT and geomloss: time, and how far value and gradient are from the exact ones.

"At equal error" is the first of `GEOMLOSS`, cheapest first, whose value is as near to the exact one as our Sinkhorn's.
"""

import importlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.table import Goal, Row, Table, absent, installed
from benchmarks.timing import in_turns, milliseconds, ratio
from gkd_core.losses.distances import distances
from gkd_core.losses.wasserstein import SOLVERS, atoms, wasserstein_loss

ROUNDS = 9
PAIRS, CHANNELS, SIDE = 64, 64, 8
EPSILON, ITERATIONS = 0.02, 30
EPSILONS = (0.02, 0.01, 0.005, 0.004, 0.003, 0.002, 0.001)
GEOMLOSS = [(epsilon, debias) for debias in (False, True) for epsilon in EPSILONS]
"""ε relative to the mean cost, and whether the blur's own part is taken off; each doubles the time at most."""
AS_NEAR = 1.05
OURS = "gkd, sinkhorn"
Loss = Callable[[Tensor, Tensor], Tensor]
"""Student's and teacher's maps [B, C, H, W] → mean W1."""


@dataclass(frozen=True)
class Answer:
    """What a solver says of some clouds, beside the exact one.

    Attributes:
        error: of the mean value, relative.
        cosine: of the gradient with the exact one's, mean over pairs.
    """

    error: float
    cosine: float


def clouds() -> Iterator[tuple[str, Tensor, Tensor]]:
    """Maps of student and teacher: nothing but noise, and smooth with half as much noise."""
    generator = torch.Generator().manual_seed(0)

    def noise(side: int) -> Tensor:
        return torch.randn(PAIRS, CHANNELS, side, side, generator=generator)

    def smooth() -> Tensor:
        return functional.interpolate(noise(3), size=(SIDE, SIDE), mode="bicubic", align_corners=False)

    yield "noise", noise(SIDE).relu(), noise(SIDE).relu()
    yield "smooth maps", *((smooth() + 0.5 * noise(SIDE)).relu() for _ in range(2))


def ours(solver: str) -> Loss:
    return lambda student, teacher: wasserstein_loss(student, teacher, solver=solver, seed=0)  # type: ignore[arg-type]


def geomloss(epsilon: float, debias: bool, scale: float) -> Loss:
    """Its Sinkhorn with ε = `epsilon` · `scale`; for p = 1 the blur is ε."""
    from geomloss import SamplesLoss

    loss = SamplesLoss("sinkhorn", p=1, blur=epsilon * scale, debias=debias, backend="tensorized")
    return lambda student, teacher: loss(atoms(student).contiguous(), atoms(teacher).contiguous()).mean()


def pot_sinkhorn(student: Tensor, teacher: Tensor) -> Tensor:
    """POT's batched solver, with our ε and iterations; the plan is held fixed for the gradient, as ours is."""
    import ot

    cost = distances(atoms(student), atoms(teacher))
    relative = cost.detach() / cost.detach().mean((1, 2), keepdim=True)
    settings = {"reg": EPSILON, "max_iter": ITERATIONS, "method": "log_sinkhorn", "grad": "detach"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not converged to its own tolerance
        plan = ot.solve_batch(relative, **settings).plan
    return (plan.detach() * cost).sum((1, 2)).mean()


def pot_exact(student: Tensor, teacher: Tensor) -> Tensor:
    """POT's exact solver, pair after pair, as its documentation shows it for torch."""
    import ot

    one = torch.full((SIDE * SIDE,), 1 / SIDE**2, dtype=torch.float64)
    cost = distances(atoms(student), atoms(teacher)).double()
    return torch.stack([ot.emd2(one, one, each) for each in cost]).mean()


def solved(loss: Loss, student: Tensor, teacher: Tensor) -> tuple[float, Tensor]:
    """Value and gradient."""
    leaf = student.clone().requires_grad_()
    value = loss(leaf, teacher)
    value.backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    return float(value.detach()), leaf.grad


def compared(found: tuple[float, Tensor], exact: tuple[float, Tensor]) -> Answer:
    cosines = functional.cosine_similarity(found[1].flatten(1), exact[1].flatten(1))
    return Answer(abs(found[0] - exact[0]) / exact[0], float(cosines.mean()))


def measure(rounds: int = ROUNDS) -> Table:
    torch.set_num_threads(1)
    rows: list[Row] = []
    for kind, student, teacher in clouds():
        exact = solved(ours("exact"), student, teacher)
        losses = {f"gkd, {solver}": ours(solver) for solver in SOLVERS} | {"POT, exact": pot_exact}
        missing = {}
        if hasattr(importlib.import_module("ot"), "solve_batch"):
            losses["POT, batched Sinkhorn, same ε and iterations"] = pot_sinkhorn
        else:
            missing["POT, batched Sinkhorn"] = "not measured: this POT has no solve_batch, 0.9.7 has"
        if installed("geomloss"):
            scale = float(distances(atoms(student), atoms(teacher)).mean())
            losses["geomloss, same ε"] = geomloss(EPSILON, True, scale)
            wanted = AS_NEAR * compared(solved(ours("sinkhorn"), student, teacher), exact).error
            for epsilon, debias in GEOMLOSS:
                loss = geomloss(epsilon, debias, scale)
                if compared(solved(loss, student, teacher), exact).error <= wanted:
                    how = f"ε {epsilon:g}{', debiased' if debias else ''}"
                    losses[f"geomloss, equal error ({how})"] = loss
                    break
            else:
                missing["geomloss, equal error"] = f"not reached: larger with every ε down to {GEOMLOSS[-1][0]:g}"
        else:
            missing["geomloss"] = absent("geomloss")
        runs = {name: partial(solved, loss, student, teacher) for name, loss in losses.items()}
        seconds = in_turns(runs, rounds)
        for name, found in seconds.items():
            answer = compared(solved(losses[name], student, teacher), exact)
            cells = (kind, name, milliseconds(found), f"{100 * answer.error:.2f} %", f"{answer.cosine:.3f}")
            peer = name.startswith(("geomloss", "POT"))
            rows.append(Row(cells, ratio(seconds[OURS], found), Goal(1.0) if peer else None))
        rows += [Row((kind, name, why, "", ""), None, Goal(1.0)) for name, why in missing.items()]
    return Table(
        f"W1 of {PAIRS} pairs of {SIDE}×{SIDE} maps with {CHANNELS} channels, forward and backward, one thread; "
        f"{rounds} turns. Our Sinkhorn has its defaults (ε {EPSILON:g} of the mean cost, {ITERATIONS} iterations).",
        ("clouds", "solver", "ms of CPU", "error of the value", "cosine of the gradient"),
        "our Sinkhorn ÷ it",
        rows,
        named=2,
    )
