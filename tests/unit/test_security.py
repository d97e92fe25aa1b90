"""Nothing that is read can run code, and nothing that is written tells a secret."""

import ast
import io
import json
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

from gkd_core.run_facts import run_facts
from tests import forked

ROOT = Path(__file__).parents[2]
PACKAGES = ("gkd_core", "components", "pipelines", "benchmarks")


def test_arrays_and_weights_are_read_without_pickles() -> None:
    """What else could run what it reads, ruff refuses (`S` in pyproject.toml)."""
    found = 0
    for file in (file for package in PACKAGES for file in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "torch.hub.load", "np.load"):
                call = ast.unparse(node)
                wanted = ("weights_only=True",) if "torch" in call else ("allow_pickle=False", "mmap_mode='r'")
                assert any(keyword in call for keyword in wanted), f"{file}: {call}"
                assert "allow_pickle=True" not in call
                found += 1
    assert found


def test_the_yaml_loader_builds_no_objects() -> None:
    from gkd_core.yaml_text import Loader

    assert issubclass(Loader, yaml.SafeLoader)
    with pytest.raises(yaml.YAMLError):
        Loader("!!python/object/apply:os.getcwd []").get_single_data()


# --- archives


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    "hostile",
    [
        member("../outside.txt"),
        member("link", tarfile.SYMTYPE, "../../outside"),
        member("link", tarfile.LNKTYPE, "../outside"),
        member("device", tarfile.CHRTYPE),
    ],
    ids=["path", "link", "hard link", "device"],
)
@pytest.mark.parametrize("filters", [True, False], ids=["", "Python 3.11.2"])
def test_an_archive_that_leads_outside_is_refused_in_one_sentence(
    hostile: tarfile.TarInfo, filters: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchvision unpacks what a set's authors published; here a set whose archive is not what it should be."""
    from gkd_core.data.sources import torchvision_set
    from gkd_core.errors import GkdError

    root = tmp_path / "root"
    root.mkdir()
    (root / "set.tar.gz").write_bytes(archive((hostile, b"")))

    class Hostile:
        def __init__(self, root: str, train: bool = True, download: bool = False, target_transform: object = None):
            with tarfile.open(Path(root) / "set.tar.gz") as tar:
                tar.extractall(root)  # as torchvision.datasets.utils does it

    monkeypatch.setattr(torchvision_set, "SAFE_TAR", filters)  # Debian's 3.11.2 has none
    before = dict(vars(tarfile.TarFile))
    monkeypatch.setattr(torchvision_set, "known_sets", lambda: ["Hostile"])
    monkeypatch.setattr(torchvision_set.datasets, "Hostile", Hostile, raising=False)
    with pytest.raises(GkdError, match=r"torchvision:Hostile cannot be opened in .* \("):
        torchvision_set.torchvision_set("torchvision:Hostile", root, None, None)
    assert [path.name for path in root.iterdir()] == ["set.tar.gz"]
    assert [path.name for path in tmp_path.iterdir()] == ["root"]
    assert dict(vars(tarfile.TarFile)) == before  # put back


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_that_would_fill_the_disk_is_not_unpacked(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gkd_core.data.sources import archive as archives
    from gkd_core.errors import GkdError

    monkeypatch.setattr(archives, "ROOM", 1 << 16)
    bomb = tmp_path / "bomb"
    if kind == "zip":
        with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed:
            packed.writestr("zeros", bytes(1 << 22))
    else:
        bomb.write_bytes(archive((member("zeros"), bytes(1 << 22))))
    (tmp_path / "out").mkdir()
    with pytest.raises(GkdError, match=r"the data would become .* GB"):
        archives.unpack(bomb, tmp_path / "out", "the data")
    assert list((tmp_path / "out").iterdir()) == []


# --- secrets

SECRET = "s3cr3t-p4ss"


def test_a_run_does_not_write_down_the_password_it_was_started_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gkd", "distill", "--set", f"tracking.uri=https://gkd:{SECRET}@host"])
    facts = run_facts()
    assert SECRET not in json.dumps(facts)
    assert facts["command"] == "gkd distill --set tracking.uri=https://gkd:***@host"


@pytest.mark.parametrize(
    "setting",
    [f"tracking.uri=gopher://gkd:{SECRET}@host", f"tracking.uri=['https://gkd:{SECRET}@host']", f"token={SECRET}"],
)
def test_an_error_does_not_repeat_the_password(setting: str, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("{}")
    result = forked.gkd("registry", "list", "--set", setting, cwd=tmp_path, env={"PATH": ""})
    assert result.returncode == 2, result.stderr
    assert SECRET not in result.stdout + result.stderr
