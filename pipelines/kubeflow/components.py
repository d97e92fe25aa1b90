"""The typed components: one a step, in pipeline order, and what a pipeline loops over and ends with.

Those that the sweep and the search alone have are in sweep_components.py and search_components.py.

The docstrings are what Kubeflow's user interface shows. They are lightweight components: their source travels in the
compiled pipeline and runs in the project's image, where it finds the steps installed. So each stands by itself and
imports inside. Artifacts have the names of the table in components/graph.py, which a test compares.
"""

from functools import partial
from typing import NamedTuple

from kfp import dsl
from kfp.dsl import HTML, Artifact, ClassificationMetrics, Dataset, Input, Metrics, Model, Output

from components.image import image

component = partial(dsl.component, base_image=image(), install_kfp_package=False)


@component
def settings(params: dict, overrides: list, data_source: str, mlflow: str) -> NamedTuple(
    "Sections",
    [
        ("prepare", str),
        ("teacher", str),
        ("baseline", str),
        ("kd", str),
        ("distill", str),
        ("export", str),
        ("evaluate", str),
        ("register", str),
    ],
):
    """Check the parameters as a whole, ask the MLflow server, and give every step the sections it reads, and no more.

    Args:
        params: Content of params.yaml.
        overrides: A list of section.key=value.
        data_source: Replaces data.source unless empty.
        mlflow: Address of the MLflow server; replaces tracking.uri unless empty.

    Returns:
        prepare: What the step of this name reads, as JSON; so with the others.
        teacher: As JSON.
        baseline: As JSON.
        kd: As JSON.
        distill: As JSON.
        export: As JSON.
        evaluate: As JSON, with what the report shows.
        register: As JSON, with what the runs are logged with.
    """
    import json

    from components.graph import divide
    from components.mlflow_store import try_out
    from components.places import refuse_missing
    from pipelines.kubeflow.checks import refuse_unknown, resolve
    from pipelines.kubeflow.task import not_mounted, running

    with running("settings"):
        found = resolve(params, overrides, data_source=data_source, mlflow=mlflow)
        refuse_unknown(found)
        refuse_missing(found, made=not_mounted)
        try_out(found.tracking)
        return tuple(json.dumps(sections) for sections in divide(found).values())


@component
def prepare(settings: str, dvc_repo: str, dvc_path: str, dvc_rev: str, data: Output[Dataset]):
    """Read the images, split them, and write the prepared format.

    Args:
        settings: As JSON, the section data of the parameters.
        dvc_repo: Git repository whose DVC-tracked data is read instead of data.root; empty for none.
        dvc_path: What to fetch from it.
        dvc_rev: Tag, branch or commit of it; empty for the newest.

    Returns:
        data: The prepared images with dataset.json; the metadata has digest, counts, and the DVC revision and md5.
    """
    from pipelines.kubeflow.metadata import of_data
    from pipelines.kubeflow.task import from_dvc, running

    with running("prepare", settings) as task:
        task, revision = from_dvc(task, dvc_repo, dvc_path, dvc_rev)
        task.run(out=data.path)
        data.metadata.update(of_data(data.path, revision))


@component
def teacher(settings: str, data: Input[Dataset], teacher: Output[Model], profile: str = ""):
    """Train the teacher, or check and import teacher.source.

    Args:
        settings: As JSON, the section teacher of the parameters.
        data: The prepared images.
        profile: As JSON, what the cluster gives, to train on several nodes of it; empty trains in this pod.

    Returns:
        teacher: One network or several, listed in teacher.json.
    """
    from pipelines.kubeflow.metadata import of_teacher
    from pipelines.kubeflow.nodes import train
    from pipelines.kubeflow.task import running

    with running("teacher", settings) as task:
        train(task, profile, out=teacher.path, data=data.path)
        teacher.metadata.update(of_teacher(teacher.path))


@component
def baseline(settings: str, data: Input[Dataset], baseline: Output[Model], profile: str = ""):
    """Train the student alone on the same budget: what distillation is compared with.

    Args:
        settings: As JSON, the sections student, train and references of the parameters.
        data: The prepared images.
        profile: As JSON, what the cluster gives, to train on several nodes of it; empty trains in this pod.

    Returns:
        baseline: The network, or a note that references.baseline is off.
    """
    from pipelines.kubeflow.metadata import of_student
    from pipelines.kubeflow.nodes import train
    from pipelines.kubeflow.task import running

    with running("baseline", settings) as task:
        train(task, profile, out=baseline.path, data=data.path)
        baseline.metadata.update(of_student(baseline.path))


@component
def kd(settings: str, data: Input[Dataset], teacher: Input[Model], kd: Output[Model], profile: str = ""):
    """Train the student by plain soft-label distillation on the same budget.

    Args:
        settings: As JSON, the sections student, train and references of the parameters.
        data: The prepared images.
        teacher: The network or networks it learns from.
        profile: As JSON, what the cluster gives, to train on several nodes of it; empty trains in this pod.

    Returns:
        kd: The network, or a note that references.kd is off.
    """
    from pipelines.kubeflow.metadata import of_student
    from pipelines.kubeflow.nodes import train
    from pipelines.kubeflow.task import running

    with running("kd", settings) as task:
        train(task, profile, out=kd.path, data=data.path, teacher=teacher.path)
        kd.metadata.update(of_student(kd.path))


@component
def distill(settings: str, data: Input[Dataset], teacher: Input[Model], student: Output[Model], profile: str = ""):
    """Train the student by distill.method.

    Args:
        settings: As JSON, the sections student, train and distill of the parameters.
        data: The prepared images.
        teacher: The network or networks it learns from.
        profile: As JSON, what the cluster gives, to train on several nodes of it; empty trains in this pod.

    Returns:
        student: The network, its curves, and training.json.
    """
    from pipelines.kubeflow.metadata import of_student
    from pipelines.kubeflow.nodes import train
    from pipelines.kubeflow.task import running

    with running("distill", settings) as task:
        train(task, profile, out=student.path, data=data.path, teacher=teacher.path)
        student.metadata.update(of_student(student.path))


@component
def export(settings: str, data: Input[Dataset], teacher: Input[Model], student: Input[Model], deploy: Output[Model]):
    """Package the student as ONNX, check it against torch, and write its manifest.

    Args:
        settings: As JSON, the sections export and decide of the parameters.
        data: The prepared images; torch and onnxruntime are compared on those for validation.
        teacher: For the lineage.
        student: The network to package.

    Returns:
        deploy: model.onnx and manifest.json; the metadata has the whole lineage.
    """
    from pipelines.kubeflow.metadata import of_deployment
    from pipelines.kubeflow.task import running

    with running("export", settings) as task:
        task.run(out=deploy.path, data=data.path, teacher=teacher.path, student=student.path)
        deploy.metadata.update(of_deployment(deploy.path))


@component
def evaluate(
    settings: str,
    data: Input[Dataset],
    teacher: Input[Model],
    baseline: Input[Model],
    kd: Input[Model],
    student: Input[Model],
    deploy: Input[Model],
    report: Output[Artifact],
    page: Output[HTML],
    metrics: Output[Metrics],
    confusion: Output[ClassificationMetrics],
):
    """Measure all networks and the final ONNX file on the test images, and write the report.

    Args:
        settings: As JSON, the section evaluate of the parameters, and those the report shows.
        data: The prepared images; only here the test split is read.
        teacher: The large network or networks.
        baseline: The student trained alone.
        kd: The student trained by plain distillation.
        student: The student trained by the method.
        deploy: The exported student.

    Returns:
        report: metrics.json, timings.json, predictions, plots and the page.
        page: The report as one HTML page.
        metrics: Accuracies in [0, 1], differences, size and latency.
        confusion: Test images by actual and predicted class, for the student; shown up to 200 classes, since with more
            of them it is too large for the metadata. The file has it in any case.
    """
    import shutil
    from pathlib import Path

    from gkd_core.files import read_json, write_json
    from pipelines.kubeflow.metadata import MOST_CLASSES, of_report, scalars
    from pipelines.kubeflow.metadata import confusion as confusion_of
    from pipelines.kubeflow.task import running

    inputs = {"data": data, "teacher": teacher, "baseline": baseline, "kd": kd, "student": student, "deploy": deploy}
    with running("evaluate", settings) as task:
        task.run(out=report.path, **{name: folder.path for name, folder in inputs.items()})
        report.metadata.update(of_report(report.path))
        shutil.copy(Path(report.path) / "report.html", page.path)
        for name, value in scalars(report.path).items():
            metrics.log_metric(name, value)
        write_json(Path(metrics.path), scalars(report.path))
        classes = read_json(Path(data.path) / "dataset.json", "the data folder")["classes"]
        matrix = confusion_of(report.path, classes)
        if len(classes) <= MOST_CLASSES:
            confusion.log_confusion_matrix(classes, matrix)
        write_json(Path(confusion.path), {"classes": classes, "matrix": matrix})


@component
def register(
    settings: str,
    teacher: Input[Model],
    baseline: Input[Model],
    kd: Input[Model],
    student: Input[Model],
    deploy: Input[Model],
    report: Input[Artifact],
    registration: Output[Artifact],
):
    """Log the runs in MLflow, register the student as challenger, and let the gate decide on champion.

    A refusal is a result: the task succeeds and champion stays where it was, unless gate.on_refusal is fail.

    Args:
        settings: As JSON, the sections gate and tracking of the parameters, and those the runs are logged with.
        teacher: The large network or networks.
        baseline: The student trained alone.
        kd: The student trained by plain distillation.
        student: The student trained by the method.
        deploy: The exported student, which becomes the version.
        report: What was measured.

    Returns:
        registration: gate.json and version.json.
    """
    from pipelines.kubeflow.metadata import of_registration
    from pipelines.kubeflow.task import running

    inputs = {
        "teacher": teacher, "baseline": baseline, "kd": kd, "student": student, "deploy": deploy, "report": report,
    }  # fmt: skip
    with running("register", settings) as task:
        task.run(out=registration.path, **{name: folder.path for name, folder in inputs.items()})
        registration.metadata.update(of_registration(registration.path))


@component
def ended(status: dsl.PipelineTaskFinalStatus, ending: Output[Artifact], train_jobs: bool = False):
    """Say how the pipeline ended, whatever happened, and remove what it left at work.

    Args:
        status: Of everything before.
        train_jobs: Trainings ran as TrainJobs: those of a run that was stopped or failed still hold their nodes.

    Returns:
        ending: The state, and what went wrong, as JSON.
    """
    from pathlib import Path

    from gkd_core.files import write_json
    from pipelines.kubeflow.task import running

    with running("ended"):
        reason = status.error_message or ""
        print(f"the pipeline ended: {status.state}{': ' if reason else ''}{reason}", flush=True)
        ending.metadata.update({"state": status.state, "error": reason})
        write_json(Path(ending.path), {"state": status.state, "error": reason})
        if train_jobs and status.state != "SUCCEEDED":
            from pipelines.kubeflow.train_job_life import remove_jobs

            remove_jobs()


@component
def trainings(listed: str) -> list:
    """List what to train. A loop over one of several outputs would not run here, only on a cluster.

    Args:
        listed: In JSON.
    """
    import json

    return json.loads(listed)
