"""Files fetched from their published address: whole and as published, or not there at all."""

import contextlib
import hashlib
import http.client
import os
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path

from gkd_core.data.progress import progress
from gkd_core.errors import GkdError

CHUNK_BYTES = 1 << 20
TIMEOUT_SECONDS = 30.0


def cache_folder() -> Path:
    """Where downloads go when `data.root` names no folder: gkd in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "gkd"


def download(address: str, path: Path, md5: str, attempts: int = 3, pause_seconds: float = 2.0) -> None:
    """Fetch a file; it appears under its name only when it is whole and has the published md5.

    Args:
        attempts: tries before giving up, each after a pause that grows.
    Raises:
        GkdError: it cannot be had, or what is served is not the published file.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    reason = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(attempts):
            if attempt:
                time.sleep(pause_seconds * attempt)
            try:
                found = _fetch(address, partial)
            except urllib.error.HTTPError as error:
                reason = f"the server answers {error.code} {error.reason}"
                if error.code < 500 and error.code not in (408, 429):
                    break
            except (
                urllib.error.URLError,
                http.client.HTTPException,
                TimeoutError,
                ConnectionError,
                ssl.SSLError,
            ) as error:
                reason = str(getattr(error, "reason", "") or error) or type(error).__name__
            else:
                if found == md5:
                    partial.replace(path)
                    return
                reason = f"what arrived has md5 {found}, published {md5}"
    except OSError as error:
        raise GkdError(
            f"{path} cannot be written ({error.strerror or error}): make room, or set data.root to another folder"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    raise GkdError(
        f"{address} cannot be downloaded ({reason}): check the network, or put the file into {path.parent} yourself, "
        "or name the folder that has it as data.root"
    )


def _fetch(address: str, partial: Path) -> str:
    digest = hashlib.md5()
    request = urllib.request.Request(address, headers={"User-Agent": "gkd"})
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer, partial.open("wb") as stream:
        length = answer.headers.get("Content-Length")
        with progress(f"download {address}", int(length) if length else None, unit="B") as advance:
            while chunk := answer.read(CHUNK_BYTES):
                stream.write(chunk)
                digest.update(chunk)
                advance(len(chunk))
        stream.flush()
        os.fsync(stream.fileno())
    return digest.hexdigest()
