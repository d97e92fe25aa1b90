"""The teacher step: trains the large network, or checks and imports the one it is given."""

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from components.launch import launch, must_launch
from components.live import Live, followed, no_curves
from gkd_core import __version__, schemes
from gkd_core.config import MethodConfig, NetworkConfig, Params, TeacherConfig
from gkd_core.data.part import ClassPart
from gkd_core.data.prepared import PreparedData
from gkd_core.errors import GkdError
from gkd_core.files import folder_digest, json_digest, read_json, write_json
from gkd_core.models.create import build_network
from gkd_core.models.network import Network, load_network, save_network
from gkd_core.models.registry import TOPOLOGICAL
from gkd_core.models.starting import StartingWeights, find_weights
from gkd_core.models.weights import read_network
from gkd_core.records import read_teacher
from gkd_core.run_facts import run_facts
from gkd_core.schemes import DistillationSpec
from gkd_core.training.distributed import joined
from gkd_core.training.trainer import Training
from gkd_core.training.workspace import TEACHER_CACHE, remove_workspace, run_once, step_folder, workspace


@dataclass(frozen=True)
class _Network:
    """One of the networks that the teacher step trains, in order.

    Attributes:
        folder: its place in the teacher folder.
        title: what to call it in progress and errors.
        name: network.
        stem: of it.
        start, head: the weights that it starts from, None is random ones, and what becomes of their head.
        seed: of its weights and the order of its images.
        classes: it is trained on these alone; None is all.
        assistant: it learns from the network trained before it, else from the labels alone.
    """

    folder: str
    title: str
    name: str
    stem: str
    start: StartingWeights | None
    head: str
    seed: int
    classes: tuple[str, ...] | None = None
    assistant: bool = False


def run(*, data: Path, out: Path, work: Path, params: Params, dvclive: Path | None = None) -> dict[str, Any]:
    """Write a teacher folder to `out`: teacher.json and one network folder for each network trained or imported.

    Args:
        data: folder of the prepare step.
        out: appears whole or not at all.
        work: checkpoints and, of several networks, the finished ones live here.
        params: reads `teacher`; `tracking` for the address of `models:/…` and for where its epochs are logged.
        dvclive: folder for the curves as DVCLive writes them, epoch by epoch; None writes none.
    Returns:
        Facts of the training or the import, of several networks the last one's, and with `networks` every one's top-1.
    Raises:
        GkdError: the source is missing, damaged, or its classes do not cover the data's.
    """
    prepared = PreparedData.open(data)
    training = params.teacher.train
    imported = params.teacher.source is not None
    if must_launch(training) and not imported:
        return launch(__name__, params=params, training=training, data=data, out=out, work=work, dvclive=dvclive)
    with joined(training.device):
        if not imported:
            return _train_all(prepared, out, work, params, dvclive)
        no_curves(dvclive)
        return _import(prepared, out, params)


def _train_all(prepared: PreparedData, out: Path, work: Path, params: Params, dvclive: Path | None) -> dict[str, Any]:
    """In one process, or in each of several."""
    teacher = params.teacher
    inputs = {
        "gkd_version": __version__,
        "data_sha256": prepared.info.sha256,
        "teacher_digest": "",
        "config_digest": params.digest("teacher"),
    }
    plan = _plan(params)
    starts = {"weights_digests": digests} if any(digests := [_digest(one) for one in plan]) else {}
    space = workspace(work / "teacher", inputs | starts)
    _refuse_uncovered(teacher, prepared.info.classes)
    building = step_folder(out, [prepared.folder], work, kind="teacher")
    with followed(params.tracking, dvclive, several=len(plan) > 1) as live, building as folder:
        before: Path | None = None
        for one in plan:
            make = partial(_train, one, prepared, teacher, inputs, space, work / TEACHER_CACHE, live, before)
            before = run_once(space / one.folder, make)
            shutil.copytree(before, folder / one.folder)
        folders = [one.folder for one in plan]
        handed_on = folders[-1:] if teacher.assistants else folders
        _write_teacher(folder, handed_on, prepared, imported=False, trained=folders)
    remove_workspace(space)
    facts = {name: read_json(out / name / "training.json", "the teacher folder") for name in folders}
    last: dict[str, Any] = facts[folders[-1]]
    several = {"networks": {name: each["validation_top1"] for name, each in facts.items()}} if len(folders) > 1 else {}
    return last | several


def find_start(network: NetworkConfig, params: Params, option: str) -> StartingWeights | None:
    """The weights that a network of the configuration starts from, found; None is random ones.

    Args:
        option: where the network stands in params.yaml, for errors ("student.").
    Raises:
        GkdError: there are no such weights, or they cannot be fetched.
    """
    weights = network.weights
    if weights is None:
        return None
    if weights.startswith("models:/"):
        from components.mlflow_store import download_network

        weights = str(download_network(weights, params.tracking))
    return find_weights(weights, network.name, option=option)


def _digest(one: _Network) -> str:
    return "" if one.start is None else one.start.digest


def _plan(params: Params) -> list[_Network]:
    """What to train, in order; folders are numbered where there are several, for two may be of one architecture."""
    teacher = params.teacher
    seed = teacher.train.seed
    if teacher.members:
        return [
            _Network(
                folder=f"{place}-{_folder(member.name)}",
                title=f"teacher {place},",
                name=member.name,
                stem=member.stem,
                start=find_start(member, params, f"teacher.members.{place - 1}."),
                head=member.head,
                seed=seed + place - 1 if member.seed is None else member.seed,
                classes=None if member.classes is None else tuple(member.classes),
            )
            for place, member in enumerate(teacher.members, start=1)
        ]
    name = TOPOLOGICAL + teacher.name if teacher.topological else teacher.name
    start = find_start(teacher.model_copy(update={"name": name}), params, "teacher.")
    if not teacher.assistants:
        return [_Network(_folder(teacher.name), "teacher", name, teacher.stem, start, teacher.head, seed)]
    first = _Network(f"1-{_folder(teacher.name)}", "teacher", name, teacher.stem, start, teacher.head, seed)
    return [
        first,
        *(
            _Network(
                f"{place}-{_folder(assistant)}",
                f"assistant {place - 1},",
                assistant,
                teacher.stem,
                None,
                "auto",
                seed,
                assistant=True,
            )
            for place, assistant in enumerate(teacher.assistants, start=2)
        ),
    ]


def _folder(network: str) -> str:
    """A network's name as the name of a folder on any file system."""
    return network.replace(":", "-")


def _train(
    one: _Network,
    prepared: PreparedData,
    teacher: TeacherConfig,
    inputs: dict[str, Any],
    space: Path,
    cache: Path,
    live: Live,
    before: Path | None,
    folder: Path,
) -> None:
    """One of the trainings in a workspace; `before` is the folder of the network trained before it."""
    data = prepared if one.classes is None else ClassPart(prepared, one.classes)
    spec, teachers = DistillationSpec(), tuple[Network, ...]()
    if one.assistant and before is not None:
        spec = specification(teacher.assistant_distill)
        teachers = (load_network(before, prepared.info.classes),)
        inputs = inputs | {"teacher_digest": folder_digest(before)}
    network = build_network(one.name, stem=one.stem, data=data, seed=one.seed, **_start(one, teacher))
    training = Training(
        network=network,
        data=data,
        config=teacher.train.model_copy(update={"seed": one.seed}),
        spec=spec,
        teachers=teachers,
        facts={"role": "assistant" if one.assistant else "teacher", **inputs, **weights_fact(network, one.start)},
        title=one.title,
        section="teacher.train",
        space=space,
        cache=cache,
        watcher=live,
    )
    training.run(space / f"{one.folder}.training").save(folder)
    live.saved(folder)


def _start(one: _Network, teacher: TeacherConfig) -> dict[str, Any]:
    """How it starts, as arguments of `build_network`."""
    if one.start is None:
        return {}
    preprocessing = {} if teacher.members else {name: getattr(teacher, name) for name in ("mean", "std", "image_size")}
    return {"weights": one.start, "head": one.head, "option": "teacher.", **preprocessing}


def weights_fact(network: Network, start: StartingWeights | None) -> dict[str, str]:
    """For the lineage: the digest of the weights that a network started from, their published name and licence where
    they have any; nothing where they were random.
    """
    if start is None or not network.weights_digest:
        return {}
    told = {"weights": start.published, "weights_licence": start.licence}
    return {"weights_digest": network.weights_digest, **{key: value for key, value in told.items() if value}}


def specification(
    method: MethodConfig, scheme: str = schemes.DEFAULT, scheme_options: dict[str, Any] | None = None
) -> DistillationSpec:
    """From the configuration to plain arguments."""
    return DistillationSpec(
        method.method,
        method.hyperparameters(),
        method.schedule,
        method.curve.model_dump(),
        scheme,
        scheme_options or {},
    )


def _refuse_uncovered(teacher: TeacherConfig, classes: tuple[str, ...]) -> None:
    """Raises: GkdError: there is a class that no member is to know."""
    if teacher.members:
        known = {name for member in teacher.members for name in (classes if member.classes is None else member.classes)}
        _refuse_missing([name for name in classes if name not in known], "teacher.members")


def _refuse_missing(missing: list[str], where: str) -> None:
    if missing:
        raise GkdError(
            f"the teachers in {where} do not cover the data's classes: none knows {', '.join(map(repr, missing[:5]))}"
            f"{' and others' if len(missing) > 5 else ''}; add them to a member's classes"
        )


def _import(prepared: PreparedData, out: Path, params: Params) -> dict[str, Any]:
    teacher, info = params.teacher, prepared.info
    assert teacher.source is not None
    source = teacher.source
    if source.startswith("models:/"):
        from components.mlflow_store import download_network

        source = str(download_network(source, params.tracking))
    network = read_network(
        source,
        name=teacher.name,
        classes=teacher.classes,
        data=prepared,
        stem=teacher.stem,
        image_size=teacher.image_size,
        channels=None if teacher.mean is None else len(teacher.mean),
        mean=teacher.mean,
        std=teacher.std,
        option="teacher.",
    )
    name = _folder(network.spec.name)
    facts = {
        "trained": False,
        "role": "teacher",
        "network": network.spec.name,
        "reason": "imported",  # from where is in run.json: a teacher that moved is the same teacher
        "data_sha256": info.sha256,
        "teacher_digest": "",
        "config_digest": params.digest("teacher"),
    }
    with step_folder(out, [prepared.folder, Path(source)], kind="teacher") as folder:
        (folder / name).mkdir()
        save_network(network, folder / name)
        write_json(folder / name / "training.json", facts)
        write_json(folder / name / "run.json", run_facts() | {"source": teacher.source, "read_from": source})
        _write_teacher(folder, [name], prepared, imported=True, trained=[])
    return facts


def _write_teacher(
    folder: Path, networks: list[str], prepared: PreparedData, *, imported: bool, trained: list[str]
) -> None:
    """teacher.json: `networks` are those that teach, `trained` all in the order of training, for the lineage."""
    everyone = sorted({*networks, *trained})
    write_json(
        folder / "teacher.json",
        {
            "networks": networks,
            "trained": trained,
            "imported": imported,
            "classes": list(prepared.info.classes),
            "data_sha256": prepared.info.sha256,
            "digest": json_digest({name: folder_digest(folder / name) for name in everyone}),
        },
    )


def open_teachers(folder: Path, classes: tuple[str, ...]) -> list[Network]:
    """The networks in a teacher folder.

    One that knows all of `classes` gives its logits in their order. Of several, each may know a part only, and then
    gives its own.

    Raises:
        GkdError: the folder is missing or damaged, or there is a class that no network knows.
    """
    names = read_teacher(folder)["networks"]
    if len(names) == 1:
        return [load_network(folder / names[0], classes)]
    networks = [load_network(folder / name) for name in names]
    known = {name for network in networks for name in network.classes}
    _refuse_missing([name for name in classes if name not in known], str(folder))
    for network in networks:
        if set(classes) <= set(network.classes):
            network.select_classes(classes)
        else:
            network.select_classes(tuple(name for name in network.classes if name in classes))
    return networks
