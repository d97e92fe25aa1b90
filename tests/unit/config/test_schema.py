"""What a section holds: a mistake names the key, the value and the way out; all of them are told at once."""

import pytest

from gkd_core.config import Params, params_of_sections, parse_params
from gkd_core.errors import GkdError


def refused(content: dict) -> list[str]:
    """The mistakes, a line each."""
    with pytest.raises(GkdError) as caught:
        parse_params(content)
    return str(caught.value).split("\n")


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ({"distil": {}}, ["'distil'", "'distill'"]),
        ({"distill": {"temperatur": 2}}, ["'distill.temperatur'", "'distill.temperature'"]),
        ({"train": {"augment": {"flp": True}}}, ["'train.augment.flp'", "'train.augment.flip'"]),
        ({"train": {"augment": {"random_resized_crop": True}}}, ["train.augment.random_resized_crop"]),
        ({"train": {"augment": {"random_resized_crop": [0.5]}}}, ["train.augment.random_resized_crop"]),
        ({"train": {"augment": {"random_resized_crop": [0, 1]}}}, ["train.augment.random_resized_crop"]),
        (
            {"train": {"augment": {"random_resized_crop": [0.9, 0.5]}}},
            ["random_resized_crop", "[0.9, 0.5]", "[0.35, 1]"],
        ),
        (
            {"train": {"augment": {"random_resized_crop": [0.5, 1], "crop_padding": 2}}},
            ["train.augment", "crop_padding is 2", "random_resized_crop"],
        ),
        ({"data": {"crop": "centre"}}, ["data.crop is 'centre'", "'center'"]),
        ({"data": {"store": "zip"}}, ["data.store is 'zip'", "'raw'"]),
        ({"teacher": {"members": [{}, {"nme": "x"}]}}, ["'teacher.members.1.nme'", "'teacher.members.1.name'"]),
        ({"distill": {"method": "gomperz"}}, ["distill.method 'gomperz'", "'gompertz'", "ce"]),
        ({"distill": {"schedule": "gompert"}}, ["distill.schedule 'gompert'", "'gompertz'"]),
        ({"train": {"epochs": "ten"}}, ["train.epochs is 'ten'", "integer"]),
        ({"train": {"epochs": 2.5}}, ["train.epochs is 2.5"]),
        ({"train": {"epochs": True}}, ["train.epochs is True"]),
        ({"train": {"epochs": 0}}, ["train.epochs is 0", "1"]),
        ({"train": {"optimizer": "sdg"}}, ["train.optimizer is 'sdg'", "'sgd' or 'adamw'"]),
        ({"train": {"device": "gpu"}}, ["train.device 'gpu'", "cuda"]),
        ({"train": {"device": "cuda:x"}}, ["train.device 'cuda:x'"]),
        ({"train": {"learning_rate": float("inf")}}, ["train.learning_rate is inf", "finite"]),
        ({"data": {"seed": 5_000_000_000}}, ["data.seed is 5000000000"]),
        ({"train": 3}, ["train is 3"]),
        ({"data": {"validation_fraction": 0.9}}, ["data.validation_fraction is 0.9", "0.5"]),
        ({"teacher": {"members": [{}, {"classes": ["a", "a"]}]}}, ["teacher.members.1.classes", "['a', 'a']"]),
        ({"tracking": {"model_name": "a/b"}}, ["tracking.model_name is 'a/b'", "/"]),
        ({"student": {"name": "topological:resnet8"}}, ["student.name", "teacher.topological"]),
    ],
)
def test_a_wrong_value_is_named_with_its_key_and_the_way_out(content, parts):
    (message,) = refused(content)
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ({"data": {"group": "who", "source": "cifar10"}}, ["group is who but source is cifar10", "folder, list and"]),
        ({"data": {"source": "folder", "group": "("}}, ["group ( is no regular expression"]),
        ({"data": {"source": "folder", "columns": {"label": "breed"}}}, ["columns are given but source is folder"]),
        ({"data": {"unreadable": "drop"}}, ["unreadable is drop but source is digits"]),
        ({"train": {"schedule": "multistep"}}, ["train: ", "multistep", "milestones"]),
        ({"train": {"milestones": [3]}}, ["train: ", "milestones", "cosine"]),
        ({"train": {"schedule": "multistep", "milestones": [30], "epochs": 20}}, ["milestones [30]", "epochs (20)"]),
        ({"train": {"warmup_epochs": 20.0, "epochs": 20}}, ["warmup_epochs (20)", "epochs (20)"]),
        ({"train": {"nesterov": True, "optimizer": "adamw"}}, ["nesterov", "sgd"]),
        ({"teacher": {"source": "w.pth", "weights": "pretrained"}}, ["teacher: ", "source", "weights"]),
        ({"teacher": {"weights": "pretrained", "members": [{}, {}]}}, ["teacher: ", "weights", "members"]),
        ({"teacher": {"mean": [0.5], "std": [0.5]}}, ["teacher: ", "mean", "weights are null"]),
        ({"student": {"head": "keep"}}, ["student: ", "head is keep", "weights is null"]),
        ({"distill": {"curve": {"beta_min": 2.0}}}, ["distill.curve: ", "beta_min (2)", "beta_max (1)"]),
        ({"distill": {"curve": {"inflection": 0.5}}}, ["inflection", "saturation"]),
        ({"distill": {"curve": {"inflection": 0.8, "saturation": 0.4}}}, ["inflection (0.8)", "saturation (0.4)"]),
        ({"distill": {"curve": {"inflection": 0.3, "saturation": 0.8, "b": 2.0}}}, ["inflection", "b and c"]),
        ({"teacher": {"classes": ["a"]}}, ["teacher: ", "classes", "source"]),
        ({"teacher": {"source": "x.pt", "mean": [0.5]}}, ["teacher: ", "mean", "std"]),
        ({"data": {"root": "photos"}}, ["data: ", "root is photos", "source is digits"]),
        ({"data": {"unreadable": "drop"}}, ["data: ", "unreadable is drop", "source is digits"]),
        ({"data": {"unreadable": "drop", "source": "cifar10"}}, ["unreadable is drop", "source is cifar10"]),
        ({"export": {"int8": {"percentile": 99.0}}}, ["export.int8: ", "percentile", "minmax"]),
    ],
)
def test_keys_of_a_section_that_contradict_each_other_are_both_named(content, parts):
    (message,) = refused(content)
    for part in parts:
        assert part in message


UNREAD = [
    ({"train": {"optimizer": "adamw", "momentum": 0.9}}, ["train: ", "momentum", "adamw", "leave it out"]),
    ({"teacher": {"train": {"optimizer": "adamw", "momentum": 0.5}}}, ["teacher.train: ", "momentum", "adamw"]),
    ({"train": {"decay_factor": 0.1}}, ["train: ", "decay_factor", "cosine", "multistep"]),
    ({"distill": {"method": "kd", "curve": {"c": 1.0}}}, ["distill: ", "curve.c is 1", "method kd", "constant"]),
    ({"distill": {"schedule": "linear", "curve": {"b": 1.0}}}, ["distill: ", "curve.b is 1", "linear"]),
    ({"distill": {"schedule": "constant", "curve": {"beta_min": 0.3}}}, ["curve.beta_min is 0.3", "constant"]),
    ({"distill": {"method": "ce", "curve": {"beta_max": 2.0}}}, ["curve.beta_max is 2", "method ce"]),
    ({"distill": {"method": "ce", "schedule": "linear"}}, ["distill: ", "schedule is linear", "ce", "null"]),
    (
        {"distill": {"options": {"gompertz": {"solver": "sliced", "iterations": 5}}}},
        ["distill.options.gompertz.iterations is 5", "sliced", "sinkhorn"],
    ),
    (
        {"distill": {"options": {"gompertz": {"projections": 8}}}},
        ["distill.options.gompertz.projections is 8", "sinkhorn", "sliced"],
    ),
    ({"teacher": {"assistant_distill": {"method": "gompertz"}}}, ["teacher: ", "assistant_distill", "assistants"]),
    ({"train": {"teacher_cache_gb": 5.0}}, ["train: ", "teacher_cache_gb", "teacher_cache is false"]),
    ({"references": {"kd": False, "kd_weight": 0.5}}, ["references: ", "kd_weight is 0.5", "kd is false"]),
]


@pytest.mark.parametrize(("content", "parts"), UNREAD)
def test_what_is_given_and_nothing_reads_is_refused(content, parts):
    (message,) = refused(content)
    for part in parts:
        assert part in message


def test_what_is_read_or_was_not_given_is_taken():
    for taken in (
        {"train": {"optimizer": "adamw"}},
        {"train": {"schedule": "multistep", "milestones": [3], "decay_factor": 0.1}},
        {"distill": {"method": "kd", "curve": {"beta_min": 0.1, "beta_max": 1.0, "b": None}}},  # the defaults
        {"distill": {"method": "kd", "schedule": "reversed-gompertz", "curve": {"b": 1.0}}},
        {"distill": {"options": {"gompertz": {"solver": "sliced", "projections": 8, "position_weight": 0.0}}}},
    ):
        whole = parse_params(taken).model_dump()
        assert params_of_sections(whole).model_dump() == whole  # as a task of a pipeline has it, with all defaults


def test_all_mistakes_are_told_at_once_a_line_each():
    messages = refused(
        {
            # two contradictions in a section
            "train": {"epochs": 20, "warmup_epochs": 30.0, "nesterov": True, "optimizer": "adamw"},
            "data": {"sorce": "digits", "validation_fraction": 0.9},
            "distill": {"method": "gomperz", "options": {"kd": {"temperature": -1.0}}},
            "nonsense": 1,
        }
    )
    keys = ["warmup_epochs", "nesterov", "data.sorce", "data.validation_fraction", "distill.method"]
    keys += ["distill.options.kd.temperature", "'nonsense'"]
    assert len(messages) == len(keys)
    for key in keys:
        assert sum(key in message for message in messages) == 1, key
    assert all(message.startswith("params: ") for message in messages)


def test_a_section_with_nothing_below_it_has_its_defaults():
    empty = {"train": None, "distill": {"curve": None, "options": None}, "teacher": {"train": {"augment": None}}}
    assert parse_params(empty) == Params()
    assert parse_params({"distill": {"options": {"kd": None}}}).distill.options == {"kd": {}}


def test_the_digest_follows_content_not_notation_nor_place():
    networks = ({"weights": None, "head": "auto"}, {"weights": "a.pth"}, {"weights": "b.pth", "head": "auto"})
    digests = [parse_params({"student": network}).digest("student") for network in networks]
    assert digests[0] == Params().digest("student")
    assert digests[1] == digests[2]  # their own digest is in the record of the training
    assert parse_params({"student": {"weights": "b.pth", "head": "new"}}).digest("student") not in digests
    plain = Params().digest("data", "train")
    cifar = [{"source": "cifar10"}, {"source": "cifar10", "root": "/elsewhere"}]
    assert len({parse_params({"data": data}).digest("data", "train") for data in cifar}) == 1
    written_out = {"recipe": "auto", "momentum": 0.9, "epochs": None}  # the defaults
    assert parse_params({"train": written_out}).digest("data", "train") == plain
    assert parse_params({"train": {"epochs": 21}}).digest("data", "train") != plain
    assert parse_params({"train": {"teacher_cache": True, "teacher_cache_gb": 5.0}}).digest("data", "train") == plain
    assert parse_params({"gate": {"max_parity": 1.0}}).digest("data", "train") == plain


def test_mixed_images_have_no_number_of_views():
    for name in ("mixup", "cutmix"):
        (message,) = refused({"train": {"teacher_views": 4, "augment": {name: 0.5}}})
        assert "teacher_views is 4" in message
        assert f"augment.{name}" in message


def test_every_field_is_documented():
    from pipelines.catalogue import parameter_rows

    undocumented = [name for name, _, _, meaning in parameter_rows() if not meaning]
    assert undocumented == []


def test_the_columns_of_a_list_are_named_in_params_and_on_the_command_line():
    params = parse_params({"data": {"source": "list"}}, ["data.columns.label=breed", "data.group=patient"])
    assert (params.data.columns, params.data.group) == ({"label": "breed"}, "patient")
    (message,) = refused({"data": {"source": "list", "columns": {"lable": "breed"}}})
    assert "data.columns" in message


def test_the_sources_of_files_are_those_that_are_opened_as_such():
    from gkd_core.config.schema import FILES
    from gkd_core.data import sources

    assert sources.FILES == FILES
