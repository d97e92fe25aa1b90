"""The typed components: one a step, in pipeline order, then those of the sweep and of the search.

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
            from pipelines.kubeflow.train_job import remove_jobs

            remove_jobs()


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
def trainings(listed: str) -> list:
    """List what to train. A loop over one of several outputs would not run here, only on a cluster.

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


@component
def plan_search(
    params: dict,
    overrides: list,
    data_source: str,
    mlflow: str,
    space: str,
    trials: int,
    minutes: float,
    each: str,
    seeds: list,
    storage: str,
    study: str,
    sampler_seed: int,
    prune: bool,
    workers: int,
) -> NamedTuple("SearchPlan", [("prepare", str), ("teacher", str), ("search", str), ("workers", str)]):
    """Check what is to be searched as a whole, and reach for the database.

    Args:
        params: Content of params.yaml.
        overrides: A list of section.key=value.
        data_source: Replaces data.source unless empty.
        mlflow: Address of the MLflow server; replaces tracking.uri unless empty.
        space: Content of a space file.
        trials: Settings to try in each study; 0 does not limit.
        minutes: A worker begins no trial after so many; 0 does not limit.
        each: A parameter with choices, each a study of its own; empty is one study.
        seeds: Of each setting's trainings.
        storage: Address of the database; empty is OPTUNA_STORAGE.
        study: Its name in the database; empty makes one.
        sampler_seed: Of what is drawn.
        prune: Stop trials early.
        workers: Pods side by side.

    Returns:
        prepare: The section data, as JSON.
        teacher: What the teacher step reads, as JSON.
        search: What every worker and the report are given, as JSON.
        workers: What each worker is given: a list in JSON.
    """
    import os

    from components.graph import STEP
    from components.places import refuse_missing
    from components.search import refuse_missing_starts
    from gkd_core.config.space import parse_space, read_space
    from gkd_core.searching.study import open_database
    from pipelines.kubeflow.checks import refuse_unknown, resolve
    from pipelines.kubeflow.study import STORAGE, lay_out_search, refuse_own_database
    from pipelines.kubeflow.task import not_mounted, running

    with running("plan-search"):
        found = resolve(params, overrides, data_source=data_source, mlflow=mlflow)
        refuse_unknown(found)
        plan = lay_out_search(
            found,
            space=space,
            trials=trials,
            minutes=minutes,
            each=each,
            seeds=seeds,
            storage=storage,
            study=study,
            sampler_seed=sampler_seed,
            prune=prune,
            workers=workers,
        )
        refuse_missing(found, [STEP["teacher"]], made=not_mounted)
        refuse_missing_starts(found, read_space(parse_space(space, "space"), found), not_mounted)
        database = storage or os.environ.get(STORAGE, "")
        if "KUBERNETES_SERVICE_HOST" in os.environ:
            refuse_own_database(database)
        if database:
            open_database(database)  # its tables, before several pods want to make them
        return plan.prepare, plan.teacher, plan.search, plan.workers


@component
def search_worker(plan: str, data: Input[Dataset], teacher: Input[Model], result: Output[Metrics]):
    """Try settings until the study has all its trials; what other pods leave is taken over.

    Args:
        plan: As JSON, what all workers are given, and which of them this is.
        data: The prepared images.
        teacher: Who teaches.

    Returns:
        result: The worker's number.
    """
    import json
    from pathlib import Path

    from components import search
    from gkd_core.files import write_json
    from pipelines.kubeflow.study import read_plan
    from pipelines.kubeflow.task import running

    it = json.loads(plan)
    with running("search-worker", json.dumps(it["params"]), label=f"worker {it['worker']}") as task:
        search.work(*read_plan(plan, task.params, data.path, teacher.path, task.work))
        write_json(Path(result.path), {"worker": it["worker"]})


@component
def search_report(
    plan: str,
    workers: Input[list[Metrics]],
    data: Input[Dataset],
    teacher: Input[Model],
    search: Output[Artifact],
    page: Output[HTML],
):
    """Tell what the study found: the best settings, what mattered, every trial.

    Args:
        plan: As JSON, what all workers were given.
        workers: They have ended.
        data: The prepared images.
        teacher: Who taught.

    Returns:
        search: best.yaml, contender.yaml, search.html, .json, .md and .svg and trials.csv.
        page: Tables and plot.
    """
    import json
    import shutil
    from pathlib import Path

    from components import search as step
    from gkd_core.files import file_digest
    from pipelines.kubeflow.study import read_plan
    from pipelines.kubeflow.task import running

    with running("search-report", json.dumps(json.loads(plan)["params"])) as task:
        asked, budget = read_plan(plan, task.params, data.path, teacher.path, task.work)
        found = step.write(asked, out=Path(search.path), budget=budget)
        shutil.copy(Path(search.path) / "search.html", page.path)
        search.metadata["digest"] = file_digest(Path(search.path) / "search.json")
        search.metadata["best"] = found.sentence()
