"""The compiled pipeline: kfp loads it again, the profile is in it, and nothing of this machine is."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from google.protobuf import json_format
from kfp.compiler import Compiler
from kfp.components import load_component_from_file
from kfp.kubernetes import kubernetes_executor_config_pb2
from kfp.pipeline_spec import pipeline_spec_pb2

from gkd_core.errors import GkdError
from pipelines.kubeflow.checks import has_registry, refuse_no_image, resolve
from pipelines.kubeflow.compile import cluster_params, compile_pipeline, create_pipeline
from pipelines.kubeflow.profile import TASKS, Profile, load_profile, names
from pipelines.kubeflow.variables import tracking_variable, with_variables

ROOT = Path(__file__).parents[2]
PARAMS = ROOT / "params.yaml"


@pytest.fixture(scope="module")
def gpu(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("compiled") / "pipeline.yaml"
    compile_pipeline(file, params=PARAMS, profile="gpu", overrides=["train.epochs=3"])
    return file


def test_it_is_what_kfps_compiler_writes_and_kfp_loads_it_again(gpu, tmp_path):
    profile = load_profile("gpu")
    content = cluster_params(PARAMS, ["train.epochs=3"], profile)
    Compiler().compile(create_pipeline("distillation", content, ["train.epochs=3"], profile), str(tmp_path / "p.yaml"))
    ours, kfps = (list(yaml.load_all(f.read_text(), yaml.CSafeLoader)) for f in (gpu, tmp_path / "p.yaml"))
    with_variables(kfps, tracking_variable(resolve(content, ["train.epochs=3"])))
    assert ours == kfps
    spec, platform = ours
    loaded = load_component_from_file(str(gpu))
    assert set(loaded.component_spec.inputs) == {
        "params", "overrides", "data_source", "dvc_repo", "dvc_path", "dvc_rev", "mlflow",
    }  # fmt: skip
    json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec())  # no unknown field
    for executor in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values():
        json_format.ParseDict(executor, kubernetes_executor_config_pb2.KubernetesExecutorConfig())
    defaults = {
        name: given.get("defaultValue") for name, given in spec["root"]["inputDefinitions"]["parameters"].items()
    }
    assert defaults["overrides"] == ["train.epochs=3"]
    assert defaults["params"]["distill"]["method"] == "gompertz"
    for name in TASKS:
        component = loaded.pipeline_spec.components[f"comp-{name}"]
        for definitions in (component.input_definitions, component.output_definitions):
            for kind in (definitions.parameters, definitions.artifacts):
                assert [key for key in kind if not kind[key].description] == [], name


def test_artifacts_are_typed(gpu, parts_of):
    components = parts_of(gpu)[0]["components"]
    kinds = {
        step: {key: given["artifactType"]["schemaTitle"].removeprefix("system.") for key, given in found.items()}
        for step in ("prepare", "teacher", "distill", "evaluate")
        for found in [components[f"comp-{step}"]["outputDefinitions"]["artifacts"]]
    }
    assert kinds == {
        "prepare": {"data": "Dataset"},
        "teacher": {"teacher": "Model"},
        "distill": {"student": "Model"},
        "evaluate": {
            "report": "Artifact", "page": "HTML", "metrics": "Metrics", "confusion": "ClassificationMetrics",
        },
    }  # fmt: skip


def test_the_profile_is_in_it(gpu, parts_of):
    spec, pods = parts_of(gpu)
    executors = spec["deploymentSpec"]["executors"]
    for name in ("teacher", "baseline", "kd", "distill"):
        container, pod = executors[f"exec-{name}"]["container"], pods[f"exec-{name}"]
        assert container["resources"]["accelerator"] == {
            "count": "1", "resourceCount": "1", "resourceType": "nvidia.com/gpu", "type": "nvidia.com/gpu",
        }  # fmt: skip
        assert container["resources"]["resourceMemoryLimit"] == "32Gi"
        assert {"name": "GKD_WORK", "value": "/gkd/work"} in container["env"]
        assert [(claim["constant"], claim["mountPath"]) for claim in pod["pvcMount"]] == [("gkd-work", "/gkd/work")]
        assert pod["emptyDirMounts"] == [
            {"volumeName": "shm", "mountPath": "/dev/shm", "medium": "Memory", "sizeLimit": "8Gi"}
        ]
        assert pod["nodeSelector"] == {"labels": {"nvidia.com/gpu.present": "true"}}
        assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
        assert pod["activeDeadlineSeconds"] == "86400"
    assert "accelerator" not in executors["exec-register"]["container"]["resources"]
    # Where parameters name places, the volume is: data.root, decide.unknown, gate.deploy_bench.
    for name in ("prepare", "evaluate", "register"):
        assert [claim["mountPath"] for claim in pods[f"exec-{name}"]["pvcMount"]] == ["/gkd/work"]
    for name in ("settings", "export", "ended"):
        assert "pvcMount" not in pods[f"exec-{name}"]
    for name in TASKS:
        assert pods[f"exec-{name}"]["securityContext"]["runAsNonRoot"] is True
        assert int(pods[f"exec-{name}"]["securityContext"]["runAsUser"]) > 0
    tasks = spec["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    assert tasks["teacher"]["retryPolicy"] == {
        "maxRetryCount": 3, "backoffDuration": "60s", "backoffFactor": 2.0,
        "backoffMaxDuration": f"{4 * (86400 + 86400) + 60 + 120 + 240}s",
    }  # fmt: skip
    assert all("retryPolicy" in task for task in tasks.values())
    assert not any(tasks[name]["cachingOptions"].get("enableCache") for name in ("settings", "register"))
    assert tasks["teacher"]["cachingOptions"]["enableCache"]
    # Secrets are named, and only given to steps that need them.
    users = {
        name.removeprefix("exec-"): {secret["secretName"] for secret in pod["secretAsEnv"]}
        for name, pod in pods.items()
        if "secretAsEnv" in pod
    }
    assert users == {
        "settings": {"gkd-mlflow"},  # it asks the server before anything is trained
        "prepare": {"gkd-object-storage"},
        "teacher": {"gkd-mlflow", "gkd-object-storage"},
        **{name: {"gkd-mlflow"} for name in ("baseline", "kd", "distill")},  # their epochs are logged as they go
        "register": {"gkd-mlflow", "gkd-object-storage"},
    }


def test_volumes_pull_secrets_and_who_runs_are_in_every_pod(tmp_path, parts_of):
    content = {
        "work": {"claim": "w", "mount": "/w"},
        "volumes": [{"claim": "photos", "mount": "/photos"}, {"claim": "more", "mount": "/more"}],
        "image_pull_secrets": ["registry", "mirror"],
        "env": {"NCCL_DEBUG": "INFO"},
        "image_pull_policy": "Always",
        "security": {"run_as_user": 4711, "run_as_group": 815},
    }
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(content))
    compile_pipeline(tmp_path / "p.yaml", params=PARAMS, profile=str(tmp_path / "own.yaml"))
    spec, pods = parts_of(tmp_path / "p.yaml")
    assert set(pods) == {f"exec-{name}" for name in TASKS}
    for name in TASKS:
        pod = pods[f"exec-{name}"]
        claims = {claim["mountPath"]: claim["constant"] for claim in pod["pvcMount"]}
        works = name in ("prepare", "teacher", "baseline", "kd", "distill", "evaluate", "register")
        assert claims == {"/photos": "photos", "/more": "more"} | ({"/w": "w"} if works else {})
        assert [secret["secretName"] for secret in pod["imagePullSecret"]] == ["registry", "mirror"]
        assert pod["securityContext"] == {"runAsUser": "4711", "runAsGroup": "815", "runAsNonRoot": True}
        assert pod["imagePullPolicy"] == "Always"
        variables = spec["deploymentSpec"]["executors"][f"exec-{name}"]["container"]["env"]
        assert {"name": "NCCL_DEBUG", "value": "INFO"} in variables


def test_what_a_shared_cluster_asks_for_is_in_the_pods(tmp_path, parts_of):
    rules = [
        {"key": "gpu", "values": ["a", "b"]},
        {"key": "spot", "operator": "DoesNotExist"},
        {"key": "zone", "values": ["b"], "weight": 7},
        {"key": "zone", "values": ["c"], "weight": 3},
    ]
    training = {"queue": "gpus", "priority_class": "low", "affinity": rules, "quota_timeout_seconds": 7}
    content = {
        "light": {"queue": "small"},
        "training": training | {"timeout_seconds": 100, "retries": {"count": 1, "backoff_seconds": 5}},
        "labels": {"team": "vision"},
        "annotations": {"example.org/cost": "17 & 4"},
        "work": {"claim": "shared", "mount": "/w", "sub_path": "team/gkd/"},
        "volumes": [{"claim": "shared", "mount": "/photos", "sub_path": "photos"}],
    }
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(content))
    compile_pipeline(tmp_path / "p.yaml", params=PARAMS, profile=str(tmp_path / "own.yaml"))
    spec, pods = parts_of(tmp_path / "p.yaml")
    gpus = {"kueue.x-k8s.io/queue-name": "gpus", "kueue.x-k8s.io/priority-class": "low"}
    for name in TASKS:
        pod, trains = pods[f"exec-{name}"], name in ("teacher", "baseline", "kd", "distill")
        queue = gpus if trains else {"kueue.x-k8s.io/queue-name": "small"}
        assert pod["podMetadata"] == {
            "labels": {"team": "vision"} | (queue if name != "ended" else {}),
            "annotations": {"example.org/cost": "17 & 4"},
        }
        folders = {claim["mountPath"]: (claim["constant"], claim["subPath"]) for claim in pod["pvcMount"]}
        assert folders["/photos"] == ("shared", "photos")
        works = trains or name in ("prepare", "evaluate", "register")
        assert folders.get("/w") == (("shared", "team/gkd") if works else None)
        assert ("nodeAffinity" in pod) is trains
    required, *preferred = pods["exec-kd"]["nodeAffinity"]
    assert "weight" not in required
    assert [rule["key"] for rule in required["matchExpressions"]] == ["gpu", "spot"], "both, not one of them"
    assert [(rule["weight"], rule["matchExpressions"][0]["values"]) for rule in preferred] == [(7, ["b"]), (3, ["c"])]
    tasks = spec["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    assert tasks["kd"]["retryPolicy"]["backoffMaxDuration"] == f"{2 * (100 + 86400 + 7) + 5}s"


def threads_of(file: Path, parts_of) -> dict[str, str]:
    """OMP_NUM_THREADS by task."""
    executors = parts_of(file)[0]["deploymentSpec"]["executors"].items()
    variables = {name: executor["container"].get("env", []) for name, executor in executors}
    return {
        name.removeprefix("exec-"): variable["value"]
        for name, given in variables.items()
        for variable in given
        if variable["name"] == "OMP_NUM_THREADS"
    }


def test_a_task_counts_on_the_cores_that_it_asks_for(gpu, tmp_path, parts_of):
    """Requests are no limits: without a word it would start a thread for each core of the node."""
    shipped = threads_of(gpu, parts_of)
    assert shipped == {name: "4" if name in ("teacher", "baseline", "kd", "distill") else "1" for name in TASKS}
    content = {"training": {"cpu_request": "2500m"}, "light": {"cpu_request": "250m"}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(content))
    compile_pipeline(tmp_path / "p.yaml", params=PARAMS, profile=str(tmp_path / "own.yaml"))
    own = threads_of(tmp_path / "p.yaml", parts_of)
    assert (own["teacher"], own["evaluate"]) == ("3", "1")
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(content | {"env": {"OMP_NUM_THREADS": "7"}}))
    compile_pipeline(tmp_path / "p.yaml", params=PARAMS, profile=str(tmp_path / "own.yaml"))
    assert threads_of(tmp_path / "p.yaml", parts_of) == dict.fromkeys(TASKS, "7")
    compile_pipeline(tmp_path / "sweep.yaml", params=PARAMS, profile="cpu", which="sweep")
    trials = threads_of(tmp_path / "sweep.yaml", parts_of)
    assert (trials["run-trial"], trials["teacher"], trials["prepare"]) == ("4", "4", "1")


WEIGHTS = """
import socket, sys
from pathlib import Path
def refuse(*_, **__): raise AssertionError("the network was asked")
socket.socket.connect = socket.getaddrinfo = refuse
sys.modules |= dict.fromkeys(("torch", "torchvision", "timm", "huggingface_hub"))  # as where they are not installed
from pipelines.kubeflow.compile import compile_pipeline
compile_pipeline(Path(sys.argv[1]), params=Path("params.yaml"), profile=sys.argv[2], overrides=sys.argv[3:])
"""


def test_weights_are_named_at_compile_time_and_read_in_the_cluster(tmp_path, parts_of):
    """Neither torch nor timm nor a network are wanted for it; caches and files may lie in a volume."""
    caches = {"HF_HOME": "/gkd/weights/huggingface", "TORCH_HOME": "/gkd/weights/torch"}
    profile = {"volumes": [{"claim": "gkd-weights", "mount": "/gkd/weights"}], "env": caches}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(profile))
    given = {
        "teacher.name": "timm:convnext_tiny",
        "teacher.weights": "in22k_ft_in1k",
        "student.name": "timm:tf_efficientnet_lite0",
        "student.weights": "/gkd/weights/lite0.safetensors",
    }
    overrides = [f"{name}={value}" for name, value in given.items()]
    command = [sys.executable, "-c", WEIGHTS, str(tmp_path / "p.yaml"), str(tmp_path / "mine.yaml"), *overrides]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    spec, pods = parts_of(tmp_path / "p.yaml")
    assert spec["root"]["inputDefinitions"]["parameters"]["overrides"]["defaultValue"] == overrides
    for name in ("teacher", "baseline", "kd", "distill"):
        variables = spec["deploymentSpec"]["executors"][f"exec-{name}"]["container"]["env"]
        assert {variable["name"]: variable["value"] for variable in variables}.items() >= caches.items()
        assert [claim["mountPath"] for claim in pods[f"exec-{name}"]["pvcMount"]] == ["/gkd/weights"]


@pytest.mark.slow
def test_nothing_of_this_machine_is_in_it(tmp_path):
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "AWS_SECRET_ACCESS_KEY": "hidden-one",
        "MLFLOW_TRACKING_PASSWORD": "hidden-two",
        "MLFLOW_TRACKING_URI": "http://me:hidden-three@tracking.example",
        "GKD_IMAGE": "registry.example/gkd:1.2",
    }
    texts = []
    for name in ("first.yaml", "second.yaml"):  # two processes: another hash seed, the same bytes
        done = subprocess.run(
            [sys.executable, "-m", "pipelines.cli", "pipeline", "compile", "--profile", "gpu", "-o", name,
             "--params", str(PARAMS)],
            env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "another image tomorrow" not in done.stderr
        texts.append((tmp_path / name).read_bytes())
    assert texts[0] == texts[1]
    text = texts[0].decode()
    assert "registry.example/gkd:1.2" in text
    for private in ("hidden-", str(ROOT), str(tmp_path), str(Path.home()) + "/", sys.prefix, os.uname().nodename):
        assert private not in text, private
    places = set(re.findall(r"(?<![\w.$}/])/(?:home|root|tmp|work|Users|usr|var|opt)/[^\s'\"]*", text))
    assert not places


def test_a_moving_tag_is_warned_about(tmp_path, monkeypatch, gkd_here):
    monkeypatch.setenv("GKD_IMAGE", "registry.example/gkd:latest")
    code, said = gkd_here("pipeline", "compile", "-o", str(tmp_path / "p.yaml"), "--params", str(PARAMS))
    assert code == 0, said
    assert "GKD_IMAGE is registry.example/gkd:latest, which may be another image tomorrow" in said


SWEEPABLE = [name for name in names() if name != "multi-node"]  # which a sweep refuses


@pytest.mark.parametrize(
    ("which", "profile"),
    [("distillation", n) for n in names()] + [("sweep", n) for n in SWEEPABLE] + [("search", "gpu")],
)
def test_every_try_of_every_task_has_time_to_end(compiled, parts_of, profile, which):
    """Argo's maxDuration limits all tries together, from the beginning of the first."""
    spec, pods = parts_of(compiled(profile, which))
    seen = set()
    for dag in [spec["root"]["dag"], *(c["dag"] for c in spec["components"].values() if "dag" in c)]:
        for name, task in dag["tasks"].items():
            pod = pods.get(f"exec-{name}")
            if pod is None:  # a loop
                continue
            policy = task["retryPolicy"]
            tries, factor = policy["maxRetryCount"] + 1, policy["backoffFactor"]
            pause, window = (int(policy[key].removesuffix("s")) for key in ("backoffDuration", "backoffMaxDuration"))
            pauses = sum(pause * factor**number for number in range(policy["maxRetryCount"]))
            assert window >= tries * int(pod["activeDeadlineSeconds"]) + pauses, name
            assert factor == int(factor), "Argo reads whole numbers"
            seen.add(name)
    trains = {"distillation": "distill", "sweep": "run-trial", "search": "search-worker"}[which]
    assert seen >= {"prepare", "teacher", trains}


def test_several_accelerators_are_asked_for_and_used(tmp_path):
    content = cluster_params(PARAMS, [], load_profile("multi-gpu"))
    assert content["train"]["devices"] == content["teacher"]["train"]["devices"] == 4
    assert cluster_params(PARAMS, [], load_profile("multi-node"))["train"]["devices"] == 8
    own = tmp_path / "own.yaml"
    own.write_text("train: {devices: 2, epochs: 3}\nteacher: {source: null}")
    for profile, devices in (("multi-gpu", 4), ("multi-node", 8)):
        with pytest.raises(GkdError, match=rf"train\.devices is 2, but a training under .* has {devices} devices"):
            cluster_params(own, [], load_profile(profile))
        with pytest.raises(GkdError, match=rf"train\.devices is 1, but a training under .* has {devices} devices"):
            cluster_params(PARAMS, ["train.devices=1"], load_profile(profile))
    for override in ("train.devices=4", "teacher.train.devices=4"):
        with pytest.raises(GkdError, match=f"{override.replace('=', ' is ')}, but .* has 1 device "):
            cluster_params(PARAMS, [override], load_profile("gpu"))
    assert "devices" not in cluster_params(PARAMS, [], load_profile("gpu"))["train"]


def test_on_several_nodes_a_training_task_only_waits(compiled, parts_of, tmp_path):
    spec, pods = parts_of(compiled("multi-node"))
    tasks = spec["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    for step in ("teacher", "baseline", "kd", "distill"):
        container, pod = spec["deploymentSpec"]["executors"][f"exec-{step}"]["container"], pods[f"exec-{step}"]
        assert "accelerator" not in container["resources"]
        assert {"name": "GKD_IMAGE", "value": container["image"]} in container["env"]
        assert pod["activeDeadlineSeconds"] == "259800"  # longer than the training may take, and wait for quota
        assert [claim["constant"] for claim in pod["pvcMount"]] == ["gkd-work"]
        given = tasks[step]["inputs"]["parameters"]["profile"]["runtimeValue"]["constant"]
        assert Profile.model_validate_json(given) == load_profile("multi-node")
    ended = spec["root"]["dag"]["tasks"]["ended"]["inputs"]["parameters"]
    assert ended["train_jobs"]["runtimeValue"]["constant"] is True, "it removes those of a run that was stopped"
    with pytest.raises(GkdError, match="take gpu or multi-gpu"):
        compile_pipeline(tmp_path / "s.yaml", params=PARAMS, profile="multi-node", which="sweep")


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("tracking: {uri: 'http://me:secret@tracking.example'}", ["http://***@… holds a password", "secret"]),
        ("tracking: {uri: ./mlruns}", ["./mlruns", "MLflow server"]),
        ("data: {unlabelled: pictures}", ["data.unlabelled is pictures, a place on this machine", "volume"]),
        ("data: {source: folder, root: pictures}", ["data.root is pictures, a place on this machine", "dvc_repo"]),
        ("teacher: {source: ../teacher.pt}", ["teacher.source is ../teacher.pt", "models:/NAME@ALIAS"]),
        ("teacher: {weights: ../w.pth}", ["teacher.weights is ../w.pth", "hf-hub:OWNER/NAME", "a volume"]),
        (
            "{teacher: {members: [{}, {weights: w.safetensors}]}, distill: {scheme: ensemble, method: kd}}",
            ["teacher.members.1.weights is w.safetensors"],
        ),
        (
            "gate: {max_latency_ms: 1, deploy_bench: pi.json}",
            ["gate.deploy_bench is pi.json, a place on this machine", "set it to null", "a volume"],
        ),
        (
            "evaluate: {frontier: frontier}",
            ["evaluate.frontier is frontier, a place on this machine", "set it to null"],
        ),
        (
            "decide: {coverage: 0.9, unknown: others}",
            ["decide.unknown is others, a place on this machine", "set it to null"],
        ),
        ("student: {weights: /home/me/student}", ["student.weights is /home/me/student", "models:/NAME@ALIAS"]),
        ("data: {source: cifar11}", ["data.source 'cifar11' is unknown", "did you mean 'cifar10'?"]),
        ("teacher: {name: resnett20}", ["teacher.name 'resnett20' is unknown", "'resnet20'"]),
        ("tracking: {uri: 'mlflow.example:5000'}", ["tracking.uri is mlflow.example:5000", "http://"]),
        ("train: {epoch: 3}", ["'train.epoch' is unknown", "did you mean 'train.epochs'?"]),
    ],
)
def test_what_must_not_be_in_a_pipeline_is_refused(tmp_path, content, parts):
    (tmp_path / "params.yaml").write_text(content)
    with pytest.raises(GkdError) as caught:
        compile_pipeline(tmp_path / "p.yaml", params=tmp_path / "params.yaml")
    for part in parts:
        assert part in str(caught.value)
    assert "me:secret" not in str(caught.value)
    assert not (tmp_path / "p.yaml").exists()


def test_no_override_and_no_profile_brings_a_password_in(tmp_path):
    address = "https://me:hunter2@tracking.example"
    (tmp_path / "mine.yaml").write_text(f"env: {{MLFLOW_TRACKING_URI: '{address}'}}\n")
    (tmp_path / "elsewhere.yaml").write_text("env: {PROXIES: 'a=b, https://host/?token=hunter2'}\n")
    for given in (
        {"overrides": [f"tracking.uri={address}"]},
        {"overrides": ["teacher.source=https://example.org/teacher.pt?token=hunter2"]},
        {"profile": str(tmp_path / "mine.yaml")},
        {"profile": str(tmp_path / "elsewhere.yaml")},
    ):
        with pytest.raises(GkdError, match="holds a password") as caught:
            compile_pipeline(tmp_path / "p.yaml", params=PARAMS, **given)
        assert "hunter2" not in str(caught.value)
    assert not (tmp_path / "p.yaml").exists()


def test_a_run_without_a_server_for_its_results_is_warned_about(tmp_path, capsys):
    compile_pipeline(tmp_path / "p.yaml", params=PARAMS, profile="cpu", warn=True)
    assert "no MLflow server is named" in capsys.readouterr().err
    given = {"params": PARAMS, "profile": "cpu", "warn": True}
    compile_pipeline(tmp_path / "p.yaml", overrides=["tracking.uri=http://mlflow:5000"], **given)
    assert capsys.readouterr().err == ""
    (tmp_path / "own.yaml").write_text("env: {MLFLOW_TRACKING_URI: ./mlruns}\n")
    with pytest.raises(GkdError, match=r"the profile's MLFLOW_TRACKING_URI is \./mlruns, a file"):
        compile_pipeline(tmp_path / "q.yaml", params=PARAMS, profile=str(tmp_path / "own.yaml"))


@pytest.mark.parametrize("name", ["not an image", "Registry/Gkd:1", "gkd:", "http://registry/gkd:1", "gkd@sha256:12"])
def test_an_image_must_have_a_name_that_images_have(tmp_path, monkeypatch, name):
    monkeypatch.setenv("GKD_IMAGE", name)
    with pytest.raises(GkdError, match="no name of a container image"):
        compile_pipeline(tmp_path / "p.yaml", params=PARAMS)


@pytest.mark.parametrize(
    ("name", "registry"),
    [
        ("gkd:1.2", False),
        ("team/gkd", False),
        ("registry.example:5000/team/gkd:1.2-rc.1", True),
        ("localhost/gkd", True),
        (f"ghcr.io/a/b__c@sha256:{'0' * 64}", True),
    ],
)
def test_names_of_images(name, registry):
    refuse_no_image(name)
    assert has_registry(name) is registry


def test_a_place_in_a_volume_of_the_profile_is_no_place_of_this_machine(tmp_path):
    (tmp_path / "params.yaml").write_text("data: {source: folder, root: /images/birds}")
    profile = Profile.model_validate({"volumes": [{"claim": "images", "mount": "/images"}]})
    assert cluster_params(tmp_path / "params.yaml", [], profile)["data"]["root"] == "/images/birds"


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"which": "distilation"}, ["--pipeline 'distilation' is unknown", "'distillation'"]),
        ({"file": "p.json"}, ["p.json", "ends in .yaml"]),
        ({"parallelism": 8}, ["--parallelism", "add --pipeline sweep"]),
        ({"profile": ""}, ["--profile '' is unknown"]),
        ({"file": "."}, ["is a folder: name a file in it"]),
        ({"file": "nowhere/p.yaml"}, ["no folder", "nowhere"]),
    ],
)
def test_other_mistakes(tmp_path, options, parts):
    file = tmp_path / options.pop("file", "p.yaml")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(GkdError) as caught:
        compile_pipeline(file, params=PARAMS, **options)
    for part in parts:
        assert part in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


def test_only_a_compiled_pipeline_is_replaced_by_one(tmp_path):
    for content in ("train: {epochs: 3}\n", "a: [", "just text"):
        (tmp_path / "params.yaml").write_text(content)
        with pytest.raises(GkdError, match=r"params\.yaml is there and is no compiled pipeline, so it is not replaced"):
            compile_pipeline(tmp_path / "params.yaml", params=PARAMS)
        assert (tmp_path / "params.yaml").read_text() == content
    (tmp_path / "p.yaml").touch()
    compile_pipeline(tmp_path / "p.yaml", params=PARAMS)
    compile_pipeline(tmp_path / "p.yaml", params=PARAMS, overrides=["train.epochs=3"])
    assert "train.epochs=3" in (tmp_path / "p.yaml").read_text()
