"""Where the prepare task's images come from: what the parameters say, or a DVC repository at a revision."""

import contextlib
from typing import Any

from components.kubeflow.task import Task
from gkd_core.config import Params
from gkd_core.errors import GkdError, unknown


def refuse_unknown(params: Params) -> None:
    """Raises: GkdError: `data.source` names none."""
    from gkd_core.data.sources import KNOWN

    name, colon, rest = params.data.source.partition(":")
    if colon and name == "torchvision":
        with contextlib.suppress(ImportError):  # where nothing is trained; the prepare task looks again
            from gkd_core.data.sources.torchvision_set import known_sets

            wanted = rest.partition("?")[0]
            if wanted not in (sets := known_sets()) and wanted not in ("CIFAR10", "CIFAR100"):
                raise GkdError(unknown("data.source: the torchvision set", wanted, sets))
    elif params.data.source not in KNOWN:
        raise GkdError(unknown("data.source", params.data.source, KNOWN))


def refuse_source(params: Params, repo: str, path: str, rev: str) -> None:
    """See that what is said of the images goes together.

    Raises:
        GkdError: half of a DVC repository is given, its files would not be read, or there are neither files nor a
            place for them.
    """
    refuse_unknown(params)
    if not repo:
        if path or rev:
            raise GkdError("dvc_path or dvc_rev is given, but no dvc_repo: name the repository, or leave all three out")
        if params.data.source == "folder" and params.data.root is None:
            raise GkdError(
                "data.source is folder but data.root names none: set data.root to the folder of images, or give "
                "dvc_repo and dvc_path"
            )
        return
    if not path:
        raise GkdError(f"dvc_repo is given, but not what to fetch from it: set dvc_path to the data's place in {repo}")
    if params.data.source == "digits":
        raise GkdError(
            "data.source is digits, which reads no files, but dvc_repo is given: set data.source to folder, cifar10, "
            "cifar100 or torchvision:NAME, or leave dvc_repo out"
        )


def from_dvc(task: Task, repo: str, path: str, rev: str) -> tuple[Params, dict[str, Any]]:
    """The prepare task's parameters, with `data.root` at what was fetched; and what is known of it.

    Args:
        repo: Git repository, or empty for none.
        path: in it, a file or folder that DVC tracks.
        rev: tag, branch or commit, or empty for the newest.
    Returns:
        The parameters, and {} or {"repo", "path", "rev" (the commit), "md5", "asked"}, without credentials.
    Raises:
        GkdError: as `refuse_source`, or it cannot be fetched.
    """
    refuse_source(task.params, repo, path, rev)
    if not repo:
        return task.params, {}
    from components.dvc_source import fetch

    root = task.scratch / "source"
    found = fetch(repo, path, rev or None, root, unpack=task.params.data.source == "folder")
    data = task.params.data.model_copy(update={"root": str(root)})
    return task.params.model_copy(update={"data": data}), found | {"asked": rev or "the newest"}
