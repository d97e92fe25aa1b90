"""The bundle is read by those it is for: Triton's own protobuf, KServe's fields, onnxruntime, a model hub's header."""

import hashlib
import importlib.util
import io
import json
import re
import shutil
import subprocess
import sys
import urllib.request
from importlib import metadata
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import yaml
from google.protobuf import text_format
from PIL import Image
from typer.testing import CliRunner

from components import verify
from components.image import serve_image
from gkd_core.data.images import fit
from gkd_core.data.prepared import PreparedData
from gkd_core.errors import GkdError
from gkd_core.export.bundle import write_bundle
from gkd_core.export.manifest import FILES, kept_file, pixels_file, read_manifest
from gkd_core.export.pixels import write_pixels
from gkd_core.export.render import markdown_text, pbtxt_literal, yaml_scalar
from gkd_core.export.session import run_session, session
from gkd_core.files import file_digest, write_json
from gkd_core.serving.limits import Limits
from gkd_core.serving.protocol import parse_request
from gkd_core.serving.tensors import TensorSpec
from pipelines.cli import app
from tests.kubernetes_objects import refusal

SCHEMA = json.loads((Path(__file__).parent / "kserve-inference-service.schema.json").read_text())
KSERVES_OWN = ("minReplicas", "canaryTrafficPercent")
# What Knative takes, of all that Kubernetes does, without features that its administrator switches on (Knative Serving,
# pkg/apis/serving/fieldmask.go). KServe makes a Knative service of the predictor where it shares requests out.
KNATIVES_POD = {"serviceAccountName", "containers", "volumes", "imagePullSecrets", "enableServiceLinks"}
KNATIVES_CONTAINER = {
    "name", "args", "command", "env", "workingDir", "envFrom", "image", "imagePullPolicy", "livenessProbe", "ports",
    "readinessProbe", "resources", "securityContext", "startupProbe", "terminationMessagePath",
    "terminationMessagePolicy", "volumeMounts",
}  # fmt: skip
KNATIVES_SECURITY = {
    "capabilities", "readOnlyRootFilesystem", "runAsUser", "runAsGroup", "runAsNonRoot", "allowPrivilegeEscalation",
    "seccompProfile",
}  # fmt: skip
GRACE_SECONDS = 30  # Kubernetes', where a pod does not say
NASTY = ['"quoted"', "new\nline: # no", "猫|`<b>`", "{{ x }} %{y} \\ 'z'", "5", "6", "7", "8", "9", "null"]


def model_config(text: str) -> Any:
    """Triton's ModelConfig from its text form; the gRPC half of the client, which would load the class, is left out."""
    location = metadata.distribution("tritonclient").locate_file("tritonclient/grpc/model_config_pb2.py")
    spec = importlib.util.spec_from_file_location("model_config_pb2", location)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return text_format.Parse(text, module.ModelConfig())


@pytest.fixture(scope="module")
def folders(project: Any, evaluated: Any) -> dict[str, Path]:
    """Deployed with all precisions, measured."""
    return {name: getattr(project, name) for name in ("data", "student", "deploy")} | {"report": evaluated.report}


def make(folders: dict[str, Path], out: Path, **changes: Any) -> dict[str, Any]:
    return write_bundle(out, **{**folders, "image": "gkd:0.1.0", **changes})


@pytest.fixture(scope="module")
def made(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundle") / "out"
    make(folders, out, name="digits", storage_uri="s3://models/digits")
    return out


def test_every_file_is_there_and_listed(made: Path, folders: dict[str, Path]) -> None:
    bundle = json.loads((made / "bundle.json").read_text())
    there = {path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()}
    assert there - {"bundle.json"} == set(bundle["files"]) == {
        "MODEL_CARD.md",
        "README.md",
        "kserve/inference-service.yaml",
        "manifest.json",
        "model.onnx",
        "model_fp16.onnx",
        "model_int8.onnx",
        "pictures.py",
        "triton/digits/1/model.onnx",
        "triton/digits/config.pbtxt",
        "triton/digits/labels.txt",
    }  # fmt: skip
    for name, digest in bundle["files"].items():
        assert hashlib.sha256((made / name).read_bytes()).hexdigest() == digest
    assert (bundle["name"], bundle["precision"]) == ("digits", "fp32")
    assert read_manifest(made) == read_manifest(folders["deploy"])
    assert file_digest(made / "triton/digits/1/model.onnx") == file_digest(folders["deploy"] / "model.onnx")


def test_it_verifies(made: Path) -> None:
    assert verify.run(str(made), server=None, tracking=None).broken is None


def test_again_gives_the_same_bytes(made: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    make(folders, tmp_path / "other", name="digits", storage_uri="s3://models/digits")
    for path in made.rglob("*"):
        if path.is_file():
            assert (tmp_path / "other" / path.relative_to(made)).read_bytes() == path.read_bytes(), path


def test_triton_reads_its_description_and_onnxruntime_the_model(made: Path, folders: dict[str, Path]) -> None:
    config = model_config((made / "triton/digits/config.pbtxt").read_text())
    images = PreparedData.open(folders["data"]).validation.images[:5]
    model = session(made / "triton/digits/1/model.onnx")
    (image,), (logits,) = model.get_inputs(), model.get_outputs()
    assert (config.name, config.platform, config.max_batch_size) == ("digits", "onnxruntime_onnx", 64)
    # Without the batch axis, which max_batch_size stands for.
    assert (config.input[0].name, list(config.input[0].dims)) == (image.name, image.shape[1:])
    assert (config.output[0].name, list(config.output[0].dims)) == (logits.name, logits.shape[1:])
    kinds = config.input[0].DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number
    assert kinds[config.input[0].data_type].name == "TYPE_UINT8"
    assert kinds[config.output[0].data_type].name == "TYPE_FP32"
    assert config.dynamic_batching.max_queue_delay_microseconds > 0
    manifest = read_manifest(made)
    assert config.parameters["student_digest"].string_value == manifest["student_digest"]
    assert config.parameters["model_sha256"].string_value == manifest["model"]["sha256"]
    labels = (made / "triton/digits" / config.output[0].label_filename).read_text().splitlines()
    assert labels == manifest["classes"]
    assert run_session(model, images).shape == (5, 10)


@pytest.mark.parametrize(("precision", "close"), [("fp32", 1e-4), ("fp16", 0.02), ("int8", 0.5)])
def test_openvino_reads_the_model_too_and_agrees(
    folders: dict[str, Path], made: Path, precision: str, close: float
) -> None:
    """int8 is rounded elsewhere there: of 64 images one may be named otherwise, where two classes are almost even."""
    import openvino  # a second, which other tests need not wait

    core = openvino.Core()
    file = made / f"model{'' if precision == 'fp32' else f'_{precision}'}.onnx"
    threads = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(file), "CPU", threads)
    images = PreparedData.open(folders["data"]).validation.images[:64]
    for batch in (1, 7, 64):
        answered = compiled(images[:batch])[0]
        expected = run_session(session(file), images[:batch])
        assert np.abs(answered - expected).max() <= close
    assert (answered.argmax(1) == expected.argmax(1)).sum() >= (62 if precision == "int8" else 64)


def test_int8_goes_to_triton_where_it_is_asked_for(folders: dict[str, Path], tmp_path: Path) -> None:
    make(folders, tmp_path / "out", precision="int8", registry_uri="models:/digits@champion")
    repository = tmp_path / "out/triton/gkd-student"
    assert file_digest(repository / "1/model.onnx") == read_manifest(folders["deploy"])["int8"]["sha256"]
    config = model_config((repository / "config.pbtxt").read_text())
    assert config.parameters["precision"].string_value == "int8"
    assert "/model --precision int8\n" in (tmp_path / "out/README.md").read_text()
    (container,) = kserve(tmp_path / "out")["spec"]["predictor"]["containers"]
    assert container["args"][:3] == ["models:/digits@champion", "--precision", "int8"]


def kserve(bundle: Path) -> dict[str, Any]:
    content = yaml.safe_load((bundle / "kserve/inference-service.yaml").read_text())
    jsonschema.validate(content, SCHEMA)
    predictor = dict(content["spec"]["predictor"])
    if model := predictor.pop("model", None):
        predictor["containers"] = [{"name": "kserve-container", "resources": model["resources"]}]
    pod = {key: value for key, value in predictor.items() if key not in KSERVES_OWN}  # the rest is a pod's
    metadata = {key: content["metadata"][key] for key in ("name", "annotations")}
    assert refusal({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod}) is None
    assert set(pod) <= KNATIVES_POD
    for container in pod["containers"]:
        assert set(container) <= KNATIVES_CONTAINER
        assert set(container.get("securityContext", {})) <= KNATIVES_SECURITY
        assert len(container.get("ports", [])) <= 1
    return content


def test_kserve_takes_the_repository_from_storage(made: Path) -> None:
    service = kserve(made)
    assert service["metadata"]["name"] == "digits"
    assert service["spec"]["predictor"]["model"] | {"resources": {}} == {
        "modelFormat": {"name": "onnx"},
        "protocolVersion": "v2",
        "storageUri": "s3://models/digits",
        "resources": {},
    }
    assert service["metadata"]["annotations"]["gkd/student_digest"] == read_manifest(made)["student_digest"]


def test_kserve_takes_a_registered_version_by_our_server(folders: dict[str, Path], tmp_path: Path) -> None:
    registration = tmp_path / "registration"
    registration.mkdir()
    version = {
        "name": "My Model_1",
        "version": 7,
        "alias": None,
        "manifest": file_digest(folders["deploy"] / "manifest.json"),
    }
    write_json(registration / "version.json", version)
    made = make(folders, tmp_path / "out", registration=registration)
    assert made["name"] == "my-model-1"
    (container,) = kserve(tmp_path / "out")["spec"]["predictor"]["containers"]
    assert (container["name"], container["image"]) == ("kserve-container", "gkd:0.1.0")
    # It answers under the bundle's name, not under the registered one.
    assert container["args"][:3] == ["models:/My Model_1/7", "--name", "my-model-1"]
    # Addresses and passwords come from the cluster's secrets.
    assert all(set(variable) == {"name", "valueFrom"} for variable in container["env"])
    secrets = {variable["name"]: variable["valueFrom"]["secretKeyRef"] for variable in container["env"]}
    assert [name for name, secret in secrets.items() if not secret["optional"]] == ["MLFLOW_TRACKING_URI"]
    assert secrets["GKD_TOKEN"] == {"name": "gkd-server", "key": "token", "optional": True}
    assert {"MLFLOW_TRACKING_TOKEN", "MLFLOW_S3_ENDPOINT_URL"} <= secrets.keys()

    write_json(registration / "version.json", version | {"manifest": "0"})
    with pytest.raises(GkdError, match="registered another model than"):
        make(folders, tmp_path / "out", registration=registration)
    assert make(folders, tmp_path / "out", name="plain")["name"] == "plain"
    assert not (tmp_path / "out/kserve").exists()


def test_kubernetes_waits_as_long_as_the_server_drains(folders: dict[str, Path], tmp_path: Path) -> None:
    make(folders, tmp_path / "out", registry_uri="models:/digits@champion")
    predictor = kserve(tmp_path / "out")["spec"]["predictor"]
    deployment = yaml.safe_load((tmp_path / "out/kubernetes/deployment.yaml").read_text())["spec"]["template"]["spec"]
    for pod in (predictor, deployment):
        (container,) = pod["containers"]
        words = container["args"][1:]
        given = dict(zip(words[::2], words[1::2], strict=True))
        assert given["--drain-seconds"] == "5", "until no proxy sends requests there"
        answers = float(given.get("--timeout", Limits().timeout)) + 1  # as gkd_core/serving/server.py has it
        assert pod.get("terminationGracePeriodSeconds", GRACE_SECONDS) > 5 + answers
        assert container["livenessProbe"]["timeoutSeconds"] == 5


def test_a_cluster_without_kserve_has_manifests_of_its_own(folders: dict[str, Path], tmp_path: Path) -> None:
    make(folders, tmp_path / "out", registry_uri="models:/digits@champion", name="digits", service_account="reader")
    place = tmp_path / "out/kubernetes"
    found = {path.stem: yaml.safe_load(path.read_text()) for path in place.iterdir()}
    own = ("deployment", "service", "autoscaler", "disruption-budget")
    for name in own:
        assert refusal(found[name]) is None, refusal(found[name])
        assert found[name]["metadata"]["name"] == "digits"
    pods = found["deployment"]["spec"]["template"]
    assert refusal({"apiVersion": "v1", "kind": "Pod"} | pods) is None
    assert found["kustomization"]["resources"] == [f"{name}.yaml" for name in own]
    spec = found["deployment"]["spec"]
    labels = spec["template"]["metadata"]["labels"]
    selectors = [
        spec["selector"],
        found["disruption-budget"]["spec"]["selector"],
        found["service-monitor"]["spec"]["selector"],
    ]
    assert all(selector == {"matchLabels": labels} for selector in selectors)
    assert found["service"]["spec"]["selector"] == labels
    assert found["autoscaler"]["spec"]["scaleTargetRef"]["name"] == "digits"
    assert found["service-monitor"]["spec"]["endpoints"][0]["port"] == found["service"]["spec"]["ports"][0]["name"]
    assert found["prometheus-rule"]["kind"] == "PrometheusRule"
    assert '{job="digits"}' in (place / "prometheus-rule.yaml").read_text(), "as the monitor calls what it finds"
    # What Pod Security's `restricted` wants.
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    # The same server as KServe's.
    (other,) = kserve(tmp_path / "out")["spec"]["predictor"]["containers"]
    for key in ("image", "env", "ports", "readinessProbe", "livenessProbe", "resources"):
        assert container[key] == other[key]
    assert other["args"] == [*container["args"], "--timeout", "20"]
    assert pod["serviceAccountName"] == "reader"
    assert "kubectl apply -k kubernetes" in (tmp_path / "out/README.md").read_text()


@pytest.mark.parametrize("place", [{"storage_uri": "s3://b/p/2"}, {"registry_uri": "models:/digits/2"}])
def test_a_canary_has_its_part_and_the_readme_says_how_to_go_on(
    folders: dict[str, Path], tmp_path: Path, place: dict[str, str]
) -> None:
    make(folders, tmp_path / "all", name="digits", **place)
    make(folders, tmp_path / "part", name="digits", canary=10, **place)
    whole, part = kserve(tmp_path / "all"), kserve(tmp_path / "part")
    assert part["spec"]["predictor"].pop("canaryTrafficPercent") == 10
    assert part == whole, "once it is promoted it is what it would have been"
    assert not (tmp_path / "part/kubernetes").exists(), "nothing there would share the requests"
    readme = (tmp_path / "part/README.md").read_text()
    assert "kubernetes/" not in readme
    assert "canary" not in (tmp_path / "all/README.md").read_text()
    assert "This sends 10 % of the requests" in readme
    patches = re.findall(r"kubectl patch inferenceservice digits --type (\w+) --patch '(.*)'\n", readme)
    more, promote, back = [(kind, json.loads(text)) for kind, text in patches]
    field = part["spec"]["predictor"]
    for kind, patch, percent in ((*more, 50), (*back, 0)):
        assert kind == "merge"
        merged = {**part, "spec": {"predictor": field | patch["spec"]["predictor"]}}
        jsonschema.validate(merged, SCHEMA)
        assert merged["spec"]["predictor"]["canaryTrafficPercent"] == percent
    assert promote == ("json", [{"op": "remove", "path": "/spec/predictor/canaryTrafficPercent"}])


def test_the_readmes_program_runs_and_names_a_class(made: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    program, _ = re.findall(r"```python\n(.*?)```", (made / "README.md").read_text(), flags=re.DOTALL)
    images = PreparedData.open(folders["data"]).validation.images[:1]
    for file in ("model.onnx", "model_int8.onnx", "pictures.py"):
        shutil.copy(made / file, tmp_path)
    Image.fromarray(np.array(images[0, ..., 0])).save(tmp_path / "image.png")
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120
    )
    expected = run_session(session(made / "model.onnx"), images).argmax()
    assert result.stdout.strip() == read_manifest(made)["classes"][expected]


@pytest.fixture(scope="module")
def with_pixels(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same as `export.pixels: true` would have left them."""
    root = tmp_path_factory.mktemp("pixels")
    made = {**folders, **{key: root / key for key in ("deploy", "report")}}
    for key in ("deploy", "report"):
        shutil.copytree(folders[key], made[key])
    entries = {}
    for precision in ("fp32", "int8"):
        file = made["deploy"] / pixels_file(precision)
        write_pixels(made["deploy"] / FILES[precision], file, crop="center")
        entries[precision] = kept_file(file, {"input": "pixels"})
    edit(made["deploy"] / "manifest.json", pixels=entries)
    metrics = json.loads((made["report"] / "metrics.json").read_text())
    metrics["digests"]["manifest"] = file_digest(made["deploy"] / "manifest.json")
    write_json(made["report"] / "metrics.json", metrics)
    return made


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_triton_has_a_second_model_for_pictures_of_any_size(
    with_pixels: dict[str, Path], tmp_path: Path, precision: str
) -> None:
    out = tmp_path / "out"
    make(with_pixels, out, name="digits", storage_uri="s3://models/digits", precision=precision)
    manifest = read_manifest(out)
    entry = manifest["pixels"][precision]
    config = model_config((out / "triton/digits-pixels/config.pbtxt").read_text())
    assert (config.name, config.max_batch_size) == ("digits-pixels", 8)
    kinds = config.input[0].DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number
    assert (config.input[0].name, list(config.input[0].dims)) == ("pixels", [-1, -1, 3])
    assert kinds[config.input[0].data_type].name == "TYPE_UINT8"
    assert config.parameters["model_sha256"].string_value == entry["sha256"]
    assert file_digest(out / "triton/digits-pixels/1/model.onnx") == entry["sha256"]
    labels = [(out / "triton" / name / "labels.txt").read_text() for name in ("digits", "digits-pixels")]
    assert labels[0] == labels[1]
    assert verify.run(str(out), server=None, tracking=None).broken is None

    model = session(out / "triton/digits-pixels/1/model.onnx")
    picture = np.random.default_rng(0).integers(0, 256, (1, 31, 50, 3), dtype=np.uint8)
    expected = run_session(session(out / FILES[precision]), fit(picture[0], 8, 1)[None])
    np.testing.assert_allclose(model.run(["logits"], {"pixels": picture})[0], expected, atol=1e-4)


def test_the_readmes_client_of_pixels_sends_what_the_protocol_wants(
    with_pixels: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make(with_pixels, tmp_path / "out", name="digits")
    *_, program = re.findall(r"```python\n(.*?)```", (tmp_path / "out/README.md").read_text(), flags=re.DOTALL)
    picture = np.random.default_rng(0).integers(0, 256, (20, 50, 3), dtype=np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(picture).save(tmp_path / "photo.jpg", format="PNG", exif=turned)
    spec = TensorSpec("pixels", "UINT8", (-1, -1, -1, 3))
    seen = []

    def answer(request: urllib.request.Request) -> io.BytesIO:
        assert request.full_url == "http://localhost:8080/v2/models/digits-pixels/infer"
        length, logits = request.headers["Inference-header-content-length"], TensorSpec("logits", "FP32", (-1, 10))
        seen.append(parse_request(request.data, length, input=spec, outputs=(logits,), max_batch=8, max_pixels=1000))
        return io.BytesIO(b'{"outputs": [{"data": [1.5]}]}')

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(urllib.request, "urlopen", answer)
    exec(compile(program, "README.md", "exec"), {})
    np.testing.assert_array_equal(seen[0].images[0], np.rot90(picture, -1))
    assert seen[0].wanted == {"logits": False}  # a server may give several, in an order of its own
    assert capsys.readouterr().out.strip() == "[1.5]"


def test_the_model_card_has_a_hubs_header_and_the_reports_numbers(made: Path, folders: dict[str, Path]) -> None:
    _, header, body = (made / "MODEL_CARD.md").read_text().split("---\n", 2)
    metrics = json.loads((folders["report"] / "metrics.json").read_text())
    content = yaml.safe_load(header)
    assert content["pipeline_tag"] == "image-classification"
    (result,) = content["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == metrics["onnx"]["top1"]
    student = metrics["student"]
    interval = f"{100 * student['top1_low']:.2f} % – {100 * student['top1_high']:.2f} %"
    assert f"| student | {100 * student['top1']:.2f} % | {interval} |" in body
    assert f"{100 * metrics['int8']['agreement_with_fp32']:.2f} %" in body
    for digest in ("data_sha256", "teacher_digest", "student_digest"):
        assert read_manifest(made)[digest] in body


def test_strange_class_names_break_nothing(folders: dict[str, Path], tmp_path: Path) -> None:
    """Files as a data set with such names would leave them."""
    strange = {key: tmp_path / key for key in ("data", "deploy", "report")}
    for key, place in strange.items():
        shutil.copytree(folders[key], place)
    digest = rename_classes(strange["data"], NASTY)
    edit(strange["deploy"] / "manifest.json", classes=NASTY, data_sha256=digest)
    metrics = json.loads((strange["report"] / "metrics.json").read_text())
    metrics["digests"]["manifest"] = file_digest(strange["deploy"] / "manifest.json")
    write_json(strange["report"] / "metrics.json", metrics)
    make({**folders, **strange}, tmp_path / "out", name="digits", storage_uri="s3://b/p")
    bundle = tmp_path / "out"
    assert model_config((bundle / "triton/digits/config.pbtxt").read_text()).output[0].dims == [10]
    labels = (bundle / "triton/digits/labels.txt").read_text().splitlines()
    assert labels == [" ".join(name.split()) for name in NASTY]
    kserve(bundle)
    card = (bundle / "MODEL_CARD.md").read_text()
    (listed,) = re.findall(r"## Classes\n\n(.*)\n\n## Lineage", card)  # one line, whatever the names hold
    assert re.sub(r"\\(.)", r"\1", listed) == ", ".join(labels)
    assert "<b>" not in card


@pytest.mark.parametrize("text", [*NASTY, "\x85\u2028\t é 🐈", "yes", "0x1", "- a", ""])
def test_values_survive_every_format(text: str) -> None:
    assert yaml.safe_load(f"key: {yaml_scalar(text)}\nnext: 1") == {"key": text, "next": 1}
    assert model_config(f"name: {pbtxt_literal(text)}").name == text
    assert "\n" not in markdown_text(text)


def rename_classes(data: Path, classes: list[str]) -> str:
    """The data's digest with these names, which dataset.json then has."""
    info = PreparedData.open(data).info.model_copy(update={"classes": tuple(classes)})
    digest = PreparedData(data, info).digest()
    edit(data / "dataset.json", classes=classes, sha256=digest)
    return digest


def edit(file: Path, **values: Any) -> None:
    write_json(file, json.loads(file.read_text()) | values)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"name": "No Good"}, r"--name 'No Good' cannot be a service's name"),
        ({"precision": "int4"}, "precision 'int4' is unknown; did you mean 'int8'"),
        ({"storage_uri": "models/digits"}, "--storage-uri 'models/digits' is not of the form"),
        ({"registry_uri": "models:/digits"}, "is not of the form models:/NAME@ALIAS or models:/NAME/VERSION"),
        ({"registry_uri": "models:/d/1", "storage_uri": "s3://b/p"}, "are both given"),
        ({"image": "gkd; rm -r /"}, "is no container image's name"),
        ({"name": "a" * 64}, "up to 63 small letters"),
        ({"name": "a" * 54, "storage_uri": "s3://b/p"}, "up to 53 small letters.*KServe appends -predictor"),
        ({"service_account": "No", "storage_uri": "s3://b/p"}, "--service-account 'No' is no name"),
        ({"canary": 0, "storage_uri": "s3://b/p"}, "--canary 0 is no part of the requests: give 1 to 99 percent"),
        ({"canary": 100, "storage_uri": "s3://b/p"}, "--canary 100 is no part of the requests"),
        ({"canary": 10}, "--canary is for KServe.*give one of them"),
        ({"canary": 10, "registry_uri": "models:/d@champion"}, "--canary 10 is one version.*models:/NAME/VERSION"),
        ({"registration": Path("nowhere")}, "the registration folder nowhere has no version.json"),
    ],
)
def test_what_is_asked_wrongly_is_one_sentence(
    folders: dict[str, Path], tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(GkdError, match=sentence):
        make(folders, tmp_path / "out", **changes)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["storage_uri", "registry_uri"])
def test_a_secret_in_an_address_is_refused_and_not_repeated(
    option: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    for address in ("https://me:SECRET@example.org/model", "s3://bucket/x?X-Amz-Signature=SECRET&x=1"):
        with pytest.raises(GkdError, match="without credentials") as caught:
            make(folders, tmp_path / "out", **{option: address})
        assert "SECRET" not in str(caught.value)
        assert "me:" not in str(caught.value)


def test_a_name_as_long_as_kserve_can_take(folders: dict[str, Path], tmp_path: Path) -> None:
    make(folders, tmp_path / "out", name="a" * 53, storage_uri="s3://b/p", service_account="gkd-storage")
    service = kserve(tmp_path / "out")
    assert len(service["metadata"]["name"] + "-predictor") == 63
    assert service["spec"]["predictor"]["serviceAccountName"] == "gkd-storage"
    assert make(folders, tmp_path / "plain", name="a" * 63)["name"] == "a" * 63


def test_the_card_tells_what_the_method_worked_with(made: Path) -> None:
    (row,) = re.findall(r"\| hyperparameters \| (.*) \|", (made / "MODEL_CARD.md").read_text())
    values = dict(entry.split(" ", 1) for entry in row.replace("\\", "").split(", "))
    # Of the preset, as gkd_core/losses/gompertz.py lists them.
    assert values["preset"] in ("paper", "tuned")
    assert (values["temperature"], values["solver"], values["weight_kd"]) == ("4.0", "sinkhorn", "1.0")


@pytest.mark.parametrize(
    ("told", "row"),
    [
        ({}, None),
        (
            {"weights_digest": "d", "weights": "timm:convnext_atto.d2_in1k", "weights_licence": "apache-2.0"},
            "timm:convnext_atto.d2_in1k, licence apache-2.0",
        ),
        (
            {"weights_digest": "d"},
            "weights of a file or a folder, whose licence is not known here: look it up before you hand the model on",
        ),
    ],
)
def test_the_card_names_the_weights_it_started_from_and_their_licence(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: dict[str, str], row: str | None
) -> None:
    training = json.loads((folders["student"] / "training.json").read_text())
    monkeypatch.setattr("gkd_core.export.bundle.read_training", lambda *_: training | told)
    make(folders, tmp_path / "out")
    rows = re.findall(r"\| starts from \| (.*) \|\n", (tmp_path / "out" / "MODEL_CARD.md").read_text())
    assert [each.replace("\\", "") for each in rows] == ([] if row is None else [row])


def test_the_card_of_an_int8_bundle_tells_of_int8(folders: dict[str, Path], tmp_path: Path) -> None:
    make(folders, tmp_path / "out", precision="int8")
    card = (tmp_path / "out" / "MODEL_CARD.md").read_text()
    found = json.loads((folders["report"] / "metrics.json").read_text())["int8"]
    (row,) = re.findall(r"\| student in int8, as served here \| (.*) \|\n", card)
    interval = f"{100 * found['top1_low']:.2f} % – {100 * found['top1_high']:.2f} %"
    assert row.startswith(f"{100 * found['top1']:.2f} % | {interval} | {found['nll']:.4f} | {found['ece']:.4f} |")
    assert f"{found['ece']:.4f} for this one (int8)" in card
    assert "no decision looked at" not in card


METRICS: list[tuple[str, Any]] = [
    ("data.confidence", 10**400), ("student", None), ("student.top1", "x"), ("student.nll", None),
    ("differences.student_minus_baseline", {}), ("int8", None), ("student.agreement_with_teacher", "x"),
]  # fmt: skip


@pytest.mark.parametrize(("place", "value"), METRICS)
def test_a_report_of_another_shape_is_one_sentence(
    place: str, value: Any, folders: dict[str, Path], tmp_path: Path
) -> None:
    """None takes the value out."""
    report = shutil.copytree(folders["report"], tmp_path / "report")
    metrics = json.loads((report / "metrics.json").read_text())
    *above, last = place.split(".")
    inner = metrics
    for key in above:
        inner = inner[key]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    (report / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(GkdError, match=re.escape(str(report / "metrics.json"))) as caught:
        make({**folders, "report": report}, tmp_path / "out")
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_folders_of_different_runs_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    for key, file, sentence in (
        ("report", "metrics.json", "measures another model than"),
        ("student", "training.json", "exported from another student than"),
        ("data", "dataset.json", "made from other data than"),
    ):
        changed = tmp_path / key
        shutil.copytree(folders[key], changed)
        if key == "data":
            rename_classes(changed, NASTY)
        else:
            digests = {"manifest": "0", "student": "0", "teacher": "0"}
            edit(changed / file, **({"digests": digests} if key == "report" else {"seed": 9}))
        with pytest.raises(GkdError, match=sentence):
            make({**folders, key: changed}, tmp_path / "out")
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("registry.example:5000/team/gkd:1.2", "registry.example:5000/team/gkd-serve:1.2"),
        ("gkd", "gkd-serve"),
        (f"gkd:1@sha256:{'0' * 64}", "gkd-serve:1"),
    ],
)
def test_the_servers_image_stands_beside_the_trainers(
    monkeypatch: pytest.MonkeyPatch, image: str, expected: str
) -> None:
    monkeypatch.delenv("GKD_SERVE_IMAGE", raising=False)
    monkeypatch.setenv("GKD_IMAGE", image)
    assert serve_image() == expected
    monkeypatch.setenv("GKD_SERVE_IMAGE", "mine:2")
    assert serve_image() == "mine:2"


def test_a_page_for_browsers_is_in_it_with_its_size_and_what_an_answer_takes(
    folders: dict[str, Path], tmp_path: Path, web_files: Path
) -> None:
    runtime = {file.name: file.read_bytes() for file in web_files.iterdir()}
    bundle = make(folders, tmp_path / "out", name="digits", precision="int8", web=runtime)
    web = tmp_path / "out/web"
    assert {f"web/{file.name}" for file in web.iterdir()} <= set(bundle["files"])
    assert verify.run(str(tmp_path / "out"), server=None, tracking=None).broken is None
    assert file_digest(web / "model_int8.onnx") == read_manifest(folders["deploy"])["int8"]["sha256"]
    facts = json.loads((web / "facts.json").read_text())
    assert (facts["side"], facts["channels"], facts["crop"], facts["input"]) == (8, 1, "center", "uint8_nhwc")
    assert facts["classes"] == read_manifest(folders["deploy"])["classes"]
    readme = (tmp_path / "out/README.md").read_text()
    size = sum(file.stat().st_size for file in web.iterdir())
    assert f"{size / 1e6:.1f} MB on disk" in readme
    assert re.search(r"An answer takes \d+\.\d\d ms .*95th percentile of \d+; loading \d+ ms", readme)
    # Nothing in the page comes from elsewhere.
    for file in web.iterdir():
        if file.suffix in (".html", ".css", ".js") and file.name != "ort.js":
            assert not re.search(
                r"https?://|//[a-z]+\.[a-z]", re.sub(r"http://ns\.adobe\.com\S*", "", file.read_text())
            ), file


def test_a_model_that_a_browser_answers_otherwise_is_refused(
    folders: dict[str, Path], tmp_path: Path, web_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = {file.name: file.read_bytes() for file in web_files.iterdir()}
    (tmp_path / "node").write_text(
        """#!/bin/sh
echo '{"load_ms": 1.0, "median_ms": 1.0, "p95_ms": 1.0, "runs": 30, "node": "v1", "processor": "",'\\
' "asked": {"logits": [9, 0, 0, 0, 0, 0, 0, 0, 0, 0], "probabilities": [1, 0, 0, 0, 0, 0, 0, 0, 0, 0]}}'
"""
    )
    (tmp_path / "node").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(GkdError, match="answers otherwise in a browser"):
        make(folders, tmp_path / "out", web=runtime)
    assert not (tmp_path / "out").exists()


def test_what_a_page_runs_on_is_not_given_without_the_page(tmp_path: Path) -> None:
    command = ["bundle", str(tmp_path / "out"), "--web-runtime", str(tmp_path / "onnxruntime-web-1.30.0.tgz")]
    with pytest.raises(GkdError, match="--web-runtime is what the page of --web runs on: give --web too"):
        CliRunner().invoke(app, command, catch_exceptions=False)
