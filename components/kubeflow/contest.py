"""The components of the sweep: many trainings of the same kind, and one comparison of them."""

from typing import NamedTuple

from kfp.dsl import Artifact, Dataset, Input, Markdown, Metrics, Model, Output

from components.kubeflow.steps import component


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
) -> NamedTuple("Plan", [("prepare", str), ("teachers", str), ("contenders", str)]):
    """Check what is to be compared as a whole, and list the trainings.

    Args:
        params: Content of params.yaml.
        overrides: A list of section.key=value.
        data_source: Replaces data.source unless empty.
        mlflow: Address of the MLflow server; replaces tracking.uri unless empty.
        methods: Names; an empty list is every method there is.
        pairs: A list of [teacher, student]; an empty list is the one of the parameters.
        seeds: Of the students; three or more give intervals.
        reference: The method that the others are compared with.

    Returns:
        prepare: The section data, as JSON.
        teachers: What the teacher step reads, once for every teacher: a list in JSON.
        contenders: Every training: a list in JSON.
    """
    import json

    from components.kubeflow.grid import lay_out
    from components.kubeflow.settings import resolve
    from components.kubeflow.source import refuse_unknown
    from components.kubeflow.task import running

    with running("plan"):
        found = resolve(params, overrides, data_source=data_source, mlflow=mlflow)
        refuse_unknown(found)
        prepare, teachers, contenders = lay_out(found, methods, pairs, seeds, reference)
        return prepare, json.dumps(teachers), json.dumps(contenders)


@component
def teachers(listed: str) -> list:
    """List the teachers to train. A loop over one of several outputs would not run here, only on a cluster.

    Args:
        listed: In JSON.
    """
    import json

    return json.loads(listed)


@component
def contenders(listed: str) -> list:
    """List the students to train, likewise.

    Args:
        listed: In JSON.
    """
    import json

    return json.loads(listed)


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

    from components.kubeflow.task import running

    with running("gather"):
        for place, teacher in enumerate(teachers):
            shutil.copytree(teacher.path, Path(together.path) / str(place))
        together.metadata["digests"] = [teacher.metadata.get("digest", "") for teacher in teachers]


@component
def contend(contender: str, data: Input[Dataset], teachers: Input[Model], result: Output[Metrics]):
    """Train a student by one method with one seed, and measure it on the test images.

    Args:
        contender: As JSON, the teacher's place, the method, the seed, and the sections of the parameters.
        data: The prepared images.
        teachers: Side by side.

    Returns:
        result: One row of the comparison, as JSON.
    """
    import json
    from pathlib import Path

    from components import compare
    from components.kubeflow.task import running
    from gkd_core.files import write_json

    it = json.loads(contender)
    with running("contend", json.dumps(it["sections"])) as task:
        row = compare.contend(
            Path(data.path),
            Path(teachers.path) / str(it["teacher"]),
            task.work,
            task.params,
            it["method"],
            it["seed"],
        )
        result.log_metric("top1", row["top1"])
        write_json(Path(result.path), row)


@component
def compare(results: Input[list[Metrics]], reference: str, comparison: Output[Artifact], table: Output[Markdown]):
    """Compare the methods, paired by seed, with intervals.

    Args:
        results: One row a training.
        reference: The method that the others are compared with.

    Returns:
        comparison: comparison.json, comparison.md, comparison.svg and runs.csv.
        table: The table as Markdown.
    """
    import shutil
    from pathlib import Path

    from components import compare as step
    from components.kubeflow.task import running
    from gkd_core.files import file_digest, read_json

    with running("compare"):
        rows = [read_json(Path(result.path), "the result") for result in results]
        step.conclude(rows, out=Path(comparison.path), reference=reference)
        shutil.copy(Path(comparison.path) / "comparison.md", table.path)
        comparison.metadata["digest"] = file_digest(Path(comparison.path) / "comparison.json")
