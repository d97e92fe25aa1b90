"""The options of methods are checked when the file is read, all that stand in it, by the keys as they were written."""

import pytest

from gkd_core.config import parse_params
from gkd_core.errors import GkdError
from gkd_core.methods import METHODS, RENAMED, check_hyperparameters, hyperparameters
from gkd_core.schemes import DistillationSpec


@pytest.mark.parametrize(
    ("distill", "parts"),
    [
        (
            {"options": {"kd": {"temperatur": 2.0}}},
            ["'distill.options.kd.temperatur'", "'distill.options.kd.temperature'"],
        ),
        ({"options": {"kd": {"alhpa": 0.5}}}, ["'distill.options.kd.alhpa'", "'distill.options.kd.weight'"]),
        ({"options": {"kdd": {}}}, ["distill.options", "'kdd'", "'kd'"]),
        ({"options": {"kd": 3}}, ["distill.options.kd is 3"]),
        ({"options": {"kd": {"temperature": "warm"}}}, ["distill.options.kd.temperature is 'warm'"]),
        ({"options": {"kd": {"temperature": 0.0}}}, ["distill.options.kd.temperature is 0", "greater than 0"]),
        ({"options": {"gompertz": {"preset": "papr"}}}, ["distill.options.gompertz.preset is 'papr'", "'paper'"]),
        ({"options": {"ce": {"weight": 1.0}}}, ["'distill.options.ce.weight'", "none"]),
        ({"method": "fitnet", "temperature": 2.0}, ["distill.temperature is 2", "fitnet"]),
        (
            {"method": "kd", "temperature": 2.0, "options": {"kd": {"temperature": 4.0}}},
            ["distill.temperature (2)", "distill.options.kd.temperature (4)"],
        ),
    ],
)
def test_a_wrong_option_is_named_as_it_was_written(distill, parts):
    with pytest.raises(GkdError) as caught:
        parse_params({"distill": distill})
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"mutul": {}}, ["distill.scheme_options", "'mutul'", "'mutual'"]),
        ({"mutual": {"peer": 3}}, ["'distill.scheme_options.mutual.peer'", "'distill.scheme_options.mutual.peers'"]),
        ({"mutual": {"peers": 1}}, ["distill.scheme_options.mutual.peers is 1", "2"]),
        ({"ensemble": {"weighting": "mean"}}, ["distill.scheme_options.ensemble.weighting is 'mean'", "'average'"]),
    ],
)
def test_a_wrong_option_of_a_scheme_is_named_as_it_was_written(options, parts):
    with pytest.raises(GkdError) as caught:
        parse_params({"distill": {"scheme_options": options}})
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_options_of_assistants_are_named_in_their_own_section():
    with pytest.raises(GkdError, match=r"'teacher\.assistant_distill\.options\.kd\.temperatur'"):
        parse_params({"teacher": {"assistant_distill": {"options": {"kd": {"temperatur": 1.0}}}}})


def test_options_of_other_methods_are_checked_and_not_used():
    params = parse_params({"distill": {"method": "kd", "options": {"gompertz": {"preset": "paper"}}}})
    assert params.distill.hyperparameters() == {}


def test_null_and_whole_numbers_are_the_defaults_and_floats_they_stand_for():
    plain = parse_params({"distill": {"method": "kd", "options": {"kd": {"temperature": 4}}}})
    same = parse_params(
        {"distill": {"method": "kd", "options": {"kd": {"temperature": 4.0}, "dkd": {"temperature": None}}}}
    )
    assert plain.digest("distill") == same.digest("distill")


def test_the_digest_knows_the_options_of_the_chosen_method_and_scheme_alone():
    def digest(**distill: object) -> str:
        return parse_params({"distill": {"method": "kd"} | distill}).digest("distill")

    assert digest() == digest(options={"dkd": {"temperature": 2.0}}, scheme_options={"mutual": {"peers": 3}})
    assert digest(options={"kd": {"temperature": 2.0}}) != digest()
    peers = {"scheme": "mutual", "scheme_options": {"mutual": {"peers": 3}}}
    assert digest(**peers) != digest(scheme="mutual")


def test_the_library_reads_an_old_name_with_a_warning_and_guesses_it_behind_a_slip():
    with pytest.warns(FutureWarning, match="alpha is called weight"):
        assert check_hyperparameters("kd", {"alpha": 0.5}) == {"weight": 0.5}
    with pytest.warns(FutureWarning) as said:
        DistillationSpec("kd", {"alpha": 0.5})
    assert said[0].filename == __file__  # the line that whoever calls the library has to change
    with pytest.raises(GkdError, match=r"alhpa.* did you mean '.*weight'"):
        check_hyperparameters("kd", {"alhpa": 0.5})
    with pytest.raises(GkdError, match="both are given"):
        check_hyperparameters("kd", {"alpha": 0.5, "weight": 0.5})


def test_what_options_were_called_before_is_no_option_of_today():
    for method, names in RENAMED.items():
        known = hyperparameters(method)
        assert method in METHODS
        assert not known.keys() & names.keys()
        assert set(names.values()) <= known.keys()
