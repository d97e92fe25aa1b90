"""gkd verify on a small real run: every link holds, and what is changed afterwards is named."""

import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest
import torch

from components import evaluate, register
from components.verify import run
from gkd_core.config import TrackingConfig, parse_params
from gkd_core.errors import GkdError
from gkd_core.files import file_digest, folder_digest, json_digest, seal, write_json
from gkd_core.models.network import load_network, save_network
from gkd_core.verify import FOLDERS, Broken
from tests import forked

ROOT = Path(__file__).parents[2]
STEPS = ("data", "teacher", "baseline", "kd", "student", "deploy", "report")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, project, empty_store) -> Path:
    """A run's folder as `dvc repro` leaves it, with the registry's database."""
    root = tmp_path_factory.mktemp("whole")
    for name, folder in project.inputs().items():
        shutil.copytree(folder, root / name)
    shutil.copy(empty_store, root / "mlflow.db")
    params = parse_params(project.params.model_dump() | {"tracking": {"uri": f"sqlite:///{root / 'mlflow.db'}"}})
    folders = {name: root / name for name in STEPS if name != "report"}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
            patch.delenv(name, raising=False)
        evaluate.run(**folders, out=root / "report", params=params)
        folders = {name: root / name for name in STEPS if name != "data"}
        register.run(**folders, out=root / "registration", params=params)
    (root / "report" / ".gitignore").write_text("/predictions.npy\n")  # DVC's
    return root


@pytest.fixture
def copy(tmp_path, whole, monkeypatch) -> Path:
    """The steps' folders alone, to be changed; no registry."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name in FOLDERS:
        shutil.copytree(whole / name, tmp_path / "run" / name)
    return tmp_path / "run"


def broken(root: Path | str, **more) -> str:
    chain = run(str(root), **{"server": None, "tracking": None} | more)
    assert chain.broken is not None
    assert isinstance(chain.broken, Broken)
    assert chain.broken.exit_code == 1
    assert "\n" not in str(chain.broken)
    return str(chain.broken)


def gkd(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    return forked.gkd(*arguments, cwd=cwd, env=kept)


def test_a_run_holds_from_the_data_to_the_registry(whole):
    result = gkd("verify", cwd=whole)
    assert result.returncode == 0, result.stderr
    outcome = json.loads(result.stdout.splitlines()[-1])
    assert outcome["verified"] is True
    assert outcome["broken"] is None
    names = [link["link"] for link in outcome["links"]]
    for name in FOLDERS:
        assert f"{name}: files" in names
    for link in ("data", "data → teacher", "teacher → student", "student → manifest", "manifest → model.onnx",
                 "deploy → report", "manifest → registration", "manifest → registry", "registry → file",
                 "registry: deploy: files", "registry → deploy", "registry → gate"):  # fmt: skip
        assert link in names
    assert [gap["link"] for gap in outcome["not_walked"]] == ["kd", "manifest → server"]
    assert "teacher → student" in result.stderr
    assert "holds" in result.stderr


def test_one_changed_byte_anywhere_is_found_and_its_file_named(copy):
    files = [path for path in sorted(copy.rglob("*")) if path.is_file()]
    assert {path.relative_to(copy).parts[0] for path in files} == set(FOLDERS)
    assert {"run.json", "timings.json", "report.html", "history.csv", "files.sha256", "images.npy", ".gitignore"} <= {
        path.name for path in files
    }
    assert run(str(copy), server=None, tracking=None).broken is None
    for path in files:
        content = path.read_bytes()
        for place in {0, len(content) // 2, len(content) - 1}:
            for flip in (1, 7) if path.name == ".gitignore" else (1,):  # 7 makes \r of \n
                changed = bytearray(content)
                changed[place] ^= flip
                path.write_bytes(changed)
                assert str(path) in broken(copy), f"byte {place} of {path}"
        path.write_bytes(content)
    assert run(str(copy), server=None, tracking=None).broken is None


def test_strictly_all_must_be_there(whole, copy):
    """But no server was named, and plain KD was switched off: nobody wants those."""
    result = gkd("verify", "--strict", cwd=whole)
    assert result.returncode == 0, result.stderr
    shutil.rmtree(copy / "teacher")
    assert gkd("verify", cwd=copy).returncode == 0
    result = gkd("verify", "--strict", cwd=copy)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("gkd: teacher was not walked (it is not there), and ")
    outcome = json.loads(result.stdout.splitlines()[-1])
    assert outcome["verified"] is False
    assert "--strict wants all" in outcome["broken"]


def test_the_command_names_it_too_and_exits_with_1(copy):
    page = copy / "report" / "report.html"
    page.write_bytes(page.read_bytes().replace(b"<h1>", b"<h2>", 1))
    result = gkd("verify", ".", cwd=copy)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("gkd: report/report.html was changed")
    outcome = json.loads(result.stdout.splitlines()[-1])
    assert outcome["verified"] is False
    assert outcome["broken"].startswith("report/report.html was changed")
    assert "Traceback" not in result.stderr


def test_missing_and_added_files_are_named(copy):
    for path in (copy / "teacher" / "teacher.json", copy / "student" / "run.json", copy / "kd" / "files.sha256"):
        content = path.read_bytes()
        path.unlink()
        assert str(path.parent) in (sentence := broken(copy))
        assert path.name in sentence
        path.write_bytes(content)
    added = copy / "data" / "train" / "more.npy"
    added.write_bytes(b"")
    assert f"{added} is not among the files" in broken(copy)
    added.unlink()
    added.symlink_to(copy)
    assert f"{added} is no plain file" in broken(copy)
    added.unlink()
    assert run(str(copy), server=None, tracking=None).broken is None


def test_only_dvcs_own_lines_may_stand_in_a_gitignore(copy):
    ignored = copy / "report" / ".gitignore"
    ignored.write_text("/predictions.npy\n/report.html\n/files.sha256\n/plots\n")
    assert run(str(copy), server=None, tracking=None).broken is None
    for line in ("*", "!metrics.json", "predictions.npy", "/nothing.npy", "/../data", "/.", "\x00"):
        ignored.write_text(f"/predictions.npy\n{line}\n")
        assert f"{ignored} holds more than the lines" in broken(copy), line
    ignored.unlink()
    ignored.symlink_to(copy / "report" / "metrics.json")
    assert f"{ignored} is no plain file" in broken(copy)


def test_a_list_that_was_made_to_fit_does_not_help(copy):
    """The bytes and their list agree, and the dataset's own digest does not."""
    path = copy / "data" / "train" / "images.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    seal(copy / "data")
    assert "data is damaged (an image or a label" in broken(copy)


def another(folder: Path) -> None:
    """Other weights, with everything in their folder made to fit them."""
    network = load_network(folder)
    with torch.no_grad():
        next(iter(network.classifier.parameters())).add_(0.1)
    save_network(network, folder)


def test_another_teacher_is_not_the_one_that_taught(copy):
    another(copy / "teacher" / "resnet8")
    seal(copy / "teacher")
    assert "teacher.json speaks of other networks than those beside it" in broken(copy)
    content = json.loads((copy / "teacher" / "teacher.json").read_text())
    content["digest"] = json_digest({"resnet8": folder_digest(copy / "teacher" / "resnet8")})
    write_json(copy / "teacher" / "teacher.json", content)
    seal(copy / "teacher")
    assert "was taught by another teacher than the one in" in broken(copy)
    shutil.rmtree(copy / "baseline")  # it was shown the teacher, too
    assert f"{copy / 'student'}: the student was taught by another teacher" in broken(copy)


def test_a_model_of_another_student_is_named(copy):
    another(copy / "student")
    seal(copy / "student")
    assert f"{copy / 'deploy'}: its model was exported from another student" in broken(copy)


@pytest.mark.parametrize("key", ["student_digest", "data_sha256", "classes", "method"])
def test_lineage_inside_the_model_must_be_the_manifests(key, copy):
    path = copy / "deploy" / "model.onnx"
    model = onnx.load(path)
    for entry in model.metadata_props:
        if entry.key == key:
            entry.value = "another"
    path.write_bytes(model.SerializeToString(deterministic=True))
    manifest = json.loads((copy / "deploy" / "manifest.json").read_text())
    manifest["model"]["sha256"] = file_digest(path)
    write_json(copy / "deploy" / "manifest.json", manifest)
    seal(copy / "deploy")
    assert f"{path}: the {key} inside it is not the one in manifest.json" in broken(copy)


@pytest.mark.parametrize(
    ("file", "change", "sentence"),
    [
        ("baseline/training.json", {"data_sha256": "0"}, "the baseline was trained on other data"),
        ("teacher/teacher.json", {"data_sha256": "0"}, "the teacher was trained on other data"),
        ("student/training.json", {"data_sha256": "0"}, "the student was trained on other data"),
        ("deploy/manifest.json", {"teacher_digest": "0"}, "differ in teacher_digest"),
        ("deploy/manifest.json", {"config_digest": "0"}, "the config_digest inside it"),
        ("deploy/manifest.json", {"classes": ["a"]}, "was made from other data"),
        ("report/metrics.json", {"digests": {"manifest": "0", "student": "0", "teacher": "0"}}, "measures something"),
        ("registration/version.json", {"manifest": "0"}, "speaks of another manifest"),
        ("registration/version.json", {"manifest": 7}, "what is not text"),
    ],
)
def test_a_step_that_speaks_of_another_is_named(file, change, sentence, copy):
    path = copy / file
    write_json(path, json.loads(path.read_text()) | change)
    seal(path.parent)
    assert sentence in broken(copy)


def test_a_deploy_folder_alone_says_what_it_could_not_walk(copy):
    chain = run(str(copy / "deploy"), server=None, tracking=None)
    assert chain.broken is None
    assert [link.name for link in chain.links][:2] == ["deploy: files", "manifest → model.onnx"]
    assert {"data", "teacher", "student", "student → manifest", "manifest → server"} <= {gap.name for gap in chain.gaps}
    model = copy / "deploy" / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1])
    assert f"{model} was changed" in broken(copy / "deploy")
    seal(copy / "deploy")
    assert "model.onnx is not the file its manifest describes" in broken(copy / "deploy")
    (copy / "deploy" / "files.sha256").unlink()
    assert "has no files.sha256" in broken(copy / "deploy")


def test_a_bundle_needs_its_list_and_is_what_it_describes(copy):
    bundle = as_bundle(copy / "deploy", "digits")
    assert "bundle.json → files" in [link.name for link in run(str(bundle), server=None, tracking=None).links]
    model = bundle / "triton" / "digits" / "1" / "model.onnx"
    content = model.read_bytes()
    (bundle / "files.sha256").unlink()
    assert "has no files.sha256" in broken(bundle)
    model.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    result = gkd("verify", "deploy", cwd=copy)
    assert result.returncode == 1
    assert "deploy/triton/digits/1/model.onnx was changed" in result.stderr.splitlines()[-1]
    seal(bundle)  # a list made to fit
    assert f"{model} was changed: its sha256 is not the one in {bundle / 'bundle.json'}" in broken(bundle)
    model.write_bytes(content)
    added = bundle / "triton" / "digits" / "2.onnx"
    added.write_bytes(b"")
    seal(bundle)
    assert f"{added} is none of the files" in broken(bundle)
    added.unlink()
    (bundle / "model.onnx").rename(copy / "elsewhere")
    seal(bundle)
    assert f"{bundle / 'model.onnx'} is missing: {bundle / 'bundle.json'} describes it" in broken(bundle)


def test_what_is_no_run_is_wrong_usage(tmp_path):
    for target in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(GkdError) as error:
            run(str(target), server=None, tracking=None)
        assert error.value.exit_code == 2
    (tmp_path / "deploy").mkdir()
    for server in (
        "ftp://x", "http://", "http://user:secret@host", "http://[::1", "http://127.0.0.1:x", "http://127.0.0.1:99999",
        "http://a b/", "http://a/b c", "http://:80", "http://a\r\nb", "", "http://ä",
    ):  # fmt: skip
        with pytest.raises(GkdError, match=r"is no address: write it as http://HOST:PORT") as error:
            run(str(tmp_path), server=server, tracking=None)
        assert error.value.exit_code == 2
        assert "secret" not in str(error.value)
        assert "\n" not in str(error.value)


def test_a_token_that_is_none_is_wrong_usage_and_not_shown(tmp_path, monkeypatch):
    (tmp_path / "deploy").mkdir()
    for token in ("topsecret\nX-Other: 1", "top secret", "topsecrét", "\n", ""):
        monkeypatch.setenv("GKD_TOKEN", token)
        with pytest.raises(GkdError, match="GKD_TOKEN holds no token") as error:
            run(str(tmp_path), server="http://127.0.0.1:9", tracking=None)
        assert error.value.exit_code == 2
        assert "secr" not in str(error.value)


# --- the registry


@pytest.fixture
def with_store(copy, whole) -> Path:
    shutil.copy(whole / "mlflow.db", copy / "mlflow.db")
    return copy


def client(root: Path):
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{root / 'mlflow.db'}")


def test_a_registered_version_is_walked_by_its_alias(with_store):
    tracking = TrackingConfig(uri=f"sqlite:///{with_store / 'mlflow.db'}")
    chain = run("models:/gkd-student@challenger", server=None, tracking=tracking)
    assert chain.broken is None
    names = {link.name for link in chain.links}
    assert {"student: files", "student → manifest", "manifest → registry", "registry → file"} <= names
    client(with_store).set_model_version_tag("gkd-student", "1", "gkd.student", "0" * 64)
    assert "the tag gkd.student of version 1" in broken("models:/gkd-student/1", tracking=tracking)
    with pytest.raises(GkdError, match="version or alias 'champon' is unknown"):
        run("models:/gkd-student@champon", server=None, tracking=tracking)


@pytest.mark.parametrize(
    "file", ["deploy/model.onnx", "deploy/manifest.json", "deploy/run.json", "deploy/files.sha256", "gate/correct.npy"]
)
@pytest.mark.parametrize("version", [True, False])
def test_what_a_server_would_fetch_from_the_registry_is_walked(file, version, with_store, monkeypatch):
    """One changed byte among the artifacts of the version's run, while all that is on disk beside it is whole."""
    tracking = TrackingConfig(uri=f"sqlite:///{with_store / 'mlflow.db'}")
    run_id = client(with_store).get_model_version("gkd-student", "1").run_id
    kept = Path(client(with_store).get_run(run_id).info.artifact_uri) / file
    target = "models:/gkd-student@challenger" if version else str(with_store)
    content = kept.read_bytes()
    try:
        kept.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
        message = broken(target, tracking=tracking)
        kept.unlink()
        if kept.name != "files.sha256":  # an earlier gkd left none: then the list is not walked
            assert "models:/gkd-student/1: " in broken(target, tracking=tracking)
    finally:
        kept.write_bytes(content)
    assert f"models:/gkd-student/1: {file}" in message
    assert "/tmp" not in message.replace(str(with_store), "")
    assert run(target, server=None, tracking=tracking).broken is None


def test_a_list_made_to_fit_does_not_hide_another_model_in_the_registry(with_store):
    run_id = client(with_store).get_model_version("gkd-student", "1").run_id
    kept = Path(client(with_store).get_run(run_id).info.artifact_uri) / "deploy"
    before = {path: path.read_bytes() for path in kept.iterdir()}
    try:
        model = kept / "model.onnx"
        model.write_bytes(before[model][:-1] + b"x")
        seal(kept)
        assert "models:/gkd-student/1: deploy/model.onnx is not the file its manifest" in broken(with_store)
        manifest = json.loads(before[kept / "manifest.json"])
        manifest["model"]["sha256"] = file_digest(model)
        write_json(kept / "manifest.json", manifest)
        seal(kept)
        assert "models:/gkd-student/1: deploy/manifest.json is not the one whose digest" in broken(with_store)
    finally:
        for path, content in before.items():
            path.write_bytes(content)


def test_a_version_of_before_its_gates_digest_was_kept(with_store):
    client(with_store).delete_model_version_tag("gkd-student", "1", "gkd.correct")
    chain = run(str(with_store), server=None, tracking=None)
    assert chain.broken is None
    assert "registry → gate" in [gap.name for gap in chain.gaps]


def test_a_changed_tag_and_a_vanished_version_are_named(with_store):
    assert run(str(with_store), server=None, tracking=None).broken is None
    client(with_store).set_model_version_tag("gkd-student", "1", "gkd.data", "0" * 64)
    assert "registry: the tag gkd.data of version 1" in broken(with_store)
    client(with_store).delete_model_version("gkd-student", "1")
    assert "version or alias '1' is unknown" in broken(with_store)


# --- the server


class Served(http.server.ThreadingHTTPServer):
    """Says what stands in `reply`."""

    daemon_threads = True
    reply: bytes
    status: int
    asked: list[tuple[str, str | None]]
    location: str | None = None  # where it sends its callers
    names: set[str] | None = None  # of the models it serves; None: whatever is asked for

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Served

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers["Authorization"]))
        known = self.server.names is None or self.path.rpartition("/")[2] in self.server.names
        self.send_response(self.server.status if known else 404)
        if self.server.location is not None:
            self.send_header("Location", self.server.location)
        self.send_header("Content-Length", str(len(self.server.reply)))
        self.end_headers()
        self.wfile.write(self.server.reply)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(whole) -> Iterator[Served]:
    """A server of the run's model."""
    running = Served(("127.0.0.1", 0), _Handler)
    running.reply, running.status, running.asked = json.dumps(reply(whole)).encode(), 200, []
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


def reply(root: Path, **change) -> dict:
    manifest = json.loads((root / "deploy" / "manifest.json").read_text())
    keys = ("classes", "data_sha256", "teacher_digest", "student_digest", "config_digest")
    facts = {key: manifest[key] for key in keys} | {"model_sha256": manifest["model"]["sha256"], "precision": "fp32"}
    return {"name": "gkd-student", "versions": ["1"], "parameters": facts | change}


def test_the_running_server_is_asked_by_name_and_token(copy, served, monkeypatch):
    chain = run(str(copy), server=served.address, tracking=None)
    assert chain.broken is None
    assert chain.links[-1].name == "manifest → server"
    monkeypatch.setenv("GKD_TOKEN", "sesame")
    assert run(str(copy / "deploy"), server=f"{served.address}/v2/models/mine", tracking=None).broken is None
    assert served.asked == [("/v2/models/gkd-student", None), ("/v2/models/mine", "Bearer sesame")]


def test_a_redirect_is_not_followed_with_the_token(copy, served, monkeypatch):
    monkeypatch.setenv("GKD_TOKEN", "sesame")
    elsewhere = Served(("127.0.0.1", 0), _Handler)
    elsewhere.reply, elsewhere.status, elsewhere.asked = served.reply, 200, []
    thread = threading.Thread(target=elsewhere.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        for served.status in (301, 302, 307, 308):
            served.location = f"{elsewhere.address}/v2/models/gkd-student"
            message = broken(copy / "deploy", server=served.address)
            assert f"sends us elsewhere ({served.status})" in message
    finally:
        elsewhere.shutdown()
        thread.join()
        elsewhere.server_close()
    assert elsewhere.asked == []


def as_bundle(folder: Path, name: str) -> Path:
    """A deploy folder made into what `gkd bundle` writes, as far as `gkd verify` looks."""
    repository = folder / "triton" / name / "1"
    repository.mkdir(parents=True)
    shutil.copy(folder / "model.onnx", repository)
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "files.sha256"]
    listed = {path.relative_to(folder).as_posix(): file_digest(path) for path in files}
    write_json(folder / "bundle.json", {"name": name, "files": listed})
    seal(folder)
    return folder


def test_the_server_is_asked_by_the_bundles_name_the_versions_or_a_given_one(copy, with_store, served, monkeypatch):
    served.names = {"digits", "OTHER", "given"}
    bundle = as_bundle(copy / "deploy", "digits")
    assert run(str(bundle), server=served.address, tracking=None).broken is None
    assert run(str(bundle), server=served.address, tracking=None, name="given").broken is None
    tracking = TrackingConfig(uri=f"sqlite:///{with_store / 'mlflow.db'}")
    registry = client(with_store)
    registry.rename_registered_model("gkd-student", "OTHER")
    registry.set_registered_model_alias("OTHER", "champion", "1")
    assert run("models:/OTHER@champion", server=served.address, tracking=tracking).broken is None
    assert [path for path, _ in served.asked] == [f"/v2/models/{name}" for name in ("digits", "given", "OTHER")]
    message = broken(bundle, server=served.address, name="mine")
    assert message.endswith("it answers 404 Not Found: is it served under another name? pass --name")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model_sha256": "0"}, "its model_sha256 is not the one in"),
        ({"student_digest": "0"}, "its student_digest is not the one in"),
        ({"classes": ["cat"]}, "its classes is not the one in"),
        ({"precision": "int4"}, "serves the precision 'int4', which"),
    ],
)
def test_a_server_of_another_model_is_named(change, sentence, copy, served):
    served.reply = json.dumps(reply(copy, **change)).encode()
    message = broken(copy / "deploy", server=served.address)
    assert sentence in message
    assert served.address in message


@pytest.mark.parametrize("answer", [b"", b"[]", b"{}", b"<html>", b"[" * 100_000, b'{"parameters": 3}', b"\xff"])
def test_a_server_that_says_nothing_of_use_is_named(answer, copy, served):
    served.reply = answer
    assert served.address in broken(copy / "deploy", server=served.address)


def test_a_server_that_refuses_or_is_not_there(copy, served):
    served.status = 404
    assert "it answers 404" in broken(copy / "deploy", server=served.address)
    served.status = 401
    assert "set GKD_TOKEN" in broken(copy / "deploy", server=served.address)
    assert "gives no metadata" in broken(copy / "deploy", server="http://127.0.0.1:9")


# --- what it needs


def test_neither_torch_nor_mlflow_is_imported_for_folders(copy):
    program = (
        "import sys\nsys.argv = ['gkd', 'verify', '.']\nfrom pipelines.cli import app\napp(standalone_mode=False)\n"
        "heavy = {'torch', 'mlflow', 'onnx', 'sklearn', 'dvc', 'kfp', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=copy, capture_output=True, text=True, check=False,
        env=environment | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr


def test_assistants_are_walked_one_by_one(tmp_path, small_chain: Callable[[Path], Path]):
    root = small_chain(tmp_path / "run")
    chain = run(str(root), server=None, tracking=None)
    assert chain.broken is None
    first = root / "teacher" / "1-resnet8"
    another(first)
    content = json.loads((root / "teacher" / "teacher.json").read_text())
    content["digest"] = json_digest({name: folder_digest(root / "teacher" / name) for name in content["trained"]})
    write_json(root / "teacher" / "teacher.json", content)
    seal(root / "teacher")
    assert "2-resnet8: its network was taught by another one" in broken(root)


@pytest.fixture
def small_chain(few_digits) -> Callable[[Path], Path]:
    """A teacher folder that holds a chain: a network and the assistant it taught."""

    def make(root: Path) -> Path:
        from components import teacher

        params = parse_params(
            {
                "teacher": {
                    "name": "resnet8",
                    "assistants": ["resnet8"],
                    "assistant_distill": {"method": "kd"},
                    "train": {"epochs": 1, "device": "cpu"},
                },
                "distill": {"method": "kd", "scheme": "assistant"},
            }
        )
        root.mkdir()
        shutil.copytree(few_digits, root / "data")
        seal(root / "data")
        teacher.run(data=root / "data", out=root / "teacher", work=root / "work", params=params)
        return root

    return make
