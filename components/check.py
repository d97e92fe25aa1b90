"""check: what is wrong with the images of `data.source`, before anything is trained on them."""

from pathlib import Path
from typing import TYPE_CHECKING

from gkd_core.config import Params
from gkd_core.errors import GkdError

if TYPE_CHECKING:
    from gkd_core.data.health import Finding, Health
    from gkd_core.models.network import Network


def run(*, out: Path, params: Params, fix_list: Path | None = None, teacher: str | None = None) -> "Health":
    """Write health.json and health.html to `out`, whole or not at all.

    Reads the section `data` of the parameters.

    Args:
        fix_list: file to write what to remove to, if any.
        teacher: what gives the embeddings that wrong labels are looked for with, as `load_model` takes it: a folder of
            `gkd teacher` or of a network, or published weights (`torchvision:WEIGHTS`).
    Raises:
        GkdError: the data is missing or damaged, or the teacher is; cleanlab is wanted and missing.
    """
    from gkd_core.data.health import examine, look_at, removals, write_fix_list
    from gkd_core.data.health_page import write_health
    from gkd_core.data.sources import open_source
    from gkd_core.data.sources.address import local_path
    from gkd_core.files import refuse_to_replace, whole_folder

    data = params.data
    inputs = [local_path(data.root), None if teacher is None else Path(teacher)]
    refuse_to_replace(out, inputs, kind="health")
    network = None if teacher is None else _network(teacher)
    source = open_source(data.source, data.root, data.image_size, data.channels, columns=data.columns, group=data.group)
    looks = look_at(source)
    suspected: list[Finding] = []
    if network is not None:
        from gkd_core.evaluation.label_issues import label_issues

        suspected = label_issues(network, source, looks)
    health = examine(source, looks, unreadable=data.unreadable, leakage=data.leakage, suspected=suspected)
    with whole_folder(out, inputs, kind="health") as folder:
        write_health(folder, health)
    if fix_list is not None:
        write_fix_list(fix_list, removals(health))
    return health


def _network(teacher: str) -> "Network":
    from gkd_core.evaluation.label_issues import require_cleanlab
    from gkd_core.models.weights import TORCHVISION, load_model

    require_cleanlab()
    if not teacher.startswith(TORCHVISION) and not Path(teacher).is_dir():
        raise GkdError(f"--teacher {teacher} is no folder: give one of `gkd teacher`, or {TORCHVISION}WEIGHTS")
    return load_model(teacher)
