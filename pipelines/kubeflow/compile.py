"""Pipelines as files: which there are, and what must not be in one."""

import sys
from pathlib import Path
from typing import Any

from gkd_core.config import read_sections
from gkd_core.config.load import read_text
from gkd_core.errors import GkdError, unknown
from gkd_core.files import write_bytes
from gkd_core.yaml_text import dump_documents
from pipelines.kubeflow.checks import (
    ONLY_SEARCHED,
    ONLY_SWEPT,
    plugins_wanted,
    refuse_no_image,
    refuse_other_devices,
    refuse_own_store,
    refuse_password,
    refuse_places,
    refuse_unknown,
    resolve,
    with_devices,
    without_null,
)
from pipelines.kubeflow.profile import Profile, load_profile
from pipelines.kubeflow.variables import tracking_variable, with_variables

PIPELINES = ("distillation", "sweep", "search")
MADE = "made by `gkd pipeline compile`"  # stands in the first line of each
LOST = (
    "no MLflow server is named, so what the run registers is lost with its pod: give mlflow, tracking.uri, or "
    "MLFLOW_TRACKING_URI in the profile (env, or a secret)"
)


def compile_pipeline(
    file: Path,
    *,
    params: Path,
    overrides: list[str] | None = None,
    profile: str | None = None,
    which: str = "distillation",
    parallelism: int | None = None,
    contenders: Path | None = None,
    space: Path | None = None,
    warn: bool = False,
) -> dict[str, Any]:
    """Write a pipeline as YAML that Kubeflow Pipelines takes; the same input gives the same bytes.

    Args:
        file: to write.
        params: params.yaml, the default of the pipeline's argument of that name.
        overrides: likewise, `section.key=value`.
        profile: name or file; None asks for no resources.
        which: one of PIPELINES.
        parallelism: trainings of a sweep at a time; None is its own number.
        contenders: file of those of a sweep, the default of its argument of that name.
        space: file of that of a search, likewise.
        warn: say on stderr when nothing in it names an MLflow server, and which plugins the image must hold.
    Returns:
        {"pipeline", "profile", "image", "path"}.
    Raises:
        GkdError: something is not valid, or the file would hold a password or a place of this machine.
    """
    from google.protobuf.json_format import MessageToDict

    from components.image import image

    given = load_profile(profile) if profile is not None else None
    refuse_no_image(image())
    if given:
        refuse_password(given.model_dump())
        refuse_own_store("the profile's MLFLOW_TRACKING_URI", given.env.get("MLFLOW_TRACKING_URI", ""))
    content = cluster_params(params, overrides or [], given)
    named = "" if contenders is None else read_text(contenders, "--contenders")
    drawn = "" if space is None else read_text(space, "--space")
    pipeline = create_pipeline(which, content, overrides or [], given, parallelism, named, drawn)
    if named:
        from pipelines.kubeflow.grid import refuse_sweep

        refuse_password(named)
        mounts, devices = _limits(given)
        refuse_sweep(resolve(content, overrides or []), mounts, devices, contenders=named)
    if drawn:
        from pipelines.kubeflow.study import refuse_search

        refuse_password(drawn)
        refuse_search(resolve(content, overrides or []), *_limits(given), space=drawn)
    _refuse_to_overwrite(file)
    # What kfp's Compiler writes, without its comments, whose order differs from one process to the next.
    documents = [MessageToDict(message) for message in (pipeline.pipeline_spec, pipeline.platform_spec)]
    with_variables(documents, tracking_variable(resolve(content, overrides or [])))
    body = dump_documents([document for document in documents if document])
    title = f"# {pipeline.name} for the image {image()}, profile {profile or 'none'}; {MADE}\n"
    known = given is None or given.sets("MLFLOW_TRACKING_URI") or resolve(content, overrides or []).tracking.uri
    if warn and which != "search" and not known:
        print(f"gkd: {LOST}", file=sys.stderr)
    for sentence in plugins_wanted(resolve(content, overrides or []), image()) if warn else ():
        print(f"gkd: {sentence}", file=sys.stderr)
    write_bytes(file, (title + body).encode())
    return {"pipeline": pipeline.name, "profile": profile, "image": image(), "path": str(file)}


def _refuse_to_overwrite(file: Path) -> None:
    """Raises: GkdError: there can be no compiled pipeline of this name, or something else has it."""
    if file.is_dir():
        raise GkdError(f"-o {file} is a folder: name a file in it, {file / 'pipeline.yaml'}")
    if file.suffix not in (".yaml", ".yml"):
        raise GkdError(f"-o {file}: give the file a name that ends in .yaml")
    if not file.parent.is_dir():
        raise GkdError(f"-o {file}: there is no folder {file.parent}, make it first")
    if file.exists() and (content := file.read_bytes()) and MADE.encode() not in content.partition(b"\n")[0]:
        raise GkdError(f"-o {file} is there and is no compiled pipeline, so it is not replaced: name another file")


def create_pipeline(
    which: str,
    params: dict[str, Any],
    overrides: list[str],
    profile: Profile | None,
    parallelism: int | None = None,
    contenders: str = "",
    space: str = "",
) -> Any:
    """The pipeline of a name, as a kfp component.

    Raises:
        GkdError: there is none of this name, or what is given is for another.
    """
    if which not in PIPELINES:
        raise GkdError(unknown("--pipeline", which, PIPELINES))
    if which != "sweep" and parallelism is not None:
        instead = "write --argument workers=N" if which == "search" else "add --pipeline sweep"
        raise GkdError(f"--parallelism is how many trainings of a sweep run at a time: {instead}")
    if which != "sweep" and contenders:
        raise GkdError(ONLY_SWEPT)
    if which != "search" and space:
        raise GkdError(ONLY_SEARCHED)
    if which == "distillation":
        from pipelines.kubeflow.distillation import distillation

        return distillation(params, overrides, profile)
    if which == "search":
        from pipelines.kubeflow.search import search

        return search(params, overrides, profile, space)
    from pipelines.kubeflow.sweep import PARALLELISM, sweep

    return sweep(params, overrides, profile, PARALLELISM if parallelism is None else parallelism, contenders)


def cluster_params(file: Path, overrides: list[str], profile: Profile | None) -> dict[str, Any]:
    """Content of params.yaml as a cluster may have it.

    With several accelerators a training, `train.devices` and `teacher.train.devices` are set to their number unless the
    file has them.

    Raises:
        GkdError: it is not valid, holds a password, or names a place that only this machine has.
    """
    content = read_sections(file)
    mounts, accelerators = _limits(profile)
    devices = accelerators or 1
    resolve(content, [])  # so that what follows finds sections where sections belong
    content = without_null(content)
    if devices > 1:
        content = with_devices(content, devices)
    params = resolve(content, overrides)
    refuse_places(params, mounts)
    if accelerators:
        refuse_other_devices(params, accelerators)
    refuse_unknown(params)
    return content


def _limits(profile: Profile | None) -> tuple[list[str], int | None]:
    """Where its volumes are, and how many accelerators a training has, None where it has none."""
    if profile is None:
        return [], None
    accelerated = profile.training.accelerator or profile.nodes
    mounts = [volume.mount for volume in [profile.work, *profile.volumes] if volume]
    return mounts, profile.all_devices if accelerated else None
