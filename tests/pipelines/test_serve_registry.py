"""An alias moves in a real registry while clients are served: everybody is answered, by the old model or the new."""

import os
from pathlib import Path

import numpy as np
import pytest

from gkd_core.files import file_digest
from tests.pipelines.conftest import expected

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
            deploy: Path = make_deploy(root / f"deploy{seed}", seed=seed)
            run = client.create_run(experiment).info.run_id
            client.log_artifacts(run, str(deploy), "deploy")
            tags = {"gkd.manifest": file_digest(deploy / "manifest.json")}
            client.create_model_version("gkd-student", str(deploy), run, tags=tags, await_creation_for=0)
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
