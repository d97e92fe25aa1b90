"""The schemes through the teacher and the distill step: what is in the folders, and resuming to the bit."""

import csv
import json
from pathlib import Path

import pytest
import torch

from components import compare, distill, teacher
from components.teacher import open_teachers
from gkd_core.config import Params, parse_params
from gkd_core.config.recipes import Start, resolve
from gkd_core.data.prepared import PreparedData
from gkd_core.errors import GkdError
from gkd_core.files import folder_digest
from gkd_core.models.network import LUMA, load_network
from gkd_core.schedules import create_schedule
from gkd_core.training import trainer

SHORT = {"epochs": 2, "device": "cpu", "batch_size": 32}
LOW, HIGH = ["6", "0", "1", "2", "3", "4", "5"], ["5", "6", "7", "8", "9"]
PARTS = {"members": [{"name": "resnet8", "classes": LOW}, {"name": "resnet8", "classes": HIGH}]}
TWO = {"members": [{"name": "resnet8"}, {"name": "resnet8"}]}


def settings(**sections: dict) -> Params:
    base = {"teacher": {"name": "resnet8", "train": SHORT}, "student": {"name": "resnet8"}, "train": SHORT}
    return parse_params({name: base.get(name, {}) | sections.get(name, {}) for name in {*base, *sections}})


def facts(folder: Path) -> dict:
    return json.loads((folder / "training.json").read_text())


def column(folder: Path, file: str, name: str) -> list[float]:
    with (folder / file).open(newline="") as stream:
        return [float(row[name]) for row in csv.DictReader(stream)]


class Interrupted(Exception):
    pass


def resumes_to_the_bit(monkeypatch, step, folder: Path, after: int, **arguments) -> None:
    """Run a step whole, and another time stopped dead after so many checkpoints and started again."""
    step.run(**arguments, out=folder / "whole", work=folder / "w1")
    again = {**arguments, "out": folder / "cut", "work": folder / "w2"}
    real, written = trainer.save_checkpoint, 0

    def save(path, content):
        nonlocal written
        real(path, content)
        written += 1
        if written == after:
            raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "save_checkpoint", save)
        with pytest.raises(Interrupted):
            step.run(**again)
    assert not (folder / "cut").exists()
    torch.manual_seed(99)  # whatever the new process starts with
    step.run(**again)
    assert folder_digest(folder / "cut") == folder_digest(folder / "whole")
    assert not list((folder / "w2").rglob("*.*")), "finished work stays behind"


@pytest.fixture(scope="module")
def single(tmp_path_factory, few_digits) -> Path:
    folder = tmp_path_factory.mktemp("single")
    teacher.run(data=few_digits, out=folder / "teacher", work=folder / "work", params=settings())
    return folder / "teacher"


@pytest.fixture(scope="module")
def parts(tmp_path_factory, few_digits) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    params = settings(teacher=PARTS | {"train": SHORT}, distill={"method": "kd", "scheme": "amalgamation"})
    teacher.run(data=few_digits, out=folder / "teacher", work=folder / "work", params=params)
    return folder / "teacher"


# The teacher step's lists


def test_members_differ_by_seed_and_are_listed(tmp_path, few_digits):
    params = settings(
        teacher={
            "members": [{"name": "resnet8"}, {"name": "resnet8", "seed": 7}, {"name": "resnet14"}],
            "train": SHORT,
        },
        distill={"method": "kd", "scheme": "ensemble"},
    )
    summary = teacher.run(data=few_digits, out=tmp_path / "teacher", work=tmp_path / "work", params=params)
    folders = ["1-resnet8", "2-resnet8", "3-resnet14"]
    content = json.loads((tmp_path / "teacher" / "teacher.json").read_text())
    assert content["networks"] == content["trained"] == list(summary["networks"]) == folders
    assert [facts(tmp_path / "teacher" / name)["seed"] for name in folders] == [0, 7, 2]
    assert [net.spec.name for net in open_teachers(tmp_path / "teacher", tuple("0123456789"))] == [
        "resnet8", "resnet8", "resnet14"
    ]  # fmt: skip
    assert not list((tmp_path / "work").rglob("*.*"))


def test_parts_know_their_classes_alone(parts):
    content = json.loads((parts / "teacher.json").read_text())
    assert content["classes"] == list("0123456789")
    networks = open_teachers(parts, tuple("0123456789"))
    assert [net.classes for net in networks] == [tuple(LOW), tuple(HIGH)]
    assert networks[0](torch.rand(2, 1, 8, 8)).logits.shape == (2, 7)
    with pytest.raises(GkdError, match="none knows 'eleven'"):
        open_teachers(parts, (*"0123456789", "eleven"))


def test_parts_that_leave_a_class_out_are_refused_before_any_training(tmp_path, few_digits):
    params = settings(
        teacher={"members": [{"classes": LOW}, {"classes": ["7", "8"]}], "train": SHORT},
        distill={"method": "kd", "scheme": "amalgamation"},
    )
    with pytest.raises(GkdError, match=r"teacher\.members do not cover the data's classes: none knows '9'"):
        teacher.run(data=few_digits, out=tmp_path / "teacher", work=tmp_path / "work", params=params)
    assert not (tmp_path / "teacher").exists()


def chain(**how) -> Params:
    assistants = {"name": "resnet14", "assistants": ["resnet8", "resnet8"], "assistant_distill": how, "train": SHORT}
    return settings(teacher=assistants, distill=how | {"scheme": "assistant"})


def test_a_chain_hands_on_its_last_and_keeps_its_lineage(tmp_path, few_digits, monkeypatch):
    params = chain(method="kd", temperature=2.0)
    # Interrupted within the second network's training: the first is not trained again.
    resumes_to_the_bit(monkeypatch, teacher, tmp_path, 3, data=few_digits, params=params)
    whole = tmp_path / "whole"
    content = json.loads((whole / "teacher.json").read_text())
    assert content["trained"] == ["1-resnet14", "2-resnet8", "3-resnet8"]
    assert content["networks"] == ["3-resnet8"]
    learned = [facts(whole / name) for name in content["trained"]]
    assert [each["method"] for each in learned] == ["ce", "kd", "kd"]
    assert learned[1]["hyperparameters"] == {"temperature": 2.0}
    assert [each["teacher_digest"] for each in learned] == [
        "", folder_digest(whole / "1-resnet14"), folder_digest(whole / "2-resnet8")
    ]  # fmt: skip
    assert learned[1]["seed"] == learned[2]["seed"]


def test_plain_kd_knows_no_assistants(tmp_path, few_digits):
    """What a chain is compared with is taught by the network it begins with: bit for bit that one alone."""
    params = chain(method="kd")
    teacher.run(data=few_digits, out=tmp_path / "chain", work=tmp_path / "w", params=params)
    alone = settings(teacher={"name": "resnet14", "train": SHORT}, distill={"method": "kd"})
    teacher.run(data=few_digits, out=tmp_path / "alone", work=tmp_path / "w", params=alone)
    common = {"data": few_digits, "work": tmp_path / "w", "params": params}
    weights = {}
    for name, folder, reference in (("student", "chain", None), ("kd", "chain", "kd"), ("direct", "alone", "kd")):
        distill.run(**common, teacher=tmp_path / folder, out=tmp_path / name, reference=reference)
        weights[name] = (tmp_path / name / "model.safetensors").read_bytes()
    assert weights["kd"] == weights["direct"]
    assert weights["kd"] != weights["student"]


# The distill step

MUTUAL = {"method": "kd", "scheme": "mutual", "scheme_options": {"mutual": {"peers": 2}}}
BORN_AGAIN = {"method": "kd", "scheme": "born_again", "scheme_options": {"born_again": {"generations": 2}}}


@pytest.mark.parametrize(
    ("distilled", "student", "after"),
    [
        (MUTUAL, "resnet8", 1),
        pytest.param(BORN_AGAIN, "resnet8", 1, marks=pytest.mark.slow),  # within generation 1
        (BORN_AGAIN, "resnet14", 3),  # the teacher is of another architecture: generation 0 is done, 1 is not
        pytest.param(BORN_AGAIN, "resnet8", 3, marks=pytest.mark.slow),  # within the last
    ],
    ids=["mutual", "generation 1", "generation 1 after 0", "last generation"],
)
def test_interrupted_and_resumed_is_the_same_to_the_bit(
    tmp_path, few_digits, single, monkeypatch, distilled, student, after
):
    params = settings(student={"name": student}, distill=distilled)
    resumes_to_the_bit(monkeypatch, distill, tmp_path, after, data=few_digits, teacher=single, params=params)


def test_adaptive_gompertz_resumes_to_the_bit_after_its_first_fit(tmp_path, few_digits, single, monkeypatch, capsys):
    params = settings(
        distill={"method": "kd", "schedule": "adaptive-gompertz"},
        train=SHORT | {"epochs": 8, "learning_rate": 0.02},
    )
    # On this little data the student's own accuracies wander; those of a student that learns take their place.
    rise = iter([0.12, 0.2, 0.38, 0.55, 0.66, 0.72, 0.75, 0.77] * 2)
    real = trainer.validate
    monkeypatch.setattr(trainer, "validate", lambda *a, **k: (next(rise), real(*a, **k)[1]))
    resumes_to_the_bit(monkeypatch, distill, tmp_path, 6, data=few_digits, teacher=single, params=params)
    log = capsys.readouterr().err
    assert "β follows the fixed curve: 4 of 5 accuracies" in log
    assert "β follows the student: inflection at epoch" in log
    fixed = create_schedule("gompertz", epochs=8)
    betas = column(tmp_path / "whole", "steps.csv", "beta")
    times = column(tmp_path / "whole", "steps.csv", "epoch")
    assert betas[: 5 * 4] == [fixed(t) for t in times[: 5 * 4]]
    assert betas[5 * 4 :] != [fixed(t) for t in times[5 * 4 :]]
    assert betas == sorted(betas)


def test_the_best_peer_is_the_student(tmp_path, few_digits, single):
    params = settings(distill=MUTUAL | {"scheme_options": {"mutual": {"peers": 3}}})
    distill.run(data=few_digits, teacher=None, out=tmp_path / "student", work=tmp_path / "w", params=params)
    known = facts(tmp_path / "student")
    tops = known["peers_validation_top1"]
    assert len(tops) == 3
    assert known["validation_top1"] == max(tops)
    last = [column(tmp_path / "student", "history.csv", f"validation_top1_peer{k}")[-1] for k in (1, 2, 3)]
    assert last == tops
    # The weights in the folder are those that were measured.
    config = resolve(params.train, Start(weights=False, image_size=8, images=100))
    loader, validation = trainer.loaders(PreparedData.open(few_digits), config, torch.device("cpu"))
    network = load_network(tmp_path / "student").to(memory_format=torch.channels_last)
    assert trainer.validate(network, validation)[0] == max(tops)
    assert loader.num_classes == 10


def test_mutual_without_an_exchange_is_each_peer_alone(tmp_path, few_digits, parts):
    """The first peer of a run without soft labels is the baseline, bit for bit: nothing leaks, be there teachers."""
    params = settings(distill={"method": "ce", "scheme": "mutual"})
    common = {"data": few_digits, "teacher": parts, "params": params}
    distill.run(**common, out=tmp_path / "student", work=tmp_path / "w")
    distill.run(**common, out=tmp_path / "baseline", work=tmp_path / "w", reference="baseline")
    first = column(tmp_path / "student", "history.csv", "validation_nll_peer1")
    assert first == column(tmp_path / "baseline", "history.csv", "validation_nll")


def test_generation_0_is_the_student_alone_where_the_teacher_is_another_architecture(tmp_path, few_digits, single):
    params = settings(student={"name": "resnet14"}, distill=BORN_AGAIN)
    common = {"data": few_digits, "teacher": single, "params": params, "work": tmp_path / "w"}
    distill.run(**common, out=tmp_path / "student")
    distill.run(**common, out=tmp_path / "baseline", reference="baseline")
    known = facts(tmp_path / "student")
    assert known["generation_0"] == "the student trained alone"
    assert known["generation"] == 2
    assert known["seed"] == 2
    assert len(known["generations_validation_top1"]) == 2
    assert known["generations_validation_top1"][0] == facts(tmp_path / "baseline")["validation_top1"]


def test_generation_0_is_the_teacher_where_it_has_the_students_architecture(tmp_path, few_digits, single):
    """One generation of the same architecture is plain distillation with another seed."""
    options = {"scheme_options": {"born_again": {"generations": 1}}}
    params = settings(distill=BORN_AGAIN | options)
    distill.run(data=few_digits, teacher=single, out=tmp_path / "a", work=tmp_path / "w", params=params)
    assert facts(tmp_path / "a")["generation_0"] == "the teacher"
    plain = settings(distill={"method": "kd"}, train=SHORT | {"seed": 1})
    distill.run(data=few_digits, teacher=single, out=tmp_path / "b", work=tmp_path / "w", params=plain)
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


def test_amalgamation_learns_and_plain_kd_takes_the_parts_together(tmp_path, few_digits, parts):
    params = settings(teacher=PARTS | {"train": SHORT}, distill={"method": "kd", "scheme": "amalgamation"})
    common = {"data": few_digits, "teacher": parts, "params": params, "work": tmp_path / "w"}
    distill.run(**common, out=tmp_path / "student")
    distill.run(**common, out=tmp_path / "kd", reference="kd")
    assert facts(tmp_path / "student")["scheme"] == "amalgamation"
    assert facts(tmp_path / "kd")["scheme"] == "ensemble"
    assert column(tmp_path / "student", "history.csv", "train_kd")[0] > 0


@pytest.mark.parametrize(
    ("folder", "sections", "message"),
    [
        ("parts", {"distill": {"method": "kd"}}, "holds 2 networks, but distill.scheme single learns from one"),
        (
            "single",
            {"teacher": TWO | {"train": SHORT}, "distill": {"method": "kd", "scheme": "ensemble"}},
            r"holds one network, but distill\.scheme ensemble",
        ),
        (None, {"distill": MUTUAL, "train": SHORT | {"select": "best"}}, r"train\.select.*distill\.scheme mutual"),
        (None, {"distill": MUTUAL, "train": SHORT | {"ema_decay": 0.9}}, r"train\.ema_decay.*distill\.scheme mutual"),
        (
            "single",
            {"student": {"name": "resnet8", "channels": 1}, "distill": {"method": "kd", "scheme": "cross_modal"}},
            "both see 8×8 pixels in 1 channel: change them",
        ),
    ],
)
def test_what_a_scheme_cannot_learn_from_is_refused(folder, sections, message, tmp_path, few_digits, request):
    given = None if folder is None else request.getfixturevalue(folder)
    with pytest.raises(GkdError, match=message):
        distill.run(
            data=few_digits, teacher=given, out=tmp_path / "s", work=tmp_path / "w", params=settings(**sections)
        )


@pytest.mark.slow
def test_several_teachers_are_evaluated_as_one(tmp_path, few_digits, parts):
    """Parts too: the report's teacher knows all classes."""
    from components import evaluate, export

    params = settings(
        teacher=PARTS | {"train": SHORT},
        distill={"method": "kd", "scheme": "amalgamation"},
        references={"baseline": False, "kd": False},
        evaluate={"latency_runs": 10},
    )
    inputs = {"data": few_digits, "teacher": parts}
    for name, reference in (("student", None), ("baseline", "baseline"), ("kd", "kd")):
        distill.run(**inputs, out=tmp_path / name, work=tmp_path / "w", params=params, reference=reference)
    export.run(**inputs, student=tmp_path / "student", out=tmp_path / "deploy", params=params)
    folders = {name: tmp_path / name for name in ("baseline", "kd", "student", "deploy")}
    evaluate.run(**inputs, **folders, out=tmp_path / "report", params=params)
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert metrics["teacher"]["network"] == "resnet8 + resnet8"
    assert metrics["teacher"]["parameters"] > 1.9 * metrics["student"]["parameters"]
    assert 0 <= metrics["student"]["kl_to_teacher"] < 20
    assert metrics["teacher"]["onnx_bytes"] > metrics["student"]["onnx_bytes"]


# Another view


SMALLER = settings(student={"name": "resnet8", "image_size": 4}, distill={"method": "kd", "scheme": "cross_modal"})


def test_the_student_sees_a_smaller_image_and_so_do_the_references(tmp_path, few_digits, single):
    common = {"data": few_digits, "teacher": single, "params": SMALLER, "work": tmp_path / "w"}
    distill.run(**common, out=tmp_path / "student")
    distill.run(**common, out=tmp_path / "baseline", reference="baseline")
    for folder in ("student", "baseline"):
        assert load_network(tmp_path / folder).spec.image_size == 4


def test_the_student_alone_is_compared_in_its_own_view_and_is_the_baseline_to_the_bit(tmp_path, few_digits, single):
    common = {"data": few_digits, "teacher": single, "params": SMALLER, "work": tmp_path / "w"}
    compared = compare.run(**common, out=tmp_path / "comparison", methods=["kd", "ce"], seeds=[0])
    assert {row["name"] for rows in compared.values() for row in rows} == {"kd", "ce"}
    distill.run(**common, out=tmp_path / "baseline", reference="baseline")
    (alone,) = (tmp_path / "w" / "compare").glob("ce-seed0-*/student/model.safetensors")
    assert alone.read_bytes() == (tmp_path / "baseline" / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_student_of_a_smaller_image_is_exported_for_the_data_s(tmp_path, few_digits, single):
    """And held against torch on them."""
    from components import export

    inputs = {"data": few_digits, "teacher": single, "params": SMALLER}
    distill.run(**inputs, out=tmp_path / "student", work=tmp_path / "w")
    export.run(**inputs, student=tmp_path / "student", out=tmp_path / "deploy")
    manifest = json.loads((tmp_path / "deploy" / "manifest.json").read_text())
    assert manifest["model"]["input_shape"][-3:] == [8, 8, 1]
    assert manifest["preprocessing"]["image_size"] == 4


def test_grey_statistics_are_those_of_the_grey_images():
    import numpy as np

    from gkd_core.models.create import _grey_statistics

    images = np.random.default_rng(0).integers(0, 256, (1500, 3, 3, 3), dtype=np.uint8)
    grey = images / 255 @ np.array(LUMA)
    mean, std = _grey_statistics(images)
    assert mean == pytest.approx((grey.mean(),), rel=1e-12)
    assert std == pytest.approx((grey.std(),), rel=1e-9)


# Any schedule with any method


@pytest.mark.parametrize("schedule", ["linear", "reversed-gompertz"])
def test_any_schedule_weighs_any_method_by_configuration(tmp_path, few_digits, single, schedule):
    params = settings(distill={"method": "cmkd", "schedule": schedule, "curve": {"beta_max": 0.8}})
    distill.run(data=few_digits, teacher=single, out=tmp_path / "s", work=tmp_path / "w", params=params)
    curve = create_schedule(schedule, epochs=2, beta_max=0.8)
    times = column(tmp_path / "s", "steps.csv", "epoch")
    assert column(tmp_path / "s", "steps.csv", "beta") == [curve(t) for t in times]
    last = {
        name: column(tmp_path / "s", "history.csv", name)[0] for name in ("train_loss", "train_ce", "train_correlation")
    }
    assert last["train_ce"] < last["train_loss"] < last["train_ce"] + 0.8 * last["train_correlation"] + 1e-5
