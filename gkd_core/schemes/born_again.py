"""Generations of the same network, each taught by the one before."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from gkd_core.schemes.base import DistillationSpec, Options, Scheme

if TYPE_CHECKING:
    from gkd_core.models.network import Network
    from gkd_core.training.result import Result
    from gkd_core.training.trainer import Training


class BornAgainOptions(Options):
    """Generations of the same network."""

    generations: Annotated[int, Field(ge=1, le=20)] = 3
    """Students trained in turn, each by the one before. The first learns from the teacher where that has the student's
    architecture, else from the student trained alone."""


class BornAgain(Scheme):
    """Generation g has seed + g and is taught by generation g − 1; the last is the student.

    In the paper the first teacher has the student's architecture. So has ours: a single teacher of that architecture
    is generation 0; else the student trained alone is, on the same budget (bit for bit the baseline).
    """

    name = "born_again"
    summary = "Generations of the same network, each taught by the one before; the last is the student."
    source = "Furlanello et al. 2018, arXiv:1805.04770"
    because = "every generation learns from the one before"
    options = BornAgainOptions

    def check_teachers(self, spec: DistillationSpec, teachers: object, student: object, where: str) -> None:
        """Any teachers do: those of another architecture are passed over."""

    def train(self, training: "Training", create_student: Callable[[int], "Network"], work: Path | None) -> "Result":
        """Every generation in turn; finished ones are kept in `work`."""
        teachers, seed = training.teachers, training.config.seed
        parent = teachers[0] if len(teachers) == 1 and teachers[0].spec == training.network.spec else None
        origin = "the student trained alone" if parent is None else "the teacher"
        last: int = training.spec.scheme_options["generations"]
        accuracies: list[float] = []
        for generation in range(0 if parent is None else 1, last + 1):
            one = replace(
                training,
                network=create_student(seed + generation),
                config=training.config.model_copy(update={"seed": seed + generation}),
                spec=DistillationSpec() if parent is None else training.spec,
                teachers=() if parent is None else (parent,),
                on_epoch=training.on_epoch if generation == last else None,
                title=f"{training.title}, generation {generation} of {last},",
                facts=training.facts
                | {"generation": generation, "generation_0": origin, "generations_validation_top1": list(accuracies)},
            )
            if generation == last:
                return one.run(None if work is None else work / f"generation-{generation}.training")
            parent, facts = _generation(one, None if work is None else work / f"generation-{generation}")
            accuracies.append(facts["validation_top1"])
        raise AssertionError("the last generation returns")


def _generation(training: "Training", folder: Path | None) -> tuple["Network", dict[str, Any]]:
    """Network and facts of a generation that teaches the next; a finished one is read back from its folder."""
    from gkd_core.training.result import reopen
    from gkd_core.training.workspace import run_once

    if folder is None:
        result = training.run()
        return result.network, result.facts
    checkpoints = folder.with_name(folder.name + ".training")
    return reopen(run_once(folder, lambda new: training.run(checkpoints).save(new)), training.network.classes)


SCHEME = BornAgain()
