"""What the checks stand on: the namespace, `gkd` as a real process, a folder for files, what earlier checks found."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from gkd_core.yaml_text import dump_yaml
from pipelines.kubeflow.profile import Profile, load_profile
from tests.cluster import in_pods
from tests.cluster.api import LABEL, Api
from tests.cluster.settings import Settings

Found = TypeVar("Found")
MODEL = LABEL  # in the registry, an experiment in MLflow too
LOOKS_BETWEEN = 6  # at pods, for one at the run, which costs a process
SMALL = {
    "teacher": {"train": {"epochs": 2}},
    "train": {"epochs": 2},
    "gate": {"min_gain_over_baseline": -1.0, "max_drop_to_champion": 1.0},
    "tracking": {"experiment": MODEL, "model_name": MODEL},
}


class Failed(Exception):
    """The cluster does not do what it should; the message is for the table."""


class NotRun(Exception):
    """A check has no object here; the message says why."""


def run_gkd(arguments: list[str], folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """`gkd` in a process of its own, out of the terminal's reach: Ctrl-C is for us, who then clean up."""
    command = [sys.executable, "-m", "pipelines.cli", *arguments]
    process = subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    try:
        output, errors = process.communicate()
    except BaseException:
        process.terminate()
        process.communicate()
        raise
    return subprocess.CompletedProcess(arguments, process.returncode, output, errors)


@dataclass
class Ground:
    """As the module says.

    Attributes:
        folder: an empty one, for the files of this test.
        say: told what is going on.
        run_gkd: how `gkd` is called.
        facts: what a check found and a later one needs.
        several_users: whether Kubeflow Pipelines has several, and wants a namespace.
    """

    settings: Settings
    api: Api
    folder: Path
    say: Callable[[str], None]
    run_gkd: Callable[[list[str], Path, dict[str, str]], subprocess.CompletedProcess[str]] = run_gkd
    facts: dict[str, Any] = field(default_factory=dict)
    several_users: bool = False

    @property
    def experiment(self) -> str:
        """Of all runs of this test."""
        return f"{LABEL}-{self.api.test}"

    @property
    def label(self) -> dict[str, str]:
        """On everything that this test makes."""
        return {LABEL: self.api.test}

    @property
    def service_account(self) -> str:
        """Whom the tasks' pods are."""
        usual = "default-editor" if self.several_users else "pipeline-runner"
        return self.settings.service_account or usual

    # --- gkd ------------------------------------------------------------------------------------------------------

    def gkd(self, *arguments: str, code: int | None = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        """One command.

        Args:
            code: the exit code that it must have; None takes any.
        Raises:
            Failed: it has another.
        """
        import gkd_core

        home = str(Path(gkd_core.__file__).parents[1])
        settings = dict(os.environ) | {"GKD_IMAGE": self.settings.image, "GKD_SERVE_IMAGE": self.settings.serve_image}
        settings["PYTHONPATH"] = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
        done = self.run_gkd(list(arguments), self.folder, settings | environment)
        if code is not None and done.returncode != code:
            command = " ".join(["gkd", *arguments[:2]])
            raise Failed(f"{command} ended with {done.returncode}, not {code}: {last_line(done.stderr) or 'no word'}")
        return done

    def pipeline(self, *arguments: str, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """`gkd pipeline …` on this server."""
        where = ["--host", self.settings.endpoint]
        where += ["--namespace", self.api.namespace] if self.several_users else []
        return self.gkd("pipeline", *arguments, *where, code=code)

    def submit(self, name: str, *options: str, nodes: bool = False, code: int = 0) -> dict[str, Any]:
        """`gkd pipeline submit` of the small pipeline; with --wait among the options until its end.

        Args:
            nodes: with the profile that has `nodes`.
        Returns:
            The run's facts, `told` what was said on stderr, and `seconds`.
        """
        files = self.files(nodes=nodes)
        given = ["--mlflow", self.settings.mlflow] if self.settings.mlflow else []
        if self.settings.service_account:
            given += ["--service-account", self.settings.service_account]
        if "--wait" in options:
            given += ["--timeout", f"{self.settings.timeout_seconds:g}", "--poll", f"{self.settings.poll_seconds:g}"]
        began = time.monotonic()
        done = self.pipeline(
            "submit", "--params", str(files["params"]), "--profile", str(files["profile"]), "--experiment",
            self.experiment, "--run-name", f"{self.experiment} {name}", *given, *options, code=code,
        )  # fmt: skip
        facts: dict[str, Any] = answer(done)
        return facts | {"told": done.stderr, "seconds": time.monotonic() - began}

    def status(self, run: str) -> dict[str, Any]:
        """A run's facts."""
        facts: dict[str, Any] = answer(self.pipeline("status", run))
        return facts

    def ended(self, run: str) -> dict[str, Any]:
        """The facts of a run once it is over."""

        def look() -> dict[str, Any] | None:
            facts = self.status(run)
            return facts if facts["state"] in ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED") else None

        return self.until(look, f"run {run} ends")

    def files(self, *, nodes: bool = False) -> dict[str, Path]:
        """params.yaml and the profile, with this test's label and folder, as files."""
        import random

        seed = random.Random(self.api.test).randrange(1, 10**6)  # another data set each time, so nothing is remembered
        params, profile = self.folder / "params.yaml", self.folder / ("nodes.yaml" if nodes else "profile.yaml")
        params.write_text(dump_yaml(SMALL | {"data": {"seed": seed}}))
        content = self.profile(nodes=nodes).model_dump(mode="json")
        content["labels"] |= self.label
        if content["work"] is not None and (place := self.facts.get("place")):
            content["work"]["sub_path"] = place
        if not nodes:
            content["nodes"] = None
        profile.write_text(dump_yaml(content))
        return {"params": params, "profile": profile}

    def profile(self, *, nodes: bool = False) -> Profile:
        """The profile as it is given."""
        settings = self.settings
        return load_profile((settings.nodes_profile or settings.profile) if nodes else settings.profile)

    # --- pods -----------------------------------------------------------------------------------------------------

    def start_pod(self, name: str, *words: str, volume: str | None = None) -> str:
        """A pod that runs `in_pods` with these words; its name.

        Args:
            volume: a claim, to be mounted at /volume.
        """
        profile = self.profile()
        who = {"runAsUser": profile.security.run_as_user, "runAsGroup": profile.security.run_as_group}
        container: dict[str, Any] = {
            "name": "main",
            "image": self.settings.image,
            "imagePullPolicy": profile.image_pull_policy,
            "command": ["python", "-c", Path(in_pods.__file__).read_text(), *words],
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
        }
        spec: dict[str, Any] = {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
            | {key: value for key, value in who.items() if value is not None},
            "containers": [container],
            "imagePullSecrets": [{"name": secret} for secret in profile.image_pull_secrets],
            "terminationGracePeriodSeconds": 1,
        }
        if volume:
            container["volumeMounts"] = [{"name": "volume", "mountPath": "/volume"}]
            spec["volumes"] = [{"name": "volume", "persistentVolumeClaim": {"claimName": volume}}]
        whole = f"{LABEL}-{self.api.test}-{name}"
        self.api.delete("Pod", whole)
        self.until(lambda: self.api.get("Pod", whole) is None, f"an earlier pod {whole} goes")
        self.api.make({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": whole}, "spec": spec})
        return whole

    def in_pod(self, name: str, *words: str, volume: str | None = None) -> dict[str, Any]:
        """What a pod printed last, once it has ended; the pod is removed.

        Raises:
            Failed: it did not start, or failed.
        """
        pod = self.start_pod(name, *words, volume=volume)
        try:
            ended = self.until(lambda: self.phase(pod) in ("Succeeded", "Failed"), f"pod {pod} ends", pod=pod)
            lines = self.api.log(pod, "main").splitlines()
            if not ended or self.phase(pod) == "Failed" or not lines:
                raise Failed(f"pod {pod} failed: {lines[-1] if lines else 'it printed nothing'}")
            found: dict[str, Any] = json.loads(lines[-1])
        finally:
            with contextlib.suppress(Exception):
                self.api.delete("Pod", pod)
        return found

    def phase(self, pod: str) -> str:
        """Of a pod; empty where it is gone."""
        found = self.api.get("Pod", pod)
        return str(found.get("status", {}).get("phase", "Pending")) if found else ""

    def trainings(self, run: str) -> dict[str, str]:
        """Pods of a run in which the teacher trains, or did, and what they printed."""
        logs = {pod["metadata"]["name"]: self.api.log(pod["metadata"]["name"], "main") for pod in self.pods(run)}
        return {name: log for name, log in logs.items() if "gkd: begins: teacher" in log}

    def pods(self, run: str) -> list[dict[str, Any]]:
        """Of the tasks of a run."""
        return self.api.all("Pod", run=run)

    def until(
        self,
        look: Callable[[], Found],
        what: str,
        *,
        pod: str | None = None,
        run: str | None = None,
        seconds: float | None = None,
    ) -> Found:
        """Look until something is there.

        Args:
            what: for the sentence when it never is.
            pod: whose own reason is told, when it does not start.
            run: whose end ends the waiting too.
            seconds: at most; None is the settings'.
        Raises:
            Failed: it never is, or the run has ended.
        """
        patience = self.settings.timeout_seconds if seconds is None else seconds
        end, looks, over = time.monotonic() + patience, 0, ""
        while not (found := look()):
            if over:
                raise Failed(f"never happened: {what}; {over}")
            if time.monotonic() > end:
                raise Failed(f"never happened in {patience:g} s: {what}{self._why(pod)}")
            time.sleep(self.settings.poll_seconds)
            looks += 1
            if run and looks % LOOKS_BETWEEN == 0:
                facts = self.status(run)
                if facts["state"] in ("SUCCEEDED", "FAILED", "CANCELED"):
                    said = [f"{task['name']}: {task['error']}" for task in facts["tasks"] if task["error"]]
                    over = f"run {run} is {facts['state']}{''.join(f' ({line})' for line in said)}"
        return found

    def _why(self, pod: str | None) -> str:
        found = self.api.get("Pod", pod) if pod else None
        status = found.get("status", {}) if found else {}
        waiting = [one.get("state", {}).get("waiting", {}) for one in status.get("containerStatuses", [])]
        words = [one.get("message") or one.get("reason") for one in [*waiting, *status.get("conditions", [])]]
        return "".join(f"; {word}" for word in words if word)


def last_line(text: str) -> str:
    """Of a text, without what begins every sentence of gkd's."""
    lines = text.strip().splitlines()
    return lines[-1].removeprefix("gkd: ") if lines else ""


def answer(done: subprocess.CompletedProcess[str]) -> Any:
    """The JSON that a command ends with."""
    lines = done.stdout.splitlines()
    if not lines:
        raise Failed(f"gkd {' '.join(done.args[:2])} printed no JSON: {last_line(done.stderr) or 'nothing'}")
    return json.loads(lines[-1])
