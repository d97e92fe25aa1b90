"""`gkd params --effective`: every parameter as a run would use it, with the reason."""

import json

import pytest
from typer.testing import CliRunner

from pipelines.cli import app


def effective(*arguments: str) -> tuple[dict, str]:
    done = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["params", "--effective", *arguments])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout.splitlines()[-1]), done.stdout


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("teacher: {train: {epochs: 7}}\n")
    return tmp_path


def test_what_is_given_what_a_recipe_says_and_what_is_default_are_told_apart(project):
    found, text = effective("--set", "train.learning_rate=0.2")
    values = found["parameters"]
    assert (values["train.learning_rate"], values["train.epochs"], values["train.optimizer"]) == (0.2, 20, "sgd")
    assert (values["teacher.train.epochs"], values["teacher.train.recipe"]) == (7, "cifar")
    assert values["data.validation_fraction"] == 0.1
    assert found["recipes"]["train of resnet8"].startswith("cifar (auto: ")
    rows = {line.split("│")[1].strip(): line.split("│")[3].strip() for line in text.splitlines() if "│" in line}
    assert rows["train.learning_rate"] == rows["teacher.train.epochs"] == "given"
    assert rows["train.epochs"] == "recipe cifar"
    assert rows["train.recipe"] == "chosen by auto"
    assert rows["data.validation_fraction"] == "default"
    assert values["train.augment.auto"] == "none"
    assert rows["train.augment.auto"] == "recipe cifar"
    assert rows["train.augment.cutmix"] == "default"


def test_a_section_inside_a_training_shows_what_the_recipe_says(project):
    """Values of one training are not the other's."""
    photos = ("--set", "data.source=folder", "--set", "data.root=x", "--set", "data.image_size=224")
    found, text = effective(*photos, "--set", "teacher.train.augment.erasing=0.3")
    values = found["parameters"]
    assert values["train.augment.auto"] == values["teacher.train.augment.auto"] == "trivial"
    assert (values["train.augment.erasing"], values["teacher.train.augment.erasing"]) == (0.1, 0.3)
    rows = {line.split("│")[1].strip(): line.split("│")[3].strip() for line in text.splitlines() if "│" in line}
    assert rows["train.augment.erasing"] == "recipe photos-from-scratch"
    assert rows["teacher.train.augment.erasing"] == "given"
    found, _ = effective("--set", "data.source=torchvision:STL10")  # images of a size nobody knows yet
    assert found["parameters"]["train.augment.auto"] == "?"


def test_the_part_of_unlabelled_images_follows_from_whether_there_are_any(project):
    found, _ = effective()
    assert found["parameters"]["train.unlabelled_fraction"] == 0
    found, text = effective("--set", "data.unlabelled=more")
    assert found["parameters"]["train.unlabelled_fraction"] == 0.5
    assert found["parameters"]["teacher.train.unlabelled_fraction"] == 0
    assert "chosen by the data" in text


def test_what_depends_on_images_that_are_not_prepared_yet_is_said(project, few_digits):
    photos = ("--set", "train.recipe=photos-from-scratch")
    found, text = effective(*photos)
    assert found["parameters"]["train.epochs"] == found["parameters"]["train.batch_size"] == "?"
    assert found["parameters"]["train.learning_rate"] == 0.002
    assert "gkd prepare" in text
    found, text = effective(*photos, "--data", str(few_digits))
    assert found["parameters"]["train.epochs"] == 100
    assert "?" not in found["parameters"].values()


def test_a_training_that_would_be_refused_and_options_that_show_nothing_are_one_sentence(project):
    for arguments, part in (
        (["--effective", "--set", "train.recipe=fine-tune"], "train.recipe is fine-tune"),
        (["--effective", "--data", "nowhere"], "nowhere"),
        (["--effective", "--markdown"], "give one"),
        (["--set", "train.epochs=3"], "--effective"),
    ):
        done = CliRunner().invoke(app, ["params", *arguments])
        assert done.exit_code != 0
        assert part in str(done.exception) + done.output
