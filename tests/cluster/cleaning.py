"""Everything of one test is removed: schedules, runs, objects by its label, its folder in the volume."""

from collections.abc import Callable

from tests.cluster.api import PATHS, RUN_LABEL
from tests.cluster.ground import MODEL, Failed, Ground, answer

OWN = [kind for kind in PATHS if kind != "PersistentVolumeClaim"]  # claims are the cluster's, this test makes none


def clean(ground: Ground) -> str:
    """Remove it all; each part is tried though another failed.

    Raises:
        Failed: something is left, with its label.
    """
    problems: list[str] = []

    def attempt(what: str, part: Callable[[], object]) -> None:
        try:
            part()
        except Exception as error:
            problems.append(f"{what}: {error}")

    runs: list[str] = []
    attempt("schedules", lambda: _remove_schedules(ground))
    attempt("runs", lambda: runs.extend(_end_runs(ground)))
    attempt("runs", lambda: _delete_runs(ground, runs))
    for kind in ["TrainJob", *(kind for kind in OWN if kind not in ("TrainJob", "Pod")), "Pod"]:
        attempt(kind, lambda kind=kind: [ground.api.delete(kind, o["metadata"]["name"]) for o in ground.api.all(kind)])
    for run in runs:  # of Kubeflow's drivers, which have no label of ours
        attempt("pods", lambda run=run: _delete_pods_of(ground, run))
    attempt("objects", lambda: ground.until(lambda: not _left(ground), "all objects go", seconds=300))
    if "to_remove" in ground.facts:
        attempt("folder", lambda: _remove_folder(ground))
    if problems:
        raise Failed(f"{'; '.join(problems)}. What is left has the label {_label(ground)}")
    stays = f"; MLflow keeps the experiment and the model {MODEL}" if ground.settings.mlflow and runs else ""
    return f"nothing is left with the label {_label(ground)}{stays}"


def _remove_schedules(ground: Ground) -> None:
    done = ground.pipeline("list", "--schedules", "--experiment", ground.experiment, code=None)
    for row in answer(done) if done.returncode == 0 else []:
        ground.pipeline("unschedule", row["schedule_id"], "--now")


def _end_runs(ground: Ground) -> list[str]:
    """All runs of this test, once they have ended."""
    listed = ground.pipeline("list", "--experiment", ground.experiment, "--limit", "100", code=None)
    found = answer(listed) if listed.returncode == 0 else []
    working = [row["run_id"] for row in found if row["state"] in ("PENDING", "RUNNING", "PAUSED", "CANCELING")]
    for run in working:
        ground.pipeline("stop", run, code=None)  # it may have ended meanwhile
    for run in working:
        ground.ended(run)
    return [row["run_id"] for row in found]


def _delete_runs(ground: Ground, runs: list[str]) -> None:
    """Kubeflow Pipelines forgets them and their experiment; for that `gkd` has no command."""
    from pipelines.kubeflow.client import Access, connect

    if not runs:
        return
    cluster = connect(
        Access(host=ground.settings.endpoint, namespace=ground.api.namespace if ground.several_users else None)
    )
    with cluster.asking() as client:
        experiment = client.get_run(runs[0]).experiment_id
        for run in runs:
            client._run_api.run_service_delete_run(run)
        client.delete_experiment(experiment)


def _delete_pods_of(ground: Ground, run: str) -> None:
    found = ground.api.ask(
        "GET", PATHS["Pod"].format(ground.api.namespace), query={"labelSelector": f"{RUN_LABEL}={run}"}
    )
    for pod in found["items"]:
        ground.api.delete("Pod", pod["metadata"]["name"])


def _left(ground: Ground) -> list[str]:
    return [f"{kind} {one['metadata']['name']}" for kind in OWN for one in ground.api.all(kind)]


def _remove_folder(ground: Ground) -> None:
    place, claim = ground.facts["to_remove"], ground.facts["claim"]
    if said := ground.in_pod("clean", "remove", f"/volume/{place}", volume=claim)["error"]:
        raise Failed(said)


def _label(ground: Ground) -> str:
    return "=".join(next(iter(ground.label.items())))
