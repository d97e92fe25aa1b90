"""Named settings to compare: what an entry means, and what is told of wrong ones."""

import re
from pathlib import Path

import pytest

from gkd_core.config import load_params, parse_params
from gkd_core.config.contenders import line_up, merged, parse_contenders
from gkd_core.errors import GkdError
from gkd_core.methods import METHODS

BASE = {
    "distill": {"method": "gompertz", "options": {"gompertz": {"solver": "sliced"}}, "curve": {"b": 3.0}},
    "train": {"epochs": 3, "clip_norm": 1.0},
    "student": {"name": "resnet14"},
}


def lined(entries, base=BASE, **more):
    return {each.name: each.params for each in line_up(parse_params(base), contenders=entries, **more)}


def refused(entries, base=BASE, **more):
    with pytest.raises(GkdError) as caught:
        line_up(parse_params(base), contenders=entries, option="--", **more)
    return str(caught.value)


def test_an_entry_changes_what_it_names_and_nothing_else():
    found = lined(
        [
            {"name": "as it is"},
            {"name": "tuned", "distill": {"options": {"gompertz": {"preset": "tuned"}}}},
            {"name": "longer", "train": {"epochs": 9, "clip_norm": None}},
            {"name": "smaller", "student": {"name": "resnet8"}},
        ]
    )
    assert found["as it is"].model_dump() == parse_params(BASE).model_dump()
    assert found["tuned"].distill.options == {"gompertz": {"solver": "sliced", "preset": "tuned"}}
    assert (found["longer"].train.epochs, found["longer"].train.clip_norm) == (9, None)
    assert (found["smaller"].student.name, found["smaller"].train.epochs) == ("resnet8", 3)
    assert found["tuned"].student == found["as it is"].student


def test_the_curve_s_shape_is_an_entry_s_too():
    by_hand = {"b": 3.0, "c": 0.5}
    early = {"b": None, "inflection": 0.08, "saturation": 0.4}
    found = lined(
        [
            {"name": "by hand", "distill": {"curve": by_hand}},
            {"name": "early", "distill": {"curve": early}},
            {"name": "constant", "distill": {"schedule": "constant", "curve": {"beta_max": 2.0}}},
        ]
    )
    shapes = {name: params.distill.curve.model_dump(exclude_defaults=True) for name, params in found.items()}
    assert shapes["by hand"] == by_hand
    assert shapes["early"] == {"inflection": 0.08, "saturation": 0.4}
    assert (found["constant"].distill.schedule, shapes["constant"]["beta_max"]) == ("constant", 2.0)
    unread = [
        {"name": "constant", "distill": {"schedule": "constant", "curve": {"inflection": 0.1, "saturation": 0.4}}}
    ]
    assert "'constant': distill: curve.inflection is 0.1" in refused(unread, base={})


def test_it_may_name_scheme_weights_and_schedule():
    found = lined(
        [
            {
                "name": "peers",
                "distill": {"method": "kd", "scheme": "mutual", "scheme_options": {"mutual": {"peers": 3}}},
            },
            {"name": "learnt", "student": {"name": "resnet18", "weights": "pretrained", "head": "new"}},
            {"name": "linear", "distill": {"schedule": "linear"}},
        ]
    )
    assert found["peers"].distill.scheme_options == {"mutual": {"peers": 3}}
    assert (found["learnt"].student.weights, found["learnt"].student.head) == ("pretrained", "new")
    assert found["linear"].distill.schedule == "linear"  # whose curve has no b: what is inherited may go unread


def test_methods_are_the_short_way_to_write_the_same():
    params = parse_params(BASE)
    words = line_up(params, methods=["ce", "dkd"])
    written = line_up(params, contenders=["ce", {"name": "dkd", "distill": {"method": "dkd"}}], reference="kd")
    assert [(each.name, each.settings) for each in words] == [(each.name, each.settings) for each in written]
    assert [each.name for each in words] == ["kd", "ce", "dkd"]
    assert {each.name for each in line_up(params)} == set(METHODS)


def test_the_reference_is_the_first_contender_or_the_one_that_is_named_and_comes_first():
    entries = ["ce", {"name": "mine"}, "kd"]
    assert list(lined(entries)) == ["ce", "mine", "kd"]
    assert list(lined(entries, reference="mine")) == ["mine", "ce", "kd"]
    assert list(lined(entries, reference="dkd")) == ["dkd", "ce", "mine", "kd"]  # a method joins them
    assert "--reference: contender 'mein' is unknown; did you mean 'mine'?" in refused(entries, reference="mein")


def test_its_digest_follows_the_settings_and_not_the_name_or_the_seed():
    def digest(base=BASE, **sections):
        return line_up(parse_params(base), contenders=[{"name": "mine", **sections}])[0].settings

    assert digest() == digest(base=BASE | {"train": BASE["train"] | {"seed": 7}})
    assert digest() == digest(distill={"options": {"kd": {"temperature": 2.0}}})  # which nothing reads
    others = [
        digest(train={"learning_rate": 0.2}),
        digest(student={"name": "resnet8"}),
        digest(student={"name": "resnet18", "weights": "pretrained"}),
        digest(student={"name": "resnet18", "weights": "IMAGENET1K_V1"}),
        digest(distill={"options": {"gompertz": {"preset": "paper"}}}),
    ]
    assert len({digest(), *others}) == 6


@pytest.mark.parametrize(
    "base",
    [
        {"student": {"name": "resnet8", "image_size": 4}, "distill": {"method": "kd", "scheme": "cross_modal"}},
        {"teacher": {"members": [{}, {}]}, "distill": {"method": "kd", "scheme": "ensemble"}},
        {"teacher": {"assistants": ["resnet14"]}, "distill": {"method": "kd", "scheme": "assistant"}},
        {"distill": {"method": "kd", "scheme": "born_again", "scheme_options": {"born_again": {"generations": 2}}}},
    ],
    ids=lambda base: base["distill"]["scheme"],
)
def test_the_student_alone_stands_beside_what_any_scheme_teaches(base):
    taught = base["distill"]
    entries = [{"name": "taught"}, "ce", {"name": "larger steps", "distill": {"method": "ce"}, "train": {"epochs": 3}}]
    found = lined([*entries, "self-distillation"], base)
    assert found["taught"].distill.scheme == taught["scheme"]
    for name in ("ce", "larger steps", "self-distillation"):
        assert found[name].distill.scheme == "single"
        assert (found[name].student, found[name].teacher) == (found["taught"].student, found["taught"].teacher)
    asked = {"name": "asked for", "distill": {"method": "ce", "scheme": taught["scheme"]}}
    assert "do not go together" in refused([{"name": "taught"}, asked], base)


def test_peers_without_a_teacher_stay_peers():
    found = lined(["kd", "ce"], {"distill": {"method": "kd", "scheme": "mutual"}})
    assert [params.distill.scheme for params in found.values()] == ["mutual", "mutual"]


def test_all_mistakes_are_told_at_once_each_with_its_contender():
    said = refused(
        [
            "kdd",
            {"name": "steps", "train": {"learning_rat": 0.2}},
            {"name": "kinds", "train": {"epochs": "many"}, "student": {"name": "resnett8"}},
            {"name": "options", "distill": {"method": "kd", "options": {"kd": {"temperatur": 2}}}},
            {"name": "misplaced", "method": "kd"},
            {"name": "kd", "train": {"epochs": 4}},
            {"name": "seeded", "train": {"seed": 3}},
            {"name": "flat", "train": 3},
            {"name": "peers", "distill": {"method": "dkd", "scheme": "mutual"}},
            {"name": "unread", "distill": {"method": "ce", "schedule": "linear"}},
            {"name": "twice", "train": {"epochs": 5}},
            {"name": "twice", "train": {"epochs": 6}},
            {"name": "again", "train": {"epochs": 5}},
            {"distill": {"method": "kd"}},
            3,
        ]
    )
    for line in (
        "--contenders: method 'kdd' is unknown; did you mean 'kd'?",
        "'steps': parameter 'train.learning_rat' is unknown; did you mean 'train.learning_rate'?",
        "'kinds': train.epochs is 'many'",
        "'kinds': student.name",
        "'options': ",
        "did you mean 'distill.options.kd.temperature'?",
        "'misplaced': key 'method' is unknown; did you mean 'distill.method'?",
        "'kd': its method is gompertz: write distill: {method: kd}",
        "'seeded': train.seed is given",
        "'flat': train is 3: it must be a section",
        "'peers': distill.scheme mutual and distill.method dkd do not go together",
        "'unread': distill: schedule is linear but method ce",
        "'twice': another contender has this name",
        "'again': it has the same settings as 'twice'",
        "entry 14: name is None",
        "entry 15 is 3",
    ):
        assert line in said, line
    assert all(line.startswith("--contenders: ") for line in said.splitlines())


def test_one_temperature_for_several_methods_is_refused_and_for_one_is_inherited():
    base = {"distill": {"method": "kd", "temperature": 2.0}}
    assert "distill.temperature is 2" in refused(["kd", "dkd"], base)
    own = lined([{"name": "soft"}, {"name": "softer", "distill": {"temperature": 8.0}}], base)
    assert [params.distill.hyperparameters()["temperature"] for params in own.values()] == [2.0, 8.0]
    assert lined([{"name": "soft"}, {"name": "dkd", "distill": {"method": "dkd", "temperature": None}}], base)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: kd", "must hold a list of contenders"),
        ("", "not nothing"),
        ("- {name: a, name: b}", "line 1, column 4 is not valid YAML: name stands there twice"),
    ],
)
def test_a_file_that_is_no_list(text, words):
    with pytest.raises(GkdError, match=words):
        parse_contenders(text, "c.yaml")


def test_methods_beside_contenders_are_refused():
    assert "--contenders and --methods are both given" in refused(["kd"], methods=["ce"])


def test_a_method_that_is_named_twice_is_refused():
    assert refused(None, methods=["ce", "kd", "kd"]) == "--methods names kd twice: name each once"


def test_null_takes_a_default_back_wherever_it_stands():
    assert merged({"a": {"b": 1, "c": 2}}, {"a": {"b": None, "d": {"e": None}}}) == {"a": {"c": 2, "d": {}}}


def test_the_page_s_example_is_one():
    root = Path(__file__).parents[3]
    (text,) = re.findall(r"```yaml\n(.*?)```", (root / "docs" / "comparing.md").read_text(), re.DOTALL)
    found = line_up(load_params(root / "params.yaml"), contenders=parse_contenders(text, "the page"))
    assert [each.name for each in found][:2] == ["kd", "kd, larger steps"]
