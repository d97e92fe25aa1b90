"""Where the prepare task's images come from: what the parameters say, or a DVC repository at a revision."""

from typing import Any

from components.kubeflow.task import Task
from gkd_core.config import Params
from gkd_core.errors import GkdError


def from_dvc(task: Task, repo: str, path: str, rev: str) -> tuple[Params, dict[str, Any]]:
    """The prepare task's parameters, with `data.root` at what was fetched; and what is known of it.

    Args:
        repo: Git repository, or empty for none.
        path: in it, a file or folder that DVC tracks.
        rev: tag, branch or commit, or empty for the newest.
    Returns:
        The parameters, and {} or {"repo", "path", "rev" (the commit), "md5", "asked"}, without credentials.
    Raises:
        GkdError: half of it is given, or it cannot be fetched.
    """
    if not repo:
        if path or rev:
            raise GkdError("dvc_path or dvc_rev is given, but no dvc_repo: name the repository, or leave all three out")
        return task.params, {}
    if not path:
        raise GkdError(f"dvc_repo is given, but not what to fetch from it: set dvc_path to the data's place in {repo}")
    if task.params.data.source == "digits":
        raise GkdError(
            "data.source is digits, which reads no files, but dvc_repo is given: set data.source to folder, cifar10, "
            "cifar100 or torchvision:NAME, or leave dvc_repo out"
        )
    from components.dvc_source import fetch

    root = task.scratch / "source"
    found = fetch(repo, path, rev or None, root, unpack=task.params.data.source == "folder")
    data = task.params.data.model_copy(update={"root": str(root)})
    return task.params.model_copy(update={"data": data}), found | {"asked": rev or "the newest"}
