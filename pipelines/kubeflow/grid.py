"""What a sweep trains: every contender with every seed for every pair of teacher and student, each teacher once."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from components.graph import STEP, divide
from components.places import refuse_missing
from gkd_core.config import Params
from gkd_core.config.contenders import Contender, line_up, parse_contenders
from gkd_core.errors import GkdError, refuse_doubled
from gkd_core.evaluation.comparison import check_seeds, expect_metric
from gkd_core.models.registry import refuse_unknown_name
from pipelines.kubeflow.checks import refuse_other_devices, refuse_places


class Layout(NamedTuple):
    """What the tasks of a sweep are given, as JSON.

    Attributes:
        prepare: sections of the prepare step.
        teachers: those of each teacher.
        trials: each training.
        reference: name of the contender that the others are compared with, as it is.
    """

    prepare: str
    teachers: list[str]
    trials: list[str]
    reference: str


def lay_out(
    params: Params,
    methods: Sequence[str] = (),
    pairs: Sequence[Any] = (),
    seeds: Sequence[float] = (0, 1, 2),
    reference: str = "",
    metric: str = "top1",
    contenders: str = "",
) -> Layout:
    """What is to be trained, and in what order.

    Args:
        params: what all have in common.
        methods: names; none is every method there is.
        pairs: [teacher, student]; none is the one of `params`.
        seeds: of the students; whole numbers, which Kubeflow makes floats.
        reference: the contender that the others are compared with; empty is kd, or the first of the contenders.
        metric: what they are compared by.
        contenders: content of a file of contenders, instead of methods; empty is none.
    Raises:
        GkdError: something in it cannot be trained or compared.
    """
    numbers = [whole_number(seed) for seed in seeds]
    check_seeds(numbers)
    expect_metric(metric)
    teachers: dict[str, str] = {}
    trials = []
    for one, lined in line_ups(params, methods, pairs, reference, contenders):
        name = one.teacher.name
        teachers.setdefault(name, json.dumps(divide(one)["teacher"]))
        reference = lined[0].name
        for seed in numbers:
            for contender in lined:
                trained = contender.seeded(seed)
                sections = divide(trained)["distill"] | {"evaluate": trained.evaluate.model_dump(mode="json")}
                label = f"{contender.name}, {one.teacher.source or name} → {trained.student.name}, seed {seed}"
                trial = {"teacher": list(teachers).index(name), "name": contender.name, "sections": sections}
                trials.append(json.dumps(trial | {"label": label}))
    return Layout(json.dumps(divide(params)["prepare"]), list(teachers.values()), trials, reference)


def line_ups(
    params: Params, methods: Sequence[str] = (), pairs: Sequence[Any] = (), reference: str = "", contenders: str = ""
) -> Iterator[tuple[Params, list[Contender]]]:
    """For every pair the configuration it stands for, and who is compared in it; the arguments are those of `lay_out`.

    Raises:
        GkdError: something in it cannot be trained.
    """
    entries = parse_contenders(contenders, "contenders") if contenders else None
    named = [_pair(pair) for pair in pairs] or [(params.teacher.name, params.student.name)]
    if params.teacher.source is not None and len({teacher for teacher, _ in named}) > 1:
        raise GkdError(
            f"teacher.source is {params.teacher.source}, one teacher, but pairs names several: set it to null, or name "
            "one teacher"
        )
    for teacher, student in named:
        refuse_unknown_name(teacher, "pairs: the teacher")
        refuse_unknown_name(student, "pairs: the student")
    refuse_doubled((f"{teacher} → {student}" for teacher, student in named), "pairs")
    for teacher, student in named:
        one = params.model_copy(
            update={
                "teacher": params.teacher.model_copy(update={"name": teacher}),
                "student": params.student.model_copy(update={"name": student}),
            }
        )
        lined = line_up(one, methods, entries, reference or None)
        own = next((each.name for each in lined if each.params.student.name != student), None)
        if own is not None and len({name for _, name in named}) > 1:
            raise GkdError(f"pairs names several students, but contender {own!r} has its own: leave one of them out")
        yield one, lined


def refuse_sweep(params: Params, mounts: Sequence[str], devices: int | None, **given: Any) -> None:
    """See that a cluster can train what a sweep asks for.

    Args:
        params: what all have in common.
        mounts: where the profile's volumes are.
        devices: accelerators of a training under the profile; None where it has none.
        given: the other arguments of `lay_out`.
    Raises:
        GkdError: it cannot, or a contender names a place of this machine.
    """
    lay_out(params, **given)
    asked = {name: given[name] for name in ("methods", "pairs", "reference", "contenders") if name in given}
    for contender in (each for _, lined in line_ups(params, **asked) for each in lined):
        try:
            refuse_places(contender.params, mounts)
            if devices:
                refuse_other_devices(contender.params, devices)
        except GkdError as error:
            raise GkdError(f"contender {contender.name!r}: {error}") from None


def refuse_missing_starts(params: Params, *asked: Any, made: Callable[[Path], bool]) -> None:
    """See that what teachers and students start from is there, as `components.places.refuse_missing`.

    Args:
        params: what all have in common.
        asked: the other arguments of `line_ups`.
        made: as there.
    Raises:
        GkdError: something is not.
    """
    for one, lined in line_ups(params, *asked):
        refuse_missing(one, [STEP["teacher"]], made=made)
        for contender in lined:
            try:
                refuse_missing(contender.params, [STEP["distill"]], made=made)
            except GkdError as error:
                raise GkdError(f"contender {contender.name!r}: {error}") from None


def whole_number(seed: float) -> int:
    """Raises: GkdError: a seed is none."""
    if isinstance(seed, bool) or not isinstance(seed, int | float) or seed != int(seed):
        raise GkdError(f"seeds has {seed!r}: give whole numbers")
    return int(seed)


def _pair(pair: Any) -> tuple[str, str]:
    if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(name, str) for name in pair):
        raise GkdError(f"pairs has {pair!r}: write each as [teacher, student], such as [resnet56, resnet20]")
    return pair[0], pair[1]
