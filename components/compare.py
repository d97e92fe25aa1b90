"""Methods compared fairly: the same data, teacher, student, budget and seeds; only the method's name changes.

Not a step of the pipeline: it runs the distill step once a method and seed, and reads the test split of each student
once. What is done stays in `work`, so a comparison that was stopped goes on where it was, and one with more methods or
seeds trains only those.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from components import distill
from components.teacher import find_start
from gkd_core import schemes
from gkd_core.config import Params, unlabelled_refused, unweighable
from gkd_core.data.prepared import PreparedData
from gkd_core.data.progress import progress
from gkd_core.errors import GkdError
from gkd_core.evaluation.comparison import COLUMNS, METRICS, Comparison, check_trials, expect_metric
from gkd_core.evaluation.evaluate import evaluate
from gkd_core.export.manifest import code_sha256
from gkd_core.files import folder_digest, json_digest, read_json, refuse_to_replace, whole_folder, write_json
from gkd_core.methods import METHODS
from gkd_core.models.network import load_network, read_spec
from gkd_core.records import read_teacher
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
    seeds: Sequence[int] = (0, 1, 2),
    reference: str = "kd",
    metric: str = "top1",
) -> dict[str, Any]:
    """Train a student by every method with every seed, and write the comparison to `out`.

    Args:
        data, teacher: folders of the prepare and the teacher step.
        out: see `write_comparison`.
        work: finished runs stay in `compare/` there, checkpoints beside.
        params: reads `student`, `train`, `distill` and `evaluate`; `distill.method` and `train.seed` are replaced.
        methods: names; none is every method there is.
        seeds: of the students; the data and the teacher are the same for all.
        reference: the method that the others are compared with, trained too if it is not among `methods`.
        metric: what they are compared by.
    Returns:
        As `write_comparison`.
    Raises:
        GkdError: an unknown method or metric, doubled seeds, settings that would not be the same for all, or a run that
            failed.
    """
    chosen = list(dict.fromkeys([reference, *(methods or METHODS)]))
    check(params, chosen, seeds)
    expect_metric(metric, "--metric")
    refuse_to_replace(out, [data, teacher], work, kind="comparison")  # before hours of training
    rows = []
    with progress("compare", len(seeds) * len(chosen), unit="trainings") as advance:
        for seed in seeds:  # seed by seed: stopped half-way, whole seeds can be compared
            for method in chosen:
                rows.append(run_trial(data, teacher, work, params, method, seed))
                advance(1)
    return write_comparison(rows, out=out, reference=reference, metric=metric, inputs=[data, teacher])


def run_trial(data: Path, teacher: Path, work: Path, params: Params, method: str, seed: int) -> dict[str, Any]:
    """One method with one seed: trained and measured on the test split unless `work` has it already.

    Returns:
        A row for `write_comparison`.
    """
    prepared = PreparedData.open(data)
    one = _settings(params, method, seed)
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
    folder = work / "compare" / f"{method}-seed{seed}-{digest[:16]}"
    if not (folder / "result.json").exists():
        _train(data, teacher, folder, work, one, prepared)
    return read_json(folder / "result.json", "the finished run", keys=COLUMNS)


def write_comparison(
    rows: Sequence[dict[str, Any]],
    *,
    out: Path,
    reference: str,
    metric: str = "top1",
    inputs: Sequence[Path] = (),
) -> dict[str, Any]:
    """Write comparison.json, comparison.md, comparison.svg and runs.csv to `out`.

    Args:
        rows: of `run_trial`.
        out: appears whole or not at all.
        metric: what they are compared by.
        inputs: folders that `out` must not replace.
    Returns:
        As `Comparison.as_dict`.
    Raises:
        GkdError: there are no rows, or the metric is unknown.
    """
    comparison = Comparison(rows, reference, expect_metric(metric, "--metric"))
    with whole_folder(out, list(inputs), kind="comparison") as folder:
        comparison.save(folder)
    return comparison.as_dict()


def check(params: Params, chosen: Sequence[str], seeds: Sequence[int]) -> None:
    """See that methods and seeds can be compared, before anything is trained.

    Args:
        chosen: the reference first.
    Raises:
        GkdError: an unknown method, doubled seeds, or settings that would not be the same for all.
    """
    check_trials(chosen, seeds, "--methods", "--seeds", reference="--reference")
    settings = params.distill
    if settings.scheme != schemes.DEFAULT:
        raise GkdError(
            f"distill.scheme is {settings.scheme}, but a comparison of methods has one teacher: set it to "
            f"{schemes.DEFAULT}"
        )
    if settings.temperature is not None:
        raise GkdError(
            f"distill.temperature is {settings.temperature:g}, but a comparison gives every method its own: set it to "
            "null, and those you mean under distill.options"
        )
    if params.train.balance == "weights":
        for method in chosen:
            if not METHODS[method].load().weighs_samples:
                raise GkdError(unweighable(method))
    if params.data.unlabelled is not None and params.train.unlabelled_fraction != 0:
        for sentence in (each for method in chosen for each in unlabelled_refused(method)):
            raise GkdError(sentence)


def _settings(params: Params, method: str, seed: int) -> Params:
    options = {name: given for name, given in params.distill.options.items() if name == method}
    distilled = params.distill.model_copy(update={"method": method, "options": options})
    return params.model_copy(update={"distill": distilled, "train": params.train.model_copy(update={"seed": seed})})


def _train(data: Path, teacher: Path, folder: Path, work: Path, params: Params, prepared: PreparedData) -> None:
    """One training and its accuracy on the test split, into `folder`."""
    facts = distill.run(data=data, teacher=teacher, out=folder / "student", work=work, params=params)
    network = load_network(folder / "student", prepared.info.classes)
    device = choose_device(params.evaluate.device, "evaluate.device")
    networks = read_teacher(teacher)["networks"]
    measured = evaluate(network, prepared.test, device=str(device))
    result = {
        "teacher": " + ".join(read_spec(teacher / name).name for name in networks),
        "student": network.name,
        "method": params.distill.method,
        "seed": params.train.seed,
        **{name: rounded(getattr(measured, name)) for name in METRICS},
        "validation_top1": rounded(facts["validation_top1"]),
        "schedule": facts["schedule"],
        "seconds": read_json(folder / "student" / "run.json", "the finished run", keys=["seconds"])["seconds"],
    }
    write_json(folder / "result.json", result)
