"""What runs on the cluster do: begin, are remembered, fail, are resumed, are spread over nodes, scheduled, stopped."""

import posixpath
import re

from tests.cluster.ground import Failed, Ground, NotRun, answer

STEPS = ("teacher", "kd", "distill")  # steps whose tasks the cache would spare
JOBSET = "jobset.sigs.k8s.io/jobset-name"
EVERY_MINUTE = "0 * * * * *"
NOTHING = "nothing-is-here"


def submit(ground: Ground) -> str:
    """The default pipeline on the digits, small, to its end."""
    facts = ground.submit("submit", "--wait")
    others = [f"{task['name']} is {task['state']}" for task in facts["tasks"] if task["state"] != "SUCCEEDED"]
    if facts["state"] != "SUCCEEDED" or others:
        raise Failed(f"run {facts['run_id']} is {facts['state']}: {', '.join(others) or 'no task says why'}")
    ground.facts["submitted"] = facts
    return f"{len(facts['tasks'])} tasks"


def logs(ground: Ground) -> str:
    """A finished task's log can be read by `gkd pipeline logs`."""
    run = ground.facts["submitted"]["run_id"]
    lines = ground.pipeline("logs", run, "teacher").stdout.splitlines()
    if not any(re.search(r"epoch \d+/\d+", line) for line in lines):
        raise Failed(f"the log of teacher in run {run} has no epoch in it: {lines[-1] if lines else 'it is empty'}")
    return f"{len(lines)} lines of teacher"


def cache(ground: Ground) -> str:
    """The same pipeline again: what was trained is not trained again."""
    facts = ground.submit("cache", "--wait")
    if facts["state"] != "SUCCEEDED":
        raise Failed(f"run {facts['run_id']} is {facts['state']}")
    again = []
    for step in STEPS:  # what came from the cache has printed nothing, and logs says so
        done = ground.pipeline("logs", facts["run_id"], step, code=None)
        if done.returncode == 0:
            again.append(step)
        elif "taken from the cache" not in done.stderr:
            raise Failed(f"gkd pipeline logs {facts['run_id']} {step}: {done.stderr.strip()}")
    if again:
        raise Failed(f"{', '.join(again)} ran again in run {facts['run_id']}: is the server's cache switched on?")
    before = ground.facts["submitted"]["seconds"]
    return f"{facts['seconds']:.0f} s instead of {before:.0f} s"


def failed(ground: Ground) -> str:
    """A step that fails: exit code 1, its own sentence at the end and in its log."""
    work = ground.profile().work
    if work is None:
        raise NotRun("the profile has no work volume, in which something could be missing")
    place = posixpath.join(work.mount, NOTHING)
    given = ["--set", "data.source=folder", "--set", f"data.root={place}"]
    facts = ground.submit("failed", "--wait", *given, code=1)
    run, last = facts["run_id"], facts["told"].strip().splitlines()[-1]
    if NOTHING not in last:
        raise Failed(f"submit --wait does not repeat the step's own sentence, it says: {last}")
    wrong = [task["name"] for task in facts["tasks"] if task["state"] == "FAILED"]
    if wrong != ["prepare"]:
        raise Failed(f"prepare should have failed, but {', '.join(wrong) or 'nothing'} did")
    if NOTHING not in ground.pipeline("logs", run, "prepare").stdout:
        raise Failed(f"gkd pipeline logs {run} prepare does not have the step's sentence")
    return "its sentence is in the run's end and in its log"


def resume(ground: Ground) -> str:
    """A training whose pod is deleted is tried again and goes on from its checkpoint."""
    if ground.profile().work is None:
        raise NotRun("the profile has no work volume for checkpoints")
    facts = ground.submit("resume", "--no-cache", "--set", f"teacher.train.epochs={ground.settings.epochs}")
    run = facts["run_id"]
    ground.say(f"run {run}: waiting for the second epoch")
    pod, epoch = ground.until(lambda: _epochs(ground, run), "the teacher trains its second epoch", run=run)
    ground.say(f"pod {pod} is deleted in epoch {epoch + 1}")
    ground.api.delete("Pod", pod)

    def gone_on() -> tuple[str, int, bool] | None:
        for name, log in ground.trainings(run).items():
            within = re.search(r"goes on in epoch (\d+) after step (\d+)", log)
            first = re.search(r"epoch (\d+)/\d+ ", log)
            if name != pod and (within or first):
                found = within or first
                assert found
                return name, int(found[1]), bool(within)
        return None

    try:
        name, first, within = ground.until(gone_on, f"another pod trains the teacher after {pod}", run=run)
    except Failed as error:
        raise Failed(
            f"{error}. Which tasks are tried again is the cluster's choice: docs/kubernetes.md, 'Profiles'"
        ) from None
    if first == 1 and not within:
        raise Failed(f"pod {name} begins with epoch 1: the checkpoint of {pod} was not found in the volume")
    ground.pipeline("stop", run, code=None)  # it has shown what it was to show
    return f"deleted in epoch {epoch + 1}, went on in epoch {first}"


def _epochs(ground: Ground, run: str) -> tuple[str, int] | None:
    """The pod in which the teacher trains, once its second epoch is over, and the last that is."""
    for name, log in ground.trainings(run).items():
        epochs = [int(number) for number in re.findall(r"epoch (\d+)/\d+ ", log)]
        if epochs and epochs[-1] >= 2:
            return name, epochs[-1]
    return None


def train_job(ground: Ground) -> str:
    """A run whose trainings are TrainJobs on several nodes."""
    nodes = ground.profile(nodes=True).nodes
    if nodes is None:
        raise NotRun("no profile with nodes (GKD_CLUSTER_NODES_PROFILE)")
    if not ground.api.has_trainer():
        raise NotRun("no Trainer")
    off = ["--set", "references.baseline=false", "--set", "references.kd=false"]
    run = ground.submit("train-job", "--no-cache", *off, nodes=True)["run_id"]
    job = ground.until(lambda: ground.api.all("TrainJob", run=run), "a TrainJob of the run is there", run=run)[0]
    asked = job["spec"]["trainer"]["numNodes"]
    if asked != nodes.count:
        raise Failed(f"TrainJob {job['metadata']['name']} asks for {asked} nodes, not {nodes.count}")
    facts = ground.ended(run)
    if facts["state"] != "SUCCEEDED":
        wrong = [f"{task['name']} ({task['error']})" for task in facts["tasks"] if task["state"] == "FAILED"]
        raise Failed(f"run {run} is {facts['state']}: {', '.join(wrong) or 'no task says why'}")
    if left := ground.api.all("TrainJob", run=run):
        raise Failed(f"TrainJob {left[0]['metadata']['name']} is still there after its run")
    return f"{nodes.count} nodes"


def schedule(ground: Ground) -> str:
    """A schedule starts a run; without the schedule that run goes on to its end."""
    name = f"{ground.experiment}-schedule"
    files = ground.files()
    given = ["--mlflow", ground.settings.mlflow] if ground.settings.mlflow else []
    if ground.settings.service_account:
        given += ["--service-account", ground.settings.service_account]
    known = set(_runs(ground))
    ground.pipeline(
        "schedule", "--cron", EVERY_MINUTE, "--name", name, "--experiment", ground.experiment, "--cache",
        "--params", str(files["params"]), "--profile", str(files["profile"]), *given,
    )  # fmt: skip
    run = ground.until(lambda: [key for key in _runs(ground) if key not in known], "the schedule starts a run")[0]
    ground.pipeline("unschedule", name)
    listed = answer(ground.pipeline("list", "--schedules", "--experiment", ground.experiment))
    if any(row["name"] == name for row in listed):
        raise Failed(f"schedule {name} is still there after gkd pipeline unschedule")
    if (state := ground.ended(run)["state"]) != "SUCCEEDED":
        raise Failed(f"run {run} of the schedule is {state} after its schedule was removed")
    return f"run {run} outlived its schedule"


def _runs(ground: Ground) -> list[str]:
    """Identifiers of all runs of this test; none before the first."""
    done = ground.pipeline("list", "--experiment", ground.experiment, "--limit", "100", code=None)
    return [row["run_id"] for row in answer(done)] if done.returncode == 0 else []


def stop(ground: Ground) -> str:
    """`gkd pipeline stop` ends a run, its pods and its TrainJobs."""
    nodes = bool(ground.profile(nodes=True).nodes) and ground.api.has_trainer()
    long = ["--no-cache", "--set", f"teacher.train.epochs={ground.settings.epochs}"]
    run = ground.submit("stop", *long, nodes=nodes)["run_id"]
    jobs: list[str] = []

    def at_work() -> bool:
        jobs[:] = [job["metadata"]["name"] for job in ground.api.all("TrainJob", run=run)]
        return bool(jobs) if nodes else bool(ground.trainings(run))

    ground.until(at_work, "the teacher is trained", run=run)
    ground.pipeline("stop", run)
    if (state := ground.ended(run)["state"]) != "CANCELED":
        raise Failed(f"run {run} is {state} after gkd pipeline stop, not CANCELED")

    def left() -> list[str]:
        pods = ground.pods(run) + [pod for job in jobs for pod in ground.api.all("Pod", **{JOBSET: job})]
        alive = [pod for pod in pods if pod.get("status", {}).get("phase") in ("Pending", "Running")]
        return [one["metadata"]["name"] for one in [*alive, *ground.api.all("TrainJob", run=run)]]

    try:
        ground.until(lambda: not left(), "its pods and TrainJobs end")
    except Failed:
        raise Failed(f"still there after gkd pipeline stop of run {run}: {', '.join(left())}") from None
    return f"its pods{' and TrainJobs' if nodes else ''} ended"
