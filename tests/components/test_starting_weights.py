"""A training that starts from learnt weights: they are in its record, in the lineage, and in what it is compared by."""

from functools import partial

import onnx
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from components import distill, export, graph, mlflow_store
from components import teacher as teacher_step
from gkd_core.config import parse_params
from gkd_core.errors import GkdError
from gkd_core.export.manifest import read_manifest
from gkd_core.files import file_digest
from gkd_core.models.create import create_model
from gkd_core.records import read_training

TRAIN = {"epochs": 1, "device": "cpu", "recipe": "cifar"}


def params(**sections):
    """The smallest networks on the digits, one epoch."""
    networks = {"teacher": {"name": "resnet8"}, "student": {"name": "resnet8"}}
    given = {name: networks.get(name, {}) | sections.get(name, {}) for name in {*networks, *sections}}
    given["teacher"] |= {"train": TRAIN}
    return parse_params(given | {"train": TRAIN})


@pytest.fixture
def where(few_digits, tmp_path):
    return {"data": few_digits, "work": tmp_path / "work"}


def test_the_digest_of_the_weights_is_in_the_lineage_from_the_training_to_the_graph(where, teacher, tmp_path):
    """Student and references start from the same; a student that starts from others is on another budget."""
    digest = file_digest(teacher / "resnet8" / "model.safetensors")
    starts = params(student={"weights": str(teacher)})
    noise, trained = params(), tmp_path / "teacher"
    teacher_step.run(**where, out=trained, params=noise)
    assert "weights_digest" not in read_training(trained / "resnet8", "network")
    for role, reference, given in (
        ("student", None, starts), ("baseline", "baseline", starts), ("noise", "baseline", noise)
    ):  # fmt: skip
        distill.run(**where, teacher=trained, out=tmp_path / role, reference=reference, params=given)
    roles = {"student": "student", "baseline": "baseline", "noise": "baseline"}
    facts = {name: read_training(tmp_path / name, role) for name, role in roles.items()}
    assert facts["student"]["weights_digest"] == facts["baseline"]["weights_digest"] == digest
    assert facts["student"]["budget_digest"] == facts["baseline"]["budget_digest"] != facts["noise"]["budget_digest"]
    assert "weights_digest" not in facts["noise"]

    folders = {"data": where["data"], "teacher": trained, "student": tmp_path / "student"}
    export.run(**folders, out=tmp_path / "deploy", params=parse_params({"export": {"int8": {"enabled": False}}}))
    assert read_manifest(tmp_path / "deploy")["weights_digest"] == digest
    inside = {entry.key: entry.value for entry in onnx.load(tmp_path / "deploy" / "model.onnx").metadata_props}
    assert inside["weights_digest"] == digest


def test_a_teacher_and_its_members_start_from_weights(where, teacher, tmp_path):
    """What was learnt is where they begin: at a rate of almost nothing the weights stay what they were."""
    still = TRAIN | {"learning_rate": 1e-12}
    weights = {"weights": str(teacher), "name": "resnet8"}
    members = [weights, {"name": "resnet8", "weights": str(teacher / "resnet8" / "model.safetensors"), "head": "keep"}]
    learnt = load_file(teacher / "resnet8" / "model.safetensors")
    for out, section in (("one", weights), ("two", {"members": members})):
        scheme = "ensemble" if "members" in section else "single"
        given = parse_params({"teacher": section | {"train": still}, "distill": {"scheme": scheme, "method": "kd"}})
        teacher_step.run(**where, out=tmp_path / out, params=given)
    for folder in ("one/resnet8", "two/1-resnet8", "two/2-resnet8"):
        trained = load_file(tmp_path / folder / "model.safetensors")
        for name in ("conv1.weight", "fc.weight"):
            torch.testing.assert_close(trained[name], learnt[name], rtol=1e-6, atol=1e-6)
        assert read_training(tmp_path / folder, "network")["weights_digest"] == file_digest(
            teacher / "resnet8" / "model.safetensors"
        )


def test_a_student_starts_from_a_registered_one(where, teacher, tmp_path, monkeypatch):
    """The steps read the registry; a step on a cluster is told where that is."""
    asked = []
    monkeypatch.setattr(
        mlflow_store,
        "download_network",
        lambda address, settings: (asked.append((address, settings.uri)), teacher / "resnet8")[1],
    )
    given = params(student={"weights": "models:/digits@champion"}, tracking={"uri": "http://tracking"})
    distill.run(**where, teacher=None, out=tmp_path / "baseline", reference="baseline", params=given)
    assert asked == [("models:/digits@champion", "http://tracking")]
    told = graph.divide(given)
    assert [step for step, sections in told.items() if "tracking" in sections] == [
        "baseline", "kd", "distill", "register",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("section", "weights", "words"),
    [
        ("student", {"weights": "lost.pth"}, r"student\.weights 'lost\.pth' do not exist"),
        ("student", {"weights": "pretrained"}, r"student\.weights are 'pretrained', but nobody publishes"),
        (
            "student",
            {"weights": "TEACHER", "name": "resnet14"},
            r"student\.weights .* of a resnet8, and student\.name",
        ),
        ("teacher", {"weights": "lost.pth"}, r"teacher\.weights 'lost\.pth' do not exist"),
    ],
)
def test_what_is_wrong_is_one_sentence_with_the_parameter_s_name(where, teacher, tmp_path, section, weights, words):
    weights = {key: str(teacher) if value == "TEACHER" else value for key, value in weights.items()}
    given = params(**{section: weights})
    step = teacher_step.run if section == "teacher" else partial(distill.run, teacher=None, reference="baseline")
    with pytest.raises(GkdError, match=words) as caught:
        step(**where, out=tmp_path / "out", params=given)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_another_file_of_weights_under_the_same_name_resumes_no_training(where, tmp_path):
    """The folder of checkpoints belongs to the digest, as the record of the training does."""
    file, digests = tmp_path / "w.safetensors", []
    for seed in (1, 2):
        network = create_model("resnet8", classes=["a", "b"], channels=1, image_size=8, seed=seed)
        save_file(network.classifier.state_dict(), file)
        out, given = tmp_path / f"baseline-{seed}", params(student={"weights": str(file)})
        distill.run(**where, teacher=None, out=out, reference="baseline", params=given)
        digests.append(read_training(out, "baseline")["weights_digest"])
        assert digests[-1] == file_digest(file)
    assert digests[0] != digests[1]


@pytest.mark.slow
def test_a_transformer_of_timm_s_learns_from_a_convolutional_network_by_gompertz(where, teacher, tmp_path):
    """From a file of weights, at their size and with their statistics, and out into a graph that agrees with torch."""
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit").state_dict(), tmp_path / "w.safetensors")
    given = parse_params(
        {
            "student": {"name": "timm:test_vit", "weights": str(tmp_path / "w.safetensors"), "image_size": 32},
            "train": {"epochs": 1, "device": "cpu"},
            "export": {"int8": {"enabled": False}},
        }
    )
    teacher_step.run(**where, out=tmp_path / "teacher", params=params())
    facts = distill.run(**where, teacher=tmp_path / "teacher", out=tmp_path / "student", params=given)
    assert facts["recipe"] == "fine-tune"
    folders = {"data": where["data"], "teacher": tmp_path / "teacher", "student": tmp_path / "student"}
    export.run(**folders, out=tmp_path / "deploy", params=given)
    told = read_manifest(tmp_path / "deploy")["preprocessing"]
    assert (told["channels"], told["image_size"], told["interpolation"]) == (3, 32, "bicubic")
    assert told["crop_fraction"] == pytest.approx(timm.get_pretrained_cfg("test_vit").crop_pct)
