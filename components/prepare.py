"""prepare: the images of `data.source`, split and brought to size, as a folder every later step reads."""

from pathlib import Path
from typing import Any

from gkd_core.config import Params


def run(*, out: Path, params: Params) -> dict[str, Any]:
    """Write the prepared data to `out`, whole or not at all.

    Reads the section `data` of the parameters.

    Returns:
        source, classes, image_size, channels, counts, sha256, dropped; left_out and unlabelled where there are any.
    Raises:
        GkdError: the data is missing, damaged, or cannot be split as asked; GUDHI is wanted and missing.
    """
    from gkd_core.data.prepare import write_prepared
    from gkd_core.data.prepared import PreparedData, write_info
    from gkd_core.data.sources import open_source
    from gkd_core.data.sources.address import local_path
    from gkd_core.data.sources.base import SPLITS
    from gkd_core.data.sources.folder import pictures
    from gkd_core.data.topology import require_gudhi, write_topology
    from gkd_core.data.unlabelled import add_unlabelled, refuse_inside
    from gkd_core.files import refuse_to_replace, whole_folder

    data = params.data
    if data.topology:
        require_gudhi()
    root = local_path(data.root)
    place = Path(data.unlabelled).expanduser() if data.unlabelled is not None else None
    refuse_to_replace(out, [root, place], kind="data")
    source = open_source(data.source, data.root, data.image_size, data.channels, columns=data.columns, group=data.group)
    unlabelled = None
    if place is not None:
        refuse_inside(place, root if data.source == "folder" else None)
        unlabelled = pictures(place, source.image_size, source.channels)
    with whole_folder(out, [root, place], kind="data") as folder:
        info = write_prepared(
            source,
            folder,
            validation_fraction=data.validation_fraction,
            test_fraction=data.test_fraction,
            train_images=data.train_images,
            seed=data.seed,
            unreadable=data.unreadable,
            leakage=data.leakage,
            store=data.store,
            store_size=data.store_size,
            crop=data.crop,
        )
        if unlabelled is not None:
            info = add_unlabelled(folder, info, unlabelled, unreadable=data.unreadable)
        if data.topology:
            images = {name: PreparedData(folder, info).split(name).images for name in SPLITS}
            write_info(folder, info.model_copy(update={"topology": write_topology(folder, images)}))
    summary = info.model_dump(mode="json", exclude_none=True)
    said = ("source", "classes", "image_size", "channels", "counts", "sha256", "dropped", "left_out", "unlabelled")
    return {key: summary[key] for key in said if key in summary}
