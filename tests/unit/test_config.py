"""params.yaml ↔ Params: every mistake a user makes ends in one sentence that names what, where and the way out."""

from pathlib import Path

import pytest
import yaml

from gkd_core.config import Params, load_params, parse_params
from gkd_core.errors import GkdError

ROOT = Path(__file__).parents[2]


def refused(content: dict) -> str:
    with pytest.raises(GkdError) as caught:
        parse_params(content)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_shipped_file_is_valid_and_every_key_in_it_is_known():
    params = load_params(ROOT / "params.yaml")
    assert params.data.source == "digits"
    assert params.distill.method == "gompertz"


def test_an_empty_file_is_all_defaults(tmp_path):
    (tmp_path / "p.yaml").write_text("")
    assert load_params(tmp_path / "p.yaml") == Params()


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ({"distil": {}}, ["parameter 'distil' is unknown", "did you mean 'distill'?"]),
        ({"distill": {"temperatur": 2}}, ["'distill.temperatur' is unknown", "did you mean 'distill.temperature'?"]),
        ({"train": {"augment": {"flp": True}}}, ["'train.augment.flp'", "did you mean 'train.augment.flip'?"]),
        (
            {"distill": {"method": "gomperz"}},
            ["distill.method 'gomperz' is unknown; did you mean 'gompertz'? Known: ce"],
        ),
        ({"distill": {"schedule": "gompert"}}, ["distill.schedule 'gompert' is unknown", "'gompertz'"]),
        ({"distill": {"options": {"kdd": {}}}}, ["distill.options: method 'kdd' is unknown", "'kd'"]),
        ({"train": {"epochs": "ten"}}, ["train.epochs is 'ten'", "valid integer"]),
        ({"train": {"epochs": 2.5}}, ["train.epochs is 2.5"]),
        ({"train": {"epochs": True}}, ["train.epochs is True"]),
        ({"train": {"epochs": 0}}, ["train.epochs is 0", "greater than or equal to 1"]),
        ({"train": {"optimizer": "sdg"}}, ["train.optimizer is 'sdg'", "'sgd' or 'adamw'"]),
        ({"train": {"device": "cuda:x"}}, ["train.device 'cuda:x' is unknown"]),
        ({"train": {"learning_rate": float("inf")}}, ["train.learning_rate is inf", "finite"]),
        ({"data": {"seed": 5_000_000_000}}, ["data.seed is 5000000000"]),
        ({"train": {"device": "gpu"}}, ["train.device 'gpu' is unknown", "cuda"]),
        ({"train": 3}, ["train is 3"]),
        ({"data": {"validation_fraction": 0.9}}, ["data.validation_fraction is 0.9", "less than 0.5"]),
        ({"train": {"schedule": "multistep"}}, ["train: schedule is multistep but milestones is empty"]),
        ({"train": {"milestones": [3]}}, ["train: milestones is set but schedule is cosine"]),
        ({"train": {"schedule": "multistep", "milestones": [30], "epochs": 20}}, ["milestones [30]", "epochs (20)"]),
        ({"train": {"warmup_epochs": 20.0, "epochs": 20}}, ["warmup_epochs (20)", "epochs (20)"]),
        ({"train": {"nesterov": True, "optimizer": "adamw"}}, ["nesterov", "optimizer sgd"]),
        ({"distill": {"curve": {"beta_min": 2.0}}}, ["distill.curve: beta_min (2)", "beta_max (1)"]),
        ({"distill": {"curve": {"inflection": 0.5}}}, ["inflection and saturation go together"]),
        ({"distill": {"curve": {"inflection": 0.8, "saturation": 0.4}}}, ["inflection (0.8)", "saturation (0.4)"]),
        ({"distill": {"curve": {"inflection": 0.3, "saturation": 0.8, "b": 2.0}}}, ["replace b and c"]),
        ({"teacher": {"mean": [0.5]}}, ["mean and std go together"]),
        ({"teacher": {"classes": ["a"]}}, ["source is null"]),
        ({"tracking": {"model_name": "a/b"}}, ["tracking.model_name is 'a/b'"]),
    ],
)
def test_a_mistake_is_named_in_one_sentence(content, parts):
    message = refused(content)
    for part in parts:
        assert part in message


def test_temperature_and_its_option_must_not_contradict():
    params = parse_params({"distill": {"method": "kd", "temperature": 2.0, "options": {"kd": {"temperature": 4.0}}}})
    with pytest.raises(GkdError, match=r"distill\.temperature \(2\) and distill\.options\.kd\.temperature \(4\)"):
        params.distill.hyperparameters()


def test_options_of_other_methods_are_kept_apart():
    params = parse_params({"distill": {"method": "kd", "options": {"gompertz": {"preset": "paper"}}}})
    assert params.distill.hyperparameters() == {}


def test_overrides_are_yaml_and_reach_any_depth(tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text("train: {epochs: 3}\n")
    params = load_params(file, ["train.learning_rate=1e-3", "train.augment.flip=false", "distill.options.kd.alpha=.5"])
    assert params.train.learning_rate == 0.001
    assert params.train.augment.flip is False
    assert params.train.epochs == 3
    assert params.distill.options == {"kd": {"alpha": 0.5}}


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("train.epochs", "not of the form section.key=value"),
        ("=3", "not of the form"),
        ("train.epochs.x=3", "epochs is a value, not a section"),
        ("train.epohs=3", "did you mean 'train.epochs'?"),
        ("train.epochs=[1", "not YAML"),
    ],
)
def test_a_wrong_override_is_named(tmp_path, override, part):
    (tmp_path / "params.yaml").write_text("train: {epochs: 3}\n")
    with pytest.raises(GkdError) as caught:
        load_params(tmp_path / "params.yaml", [override])
    assert part in str(caught.value)


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(GkdError, match="does not exist"):
        load_params(tmp_path / "none.yaml")
    (tmp_path / "broken.yaml").write_text("train: {epochs: 3\n")
    with pytest.raises(GkdError, match="line 2, column 1 is not valid YAML"):
        load_params(tmp_path / "broken.yaml")
    (tmp_path / "twice.yaml").write_text("train: {epochs: 3}\ndata: {seed: 1}\ntrain: {seed: 1}\n")
    with pytest.raises(GkdError, match="line 1, column 1 is not valid YAML: train stands there twice"):
        load_params(tmp_path / "twice.yaml")
    with pytest.raises(GkdError, match="cannot be read"):
        load_params(tmp_path)
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(GkdError, match="must hold sections"):
        load_params(tmp_path / "list.yaml")


def test_the_digest_follows_content_not_notation_nor_place():
    plain = Params().digest("data", "train")
    assert parse_params({"data": {"root": "/elsewhere"}}).digest("data", "train") == plain
    assert parse_params({"train": {"epochs": 20}}).digest("data", "train") == plain  # the default, written out
    assert parse_params({"train": {"epochs": 21}}).digest("data", "train") != plain
    assert parse_params({"gate": {"max_parity": 1.0}}).digest("data", "train") == plain


def test_yaml_floats_without_a_point_are_numbers(tmp_path):
    (tmp_path / "p.yaml").write_text(yaml.safe_dump({"train": {"epochs": 2}}) + "export: {parity_tolerance: 1e-4}\n")
    assert load_params(tmp_path / "p.yaml").export.parity_tolerance == 1e-4


def test_every_field_is_documented():
    from pipelines.catalogue import parameter_rows

    undocumented = [name for name, _, _, meaning in parameter_rows() if not meaning]
    assert undocumented == []
