"""What lies behind an address, as files here: `s3://`, `gs://`, `https://` and whatever else fsspec speaks.

Credentials come from the environment, as each protocol's package reads them; an address is shown without what may be
one. Retries are fsspec's. Nothing is fetched twice, and what is fetched lies in a folder that its reader sweeps away.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from gkd_core.data.progress import progress
from gkd_core.data.sources.address import WEB, scheme, without_secrets
from gkd_core.data.sources.archive import refuse_no_room
from gkd_core.errors import GkdError, causes

AT_ONCE = 16  # files: of a few kB each, most of the time is waiting for the server
PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}
SILENCE = 60  # seconds without a byte, after which a web server is given up
CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or FSSPEC_S3='{\"anon\": true}' for a public bucket",
    "gs": 'GOOGLE_APPLICATION_CREDENTIALS, or FSSPEC_GS=\'{"token": "anon"}\' for a public bucket',
}


def fetch(address: str, folder: Path, option: str) -> Path:
    """A file, or all files below a prefix.

    Args:
        folder: there already; what comes is put into it.
        option: what named the address, for the errors.
    Returns:
        The file or the folder.
    Raises:
        GkdError: it is not there or not reachable, access is refused, its protocol's package is missing, or the disk is
            too small.
    """
    where = f"{option} {without_secrets(address)}"
    with _in_one_sentence(address, option):
        system, path = _open(address)
        name = Path(address.partition("?")[0]).name or "data"
        # A web server lists no folders; fsspec would look for links in its pages.
        if scheme(address) in WEB or system.info(path)["type"] == "file":
            system.get_file(path, str(folder / name))
            return folder / name
        prefix, out = f"{path.rstrip('/')}/", folder / name
        files = _below(system, path)
        refuse_no_room(sum(entry["size"] or 0 for entry in files.values()), folder, where)
        for file in files:
            if not (out / file).resolve().is_relative_to(out.resolve()):
                raise GkdError(f"{where} holds {file!r}, which would land outside its folder: rename it")
            (out / file).parent.mkdir(parents=True, exist_ok=True)
    jobs = {f"{address}/{file}": (system, prefix + file, out / file) for file in files}
    with progress("fetch", len(jobs), unit="files") as advance:
        missing = _get(jobs, option, advance)
    if missing:
        raise GkdError(f"{option} {without_secrets(missing[0])} went away while it was read: run the same again")
    return out


def files_below(address: str, option: str) -> dict[str, str] | None:
    """What lies below a prefix: path from there → what changes when the file does, as far as its server tells.

    None where the address is one file, or a web server's, which lists no folders.

    Raises:
        GkdError: as `fetch`.
    """
    if scheme(address) in WEB:
        return None
    with _in_one_sentence(address, option):
        system, path = _open(address)
        if system.info(path)["type"] == "file":
            return None
        tells = ("size", "ETag", "etag", "mtime", "LastModified", "updated")
        found = _below(system, path).items()
        return {file: " ".join(str(entry[key]) for key in tells if key in entry) for file, entry in found}


def fetch_files(wanted: Mapping[str, Path], option: str) -> list[str]:
    """Single files, several at a time; those that are not there.

    Args:
        wanted: address → where to put it.
        option: what named the addresses, for the errors.
    Raises:
        GkdError: as `fetch`.
    """
    with progress("fetch", len(wanted), unit="files") as advance:
        return Fetcher(option).fetch(wanted, advance)


class Fetcher:
    """Fetches single files, by connections that it keeps.

    Args:
        option: what named the addresses, for the errors.
    """

    def __init__(self, option: str) -> None:
        self._option = option
        self._systems: dict[str, Any] = {}

    def fetch(self, wanted: Mapping[str, Path], advance: Callable[[int], None] = lambda amount: None) -> list[str]:
        """Put each address at its place, several at a time; those that are not there.

        Args:
            advance: told of each file.
        Raises:
            GkdError: as `fetch`.
        """
        jobs = {}
        for address, place in wanted.items():
            if _origin(address) not in self._systems:
                with _in_one_sentence(address, self._option):
                    self._systems[_origin(address)] = _open(address)[0]
            system = self._systems[_origin(address)]
            jobs[address] = system, system._strip_protocol(address), place
        return _get(jobs, self._option, advance)


def _below(system: Any, path: str) -> dict[str, dict[str, Any]]:
    """What fsspec knows of each file below a prefix, by its path from there.

    Raises:
        FileNotFoundError: there is none.
    """
    prefix = f"{path.rstrip('/')}/"
    found = {key.removeprefix(prefix): entry for key, entry in system.find(path, detail=True).items()}
    files = {file: entry for file, entry in found.items() if file and file[-1] != "/"}  # not what stands for a folder
    if not files:
        raise FileNotFoundError
    return files


def _get(jobs: Mapping[str, tuple[Any, str, Path]], option: str, advance: Callable[[int], None]) -> list[str]:
    """Fetch each address, by its system and path in it, to its place; those that are not there."""

    def there(address: str) -> bool:
        system, path, place = jobs[address]
        with _in_one_sentence(address, option):
            try:
                system.get_file(path, str(place))
            except FileNotFoundError:
                return False
        return True

    # Left by an exception, `map` calls off what has not begun.
    with ThreadPoolExecutor(AT_ONCE) as pool:
        missing = []
        for address, came in zip(jobs, pool.map(there, jobs), strict=True):
            missing += [] if came else [address]
            advance(1)
    return missing


def _origin(address: str) -> str:
    """Scheme and host or bucket: what shares a connection."""
    return "/".join(address.split("/", 3)[:3])


def _open(address: str) -> tuple[Any, str]:
    """fsspec's file system of an address, and the path in it."""
    import fsspec  # not part of an installation that only serves and predicts

    options: dict[str, Any] = {}
    if scheme(address) in WEB:
        from aiohttp import ClientTimeout

        # aiohttp would end a download after five minutes, and pass the proxy by.
        timeout = ClientTimeout(total=None, sock_connect=SILENCE, sock_read=SILENCE)
        options["client_kwargs"] = {"timeout": timeout, "trust_env": True}
    # A new one each time: fsspec's are kept by address, with listings that may be old.
    system, path = fsspec.url_to_fs(address, skip_instance_cache=True, **options)
    return system, str(path)


@contextlib.contextmanager
def _in_one_sentence(address: str, option: str) -> Iterator[None]:
    """Every protocol's package raises errors of its own: what they mean, and what to do about it, as a GkdError."""
    where = f"{option} {without_secrets(address)}"
    try:
        yield
    except GkdError:
        raise
    except ImportError as error:
        package = PACKAGES.get(scheme(address), scheme(address))
        needed = f"fsspec {package}" if error.name == "fsspec" else package
        raise GkdError(f"{where} needs the package {package}: pip install {needed} ({error})") from None
    except Exception as error:
        raise GkdError(f"{where} {_why(address, error)}") from None


def _why(address: str, error: Exception) -> str:
    chain = causes(error)
    names = {kind.__name__ for link in chain for kind in type(link).__mro__}
    states = {getattr(link, "status", None) or getattr(link, "code", None) for link in chain}
    text = (
        without_secrets(" ".join(str(error).replace(address, without_secrets(address)).split())) or type(error).__name__
    )
    if isinstance(error, FileNotFoundError):
        return "is not there, or holds no files: check the address"
    if names & {"PermissionError", "NoCredentialsError", "PartialCredentialsError"} or states & {
        401,
        403,
        "401",
        "403",
    }:
        known = next((say for name, say in CREDENTIALS.items() if scheme(address).startswith(name)), "")
        return f"refuses access ({text}): give credentials that may read it by the environment{known and f' ({known})'}"
    if names & {
        "ClientConnectorError",
        "EndpointConnectionError",
        "ConnectTimeoutError",
        "ConnectionError",
    } or names & {
        *("TimeoutError", "FSTimeoutError", "gaierror", "ServerDisconnectedError", "HTTPClientError"),
    }:
        return f"is not reachable ({text}): check the address and the network"
    if isinstance(error, ValueError) and "rotocol" in text:
        return f"has a protocol that is not known ({text}): use s3://, gs:// or https://"
    return f"cannot be read ({text}): check the address and try again"
