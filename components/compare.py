"""Contenders compared fairly: the same data, teacher and seeds, and only what a contender names is its own.

Not a step of the pipeline: it runs the distill step once a contender and seed, and reads the test split of each student
once. What is done stays in `work` under the digest of its settings, so a comparison that was stopped goes on where it
was, one with more contenders or seeds trains only those, and other settings under an old name are trained anew.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from components import distill
from components.teacher import find_start
from gkd_core.config import Params
from gkd_core.config.contenders import Contender, line_up
from gkd_core.data.prepared import PreparedData
from gkd_core.data.progress import progress
from gkd_core.errors import DivergedError, GkdError
from gkd_core.evaluation.comparison import MEASURED, METRICS, Comparison, check_seeds, expect_metric
from gkd_core.evaluation.evaluate import evaluate
from gkd_core.export.manifest import code_sha256
from gkd_core.files import folder_digest, json_digest, read_json, refuse_to_replace, whole_folder, write_json
from gkd_core.models.network import load_network, read_spec
from gkd_core.records import read_teacher
from gkd_core.run_facts import where_it_ran
from gkd_core.tables import rounded
from gkd_core.training.device import choose_device


def run(
    *,
    data: Path,
    teacher: Path,
    out: Path,
    work: Path,
    params: Params,
    methods: Sequence[str] = (),
    contenders: Sequence[Any] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    reference: str | None = None,
    metric: str = "top1",
) -> dict[str, Any]:
    """Train every contender with every seed, and write the comparison to `out`.

    Args:
        data, teacher: folders of the prepare and the teacher step.
        out: see `write_comparison`.
        work: finished runs stay in `compare/` there, checkpoints beside.
        params: what all have in common; `train.seed` is replaced.
        methods, contenders, reference: see `gkd_core.config.contenders.line_up`.
        seeds: of the students; the data and the teacher are the same for all.
        metric: what they are compared by.
    Returns:
        As `write_comparison`.
    Raises:
        GkdError: unknown methods or metric, wrong settings, doubled seeds, or a run that failed.
    """
    check_seeds(seeds, "--seeds")
    expect_metric(metric, "--metric")
    lined = line_up(params, methods, contenders, reference, option="--")
    refuse_to_replace(out, [data, teacher], work, kind="comparison")  # before hours of training
    rows = run_trials(data, teacher, work, lined, seeds)
    return write_comparison(rows, out=out, reference=lined[0].name, metric=metric, inputs=[data, teacher])


def run_trials(
    data: Path, teacher: Path, work: Path, lined: Sequence[Contender], seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """Every contender with every seed, see `run_trial`; seed by seed: stopped half-way, whole seeds can be compared.

    Raises:
        GkdError: a student's weights are not there, told before anything is trained; or a run failed. One that came to
            NaN is told of when all others are done.
    """
    for contender in lined:
        try:
            find_start(contender.params.student, contender.params, "student.")
        except GkdError as error:
            raise GkdError(f"{contender.name!r}: {error}") from None
    rows, diverged = [], []
    with progress("compare", len(seeds) * len(lined), unit="trainings") as advance:
        for seed in seeds:
            for contender in lined:
                try:
                    rows.append(run_trial(data, teacher, work, contender, seed))
                except DivergedError as error:
                    diverged.append(str(error))
                advance(1)
    if diverged:
        others = f"what else was trained ({len(rows)}) is kept: change or leave out what failed, and run the same again"
        raise DivergedError("\n".join([*diverged, others]))
    return rows


def run_trial(data: Path, teacher: Path, work: Path, contender: Contender, seed: int) -> dict[str, Any]:
    """One contender with one seed: trained and measured on the test split unless `work` has it already.

    Returns:
        A row for `write_comparison`.
    Raises:
        GkdError: the training failed; which one it was stands before why it came to NaN.
    """
    folder = trained(data, teacher, work, contender, seed)
    measured = read_json(folder / "result.json", "the finished run", keys=MEASURED)
    return {"name": contender.name, "settings": contender.settings, **measured}


def trained(data: Path, teacher: Path, work: Path, contender: Contender, seed: int) -> Path:
    """The folder of a finished training: `student/`, and result.json with what was measured."""
    prepared = PreparedData.open(data)
    one = contender.seeded(seed)
    start = find_start(one.student, one, "student.")
    digest = json_digest(
        {
            "data_sha256": prepared.info.sha256,
            "teacher_digest": folder_digest(teacher),
            "code_sha256": code_sha256(),
            "configuration": one.digest("student", "train", "distill"),
            **({} if start is None else {"weights_digest": start.digest}),
        }
    )
    folder = work / "compare" / f"{one.distill.method}-seed{seed}-{digest[:16]}"
    if not (folder / "result.json").exists():
        called = f"{contender.name!r}, seed {seed}"
        print(f"compare {called}", file=sys.stderr, flush=True)
        try:
            _train(data, teacher, folder, work, one, prepared)
        except DivergedError as error:
            raise DivergedError(f"{called}: {error}") from None
    return folder


def write_comparison(
    rows: Sequence[dict[str, Any]],
    *,
    out: Path,
    reference: str,
    metric: str = "top1",
    inputs: Sequence[Path] = (),
) -> dict[str, Any]:
    """Write comparison.html, .json, .md and .svg and runs.csv to `out`.

    Args:
        rows: of `run_trial`.
        out: appears whole or not at all.
        metric: what they are compared by.
        inputs: folders that `out` must not replace.
    Returns:
        As `Comparison.as_dict`.
    Raises:
        GkdError: as `Comparison`.
    """
    comparison = Comparison(rows, reference, expect_metric(metric, "--metric"))
    with whole_folder(out, list(inputs), kind="comparison") as folder:
        comparison.save(folder)
    return comparison.as_dict()


def _train(data: Path, teacher: Path, folder: Path, work: Path, params: Params, prepared: PreparedData) -> None:
    """One training and its accuracy on the test split, into `folder`."""
    facts = distill.run(data=data, teacher=teacher, out=folder / "student", work=work, params=params)
    network = load_network(folder / "student", prepared.info.classes)
    device = choose_device(params.evaluate.device, "evaluate.device")
    networks = read_teacher(teacher)["networks"]
    measured = evaluate(network, prepared.test, device=str(device))
    ran = read_json(folder / "student" / "run.json", "the finished run")
    result = {
        "teacher": " + ".join(read_spec(teacher / name).name for name in networks),
        "student": network.name,
        "method": params.distill.method,
        "seed": params.train.seed,
        **{name: rounded(getattr(measured, name)) for name in METRICS},
        "validation_top1": rounded(facts["validation_top1"]),
        "schedule": facts["schedule"],
        "seconds": ran["seconds"],
        **where_it_ran(ran),
    }
    write_json(folder / "result.json", result)
