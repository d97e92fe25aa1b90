"""Data fetched from real git repositories with DVC in them, and from remotes that work and that do not."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest
from dvc.repo import Repo
from PIL import Image

from components.dvc_source import fetch
from gkd_core.errors import GkdError


def git(repo: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org", "-c", "init.defaultBranch=main"]
    done = subprocess.run(["git", *identity, *arguments], cwd=repo, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def set_remote(repo: Path, address: object, **settings: str) -> None:
    """What `dvc remote add --default` and `dvc remote modify` write."""
    lines = [f"    {name} = {value}" for name, value in {"url": str(address), **settings}.items()]
    (repo / ".dvc" / "config").write_text(
        "\n".join(["[core]", "    remote = store", "['remote \"store\"']", *lines, ""])
    )


def new_repository(top: Path) -> Path:
    """An empty one, whose remote is a folder beside it."""
    repo = top / "repo"
    repo.mkdir()
    git(repo, "init", "--quiet")
    Repo.init(str(repo)).close()
    set_remote(repo, top / "store")
    return repo


PICTURES = {"v1": 10, "v2": 12}  # of each label


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """A repository with images at two tags, pushed to a remote in a folder beside it."""
    repo = new_repository(tmp_path_factory.mktemp("dvc"))
    for tag, count in PICTURES.items():
        for label, name in enumerate(("cat", "dog")):
            (repo / "images" / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                picture = Image.new("RGB", (16, 16), (20 * number, 100 * label, 9))
                picture.save(repo / "images" / name / f"{number}.png")
        with zipfile.ZipFile(repo / "images.zip", "w") as packed:
            for file in sorted((repo / "images").rglob("*.png")):
                packed.write(file, file.relative_to(repo / "images"))
        with Repo(str(repo)) as opened:
            opened.add([str(repo / "images"), str(repo / "images.zip")])
        (repo / "notes.txt").write_text(tag)
        git(repo, "add", "--all")
        git(repo, "commit", "--quiet", "--message", tag)
        git(repo, "tag", tag)
    with Repo(str(repo)) as opened:
        opened.push(all_tags=True)
    return repo


def pictures(tag: str) -> list[str]:
    """Every file of `images` there."""
    return sorted(f"{name}/{number}.png" for name in ("cat", "dog") for number in range(PICTURES[tag]))


def files(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


@pytest.mark.parametrize("address", ["{}", "file://{}"])
def test_fetches_the_folder_at_the_tag(published, tmp_path, address):
    repo = address.format(published)
    facts = fetch(repo, "images", "v1", tmp_path / "images")
    assert files(tmp_path / "images") == pictures("v1")
    assert facts["rev"] == git(published, "rev-parse", "v1^{commit}")
    # DVC's md5 of a folder: of the list of its files with theirs, sorted by path, as JSON.
    listed = [
        {"md5": hashlib.md5((tmp_path / "images" / name).read_bytes()).hexdigest(), "relpath": name}
        for name in files(tmp_path / "images")
    ]
    assert facts["md5"] == hashlib.md5(json.dumps(listed, sort_keys=True).encode()).hexdigest() + ".dir"
    assert facts["repo"] == repo
    assert facts["path"] == "images"
    assert list(tmp_path.iterdir()) == [tmp_path / "images"]


def test_a_commit_and_no_revision_at_all(published, tmp_path):
    newest, older = git(published, "rev-parse", "HEAD"), git(published, "rev-parse", "v1^{commit}")
    assert fetch(str(published), "images", older, tmp_path / "older")["rev"] == older
    assert fetch(f"file://{published}", "images", None, tmp_path / "newest")["rev"] == newest
    assert files(tmp_path / "newest") == pictures("v2")


def test_what_is_not_committed_is_not_read(published, tmp_path):
    shutil.copytree(published, tmp_path / "repo", symlinks=True)
    (tmp_path / "repo" / "notes.txt").write_text("not committed")
    fetch(str(tmp_path / "repo"), "notes.txt", None, tmp_path / "notes")
    assert (tmp_path / "notes" / "notes.txt").read_text() == "v2"


def test_part_of_a_folder_and_one_file_of_it(published, tmp_path):
    fetch(str(published), "images/dog", "v2", tmp_path / "dog")
    facts = fetch(str(published), "images/dog/2.png", "v2", tmp_path / "one")
    assert [f"dog/{name}" for name in files(tmp_path / "dog")] == [name for name in pictures("v2") if "dog" in name]
    assert files(tmp_path / "one") == ["2.png"]
    assert facts["md5"] == hashlib.md5((published / "images/dog/2.png").read_bytes()).hexdigest()


def test_an_archive_is_left_as_it_is_or_unpacked(published, tmp_path):
    packed = fetch(str(published), "images.zip", "v1", tmp_path / "packed")
    unpacked = fetch(str(published), "images.zip", "v1", tmp_path / "unpacked", unpack=True)
    assert files(tmp_path / "packed") == ["images.zip"]
    assert files(tmp_path / "unpacked") == pictures("v1")
    assert packed["md5"] == unpacked["md5"]
    fetch(str(published), "images", "v1", tmp_path / "folder", unpack=True)
    assert files(tmp_path / "folder") == files(tmp_path / "unpacked")


def test_no_passwd_entry_and_no_place_to_write(published, tmp_path, monkeypatch):
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 54321")

    monkeypatch.setattr("getpass.getuser", lambda: os.environ.get("USER") or nobody())
    monkeypatch.delenv("USER", raising=False)
    monkeypatch.delenv("DVC_SITE_CACHE_DIR", raising=False)
    fetch(str(published), "images", "v1", tmp_path / "images")
    assert files(tmp_path / "images") == pictures("v1")
    assert "USER" not in os.environ
    assert "DVC_SITE_CACHE_DIR" not in os.environ


@pytest.mark.parametrize(
    ("repo", "path", "rev", "message"),
    [
        ("{}", "images", "v9", "has no revision 'v9': name a tag, a branch or a commit"),
        ("file://{}", "images", "v9", "has no revision 'v9'"),
        ("{}", "pictures", "v1", "pictures is not in .* at revision 'v1'"),
        ("file://{}", "pictures", None, "pictures is not in .* at the default branch"),
        ("file://{}-elsewhere", "images", "v1", "-elsewhere cannot be read as a git repository"),
        ("{}-elsewhere", "images", "v1", "-elsewhere cannot be read as a git repository"),
        ("{}/../store", "images", "v1", "has no git history, so no revision can be recorded"),
    ],
)
def test_what_is_not_there_is_named(published, tmp_path, repo, path, rev, message):
    with pytest.raises(GkdError, match=message) as caught:
        fetch(repo.format(published), path, rev, tmp_path / "images")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_folder_in_the_way(published, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "mine.png").touch()
    with pytest.raises(GkdError, match="images is there already"):
        fetch(str(published), "images", "v1", tmp_path / "images")


def copy_without_cache(published: Path, top: Path) -> Path:
    shutil.copytree(published, top / "repo", symlinks=True)
    shutil.rmtree(top / "repo" / ".dvc" / "cache")
    return top / "repo"


def test_a_remote_that_lacks_the_data(published, tmp_path):
    repo = copy_without_cache(published, tmp_path)
    set_remote(repo, tmp_path / "empty")
    git(repo, "commit", "--all", "--quiet", "--message", "another remote")
    with pytest.raises(GkdError, match=r"images of .* cannot be had from its DVC remote: .*`dvc push`"):
        fetch(f"file://{repo}", "images", None, tmp_path / "images")
    assert not (tmp_path / "images").exists()


def test_a_damaged_remote(published, tmp_path):
    repo = copy_without_cache(published, tmp_path)
    shutil.copytree(published.parent / "store", tmp_path / "store")
    set_remote(repo, tmp_path / "store")
    git(repo, "commit", "--all", "--quiet", "--message", "another remote")
    digest = hashlib.md5((published / "images.zip").read_bytes()).hexdigest()
    stored = tmp_path / "store" / "files" / "md5" / digest[:2] / digest[2:]
    stored.chmod(0o600)
    stored.write_bytes(b"something else")
    with pytest.raises(GkdError, match=r"images.zip of .* came damaged \(md5 [0-9a-f]{32}, DVC has " + digest):
        fetch(f"file://{repo}", "images.zip", None, tmp_path / "images")


@pytest.mark.parametrize(("credentials", "message"), [(False, "credentials are missing"), (True, "not reachable")])
def test_object_storage_that_does_not_answer(published, tmp_path, monkeypatch, credentials, message):
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    if credentials:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("HOME", str(tmp_path))
    repo = copy_without_cache(published, tmp_path)
    set_remote(repo, "s3://bucket/data", endpointurl="http://127.0.0.1:9")
    git(repo, "commit", "--all", "--quiet", "--message", "object storage")
    with pytest.raises(GkdError, match=message) as caught:
        fetch(f"file://{repo}", "images", None, tmp_path / "images")
    assert "secret" not in str(caught.value)


def test_a_password_in_the_address_is_not_shown(tmp_path):
    with pytest.raises(GkdError, match=r"https://127\.0\.0\.1:9/data\.git cannot be read") as caught:
        fetch("https://somebody:secret@127.0.0.1:9/data.git", "images", "v1", tmp_path / "images")
    assert "secret" not in str(caught.value)


def test_archives_that_reach_elsewhere_or_are_none(published, tmp_path):
    repo = copy_without_cache(published, tmp_path)
    with tarfile.open(repo / "bad.tar", "w") as packed:
        (tmp_path / "picture.png").write_bytes(b"")
        packed.add(tmp_path / "picture.png", "../../picture.png")
    with zipfile.ZipFile(repo / "bad.zip", "w") as packed_zip:
        packed_zip.writestr("../../picture.png", b"")
    git(repo, "add", "--all")
    git(repo, "commit", "--quiet", "--message", "archives")
    for name, message in {
        "bad.tar": "cannot be unpacked",
        "bad.zip": "would land outside its folder",
        "notes.txt": "neither a zip nor a tar archive",
    }.items():
        with pytest.raises(GkdError, match=message):
            fetch(str(repo), name, None, tmp_path / "images", unpack=True)
        assert not (tmp_path / "images").exists()


class TestThePrepareTask:
    """The component itself, as kfp's executor calls it."""

    @pytest.fixture
    def prepare(self, tmp_path, monkeypatch):
        """A function that runs it and gives its artifact's metadata."""
        from kfp import dsl

        from pipelines.kubeflow import components as steps

        monkeypatch.setattr("sys.argv", ["a task names itself here"])
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)

        def prepare(repo: str = "", path: str = "", rev: str = "", **section: object) -> dict:
            data = dsl.Dataset(name="data", uri=str(tmp_path / "data"), metadata={})
            settings = json.dumps({"data": {"source": "folder", "image_size": 16} | section})
            steps.prepare.python_func(settings=settings, dvc_repo=repo, dvc_path=path, dvc_rev=rev, data=data)
            return data.metadata

        return prepare

    @pytest.mark.parametrize(("rev", "count"), [("v1", 20), ("", 24)])
    def test_reads_the_revision_and_tells_which_it_was(self, published, prepare, tmp_path, rev, count):
        from gkd_core.data.prepared import PreparedData

        told = prepare(f"file://{published}", "images", rev)
        data = PreparedData.open(tmp_path / "data")
        assert data.info.classes == ("cat", "dog")
        assert sum(data.info.counts.values()) == count
        commit = git(published, "rev-parse", f"{rev or 'HEAD'}^{{commit}}")
        md5 = re.search(r"md5: (\w+\.dir)", git(published, "show", f"{commit}:images.dvc"))[1]
        assert {key: value for key, value in told.items() if key.startswith("dvc_")} == {
            "dvc_repo": f"file://{published}", "dvc_path": "images", "dvc_rev": commit, "dvc_md5": md5,
            "dvc_asked": rev or "the newest",
        }  # fmt: skip
        assert told["sha256"] == data.info.sha256
        assert told["classes"] == 2

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ({"rev": "v1"}, "dvc_path or dvc_rev is given, but no dvc_repo"),
            ({"repo": "{}"}, "set dvc_path to the data's place in"),
            ({"repo": "{}", "path": "images", "source": "digits"}, "data.source is digits, which reads no files"),
            ({"repo": "{}", "path": "images", "rev": "v9"}, "has no revision 'v9'"),
        ],
    )
    def test_what_is_wrong_ends_it_with_one_sentence(self, published, prepare, tmp_path, capsys, given, said):
        given = {name: value.format(published) for name, value in given.items()}
        with pytest.raises(SystemExit) as stopped:
            prepare(**given)
        assert stopped.value.code == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "data").exists()


def test_a_list_of_addresses_is_fetched_and_not_unpacked(tmp_path, monkeypatch):
    from components import dvc_source
    from gkd_core.config import parse_params
    from pipelines.kubeflow.task import Task, from_dvc

    asked = []

    def fetched(repo, path, rev, out, *, unpack):
        asked.append(unpack)
        return {"rev": "abc"}

    monkeypatch.setattr(dvc_source, "fetch", fetched)
    for source, path in (("list", "sets/list.csv"), ("list", "sets.zip"), ("folder", "sets.zip"), ("cifar10", "cifar")):
        params = parse_params({"data": {"source": source}})
        task, known = from_dvc(Task("prepare", "{}", params, tmp_path, tmp_path), "https://x.example/r.git", path, "")
        assert task.params.data.root == str(tmp_path / "source")
        assert known == {"rev": "abc", "asked": "the newest"}
    assert asked == [False, True, True, False]
