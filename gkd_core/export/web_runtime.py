"""What the page of `gkd bundle --web` runs on: two packages of npm, pinned by version and sha512, not in the wheel.

onnxruntime's WebAssembly runs the model; libjpeg-turbo's decodes JPEGs to the bits that Pillow has. Of each archive
only the files that the page loads are taken.
"""

import base64
import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gkd_core.errors import GkdError
from gkd_core.redact import redact

SECONDS = 900  # for a download of 33 MB


@dataclass(frozen=True)
class Package:
    """One package of npm.

    Attributes:
        integrity: sha512 of its archive in base64, as npm's lock files have it after `sha512-`.
        files: name in the archive → name beside the page. Everything that is JavaScript ends in .js, since some servers
            do not know .mjs, and browsers refuse a module of an unknown type.
    """

    name: str
    version: str
    integrity: str
    files: Mapping[str, str]

    @property
    def archive(self) -> str:
        """What `npm pack` calls it."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


ONNXRUNTIME = Package(
    "onnxruntime-web",
    "1.30.0",
    "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
    {
        "package/dist/ort.wasm.bundle.min.mjs": "ort.js",
        "package/dist/ort-wasm-simd-threaded.wasm": "ort.wasm",
    },
)
JPEG = Package(
    "@cwasm/jpeg-turbo",
    "0.1.3",
    "FkZxwwC6r4zhzlqM0nYGaMj/MDSrZPxLOdPdM6ySlgsMfOpNAZcLQkpNF4jP+DmsuUvRoeUD0YSMBvg3jYfK6w==",
    {"package/jpeg-turbo.wasm": "jpeg.wasm"},
)
PACKAGES = (ONNXRUNTIME, JPEG)


def read_runtime(archives: Sequence[Path] = ()) -> dict[str, bytes]:
    """The files of `PACKAGES` that the page loads, by their names beside the page.

    Args:
        archives: packages that were downloaded elsewhere, known by their sha512; npm fetches the others.
    Raises:
        GkdError: an archive is none of the packages, one is missing and npm is not there, or npm fails.
    """
    wanted = {package.integrity: package for package in PACKAGES}
    found: dict[str, bytes] = {}
    for archive in archives:
        try:
            content = archive.read_bytes()
        except OSError as error:
            raise GkdError(f"--web-runtime {archive} cannot be read ({error.strerror}): name {_commands()}") from None
        package = wanted.pop(_integrity(content), None)
        if package is None:
            raise GkdError(
                f"--web-runtime {archive} is none of the archives that are still wanted (its sha512 is another): "
                f"name what {_commands()} download"
            )
        found |= _taken(archive, package)
    if not wanted:
        return found
    npm = shutil.which("npm")
    if npm is None:
        raise GkdError(
            f"--web needs {' and '.join(package.archive for package in wanted.values())}, and there is no npm to fetch "
            f"them: install npm, or run {_commands()} elsewhere and name each file by --web-runtime"
        )
    with tempfile.TemporaryDirectory(prefix="gkd-web-") as folder:
        for package in wanted.values():
            found |= _fetched(npm, package, Path(folder))
    return found


def _fetched(npm: str, package: Package, folder: Path) -> dict[str, bytes]:
    command = [npm, "pack", f"{package.name}@{package.version}", "--ignore-scripts", "--pack-destination", str(folder)]
    failed = f"npm could not fetch {package.name} {package.version}"
    elsewhere = f"fix that, or run {_commands()} elsewhere and name each file by --web-runtime"
    try:
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        raise GkdError(f"{failed} ({type(error).__name__}): {elsewhere}") from None
    archive = folder / package.archive
    if result.returncode or not archive.is_file():
        said = [
            line for line in result.stderr.splitlines() if line.startswith("npm error") or line.startswith("npm ERR!")
        ]
        reason = " ".join(redact("; ".join(said[:2])).split()) or f"exit code {result.returncode}"
        raise GkdError(f"{failed} ({reason[:300]}): {elsewhere}")
    if _integrity(archive.read_bytes()) != package.integrity:
        raise GkdError(
            f"npm gave another {package.archive} than gkd was tested with (its sha512 differs): look where npm fetches "
            "from (`npm config get registry`)"
        )
    return _taken(archive, package)


def _integrity(content: bytes) -> str:
    return base64.b64encode(hashlib.sha512(content).digest()).decode()


def _taken(archive: Path, package: Package) -> dict[str, bytes]:
    taken = {}
    with tarfile.open(archive) as members:
        for inside, name in package.files.items():
            stream = members.extractfile(inside)
            assert stream is not None, inside  # the archive is the pinned one
            taken[name] = stream.read()
    return taken


def _commands() -> str:
    return " and ".join(f"`npm pack {package.name}@{package.version}`" for package in PACKAGES)
