"""Which methods make sense in which arrangement, and the one sentence that refuses the others."""

import pytest

from gkd_core.arrangements import ARRANGEMENTS, methods_inside
from gkd_core.config import SchemeOptions, parse_params
from gkd_core.errors import GkdError
from gkd_core.methods import METHODS
from gkd_core.training.lesson import Lesson

LOGIT_METHODS = ["kd", "dynamickd", "cmkd", "dkd", "dist", "logit-standardisation", "ctkd"]
PARTS = {"members": [{"classes": ["0", "1"]}, {"classes": ["1", "2"]}]}
TWO = {"members": [{}, {}]}


def refused(**sections: dict) -> str:
    with pytest.raises(GkdError) as caught:
        parse_params(sections)
    return str(caught.value)


def test_the_families_of_the_papers_table():
    assert list(ARRANGEMENTS) == [
        "single", "multi_teacher", "assistant", "mutual", "born_again", "amalgamation", "cross_modal"
    ]  # fmt: skip
    assert set(SchemeOptions.model_fields) <= set(ARRANGEMENTS)
    assert [name for name, entry in ARRANGEMENTS.items() if not entry.published] == ["amalgamation"]


def test_what_each_takes():
    taught = [name for name, method in METHODS.items() if method.teacher]
    assert methods_inside("single") == list(METHODS)
    assert set(LOGIT_METHODS) <= set(methods_inside("multi_teacher"))
    assert not set(methods_inside("multi_teacher")) & {"gompertz", "fitnet", "at", "reviewkd", "crd", "rkd", "ce"}
    for arrangement in ("assistant", "born_again", "cross_modal"):
        assert methods_inside(arrangement) == taught
    assert methods_inside("mutual") == ["ce", "kd"]
    assert methods_inside("amalgamation") == ["kd"]


@pytest.mark.parametrize("name", METHODS)
def test_how_far_a_method_looks_is_what_its_loss_says(name):
    assert METHODS[name].load().feature_maps == (METHODS[name].reads == "feature maps")


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_a_method_that_makes_no_sense_is_refused_in_one_sentence_naming_both(arrangement):
    for method in METHODS:
        if method in methods_inside(arrangement):
            continue
        message = refused(distill={"arrangement": arrangement, "method": method})
        assert f"distill.arrangement {arrangement}" in message
        assert f"distill.method {method}" in message
        with pytest.raises(GkdError, match="do not go together"):
            Lesson(method, arrangement=arrangement)


@pytest.mark.parametrize(
    ("sections", "parts"),
    [
        ({"distill": {"arrangement": "mutul"}}, ["distill.arrangement 'mutul' is unknown; did you mean 'mutual'?"]),
        (
            {"distill": {"arrangement_options": {"mutual": {"peer": 3}}}},
            ["'distill.arrangement_options.mutual.peer'", "'distill.arrangement_options.mutual.peers'"],
        ),
        ({"distill": {"arrangement_options": {"mutual": {"peers": 1}}}}, ["mutual.peers is 1", "equal to 2"]),
        ({"distill": {"arrangement_options": {"mutul": {}}}}, ["did you mean 'distill.arrangement_options.mutual'?"]),
        (
            {"distill": {"arrangement_options": {"multi_teacher": {"weighting": "mean"}}}},
            ["multi_teacher.weighting is 'mean'", "'average' or 'confidence'"],
        ),
        ({"distill": {"arrangement_options": {"born_again": {"generations": 0}}}}, ["generations is 0"]),
        (
            {"distill": {"arrangement": "multi_teacher", "method": "kd"}},
            ["multi_teacher learns from several", "teacher.members"],
        ),
        (
            {"distill": {"arrangement": "multi_teacher", "method": "kd"}, "teacher": PARTS},
            ["classes of its own", "amalgamation"],
        ),
        (
            {"distill": {"arrangement": "amalgamation", "method": "kd"}, "teacher": TWO},
            ["amalgamation", "teacher.members with their classes"],
        ),
        ({"teacher": TWO}, ["teacher.members lists 2 teachers", "single does not learn from several"]),
        ({"teacher": {"members": [{}]}}, ["members lists one teacher"]),
        ({"teacher": {"members": [{}, {"nme": "x"}]}}, ["'teacher.members.1.nme'", "'teacher.members.1.name'?"]),
        ({"teacher": {"members": [{}, {"classes": ["a", "a"]}]}}, ["members.1.classes ['a', 'a'] names one twice"]),
        ({"teacher": {"members": [{}, {"classes": ["a"]}]}}, ["teacher.members.1.classes", "at least 2"]),
        ({"teacher": {**TWO, "assistants": ["resnet8"]}}, ["members and assistants are both given"]),
        ({"teacher": {**TWO, "source": "x"}}, ["trained here, but source is set"]),
        ({"distill": {"arrangement": "assistant"}}, ["name them in teacher.assistants"]),
        ({"teacher": {"assistants": ["resnet8"]}}, ["teacher.assistants", "distill.arrangement is single"]),
        (
            {"distill": {"arrangement": "assistant", "method": "kd"}, "teacher": {"assistants": ["resnet8"]}},
            ["distill.method and teacher.assistant_distill.method differ (kd and gompertz)"],
        ),
        (
            {
                "distill": {"arrangement": "assistant", "options": {"gompertz": {"preset": "tuned"}}},
                "teacher": {"assistants": ["resnet8"]},
            },
            ["distill.options and teacher.assistant_distill.options differ ({'preset': 'tuned'} and {})"],
        ),
        ({"distill": {"arrangement": "cross_modal"}}, ["set student.channels or student.image_size"]),
        ({"student": {"channels": 1}}, ["a view of its own", "set it to cross_modal"]),
    ],
)  # fmt: skip
def test_contradictions_are_one_sentence(sections, parts):
    message = refused(**sections)
    for part in parts:
        assert part in message


@pytest.mark.parametrize("arrangement", ["mutual", "amalgamation"])
def test_a_hyperparameter_that_would_not_be_read_is_refused(arrangement):
    distill = {"arrangement": arrangement, "method": "kd", "options": {"kd": {"weight": 0.5}}}
    params = parse_params({"distill": distill, "teacher": PARTS if arrangement == "amalgamation" else {}})
    with pytest.raises(GkdError, match=rf"options\.kd\.weight is not read by distill\.arrangement {arrangement}"):
        params.distill.hyperparameters()


def test_the_chain_may_repeat_what_distill_says():
    how = {"method": "kd", "temperature": 2.0, "schedule": "linear"}
    params = parse_params(
        {
            "distill": how | {"arrangement": "assistant"},
            "teacher": {"assistants": ["resnet8"], "assistant_distill": how},
        }
    )
    assert (
        params.teacher.assistant_distill.hyperparameters() == params.distill.hyperparameters() == {"temperature": 2.0}
    )


@pytest.mark.parametrize(
    ("lesson", "temperature"),
    [
        (Lesson("kd"), 4.0),
        (Lesson("kd", {"temperature": 2.0}), 2.0),
        (Lesson("kd", arrangement="mutual"), 1.0),
        (Lesson("kd", {"temperature": 3.0}, arrangement="mutual"), 3.0),
        (Lesson("kd", arrangement="amalgamation"), 4.0),
        (Lesson("cmkd", arrangement="multi_teacher"), 1.0),
        (Lesson("ctkd", arrangement="multi_teacher"), 1.0),
        (Lesson("logit-standardisation", arrangement="multi_teacher"), 2.0),
    ],
)
def test_the_temperature_is_the_users_then_the_arrangements_then_the_methods(lesson, temperature):
    assert lesson.temperature == temperature
