"""The space of a search: what a line means, what is drawn when, and what is refused before anything is trained."""

import itertools

import pytest

from gkd_core.config import parse_params
from gkd_core.config.space import parse_space, read_space, sections_of
from gkd_core.errors import GkdError

BASE = parse_params({"distill": {"method": "kd"}, "train": {"epochs": 5}})


class Draws:
    """Gives lower ends and first choices, or upper ends and last ones; remembers what it was asked."""

    def __init__(self, upper=False):
        self.upper, self.asked = upper, {}

    def suggest_float(self, name, low, high, *, step=None, log=False):
        self.asked[name] = ("float", low, high, step, log)
        return high if self.upper else low

    def suggest_int(self, name, low, high, *, step=1, log=False):
        self.asked[name] = ("int", low, high, step, log)
        return high if self.upper else low

    def suggest_categorical(self, name, choices):
        self.asked[name] = tuple(choices)
        return choices[-1 if self.upper else 0]


def space(text, base=BASE):
    return read_space(parse_space(text, "space.yaml"), base, "space.yaml")


def refused(text, base=BASE):
    with pytest.raises(GkdError) as caught:
        space(text, base)
    return str(caught.value)


def test_a_line_is_a_range_choices_or_one_value():
    found = space(
        "train.learning_rate: {low: 0.01, high: 1, log: true}\n"
        "train.batch_size: {low: 16, high: 64, step: 16}\n"
        "distill.temperature: {low: 1, high: 8}\n"
        "train.schedule: {choices: [cosine, constant]}\n"
        "student.name: resnet14\n"
    )
    lower, upper = Draws(), Draws(upper=True)
    assert found.draw(lower) == {
        "train.learning_rate": 0.01,
        "train.batch_size": 16,
        "distill.temperature": 1.0,
        "train.schedule": "cosine",
        "student.name": "resnet14",
    }
    assert found.draw(upper)["train.schedule"] == "constant"
    assert lower.asked["train.learning_rate"] == ("float", 0.01, 1.0, None, True)
    assert lower.asked["train.batch_size"] == ("int", 16, 64, 16, False), "a batch is no fraction"
    assert lower.asked["distill.temperature"][0] == "float", (
        "τ may be 2.5, though its range is written in whole numbers"
    )
    assert "student.name" not in lower.asked
    params, wrong = found.settle(found.draw(upper))
    assert not wrong
    assert (params.train.batch_size, params.student.name, params.train.epochs) == (64, "resnet14", 5)


def test_a_number_has_no_more_digits_than_tell_settings_apart():
    class Odd(Draws):
        def suggest_float(self, name, low, high, **_):
            return 0.123456789

    assert space("train.learning_rate: {low: 0.01, high: 1}").draw(Odd()) == {"train.learning_rate": 0.1235}


def test_lists_may_be_chosen_from():
    found = space("train.schedule: multistep\ntrain.milestones: {choices: [[2], [3, 4]]}")
    draws = Draws(upper=True)
    assert found.draw(draws)["train.milestones"] == [3, 4]
    assert draws.asked["train.milestones"] == ("[2]", "[3, 4]")


def test_what_a_condition_asks_for_decides_what_is_drawn_wherever_it_stands():
    found = space(
        "distill.options.dkd.weight_non_target: {low: 1, high: 8}\n"
        "distill.curve.c: {low: 0.2, high: 1, when: {distill.method: [gompertz]}}\n"
        "distill.method: {choices: [dkd, gompertz]}\n"
    )
    assert set(found.draw(Draws())) == {"distill.method", "distill.options.dkd.weight_non_target"}
    assert set(found.draw(Draws(upper=True))) == {"distill.method", "distill.curve.c"}
    (method,) = {values["distill.method"] for values in found.fixed_to("distill.method", "dkd").combinations()}
    assert method == "dkd"
    assert not found.fixed_to("distill.method", "dkd").has("distill.curve.c")


def test_an_option_of_the_method_that_all_have_is_drawn():
    assert space("distill.options.kd.weight: {low: 0.1, high: 0.9}").draw(Draws()) == {"distill.options.kd.weight": 0.1}


def test_a_method_without_a_teacher_is_searched_beside_a_scheme_that_takes_none():
    base = {"student": {"image_size": 4}, "distill": {"method": "kd", "scheme": "cross_modal"}}
    content = {"distill.method": {"choices": ["kd", "ce"]}, "train.learning_rate": {"low": 0.02, "high": 0.5}}
    found = read_space(content, parse_params(base))
    for method, scheme in (("kd", "cross_modal"), ("ce", "single")):
        params, wrong = found.settle({"distill.method": method, "train.learning_rate": 0.1})
        assert not wrong
        assert (params.distill.method, params.distill.scheme) == (method, scheme)


def test_combinations_meet_every_choice_at_both_ends():
    found = space("train.schedule: {choices: [cosine, constant]}\ntrain.learning_rate: {low: 0.1, high: 1}")
    seen = {(values["train.schedule"], values["train.learning_rate"]) for values in found.combinations()}
    assert seen == set(itertools.product(["cosine", "constant"], [0.1, 1.0]))


def test_it_is_written_as_it_was_read():
    text = "distill.method: {choices: [kd, dkd]}\ntrain.learning_rate: {low: 0.1, high: 1, log: true}\ntrain.epochs: 3"
    assert space(text).written() == parse_space(text, "x")


@pytest.mark.filterwarnings("ignore:.*is called:FutureWarning")
def test_old_names_are_read():
    assert space("distill.options.kd.alpha: {choices: [0.1, 0.2]}").drawn[0].key == "distill.options.kd.weight"


def test_sections():
    assert sections_of({"a.b.c": 1, "a.d": 2}) == {"a": {"b": {"c": 1}, "d": 2}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "must hold parameters"),
        ("- kd", "must hold parameters (train.learning_rate"),
        ("train.learning_rat: {low: 1, high: 2}", "'train.learning_rat' is unknown; did you mean 'train.learning_rate"),
        ("distill.options.kdd.weight: {low: 0, high: 1}", "method 'kdd' is unknown; did you mean 'kd'"),
        ("distill.options.kd.wight: {low: 0, high: 1}", "did you mean 'distill.options.kd.weight'"),
        ("distill.scheme_options.mutul.peers: {low: 2, high: 3}", "scheme 'mutul' is unknown; did you mean 'mutual'"),
        ("learning_rate: {low: 1, high: 2}", "'learning_rate' is no key: write train.learning_rate"),
        ("data.seed: {low: 1, high: 2}", "'data.seed' cannot be searched: a search moves only what is in distill, "),
        ("train: {learning_rate: 1}", "train is a section: write a line a parameter, such as train.learning_rate: …"),
        ("train.seed: 3", "every setting has the seeds of --seeds"),
        ("train.learning_rate: {low: 2, high: 1}", "low (2) must be below high (1)"),
        ("train.learning_rate: {low: a, high: 1}", "low is 'a': give a number"),
        ("train.learning_rate: {low: .nan, high: 1}", "low is nan: give a number"),
        ("train.learning_rate: {low: 1}", "train.learning_rate: high is missing"),
        ("train.learning_rate: {}", "low and high is missing"),
        ("train.learning_rate: {low: 1, high: 2, lgo: true}", "key 'lgo' is unknown; did you mean "),
        ("train.learning_rate: {low: 0, high: 1, log: true}", "a logarithm needs low above 0"),
        ("train.learning_rate: {low: 1, high: 2, log: 1}", "log is 1: give true or false"),
        ("train.learning_rate: {low: 1, high: 2, log: true, step: 0.1}", "log and step are both given"),
        ("train.learning_rate: {low: 1, high: 2, step: 3}", "step is 3: give more than 0 and at most high − low (1)"),
        ("train.learning_rate: {choices: []}", "choices is []: give a list of one or more"),
        ("train.learning_rate: {choices: [1, 1]}", "choices has 1 twice"),
        ("train.learning_rate: {choices: [1], low: 2}", "choices and low are both given"),
        ("train.learning_rate: {choices: [0.1, fast]}", "train.learning_rate is 'fast': input should be a valid"),
        ("train.momentum: {low: 0.5, high: 1.5}", "train.momentum is 1.5: input should be less than 1"),
        ("distill.method: {choices: [kd, dkdd]}", "distill.method 'dkdd' is unknown; did you mean 'dkd'"),
        ("train.epochs: 3", "every parameter has one value, so there is nothing to search"),
        ("train.epochs: {low: 1, high: 2, when: {distill.metod: kd}}", "did you mean 'distill.method'"),
        ("train.epochs: {low: 1, high: 2, when: kd}", "when is 'kd': give another parameter and its value"),
        ("train.epochs: {low: 1, high: 3, when: {train.momentum: 0.5}}\ntrain.momentum: {low: 0, high: 0.9}",
         "when asks for train.momentum, which is a range"),
        ("train.epochs: {low: 1, high: 3, when: {train.select: worst}}\ntrain.select: {choices: [last, best]}",
         "train.epochs is drawn where train.select is 'worst', which it never is"),
        ("train.epochs: {choices: [1, 2], when: {train.select: last}}\n"
         "train.select: {choices: [last, best], when: {train.epochs: 1}}", "round a circle"),
        ("distill.options.dkd.weight_target: {low: 0, high: 1}",
         "is drawn where distill.method is 'dkd', but it is 'kd': add a line distill.method: dkd"),
        ("distill.method: {choices: [kd, gompertz]}\n"
         "distill.options.kd.weight: {low: 0.1, high: 0.9, when: {distill.method: gompertz}}", "asks for another"),
        ("distill.method: {choices: [ce, kd]}\ndistill.temperature: {low: 1, high: 4}",
         "with distill.method ce, distill.temperature 1: distill.temperature is 1.0, but method ce has no temperature"),
        ("distill.method: {choices: [kd, fitnet]}\ndistill.scheme: mutual", "with distill.method fitnet"),
    ],
)  # fmt: skip
def test_what_cannot_be_searched_is_told_in_a_sentence(text, words):
    found = refused(text)
    assert words in found
    assert all(line.startswith("space.yaml") for line in found.splitlines())


def test_everything_that_is_wrong_is_told_at_once():
    found = refused("train.epochs: {low: 3, high: 2}\ntrain.select: {choices: []}\nlearning_rate: 3")
    assert len(found.splitlines()) == 3


def test_a_line_that_cannot_be_read_hides_no_other_s_mistake():
    said = refused(
        "train.learning_rate: {low: 1, high: 0.1}\n"
        "distill.options.kd.wieght: {low: 0.1, high: 1}\n"
        "train.epochs: 0\n"
        "train.batch_size: {choices: [16, 32]}\n"
        "train.label_smoothing: {low: 0, high: 0.1, when: {train.learning_rate: 1}}\n"
    )
    for words in ("low (1) must be below high (0.1)", "did you mean 'distill.options.kd.weight'", "train.epochs is 0"):
        assert words in said, words
    assert len(said.splitlines()) == 3, said


def test_each_of_a_space_without_choices_is_told_what_it_lacks():
    with pytest.raises(GkdError, match=r"--each 'rate' .* no parameter there has choices: give one"):
        space("train.learning_rate: {low: 0.1, high: 1}").studies("rate", None, "--")


def test_one_temperature_for_several_methods_is_refused():
    base = parse_params({"distill": {"method": "kd", "temperature": 2.0}})
    assert "distill.temperature is 2 in the parameters" in refused("distill.method: {choices: [kd, dkd]}", base)
    space("distill.method: {choices: [kd, dkd]}\ndistill.temperature: {low: 1, high: 4}", base)
