"""The sources by name. What a source gives is in `base`."""

from pathlib import Path

from gkd_core.data.sources.base import Source
from gkd_core.errors import GkdError, unknown

KNOWN = ("digits", "cifar10", "cifar100", "folder", "torchvision:NAME")


def open_source(
    name: str, root: Path | None = None, image_size: int | None = None, channels: int | None = None
) -> Source:
    """A source by the name `data.source` gives it.

    Args:
        root: folder the data is in, or is downloaded to; null is the cache.
        image_size: side of the pictures; null keeps the source's own.
        channels: 1 or 3; null keeps the source's own.
    Raises:
        GkdError: an unknown name, or data that is missing or damaged.
    """
    # Imported when asked for: each has heavy libraries of its own.
    if name == "digits":
        from gkd_core.data.sources.digits import digits

        return digits(image_size, channels)
    if name == "folder":
        from gkd_core.data.sources.folder import folder

        if root is None:
            raise GkdError("data.source is folder but data.root names none: set data.root to the folder of images")
        return folder(root, image_size, channels)
    if name in ("cifar10", "cifar100") or name.startswith("torchvision:"):
        from gkd_core.data.sources.torchvision_set import torchvision_set

        return torchvision_set(name, root, image_size, channels)
    raise GkdError(unknown("data.source", name, KNOWN))
