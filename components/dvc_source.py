"""Data from a DVC repository at a revision, for a step that runs where there is no checkout: a pod, a container."""

import contextlib
import getpass
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from gkd_core.data.sources.archive import unpack as unpack_archive
from gkd_core.errors import GkdError, causes


def fetch(repo: str, path: str, rev: str | None, out: Path, *, unpack: bool = False) -> dict[str, Any]:
    """What a DVC repository holds at `path`, as a folder, whole or not at all.

    Args:
        repo: address of a git repository with DVC in it (anything git clones), or its folder. Credentials for it and
            for its remote come from the environment (`AWS_ACCESS_KEY_ID`, …) or from DVC's own configuration.
        path: a folder or a file in it that DVC or git tracks.
        rev: tag, branch or commit; None is the default branch of an address, the checked-out commit of a folder.
        out: the folder to make; a file is put into it under its own name.
        unpack: where `path` is a file, it is an archive (zip, tar, tar.gz, …), and `out` is what is in it.
    Returns:
        repo (without credentials), path, rev (the commit's sha), md5 (as DVC has it; a folder's ends in ".dir").
    Raises:
        GkdError: there is no such repository, revision or path, its remote gives nothing, or what came is damaged.
    """
    shown = _without_credentials(repo)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise GkdError(f"{out} is there already: name a new folder for what comes from {shown}")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch, _surroundings(scratch):
        content = Path(scratch) / "content" / (Path(path).name or "data")
        content.parent.mkdir()
        facts = {"repo": shown, "path": path} | _download(repo, shown, path, rev, content)
        whole = content if content.is_dir() else content.parent
        if unpack and content.is_file():
            whole = Path(scratch) / "unpacked"
            whole.mkdir()
            unpack_archive(content, whole, f"{path} of {shown}")
        if out.exists():
            out.rmdir()
        whole.rename(out)
    return facts


def _download(repo: str, shown: str, path: str, rev: str | None, content: Path) -> dict[str, str]:
    """Fetch to `content`; the resolved revision and the md5 of what came."""
    try:
        from dvc.repo import Repo
        from dvc.repo.open_repo import clean_repos
    except ImportError as error:
        raise GkdError(f"reading {shown} needs DVC: pip install 'gkd[track]' ({error})") from error
    from dvc.exceptions import NotDvcRepoError
    from dvc.fs import download
    from dvc.scm import CloneError, RevError, SCMError

    # A folder would be read as it lies there, uncommitted changes included.
    at = rev if rev is not None or not Path(repo).exists() else "HEAD"
    named = "the default branch" if rev is None else f"revision {rev!r}"
    try:
        with Repo.open(url=repo, rev=at, subrepos=True, uninitialized=True) as opened:
            files = opened.dvcfs
            place = files.from_os_path(path)
            if not files.exists(place):
                raise GkdError(f"{path} is not in {shown} at {named}: name a folder or file that DVC tracks there")
            tracked = (files.info(place).get("dvc_info") or {}).get("md5")
            download(files, place, str(content))
            commit = opened.get_rev()
    except GkdError:
        raise
    except RevError as error:
        raise GkdError(f"{shown} has no {named}: name a tag, a branch or a commit that was pushed there") from error
    except (CloneError, NotDvcRepoError) as error:
        raise GkdError(f"{shown} cannot be read as a git repository: check the address and the access to it") from error
    except SCMError as error:
        raise GkdError(f"{shown} has no git history, so no revision can be recorded: give a git repository") from error
    except Exception as error:  # every kind of storage raises its own
        raise GkdError(f"{path} of {shown} at {named} cannot be had from its DVC remote: {_why(error)}") from error
    finally:
        clean_repos()
    md5 = _md5(content)
    if tracked is not None and tracked != md5:
        raise GkdError(f"{path} of {shown} came damaged (md5 {md5}, DVC has {tracked}): push it to the remote again")
    return {"rev": commit, "md5": md5}


def _md5(content: Path) -> str:
    """As DVC computes it for a file or a folder."""
    from dvc_data.hashfile.build import build
    from dvc_data.hashfile.db import HashFileDB
    from dvc_objects.fs.local import localfs

    with tempfile.TemporaryDirectory() as nothing:
        _, _, found = build(HashFileDB(localfs, nothing), str(content), localfs, "md5", dry_run=True)
    return str(found.hash_info.value)


def _why(error: BaseException) -> str:
    """The cause as one sentence, with what to do about it where that is known."""
    chain = causes(error)
    names = {kind.__name__ for link in chain for kind in type(link).__mro__}
    reason = next((" ".join(str(link).split()) for link in reversed(chain) if str(link).strip()), type(error).__name__)
    if names & {
        "NoCredentialsError",
        "PartialCredentialsError",
        "PermissionError",
        "NoAuthError",
        "TokenRetrievalError",
    }:
        return f"credentials are missing or not accepted ({reason}): give the step those of the remote"
    if "NoRemoteError" in names:
        return "the repository names no remote: `dvc remote add -d NAME ADDRESS` there, commit and push"
    if names & {"EndpointConnectionError", "ConnectTimeoutError", "ConnectionError", "TimeoutError", "gaierror"}:
        return f"the remote is not reachable ({reason}): check its address and the network"
    return f"{reason}: check that it was pushed with `dvc push`"


@contextlib.contextmanager
def _surroundings(scratch: str) -> Iterator[None]:
    """DVC wants a user's name and places of its own to write; a container's uid may have neither."""
    wanted = {"DVC_SITE_CACHE_DIR": str(Path(scratch) / "site"), "DVC_NO_ANALYTICS": "1"}
    try:
        getpass.getuser()
    except (KeyError, OSError):
        wanted["USER"] = "gkd"
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _without_credentials(address: str) -> str:
    """The address as it may be shown and kept."""
    parts = urlsplit(address)
    if not parts.scheme or parts.password is None:
        return address
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
