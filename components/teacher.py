"""The teacher step: trains the large network, or checks and imports the one it is given."""

from pathlib import Path
from typing import Any

from components.fit import fit, forget_checkpoint, new_network
from gkd_core import __version__
from gkd_core.config import Params
from gkd_core.data.prepared import PreparedData
from gkd_core.errors import GkdError
from gkd_core.files import folder_digest, json_digest, read_json, whole_folder, write_json
from gkd_core.models.imported import import_network
from gkd_core.models.network import Network, load_network, save_network
from gkd_core.models.registry import TOPOLOGICAL
from gkd_core.run_facts import run_facts


def run(*, data: Path, out: Path, work: Path, params: Params) -> dict[str, Any]:
    """Write a teacher folder to `out`: teacher.json and one network folder for each network it lists.

    Args:
        data: folder of the prepare step.
        out: appears whole or not at all.
        work: checkpoints live here.
        params: reads `teacher`; `tracking` for the address of `models:/…`.
    Returns:
        Facts of the training or the import.
    Raises:
        GkdError: the source is missing, damaged, or its classes do not cover the data's.
    """
    prepared = PreparedData.open(data)
    if params.teacher.source is not None:
        return _import(prepared, out, params)

    teacher = params.teacher
    inputs = {
        "gkd_version": __version__,
        "data_sha256": prepared.info.sha256,
        "teacher_digest": "",
        "config_digest": params.digest("teacher"),
    }
    name = TOPOLOGICAL + teacher.name if teacher.topological else teacher.name
    network = new_network(name, teacher.stem, prepared.info, teacher.train.seed)
    with whole_folder(out) as folder:
        (folder / teacher.name).mkdir()
        facts = fit(
            role="teacher",
            network=network,
            data=prepared,
            training=teacher.train,
            folder=folder / teacher.name,
            work=work / "teacher",
            inputs=inputs,
        )
        _write_teacher(folder, teacher.name, prepared, source=None)
    forget_checkpoint(work / "teacher", inputs)
    return facts


def _import(prepared: PreparedData, out: Path, params: Params) -> dict[str, Any]:
    teacher, info = params.teacher, prepared.info
    assert teacher.source is not None
    source = teacher.source
    if source.startswith("models:/"):
        from components.tracking import download_network  # MLflow is slow to import, and only this needs it

        source = str(download_network(source, params.tracking))
    network = import_network(
        source,
        name=teacher.name,
        stem=teacher.stem,
        classes=None if teacher.classes is None else tuple(teacher.classes),
        mean=info.mean if teacher.mean is None else tuple(teacher.mean),
        std=info.std if teacher.std is None else tuple(teacher.std),
        image_size=teacher.image_size or info.image_size,
        in_channels=info.channels if teacher.mean is None else len(teacher.mean),
        data_classes=info.classes,
    )
    network.select_classes(info.classes)  # refuses a teacher that does not know the data's classes
    name = network.spec.name
    facts = {
        "trained": False,
        "role": "teacher",
        "network": name,
        "reason": f"imported from {teacher.source}",
        "data_sha256": info.sha256,
        "teacher_digest": "",
        "config_digest": params.digest("teacher"),
    }
    with whole_folder(out) as folder:
        (folder / name).mkdir()
        save_network(network, folder / name)
        write_json(folder / name / "training.json", facts)
        write_json(folder / name / "run.json", run_facts())
        _write_teacher(folder, name, prepared, source=teacher.source)
    return facts


def _write_teacher(folder: Path, name: str, prepared: PreparedData, source: str | None) -> None:
    write_json(
        folder / "teacher.json",
        {
            "networks": [name],
            "source": source,
            "imported": source is not None,
            "classes": list(prepared.info.classes),
            "data_sha256": prepared.info.sha256,
            "digest": json_digest({name: folder_digest(folder / name)}),
        },
    )


def open_teacher(folder: Path, classes: tuple[str, ...]) -> Network:
    """The network in a teacher folder, its logits in the order of `classes`.

    Raises:
        GkdError: the folder is missing or damaged, or the network does not know one of the classes.
    """
    names = read_json(folder / "teacher.json", "the teacher folder")["networks"]
    if len(names) != 1:
        raise GkdError(f"the teacher folder {folder} holds {len(names)} networks, one is wanted here")
    return load_network(folder / names[0], classes)
