"""dvc.yaml is the table of steps, and a changed source reruns the steps whose results it could change."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from components.graph import MAKER, STEP, STEPS
from gkd_core.config import Params, load_params, parse_params
from gkd_core.errors import GkdError
from pipelines import dvc

ROOT = Path(__file__).parents[2]
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def losses(step: str, **content) -> set[str]:
    """The names of the loss files that a step's result depends on."""
    found = dvc.sources_of(STEP[step], parse_params(content))
    return {Path(path).stem for path in found if path.startswith("gkd_core/losses/")}


def test_dvc_yaml_is_what_make_dvc_writes():
    assert (ROOT / "dvc.yaml").read_text() == dvc.dvc_yaml()


def test_the_order_of_the_house():
    assert list(STAGES) == ["sources", *STEP]
    assert list(STEP) == ["prepare", "teacher", "baseline", "kd", "distill", "export", "evaluate", "register"]
    for place, step in enumerate(STEPS):
        assert {MAKER[folder].name for folder in step.inputs} <= set([*STEP][:place])
        assert set(step.sections) <= set(Params.model_fields)


def test_the_references_read_nothing_of_the_method():
    for name in ("baseline", "kd"):
        assert STEP[name].sections == ("student", "train", "references")


@pytest.mark.parametrize("name", STAGES)
def test_commands_exist_with_their_options(name):
    from typer.main import get_command

    from pipelines.cli import app

    words = shlex.split(STAGES[name]["cmd"])
    assert words[0] == "gkd"
    known = {flag for parameter in get_command(app).commands[words[1]].params for flag in parameter.opts}
    assert set(words[2::2]) <= known


def test_without_a_checkout_no_stage_depends_on_sources():
    stages = yaml.safe_load(dvc.dvc_yaml(checkout=False))["stages"]
    assert list(stages) == list(STEP)
    assert "deps" not in stages["prepare"]
    assert stages["kd"]["deps"] == ["data", "teacher"]


def test_a_step_depends_on_the_losses_of_its_methods_alone():
    assert {"cross_entropy"} <= losses("teacher") == losses("baseline")
    assert not {"kd", "gompertz", "fitnet"} & losses("teacher")
    chain = {"assistants": ["resnet14"], "assistant_distill": {"method": "dkd"}}
    distill = {"method": "dkd", "scheme": "assistant"}
    assert losses("teacher", teacher=chain, distill=distill) - losses("teacher") >= {"dkd"}
    assert "kd" in losses("kd")
    assert "fitnet" in losses("distill", distill={"method": "fitnet"})
    assert not {"gompertz", "crd"} & losses("distill", distill={"method": "fitnet"})
    assert losses("prepare") == losses("register") == set()


def test_what_a_user_reads_is_no_reason_to_run_again():
    found = dvc.sources_of(STEP["teacher"], Params())
    assert {"components/teacher.py", "gkd_core/models/registry.py"} <= set(found)
    assert [path for path in found if path.endswith("/resnet.py")], "which is imported by its name"
    assert not set(found) & dvc.SILENT


def test_the_manifest_s_code_digest_is_of_the_sources_that_export_depends_on():
    from gkd_core.export.manifest import SOURCES

    everything = dvc.sources_of(STEP["export"], Params())
    for package in dvc.PACKAGES:
        for file in (ROOT / package).rglob("*"):
            if file.suffix in SOURCES and file.is_file():
                assert file.relative_to(ROOT).as_posix() in everything


def test_weights_that_a_parameter_names_are_among_what_a_step_depends_on(tmp_path, monkeypatch):
    """Files and folders by their content, wherever the parameter stands; what is published needs none."""
    monkeypatch.setattr(dvc, "refuse_missing_places", lambda params: None)  # that they are none such
    monkeypatch.chdir(tmp_path)
    Path("own.safetensors").write_bytes(b"one")
    (tmp_path / "before" / "resnet8").mkdir(parents=True)
    Path("before/resnet8/model.safetensors").write_bytes(b"one")
    content = {
        "teacher": {"members": [{"weights": "own.safetensors"}, {"name": "resnet18", "weights": "pretrained"}]},
        "student": {"weights": "before"},
        "distill": {"scheme": "ensemble", "method": "kd"},
    }

    def noted() -> dict[str, dict[str, str]]:
        shutil.rmtree(tmp_path / "sources", ignore_errors=True)  # as DVC does
        dvc.write_sources(tmp_path / "sources", parse_params(content))
        return {name: json.loads((tmp_path / "sources" / f"{name}.json").read_text()) for name in STEP}

    first = noted()
    named = {name: {"own.safetensors", "before", "pretrained"} & set(files) for name, files in first.items()}
    assert {name: found for name, found in named.items() if found} == {
        "teacher": {"own.safetensors"},
        "baseline": {"before"},
        "kd": {"before"},
        "distill": {"before"},
    }
    Path("own.safetensors").write_bytes(b"two")
    Path("before/run.json").write_text("varies by run")
    second = noted()
    assert [name for name in STEP if first[name] != second[name]] == ["teacher"]
    Path("before/resnet8/model.safetensors").write_bytes(b"two")
    third = noted()
    assert [name for name in STEP if second[name] != third[name]] == ["baseline", "kd", "distill"]
    Path("pi.json").write_text("{}")
    content["gate"] = {"max_latency_ms": 1, "deploy_bench": "pi.json"}
    fourth = noted()
    assert [name for name in STEP if third[name] != fourth[name]] == ["register"]
    Path("before/frontier.json").write_text("{}")
    content["evaluate"] = {"frontier": "before"}
    fifth = noted()
    assert "before" in fifth["evaluate"]
    assert fifth["export"] == fourth["export"]
    content["teacher"] = {"source": "own.safetensors", "classes": ["a", "b"]}
    del content["distill"]
    assert "own.safetensors" in noted()["teacher"]


def test_a_path_that_is_not_there_is_refused_before_the_first_training(tmp_path, monkeypatch, gkd_here):
    """By `sources`, which knows all parameters; and by any stage, for it and those behind it."""
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text("decide: {precision: 0.9, unknown: others}\nteacher: {source: gone}\n")
    code, told = gkd_here("sources", "--out", "sources")
    assert (code, [line.partition(" is ")[0] for line in told.strip().splitlines()]) == (
        2,
        ["gkd: teacher.source", "decide.unknown"],
    )
    monkeypatch.setenv("DVC_STAGE", "baseline")
    code, told = gkd_here("distill", "--reference", "baseline", "--out", "baseline")
    assert code == 2
    (line,) = told.strip().splitlines()
    assert line.startswith(f"gkd: decide.unknown is others, but there is no folder {tmp_path / 'others'}: ")
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]
    # By hand nobody knows whether it is made before `gkd evaluate`: the step's own sentence comes.
    monkeypatch.delenv("DVC_STAGE")
    code, told = gkd_here("distill", "--reference", "baseline", "--out", "baseline")
    assert "the data folder data has no dataset.json" in told


def test_what_another_stage_or_a_dvc_file_makes_is_no_missing_path(tmp_path, monkeypatch):
    from dvc.repo import Repo

    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    monkeypatch.chdir(tmp_path)
    stage = {"cmd": "mkdir others", "outs": ["others"]}
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": {"collect": stage, "train": stage | {"outs": ["old/net"]}}}))
    Path("bench.json.dvc").write_text("outs:\n- {md5: d41d8cd98f00b204e9800998ecf8427e, path: bench.json}\n")
    content = {
        "decide": {"precision": 0.9, "unknown": "others/deep"},
        "student": {"name": "resnet8", "weights": "./old/net"},
        "gate": {"max_latency_ms": 1, "deploy_bench": "bench.json"},
    }
    params = parse_params(content)
    with pytest.raises(GkdError) as caught:
        dvc.refuse_missing_places(params)
    assert len(str(caught.value).splitlines()) == 3, "where DVC is not set up nobody makes them"
    Repo.init(".", no_scm=True).close()
    dvc.refuse_missing_places(params)
    with pytest.raises(GkdError, match=r"^decide\.unknown is other, .*$"):
        dvc.refuse_missing_places(parse_params(content | {"decide": {"precision": 0.9, "unknown": "other"}}))


RUN = """
import sys
from pathlib import Path
from components.graph import STEP
from gkd_core.config import load_params
params = load_params(Path("params.yaml"))
for name in ("prepare", "teacher", "distill"):
    step = STEP[name]
    folders = {folder: Path(folder) for folder in step.inputs}
    step.run(**folders, out=Path(step.output), work=Path("work"), params=params)
print(*(module.__file__ for module in sys.modules.values() if getattr(module, "__file__", None)), sep="\\n")
"""


@pytest.mark.slow
def test_every_module_that_a_training_loads_is_among_its_sources(tmp_path):
    """Found by running it: a module that is loaded by a name, and in no import, would be missed."""
    moment = {"epochs": 1, "device": "cpu"}
    content = {
        "data": {"train_images": 100},
        "teacher": {"name": "resnet8", "train": moment},
        "student": {"name": "resnet8"},
        "train": moment,
        "distill": {"method": "fitnet"},
    }
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    done = subprocess.run(
        [sys.executable, "-c", RUN], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    files = [Path(line) for line in done.stdout.splitlines() if line.startswith(str(ROOT) + os.sep)]
    loaded = {file.relative_to(ROOT).as_posix() for file in files if ".venv" not in file.parts}
    params = load_params(tmp_path / "params.yaml")
    sources = {path for step in ("prepare", "teacher", "distill") for path in dvc.sources_of(STEP[step], params)}
    empty = {path for path in loaded if path.endswith("__init__.py") and len((ROOT / path).read_text()) < 200}
    assert loaded - sources - dvc.SILENT - empty == {"components/graph.py"}


@pytest.mark.slow
def test_dvc_reruns_what_uses_a_changed_loss_and_nothing_else(tmp_path, monkeypatch):
    """A real DVC over a copy of the sources, with stages that do nothing: which of them does it run again?"""
    from dvc.repo import Repo

    for package in dvc.PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("params.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, tmp_path / name)
    stages = {name: STAGES[name] for name in ("sources", "prepare", "teacher", "baseline", "kd", "distill")}
    commands = {
        name: f"mkdir -p {' '.join(stages[name]['outs'])} && echo {name} >> ran" for name in stages if name in STEP
    }
    commands["sources"] = f"{shlex.quote(sys.executable)} -m pipelines.cli sources --out sources"
    stages = {name: stage | {"cmd": commands[name]} for name, stage in stages.items()}
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    monkeypatch.chdir(tmp_path)

    def rerun() -> set[str]:
        (tmp_path / "ran").write_text("")
        with Repo(".") as repo:
            repo.reproduce()
            assert repo.status() == {}
        return set((tmp_path / "ran").read_text().split())

    def after_a_change_of(loss: str) -> set[str]:
        with (tmp_path / "gkd_core" / "losses" / f"{loss}.py").open("a") as file:
            file.write("\n# another line\n")
        with Repo(".") as repo:
            assert set(repo.status()) == {"sources"}
        return rerun()

    Repo.init(".", no_scm=True).close()
    assert rerun() == {"prepare", "teacher", "baseline", "kd", "distill"}
    assert after_a_change_of("fitnet") == set()
    assert after_a_change_of("gompertz") == {"distill"}
    assert after_a_change_of("kd") == {"kd"}
    content = yaml.safe_load((tmp_path / "params.yaml").read_text())
    content["teacher"] |= {"assistants": ["resnet14"], "assistant_distill": {"method": "gompertz"}}
    content["distill"] = {"method": "gompertz", "scheme": "assistant"}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    assert rerun() == {"teacher", "distill"}
    assert after_a_change_of("gompertz") == {"teacher", "distill"}
    content["student"] = {"name": "resnet8", "weights": "own.safetensors"}
    (tmp_path / "own.safetensors").write_bytes(b"one")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    assert rerun() == {"baseline", "kd", "distill"}
    (tmp_path / "own.safetensors").write_bytes(b"two")
    with Repo(".") as repo:
        repo.reproduce("sources", force=True)
    assert rerun() == {"baseline", "kd", "distill"}, "another file under the same name"
