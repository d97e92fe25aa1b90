"""Which methods make sense in which scheme, and the one sentence that refuses the others."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from gkd_core import schemes
from gkd_core.config import parse_params
from gkd_core.errors import GkdError
from gkd_core.methods import METHODS
from gkd_core.schemes import DistillationSpec

ROOT = Path(__file__).parents[3]
LOGIT_METHODS = ["kd", "dynamickd", "cmkd", "dkd", "dist", "logit-standardisation", "ctkd"]
PARTS = {"members": [{"classes": ["0", "1"]}, {"classes": ["1", "2"]}]}
TWO = {"members": [{}, {}]}


def refused(**sections: dict) -> str:
    with pytest.raises(GkdError) as caught:
        parse_params(sections)
    return str(caught.value)


def test_the_families_of_the_papers_table_are_the_files_here():
    assert schemes.names()[0] == "single"
    assert set(schemes.names()) == {
        "single", "ensemble", "assistant", "mutual", "born_again", "amalgamation", "cross_modal"
    }  # fmt: skip
    assert all(schemes.get(name).name == name for name in schemes.names())
    assert [name for name in schemes.names() if not schemes.get(name).published] == ["amalgamation"]


def test_the_default_scheme_and_the_names_of_all_need_no_torch():
    code = (
        "import sys; from gkd_core import schemes; from gkd_core.config import parse_params; schemes.names();"
        "parse_params({}); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_other_file_names_a_scheme():
    names = set(schemes.names()) - {"single", "assistant"}  # an assistant is a network's role, too
    for file in [*ROOT.glob("gkd_core/**/*.py"), *ROOT.glob("components/**/*.py"), *ROOT.glob("pipelines/**/*.py")]:
        if file.parent.name != "schemes":
            constants = {node.value for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant)}
            assert not constants & names, file


def test_what_each_takes():
    taught = [name for name, method in METHODS.items() if method.teacher]
    inside = {name: schemes.get(name).methods for name in schemes.names()}
    assert inside["single"] == list(METHODS)
    assert set(LOGIT_METHODS) <= set(inside["ensemble"])
    assert not set(inside["ensemble"]) & {"gompertz", "fitnet", "at", "reviewkd", "crd", "rkd", "ce"}
    for scheme in ("assistant", "born_again", "cross_modal"):
        assert inside[scheme] == taught
    assert inside["mutual"] == ["ce", "kd"]
    assert inside["amalgamation"] == ["kd"]


@pytest.mark.parametrize("scheme", schemes.names())
def test_a_method_that_makes_no_sense_is_refused_in_one_sentence_naming_both(scheme):
    for method in METHODS:
        if method in schemes.get(scheme).methods:
            continue
        message = refused(distill={"scheme": scheme, "method": method})
        assert f"distill.scheme {scheme}" in message
        assert f"distill.method {method}" in message
        with pytest.raises(GkdError, match="do not go together"):
            DistillationSpec(method, scheme=scheme)


@pytest.mark.parametrize(
    ("sections", "parts"),
    [
        ({"distill": {"scheme": "mutul"}}, ["distill.scheme 'mutul' is unknown; did you mean 'mutual'?"]),
        (
            {"distill": {"scheme_options": {"mutual": {"peer": 3}}}},
            ["'distill.scheme_options.mutual.peer'", "'distill.scheme_options.mutual.peers'"],
        ),
        ({"distill": {"scheme_options": {"mutual": {"peers": 1}}}}, ["mutual.peers is 1", "equal to 2"]),
        ({"distill": {"scheme_options": {"mutul": {}}}}, ["scheme_options", "'mutul'", "did you mean 'mutual'?"]),
        (
            {"distill": {"scheme_options": {"ensemble": {"weighting": "mean"}}}},
            ["ensemble.weighting is 'mean'", "'average' or 'confidence'"],
        ),
        ({"distill": {"scheme_options": {"born_again": {"generations": 0}}}}, ["generations is 0"]),
        (
            {"distill": {"scheme": "ensemble", "method": "kd"}},
            ["ensemble learns from several", "teacher.members"],
        ),
        (
            {"distill": {"scheme": "ensemble", "method": "kd"}, "teacher": PARTS},
            ["classes of its own", "amalgamation"],
        ),
        (
            {"distill": {"scheme": "amalgamation", "method": "kd"}, "teacher": TWO},
            ["amalgamation", "teacher.members with their classes"],
        ),
        ({"teacher": TWO}, ["teacher.members lists 2 teachers", "distill.scheme single", "amalgamation or ensemble"]),
        ({"teacher": {"members": [{}]}}, ["members lists one teacher"]),
        ({"teacher": {"members": [{}, {"nme": "x"}]}}, ["'teacher.members.1.nme'", "'teacher.members.1.name'?"]),
        ({"teacher": {"members": [{}, {"classes": ["a", "a"]}]}}, ["members.1.classes ['a', 'a'] names one twice"]),
        ({"teacher": {"members": [{}, {"classes": ["a"]}]}}, ["teacher.members.1.classes", "at least 2"]),
        ({"teacher": {**TWO, "assistants": ["resnet8"]}}, ["members and assistants are both given"]),
        ({"teacher": {**TWO, "source": "x"}}, ["trained here, but source is set"]),
        ({"distill": {"scheme": "assistant"}}, ["name them in teacher.assistants"]),
        ({"teacher": {"assistants": ["resnet8"]}}, ["teacher.assistants", "set distill.scheme to assistant"]),
        (
            {"distill": {"scheme": "assistant", "method": "gompertz"}, "teacher": {"assistants": ["resnet8"]}},
            ["distill.method and teacher.assistant_distill.method differ (gompertz and kd)"],
        ),
        (
            {
                "distill": {"scheme": "assistant", "options": {"kd": {"weight": 0.5}}},
                "teacher": {"assistants": ["resnet8"]},
            },
            ["distill.options and teacher.assistant_distill.options differ ({'weight': 0.5} and {})"],
        ),
        ({"distill": {"scheme": "cross_modal"}}, ["set student.channels or student.image_size"]),
        ({"student": {"channels": 1}}, ["a view of its own", "set it to cross_modal"]),
    ],
)  # fmt: skip
def test_contradictions_are_one_sentence(sections, parts):
    message = refused(**sections)
    for part in parts:
        assert part in message


@pytest.mark.parametrize("student", [{"channels": 1}, {"image_size": 4}])
def test_a_student_that_nobody_teaches_may_have_a_view_of_its_own(student):
    """What it is told to take instead, cross_modal, would refuse the method."""
    parse_params({"student": student, "distill": {"method": "ce"}})
    assert "a view of its own" in refused(student=student, distill={"method": "kd"})


def test_other_schemes_let_a_student_have_a_view_of_its_own():
    for distill, teacher in (
        ({"scheme": "cross_modal", "method": "kd"}, {}),
        ({"scheme": "ensemble", "method": "kd"}, {"members": [{}, {}]}),
    ):
        parse_params({"student": {"channels": 1}, "distill": distill, "teacher": teacher})


@pytest.mark.parametrize("scheme", ["mutual", "amalgamation"])
def test_a_hyperparameter_that_would_not_be_read_is_refused(scheme):
    distill = {"scheme": scheme, "method": "kd", "options": {"kd": {"weight": 0.5}}}
    message = refused(distill=distill, teacher=PARTS if scheme == "amalgamation" else {})
    assert "distill.options.kd.weight is not read by distill.scheme " + scheme in message


def test_the_chain_may_repeat_what_distill_says():
    how = {"method": "kd", "temperature": 2.0, "schedule": "linear"}
    params = parse_params(
        {
            "distill": how | {"scheme": "assistant"},
            "teacher": {"assistants": ["resnet8"], "assistant_distill": how},
        }
    )
    assert (
        params.teacher.assistant_distill.hyperparameters() == params.distill.hyperparameters() == {"temperature": 2.0}
    )


@pytest.mark.parametrize(
    ("spec", "temperature"),
    [
        (DistillationSpec("kd"), 4.0),
        (DistillationSpec("kd", {"temperature": 2.0}), 2.0),
        (DistillationSpec("kd", scheme="mutual"), 1.0),
        (DistillationSpec("kd", {"temperature": 3.0}, scheme="mutual"), 3.0),
        (DistillationSpec("kd", scheme="amalgamation"), 4.0),
        (DistillationSpec("cmkd", scheme="ensemble"), 1.0),
        (DistillationSpec("ctkd", scheme="ensemble"), 1.0),
        (DistillationSpec("logit-standardisation", scheme="ensemble"), 2.0),
    ],
)
def test_the_temperature_is_the_users_then_the_schemes_then_the_methods(spec, temperature):
    assert spec.temperature == temperature
