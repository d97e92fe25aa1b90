"""The plot of a search: every trial passes every axis, and the same trials give the same text."""

import xml.etree.ElementTree as ElementTree

from gkd_core.report.parallel import Coordinates, parallel_plot

TRIALS = [
    ({"distill.method": "kd", "train.learning_rate": 0.1, "distill.options.kd.weight": 0.5}, 90.0),
    ({"distill.method": "gompertz", "train.learning_rate": 0.01}, 95.5),
    ({"distill.method": "kd", "train.learning_rate": 0.03, "distill.options.kd.weight": 0.9}, 80.0),
]
STUDY = Coordinates(
    keys=["distill.method", "train.learning_rate", "distill.options.kd.weight"],
    trials=TRIALS,
    choices={"distill.method": ("kd", "gompertz")},
    logs=["train.learning_rate"],
    importance={"train.learning_rate": 0.7, "distill.method": 0.3},
)


def test_it_names_parameters_values_and_accuracies():
    words = "".join(ElementTree.fromstring(parallel_plot({"kd <and> others": STUDY})).itertext())
    for word in ("kd <and> others", "gompertz", "learning_rate", "0.01", "0.1", "95.5", "80", "importance, %"):
        assert word in words


def test_the_same_trials_give_the_same_text():
    assert parallel_plot({"a": STUDY, "b": STUDY}) == parallel_plot({"a": STUDY, "b": STUDY})


def test_one_trial_is_enough():
    one = Coordinates(STUDY.keys, TRIALS[:1], STUDY.choices, STUDY.logs, {})
    assert "90" in parallel_plot({"one": one})
