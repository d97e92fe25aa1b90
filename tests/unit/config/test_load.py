"""From params.yaml and --set to Params: what is read, and whom a mistake is blamed on."""

import warnings
from pathlib import Path

import pytest
import yaml

from gkd_core.config import Params, load_params, override, params_of_sections, parse_params
from gkd_core.errors import GkdError

ROOT = Path(__file__).parents[3]


def refused(tmp_path: Path, content: str, *overrides: str) -> list[str]:
    """The mistakes in a file called p.yaml, a line each."""
    (tmp_path / "p.yaml").write_text(content)
    with pytest.raises(GkdError) as caught:
        load_params(tmp_path / "p.yaml", overrides)
    return str(caught.value).replace(f"{tmp_path}/", "").split("\n")


def test_the_shipped_file_is_valid_and_every_key_in_it_is_known():
    params = load_params(ROOT / "params.yaml")
    assert params.data.source == "digits"
    assert params.distill.method == "gompertz"


@pytest.mark.parametrize(
    "value", ["2024", "photos #1", "a: b", "null", "[x", "'", 'say "x"', "yes", "\N{WASTEBASKET} ü"]
)
def test_a_text_is_that_text_whatever_yaml_makes_of_it(value):
    assert parse_params({}, ["data.source=folder", override("data.root", value)]).data.root == value


def test_an_empty_file_is_all_defaults(tmp_path):
    (tmp_path / "p.yaml").write_text("")
    assert load_params(tmp_path / "p.yaml") == Params()


def test_yaml_floats_without_a_point_are_numbers(tmp_path):
    (tmp_path / "p.yaml").write_text(yaml.safe_dump({"train": {"epochs": 2}}) + "export: {parity_tolerance: 1e-4}\n")
    assert load_params(tmp_path / "p.yaml").export.parity_tolerance == 1e-4


def test_a_mapping_that_went_through_json_has_its_whole_numbers_back():
    params = parse_params(
        {"train": {"epochs": 15.0, "learning_rate": 1.0}, "distill": {"options": {"crd": {"negatives": 64.0}}}}
    )
    assert (params.train.epochs, type(params.train.epochs)) == (15, int)
    assert params.train.learning_rate == 1.0
    assert params.distill.options == {"crd": {"negatives": 64}}


def test_overrides_are_yaml_and_reach_any_depth(tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text("train: {epochs: 3}\ndistill:\n")
    overrides = ["train.learning_rate=1e-3", "train.augment.flip=false", "distill.options.kd.temperature=.5"]
    params = load_params(file, overrides)
    assert params.train.learning_rate == 0.001
    assert params.train.augment.flip is False
    assert params.train.epochs == 3
    assert params.distill.options == {"kd": {"temperature": 0.5}}


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("train.epochs", "section.key=value"),
        ("=3", "section.key=value"),
        ("train.epochs.x=3", "epochs is a value"),
        ("train.epochs=[1", "not YAML"),
        ("train.epohs=3", "'train.epochs'"),
        ("train.epochs=ten", "train.epochs is 'ten'"),
        ("train={epochs: ten}", "train.epochs is 'ten'"),
        ("distill.options.kd.temperature=0", "distill.options.kd.temperature is 0"),
    ],
)
def test_a_wrong_override_is_blamed_itself(tmp_path, override, part):
    (message,) = refused(tmp_path, "train: {epochs: 3}\n", override)
    assert message.startswith("--set ")
    assert override in message
    assert part in message
    assert "p.yaml" not in message


def test_the_file_and_each_override_are_blamed_for_what_they_wrote(tmp_path):
    messages = refused(tmp_path, "data: {seed: -1}\n", "train.epochs=0", "gate.confidence=2", "train")
    assert len(messages) == 4
    for start in ("p.yaml: data.seed", "--set train.epochs=0: ", "--set gate.confidence=2: ", "--set 'train' "):
        assert sum(message.startswith(start) for message in messages) == 1, start


def test_the_last_override_that_wrote_a_value_is_blamed(tmp_path):
    for overrides, part in (
        (("data.seed=x", "data=5"), "data is 5: it must be a section (data: {source: …})"),
        (("train={epochs: ten}", "train.epochs=0"), "train.epochs is 0"),
        (("train.epochs=0", "train.seed=1", "train.epochs=ten"), "train.epochs is 'ten'"),
    ):
        (message,) = refused(tmp_path, "", *overrides)
        assert message.startswith(f"--set {overrides[-1]}: {part}")


def test_a_value_where_a_section_belongs_is_told_with_the_form_of_one(tmp_path):
    (message,) = refused(tmp_path, "train: 5\n")
    assert message == "p.yaml: train is 5: it must be a section (train: {epochs: …})"


@pytest.mark.parametrize(
    ("override", "wrong", "right"),
    [
        ("report.pictures=false", "report.pictures", "evaluate.pictures"),
        ("report.frontier=frontier", "report.frontier", "evaluate.frontier"),
        ("report.colour=red", "report", "evaluate"),
        ("report=true", "report", "evaluate"),
        ("deploy.fp16=true", "deploy.fp16", "export.fp16"),
        ("prepare.root=photos", "prepare.root", "data.root"),
        ("register.min_coverage=0.8", "register.min_coverage", "gate.min_coverage"),
        ("mlflow.uri=http://mlflow:5000", "mlflow.uri", "tracking.uri"),
    ],
)
def test_a_section_called_by_its_step_or_its_folder_is_told_by_its_name(override, wrong, right, tmp_path):
    assert refused(tmp_path, "", override)[0].startswith(
        f"--set {override}: parameter '{wrong}' is unknown; did you mean '{right}'? Known: plugins, data, "
    )


def test_networks_that_there_are_not_are_told_with_everything_else(tmp_path):
    text = "teacher: {name: resnet21, members: [{name: wrn_16_3}, {}]}\n"
    overrides = ["student.name=resnet9", "teacher.assistants=[resnet20, vgg99]", "train.epoch=3"]
    messages = refused(tmp_path, text, *overrides)
    starts = ["p.yaml: teacher.name 'resnet21'", "p.yaml: teacher.members.0.name 'wrn_16_3'"]
    starts += [
        f"--set {overrides[0]}: student.name 'resnet9'",
        f"--set {overrides[1]}: teacher.assistants.1: name 'vgg99'",
    ]
    starts += ["--set train.epoch=3: "]
    for start in starts:
        assert sum(message.startswith(start) for message in messages) == 1, (start, messages)


def test_an_override_that_contradicts_the_file_is_blamed_with_it(tmp_path):
    (message,) = refused(tmp_path, "train: {batch_size: 9}\n", "train.devices=2", "train.epochs=7")
    assert message.startswith("p.yaml with --set train.devices=2: train: ")
    (message,) = refused(tmp_path, "", "teacher.topological=true", "train.epochs=7")
    assert message.startswith("p.yaml with --set teacher.topological=true: ")


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(GkdError, match="does not exist"):
        load_params(tmp_path / "none.yaml")
    with pytest.raises(GkdError, match="cannot be read"):
        load_params(tmp_path)
    assert refused(tmp_path, "train: {epochs: 3\n")[0].startswith("p.yaml, line 2, column 1 ")
    (twice,) = refused(tmp_path, "train: {epochs: 3}\ndata: {seed: 1}\ntrain: {seed: 1}\n")
    assert twice.startswith("p.yaml, line 1, column 1 ")
    assert "train" in twice
    assert "sections" in refused(tmp_path, "- 1\n")[0]


OLD = [
    ("references.kd_alpha", 0.5, "references.kd_weight"),
    ("distill.options.kd.alpha", 0.5, "distill.options.kd.weight"),
    ("distill.options.dkd.beta", 2, "distill.options.dkd.weight_non_target"),
    ("teacher.assistant_distill.options.dist.gamma", 3, "teacher.assistant_distill.options.dist.weight_intra"),
    ("distill.arrangement", "mutual", "distill.scheme"),
    ("distill.arrangement_options", {"mutual": {"peers": 3}}, "distill.scheme_options"),
    ("distill.scheme_options.multi_teacher", {"weighting": "confidence"}, "distill.scheme_options.ensemble"),
]


def value(params: Params, key: str) -> object:
    found: object = params
    for part in key.split("."):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    return found


@pytest.mark.parametrize(("old", "written", "new"), OLD, ids=[old for old, _, _ in OLD])
def test_an_old_name_is_read_with_a_warning_that_tells_the_new_one(old, written, new):
    content: object = written
    for part in reversed(old.split(".")):
        content = {part: content}
    method = {"method": "kd"}  # which every scheme takes
    chain = ["distill.scheme=assistant", "teacher.assistants=[resnet8]", "teacher.assistant_distill.method=kd"]
    rest = chain if old.startswith("teacher.assistant_distill") else []
    override = f"{old}={yaml.safe_dump(written, default_flow_style=True).splitlines()[0]}"
    for given, overrides in ((content, []), ({}, [override])):
        with pytest.warns(FutureWarning) as said:
            params = parse_params({**given, "distill": method | given.get("distill", {})}, [*overrides, *rest])
        assert value(params, new) == written
        assert [(old in str(one.message), new in str(one.message)) for one in said] == [(True, True)]


def test_an_override_by_the_old_name_replaces_what_the_file_says_by_the_new_one():
    with pytest.warns(FutureWarning) as said:
        params = parse_params({"references": {"kd_weight": 0.9}}, ["references.kd_alpha=0.5"])
    assert params.references.kd_weight == 0.5
    assert {one.filename for one in said} == {__file__}


def test_a_scheme_by_its_old_name_is_read_with_a_warning():
    with pytest.warns(FutureWarning, match=r"multi_teacher.*ensemble"):
        params = parse_params(
            {"distill": {"arrangement": "multi_teacher", "method": "kd"}, "teacher": {"members": [{}, {}]}}
        )
    assert params.distill.scheme == "ensemble"


def test_old_and_new_name_together_are_refused():
    with pytest.raises(GkdError, match=r"references\.kd_alpha .* references\.kd_weight"):
        parse_params({"references": {"kd_alpha": 0.5, "kd_weight": 0.5}})


def test_new_names_warn_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert parse_params({"references": {"kd_weight": 0.5}}).references.kd_weight == 0.5


def test_sections_alone_are_not_asked_about_the_others():
    params = params_of_sections({"student": {"image_size": 5.0}, "distill": {"method": "at"}})
    assert params.student.image_size == 5
    with pytest.raises(GkdError, match=r"train\.epochs is 0"):
        params_of_sections({"train": {"epochs": 0}})
