"""What a sweep trains: every method with every seed for every pair of teacher and student, each teacher once."""

import json
from collections.abc import Sequence
from typing import Any

from components.compare import check
from components.graph import divide
from gkd_core import methods as registry
from gkd_core.config import Params
from gkd_core.errors import GkdError
from gkd_core.evaluation.comparison import expect_metric
from gkd_core.models.registry import refuse_unknown_name

TRAINING = ("student", "train", "distill", "evaluate")


def lay_out(
    params: Params,
    methods: Sequence[str],
    pairs: Sequence[Any],
    seeds: Sequence[float],
    reference: str,
    metric: str = "top1",
) -> tuple[str, list[str], list[str]]:
    """The sections of the prepare step, those of each teacher, and each trial, all as JSON.

    Args:
        params: what all have in common.
        methods: names; none is every method there is.
        pairs: [teacher, student]; none is the one of `params`.
        seeds: of the students; whole numbers, which Kubeflow makes floats.
        reference: the method that the others are compared with.
        metric: what they are compared by.
    Raises:
        GkdError: something in it cannot be trained or compared.
    """
    chosen = list(dict.fromkeys([reference, *(methods or registry.METHODS)]))
    numbers = [_whole(seed) for seed in seeds]
    expect_metric(metric)
    named = [_pair(pair) for pair in pairs] or [(params.teacher.name, params.student.name)]
    if params.teacher.source is not None and len({teacher for teacher, _ in named}) > 1:
        raise GkdError(
            f"teacher.source is {params.teacher.source}, one teacher, but pairs names several: set it to null, or name "
            "one teacher"
        )
    for teacher, student in named:
        refuse_unknown_name(teacher, "pairs: the teacher")
        refuse_unknown_name(student, "pairs: the student")
    teachers: dict[str, str] = {}
    trials = []
    for teacher, student in dict.fromkeys(named):
        one = params.model_copy(
            update={
                "teacher": params.teacher.model_copy(update={"name": teacher}),
                "student": params.student.model_copy(update={"name": student}),
            }
        )
        check(one, chosen, numbers)
        teachers.setdefault(teacher, json.dumps(divide(one)["teacher"]))
        content = one.model_dump(mode="json", include=set(TRAINING))
        trials += [
            json.dumps({"teacher": list(teachers).index(teacher), "method": method, "seed": seed, "sections": content})
            for seed in numbers
            for method in chosen
        ]
    return json.dumps(divide(params)["prepare"]), list(teachers.values()), trials


def _whole(seed: float) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int | float) or seed != int(seed):
        raise GkdError(f"seeds has {seed!r}: give whole numbers")
    return int(seed)


def _pair(pair: Any) -> tuple[str, str]:
    if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(name, str) for name in pair):
        raise GkdError(f"pairs has {pair!r}: write each as [teacher, student], such as [resnet56, resnet20]")
    return pair[0], pair[1]
