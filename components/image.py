"""Which container image the steps run in on a cluster and under Docker."""

import os

from gkd_core import __version__

MOVING = frozenset({"latest", "main", "master", "dev", "edge", "nightly", "stable"})


def image() -> str:
    """GKD_IMAGE, else `gkd` with the package's version as its tag."""
    return os.environ.get("GKD_IMAGE") or f"gkd:{__version__}"


def moving(name: str) -> bool:
    """Whether an image name may mean another image tomorrow: no tag, or one like `latest`, and no digest.

    A cluster's cache is keyed by the name as it is written: behind a moving tag, results of an older image are
    reused.

    >>> moving("registry.example:5000/gkd"), moving("gkd:0.1.0"), moving("gkd:latest")
    (True, False, True)
    """
    if "@sha256:" in name:
        return False
    _, colon, tag = name.rpartition("/")[2].partition(":")
    return not colon or tag in MOVING


def serve_image() -> str:
    """GKD_SERVE_IMAGE, else the server's image that is built beside `image()`: `-serve` before the tag, as `make image`
    names it."""
    if named := os.environ.get("GKD_SERVE_IMAGE"):
        return named
    name = image().partition("@")[0]  # the digest is another image's
    head, slash, last = name.rpartition("/")
    repository, colon, tag = last.partition(":")
    return f"{head}{slash}{repository}-serve{colon}{tag}"
