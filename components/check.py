"""check: what is wrong with the images of `data.source`, before anything is trained on them."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gkd_core.config import Params
from gkd_core.errors import GkdError

if TYPE_CHECKING:
    from gkd_core.data.health import Finding, Health
    from gkd_core.models.network import Network


def run(
    *,
    out: Path,
    params: Params,
    fix_list: Path | None = None,
    teacher: str | None = None,
    option: str = "data.root",
) -> "Health":
    """Write health.json and health.html to `out`, whole or not at all.

    Reads the section `data` of the parameters.

    Args:
        fix_list: file to write what to remove to, if any.
        teacher: what gives the embeddings that wrong labels are looked for with, as `load_model` takes it: a folder of
            `gkd teacher` or of a network, or published weights (`torchvision:WEIGHTS`).
        option: what named the images, for the errors.
    Raises:
        GkdError: the data is missing or damaged, or the teacher is; cleanlab is wanted and missing; the fix list cannot
            be written there.
    """
    from gkd_core.data.health import examine, look_at, removals, write_fix_list
    from gkd_core.data.health_page import write_health
    from gkd_core.data.sources import open_source
    from gkd_core.data.sources.address import local_path
    from gkd_core.files import refuse_to_replace, whole_folder

    data = params.data
    inputs = [local_path(data.root), None if teacher is None else Path(teacher)]
    refuse_to_replace(out, inputs, kind="health")
    if fix_list is not None and (fix_list.is_dir() or not fix_list.parent.is_dir()):
        wrong = "is a folder" if fix_list.is_dir() else "would lie in a folder that is not there"
        raise GkdError(f"--fix-list {fix_list} {wrong}: name a file in a folder that is there")
    network = None if teacher is None else _network(teacher)
    source = open_source(
        *(data.source, data.root, data.image_size, data.channels),
        columns=data.columns,
        group=data.group,
        option=option,
    )
    looks = look_at(source)
    suspected: list[Finding] = []
    if network is not None:
        from gkd_core.evaluation.label_issues import label_issues

        suspected = label_issues(network, source, looks)
    health = examine(source, looks, unreadable=data.unreadable, leakage=data.leakage, suspected=suspected)
    health = _with_splits(health, params)
    with whole_folder(out, inputs, kind="health") as folder:
        write_health(folder, health)
    if fix_list is not None:
        write_fix_list(fix_list, removals(health))
    return health


def _with_splits(health: "Health", params: Params) -> "Health":
    """The same, with an error more where `gkd prepare` could not make the splits."""
    from gkd_core.data.health import Finding, copies_in_train
    from gkd_core.data.splits import choose_splits

    data, excluded = params.data, {name: set[int]() for name in health.source.splits}
    for look in health.looks:
        if look.unreadable:
            excluded[look.split].add(look.position)
    together = copies_in_train(health) if data.leakage == "refuse" else []
    fractions = (data.validation_fraction, data.test_fraction)
    try:
        choose_splits(health.source, *fractions, data.seed, excluded, data.train_images, together)
    except GkdError as error:
        return replace(health, findings=(Finding("splits", (), str(error), error=True), *health.findings))
    return health


def _network(teacher: str) -> "Network":
    from gkd_core.evaluation.label_issues import require_cleanlab
    from gkd_core.models.registry import TORCHVISION
    from gkd_core.models.weights import load_model

    require_cleanlab()
    if not teacher.startswith(TORCHVISION) and not Path(teacher).is_dir():
        raise GkdError(f"--teacher {teacher} is no folder: give one of `gkd teacher`, or {TORCHVISION}WEIGHTS")
    return load_model(teacher)
