"""An alias moves in a real registry while clients are served: everybody is answered, by the old model or the new."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from components.registry import promote_when
from gkd_core.config import TrackingConfig
from gkd_core.errors import GkdError
from gkd_core.files import file_digest
from tests.conftest import GKD
from tests.pipelines.conftest import INFER, body, expected

REFERENCE = {"images": 20, "predicted": [2] * 10, "mean_confidence": 0.5}
IMAGES = np.random.default_rng(1).integers(0, 256, (2, 8, 8, 1), dtype=np.uint8)


@pytest.fixture(scope="module")
def registry(tmp_path_factory, make_deploy):
    """Two versions as the register step leaves them, version 1 the champion; the address, a client, the answers."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
            patch.delenv(name)
        from mlflow import MlflowClient

        root = tmp_path_factory.mktemp("registry")
        uri = f"sqlite:///{root / 'mlflow.db'}"
        client = MlflowClient(uri)
        experiment = client.create_experiment("gkd", artifact_location=str(root / "mlartifacts"))
        client.create_registered_model("gkd-student")
        answers = []
        for seed in (1, 2):
            deploy: Path = make_deploy(root / f"deploy{seed}", seed=seed, reference=REFERENCE)
            run = client.create_run(experiment).info.run_id
            client.log_artifacts(run, str(deploy), "deploy")
            tags = {"gkd.manifest": file_digest(deploy / "manifest.json")}
            client.create_model_version("gkd-student", str(deploy), run, tags=tags, await_creation_for=0)
            client.log_metric(run, "onnx_top1", 0.9 + seed / 100)
            answers.append(expected(deploy / "model.onnx", IMAGES))
        client.set_registered_model_alias("gkd-student", "champion", "1")
        yield uri, client, answers


def test_the_alias_moves_during_load(registry, start, load_on, until):
    uri, client, answers = registry
    server = start("models:/gkd-student@champion", "--tracking-uri", uri, "--poll-seconds", "0.2")
    assert (server.told["name"], server.told["version"]) == ("gkd-student", "1")
    with load_on(server, IMAGES, *answers) as load:
        until(lambda: load.heard[0] > 20, "load")
        assert load.heard[1] == 0
        client.set_registered_model_alias("gkd-student", "champion", "2")
        until(lambda: load.heard[1] > 20, "the new champion answers")
        so_far = load.heard[0]
        client.delete_registered_model_alias("gkd-student", "champion")  # nobody is: the last one goes on
        until(lambda: server.events("source-silent"), "it noticed")
        client.set_registered_model_alias("gkd-student", "champion", "1")
        until(lambda: load.heard[0] > so_far + 20, "the old champion is back")
    assert (load.others, load.broken) == ([], 0)
    assert server.ask("GET", "/v2/models/gkd-student").json["versions"] == ["1"]
    changes = [(event["before"], event["version"]) for event in server.events("model-changed")]
    assert changes == [("1", "2"), ("2", "1")]
    assert server.metric('gkd_reloads_total{outcome="loaded"}') == 2


def test_a_version_that_must_not_be_served_is_fetched_once(registry, monkeypatch, caplog):
    from components.model_source import open_source
    from gkd_core.serving.metrics import Metrics
    from gkd_core.serving.reload import Served

    uri, client, _ = registry
    client.set_registered_model_alias("gkd-student", "candidate", "1")
    source = open_source("models:/gkd-student@candidate", tracking_uri=uri)
    served = Served(source, Metrics())
    fetched = []
    monkeypatch.setattr(source, "fetch", lambda fetch=source.fetch: fetched.append(1) or fetch())
    run = client.get_model_version("gkd-student", "2").run_id
    client.create_model_version("gkd-student", "elsewhere", run, tags={"gkd.manifest": "0" * 64}, await_creation_for=0)
    client.set_registered_model_alias("gkd-student", "candidate", "3")
    for _ in range(3):
        assert not served.refresh()
    assert len(fetched) == 1
    assert [record.reason for record in caplog.records if record.msg == "model-refused"] == [
        "the deploy folder of models:/gkd-student@candidate (version 3) is not the one that was registered: "
        "register it again"
    ]
    client.set_registered_model_alias("gkd-student", "candidate", "2")
    assert served.refresh()
    assert served.model.version == "2"


def promote(*arguments: str, uri: str, folder: Path) -> tuple[int, str, str]:
    """`gkd registry promote` in a folder of its own: exit code, last line of stdout, stderr."""
    surroundings = {name: text for name, text in os.environ.items() if not name.startswith(("MLFLOW_", "GKD_"))}
    command = [*GKD, "registry", "promote", *arguments, "--set", f"tracking.uri={uri}"]
    (folder / "params.yaml").write_text("{}\n")
    done = subprocess.run(
        command, cwd=folder, env=surroundings | {"GKD_TOKEN": "secret"}, capture_output=True, text=True, timeout=300
    )
    return done.returncode, (done.stdout.splitlines() or [""])[-1], done.stderr


def test_a_version_is_promoted_when_what_it_showed_in_service_allows_it(registry, start, tmp_path):
    uri, client, _ = registry
    server = start("models:/gkd-student/2", "--tracking-uri", uri, GKD_TOKEN="secret")
    client.set_registered_model_alias("gkd-student", "champion", "1")
    conditions = ["onnx_top1>=0.92", "live.images>=4", "live.error_rate<=0", "live.class_drift<=1"]
    asked = [word for text in conditions for word in ("--when", text)]
    place = {"uri": uri, "folder": tmp_path}

    code, line, _ = promote("2", *asked, "--metrics", server.url, **place)
    found = json.loads(line)
    assert (code, found["passed"], found["champion"]) == (0, False, 1)
    assert [reason["passed"] for reason in found["reasons"]] == [True, False, False, False]
    assert "live.error_rate is not known: no request was counted yet" in found["sentence"]
    code, _, said = promote("2", *asked, "--metrics", server.url, "--set", "gate.on_refusal=fail", **place)
    assert (code, "version 2 was not promoted" in said) == (1, True)
    assert int(client.get_model_version_by_alias("gkd-student", "champion").version) == 1

    for _ in range(2):
        assert server.ask("POST", INFER, body(IMAGES), authorization="Bearer secret").status == 200
    code, line, said = promote("1", "--when", "live.images>=4", "--metrics", server.url, **place)
    assert f"{server.url} serves version 2, not 1" in json.loads(line)["sentence"]
    code, line, said = promote("2", *asked, "--metrics", f"{server.url}/metrics", **place)
    found = json.loads(line)
    assert (code, found["passed"], found["champion"], found["previous_champion"]) == (0, True, 2, 1), said
    version = client.get_model_version_by_alias("gkd-student", "champion")
    assert int(version.version) == 2
    assert version.tags["gkd.promoted"].endswith(f": version 2 meets {', '.join(conditions)}")
    client.set_registered_model_alias("gkd-student", "champion", "1")


def test_conditions_that_cannot_be_read_are_one_sentence(registry):
    uri, _, _ = registry
    settings = TrackingConfig(uri=uri)
    for when, metrics, sentence in (
        (["onnx_top1=0.9"], [], "'onnx_top1=0.9' is no condition"),
        (["onnx_topp>=0.9"], [], r"metric of version 2 'onnx_topp' is unknown; did you mean 'onnx_top1'\?"),
        (["live.images>=1"], [], "is about a server, and none is named: give --metrics"),
        (["onnx_top1>=0.9"], ["http://localhost:1"], "no --when begins with live"),
        (["live.images>=1"], ["http://localhost:1"], "--metrics http://localhost:1 has no metrics to read"),
        (["live.images>=1"], ["file:///etc/passwd"], "is no address"),
    ):
        with pytest.raises(GkdError, match=sentence) as caught:
            promote_when(settings, "2", when=when, metrics=metrics)
        assert "\n" not in str(caught.value)


def test_a_version_taken_back_by_hand_is_not_promoted_by_conditions(registry):
    uri, client, _ = registry
    client.set_model_version_tag("gkd-student", "2", "gkd.held", "Monday: worse")
    found = promote_when(TrackingConfig(uri=uri), "2", when=["onnx_top1>=0"])
    assert not found["passed"]
    assert "taken back by hand (Monday: worse)" in found["sentence"]
    assert int(client.get_model_version_by_alias("gkd-student", "champion").version) == 1
