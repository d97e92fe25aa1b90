"""What the pipeline's tasks need as containers on this machine: who they are, what they see, what they are told."""

import contextlib
import json
import os
import re
import time
import uuid
from pathlib import Path
from typing import Any

from components.graph import STEPS, addresses
from components.places import local_path
from gkd_core.config import Params, override
from gkd_core.config.schema import FILES
from gkd_core.data.sources.address import is_address
from gkd_core.errors import GkdError

SHARED_MEMORY = "2g"  # the engine gives 64 MB
HANDED_ON = re.compile(
    r"(MLFLOW|AWS|FSSPEC)_.*|OMP_(NUM_THREADS|WAIT_POLICY)|(HTTPS?|NO)_PROXY|(https?|no)_proxy|SSL_CERT_FILE|GKD_IMAGE"
)
LABEL = "gkd.run"
POLL_SECONDS = 0.1
# Their first process is a shell, which hands no signal on: so to all processes, as Argo does it in a cluster.
TERMINATE = ("sh", "-c", "kill -TERM -1")
_HERE = re.compile(r"://([^/@]*@)?(localhost|127\.0\.0\.1|\[::1\])([:/]|$)")


class Containers:
    """kfp's DockerRunner, set up for one run.

    Attributes:
        overrides: parameters with this machine's places written out, since a container starts elsewhere.
        arguments: of the pipeline, likewise.
    """

    def __init__(
        self,
        params: Params,
        arguments: dict[str, Any],
        root: Path,
        work: Path,
        environment: dict[str, str],
        user: str | None,
    ) -> None:
        """Look at what the run will need.

        Args:
            params: as the run will have them.
            arguments: of the pipeline.
            root: folder of the artifacts, which kfp mounts, and of GKD_TASKS, which is mounted here.
            work: for checkpoints.
            environment: for the tasks, beside what is handed on from here.
            user: UID:GID; None is whoever runs this.
        Raises:
            GkdError: there is no engine that answers, or not this image; a path of the parameters does not exist; the
                user is of another form.
        """
        self._runtimes = refuse_no_engine()
        if user is not None and not re.fullmatch(r"\d+:\d+", user):
            raise GkdError(f"--user {user!r} is not of the form UID:GID, such as 1234:0")
        self._name = uuid.uuid4().hex
        self._user = user or f"{os.getuid()}:{os.getgid()}"
        self._environment = {key: value for key, value in os.environ.items() if HANDED_ON.fullmatch(key)} | environment
        self._environment["HOME"] = "/tmp"
        self._mounts: dict[Path, bool] = {root: True, work: True}
        self._network: str | None = None
        self.overrides: list[str] = []
        self.arguments: dict[str, Any] = {}
        self._see_data(params)
        self._see_tracking(params)
        repo = arguments.get("dvc_repo", "")
        if repo and Path(repo).exists():
            self.arguments["dvc_repo"] = str(Path(repo).resolve())
            self._mounts[Path(repo).resolve()] = False

    def runner(self) -> Any:
        """The DockerRunner."""
        from docker.types import DeviceRequest, Mount
        from kfp.local import DockerRunner

        options: dict[str, Any] = {
            "user": self._user,
            "shm_size": SHARED_MEMORY,
            "environment": self._environment,
            "labels": {LABEL: self._name},
            "mounts": [
                Mount(str(place), str(place), type="bind", read_only=not writable)
                for place, writable in self._mounts.items()
            ],
        }
        if self._network:
            options["network_mode"] = self._network
        if "nvidia" in self._runtimes:
            options["device_requests"] = [DeviceRequest(count=-1, capabilities=[["gpu"]])]
        return DockerRunner(**options)

    def stop(self, patience_seconds: float) -> None:
        """End the containers of this run: a training writes its checkpoint first; what is left then is killed.

        Args:
            patience_seconds: how long they may take.
        """
        import docker

        with contextlib.closing(docker.from_env()) as client:

            def running() -> list[Any]:
                return list(client.containers.list(filters={"label": f"{LABEL}={self._name}"}, ignore_removed=True))

            try:
                for container in running():
                    with contextlib.suppress(docker.errors.APIError):  # it has ended meanwhile
                        container.exec_run(list(TERMINATE))
                end = time.monotonic() + patience_seconds
                while running() and time.monotonic() < end:
                    time.sleep(POLL_SECONDS)
            finally:  # whoever interrupts once more does not wait
                for container in running():
                    with contextlib.suppress(docker.errors.APIError):
                        container.kill()

    def _see_data(self, params: Params) -> None:
        if is_address(params.data.root):
            self._network = "host" if _HERE.search(str(params.data.root)) else None
        elif params.data.root is not None:
            root = Path(params.data.root).expanduser().resolve()
            own = params.data.source in FILES
            if not root.exists() and own:
                raise GkdError(f"data.root {params.data.root} does not exist: correct it")
            if not own:
                root.mkdir(parents=True, exist_ok=True)  # what is downloaded stays there for the next time
            self.overrides.append(override("data.root", root))
            # A list's images lie beside it.
            self._mounts[root.parent if params.data.source == "list" and root.is_file() else root] = not own
        if params.data.unlabelled is not None:
            unlabelled = Path(params.data.unlabelled).expanduser().resolve()
            if not unlabelled.exists():
                raise GkdError(f"data.unlabelled {params.data.unlabelled} does not exist: correct it")
            self.overrides.append(override("data.unlabelled", unlabelled))
            self._mounts[unlabelled] = False
        self._see_places(params)

    def _see_places(self, params: Params) -> None:
        """What steps read beside their folders."""
        members = [member.model_dump(mode="json", exclude_unset=True) for member in params.teacher.members]
        for name, address in (item for step in STEPS for item in addresses(params, step).items()):
            path = local_path(name, address)
            if path is None or not path.exists():
                continue
            place = path.resolve()
            self._mounts[place] = False
            if name.startswith("teacher.members."):  # --set knows no place in a list
                members[int(name.split(".")[2])]["weights"] = str(place)
            else:
                self.overrides.append(override(name, place))
        if any("weights" in member for member in members):
            self.overrides.append(f"teacher.members={json.dumps(members, ensure_ascii=False)}")

    def _see_tracking(self, params: Params) -> None:
        """The tracking store: a database file is mounted with its folder; a server of this machine is reached."""
        from components.mlflow_store import database_file, resolve_uri

        uri = resolve_uri(params.tracking.uri)
        if (file := database_file(uri)) is not None:
            database = file.resolve()
            database.parent.mkdir(parents=True, exist_ok=True)
            uri = f"sqlite:///{database}"
            self._mounts[database.parent] = True
        elif _HERE.search(uri):
            self._network = "host"
        self._environment["MLFLOW_TRACKING_URI"] = uri
        if params.tracking.uri is not None:
            self.arguments["mlflow"] = uri


def refuse_no_engine() -> list[str]:
    """See that there is an engine with our image.

    Returns:
        Names of its runtimes.
    Raises:
        GkdError: none answers, or it has not this image.
    """
    import docker

    from components.image import image

    try:
        client = docker.from_env()
        runtimes = client.info().get("Runtimes", {})
    except (docker.errors.DockerException, OSError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise GkdError(
            f"there is no container engine that answers ({reason}): start Docker, set DOCKER_HOST, or take --runner "
            "subprocess"
        ) from None
    with contextlib.closing(client):
        try:
            client.images.get(image())
        except docker.errors.ImageNotFound:
            raise GkdError(
                f"the image {image()} is not here: build it with `make image`, or name another in GKD_IMAGE"
            ) from None
    return list(runtimes)
