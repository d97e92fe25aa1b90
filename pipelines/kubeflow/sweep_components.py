"""The components of the sweep alone, beside those in components.py: what to compare, each training, the outcome."""

from typing import NamedTuple

from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Model, Output

from pipelines.kubeflow.components import component


@component
def plan(
    params: dict,
    overrides: list,
    data_source: str,
    mlflow: str,
    methods: list,
    pairs: list,
    seeds: list,
    reference: str,
    metric: str,
    contenders: str,
) -> NamedTuple("Plan", [("prepare", str), ("teachers", str), ("trials", str), ("reference", str)]):
    """Check what is to be compared as a whole, and list the trainings.

    Args:
        params: Content of params.yaml.
        overrides: A list of section.key=value.
        data_source: Replaces data.source unless empty.
        mlflow: Address of the MLflow server; replaces tracking.uri unless empty.
        methods: Names; an empty list is every method there is.
        pairs: A list of [teacher, student]; an empty list is the one of the parameters.
        seeds: Of the students; three or more give intervals.
        reference: The contender that the others are compared with; empty is kd, or the first of the contenders.
        metric: What they are compared by.
        contenders: Content of a file of contenders, instead of methods; empty is none.

    Returns:
        prepare: The section data, as JSON.
        teachers: What the teacher step reads, once for every teacher: a list in JSON.
        trials: Every training: a list in JSON.
        reference: The contender that the others are compared with.
    """
    import json

    from pipelines.kubeflow.checks import refuse_unknown, resolve
    from pipelines.kubeflow.grid import lay_out, refuse_missing_starts
    from pipelines.kubeflow.task import not_mounted, running

    with running("plan"):
        found = resolve(params, overrides, data_source=data_source, mlflow=mlflow)
        refuse_unknown(found)
        refuse_missing_starts(found, methods, pairs, reference, contenders, made=not_mounted)
        plan = lay_out(found, methods, pairs, seeds, reference, metric, contenders)
        return plan.prepare, json.dumps(plan.teachers), json.dumps(plan.trials), plan.reference


@component
def gather(teachers: Input[list[Model]], together: Output[Model]):
    """Put the teachers side by side, each in a folder of its place in the list.

    Args:
        teachers: Of every pair.

    Returns:
        together: Folders 0, 1, …
    """
    import shutil
    from pathlib import Path

    from pipelines.kubeflow.task import running

    with running("gather"):
        for place, teacher in enumerate(teachers):
            shutil.copytree(teacher.path, Path(together.path) / str(place))
        together.metadata["digests"] = [teacher.metadata.get("digest", "") for teacher in teachers]


@component
def run_trial(trial: str, data: Input[Dataset], teachers: Input[Model], result: Output[Metrics]):
    """Train a student by one contender's settings with one seed, and measure it on the test images.

    Args:
        trial: As JSON, its name, the teacher's place, the contender's name, and the sections of its parameters.
        data: The prepared images.
        teachers: Side by side.

    Returns:
        result: One row of the comparison, as JSON.
    """
    import json
    from pathlib import Path

    from components import compare
    from gkd_core.config.contenders import Contender
    from gkd_core.files import write_json
    from pipelines.kubeflow.task import running

    it = json.loads(trial)
    with running("run-trial", json.dumps(it["sections"]), label=it["label"]) as task:
        folders = Path(data.path), Path(teachers.path) / str(it["teacher"]), task.work
        row = compare.run_trial(*folders, Contender(it["name"], task.params), task.params.train.seed)
        for name in ("top1", "balanced_accuracy", "macro_f1"):
            result.log_metric(name, row[name])
        write_json(Path(result.path), row)


@component
def compare(
    results: Input[list[Metrics]],
    reference: str,
    metric: str,
    comparison: Output[Artifact],
    page: Output[HTML],
):
    """Compare the contenders, paired by seed, with intervals.

    Args:
        results: One row a training.
        reference: The contender that the others are compared with.
        metric: What they are compared by.

    Returns:
        comparison: comparison.html, .json, .md and .svg and runs.csv.
        page: The tables and plots.
    """
    import shutil
    from pathlib import Path

    from components import compare as step
    from gkd_core.files import file_digest, read_json
    from pipelines.kubeflow.task import running

    with running("compare"):
        rows = [read_json(Path(result.path), "the result") for result in results]
        step.write_comparison(rows, out=Path(comparison.path), reference=reference, metric=metric)
        shutil.copy(Path(comparison.path) / "comparison.html", page.path)
        comparison.metadata["digest"] = file_digest(Path(comparison.path) / "comparison.json")
