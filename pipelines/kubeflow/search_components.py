"""The components of the search alone, beside those in components.py: what to search, each worker, the outcome."""

from typing import NamedTuple

from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Model, Output

from pipelines.kubeflow.components import component


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
