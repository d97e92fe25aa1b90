"""Standings over seeds, held against scipy's paired t-test and a t-table."""

import itertools
import math
import re

import numpy as np
import pytest
from scipy import stats

import gkd_core as gkd
from gkd_core.errors import GkdError
from gkd_core.evaluation.comparison import Comparison, table
from gkd_core.evaluation.standings import standings
from gkd_core.evaluation.statistics import holm


def by_name(found):
    return {standing.name: standing for standing in found}


def test_the_interval_is_the_paired_t_tests():
    rng = np.random.default_rng(0)
    kd, other = rng.normal(0.6, 0.02, 5), rng.normal(0.61, 0.02, 5)
    found = by_name(standings({"kd": dict(enumerate(kd)), "dkd": dict(enumerate(other))}, "kd"))
    expected = stats.ttest_rel(other, kd).confidence_interval(0.95)
    difference = found["dkd"].difference
    assert (difference.low, difference.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert difference.mean == pytest.approx((other - kd).mean())
    assert found["kd"].difference is None


def test_by_hand_with_the_t_table():
    found = by_name(standings({"kd": {0: 0.50, 1: 0.52, 2: 0.54}, "at": {0: 0.51, 1: 0.54, 2: 0.57}}, "kd"))
    difference = found["at"].difference  # gaps .01 .02 .03: mean .02, standard deviation .01, t(2, .975) = 4.303
    assert difference.mean == pytest.approx(0.02)
    assert difference.high - difference.mean == pytest.approx(4.303 * 0.01 / math.sqrt(3), rel=1e-4)
    assert not difference.separable
    assert found["at"].mean == pytest.approx(0.54)
    assert found["at"].deviation == pytest.approx(0.03)


def test_pairs_by_seed_whatever_the_order_and_leaves_out_seeds_that_only_one_has():
    found = by_name(standings({"kd": {2: 0.4, 0: 0.2, 9: 0.9}, "at": {0: 0.3, 2: 0.5, 5: 0.0}}, "kd"))
    difference = found["at"].difference
    assert difference.seeds == 2
    assert difference.mean == pytest.approx(0.1)
    assert difference.separable  # the same gap twice
    assert found["at"].seeds == (0, 2, 5)


def test_one_seed_has_no_interval_and_tells_nothing_apart():
    found = by_name(standings({"kd": {0: 0.5}, "at": {0: 0.7}, "ce": {}}, "kd"))
    assert found["at"].difference.low is None
    assert not found["at"].difference.separable
    assert found["at"].deviation is None
    assert "ce" not in found


def rows_of(seeds):
    trials = [
        {"teacher": "t", "student": "s", "name": name, "method": name, "seed": seed, "top1": top1, "settings": name}
        | {"balanced_accuracy": top1, "macro_f1": top1, "validation_top1": top1}
        for name, accuracies in (("kd", (0.5, 0.52)), ("at", (0.7, 0.74)))
        for seed, top1 in zip(seeds, accuracies, strict=False)
    ]
    return next(iter(Comparison(trials, "kd").as_dict().values()))


def test_a_table_of_one_seed_says_so_and_has_no_columns_for_intervals():
    assert table(rows_of([0]), "kd") == [
        ["contender", "seeds", "mean ± sd", "minus kd", ""],
        ["at", "1", "70.00", "+20.00", "one seed"],
        ["kd", "1", "50.00", "", "reference"],
    ]
    assert table(rows_of([0, 1]), "kd")[0][4:] == ["95 % interval", "for all 1", "p, by Holm", ""]


def test_the_best_comes_first_and_without_the_reference_there_are_no_differences():
    found = standings({"at": {0: 0.3}, "rkd": {0: 0.4}}, "kd")
    assert [standing.name for standing in found] == ["rkd", "at"]
    assert all(standing.difference is None for standing in found)


def closed_testing(p_values):
    """Holm's p-values by another way: the largest of Bonferroni's, of all sets of hypotheses that hold this one."""
    places = range(len(p_values))
    sets = [subset for size in places for subset in itertools.combinations(places, size + 1)]
    return [
        min(1.0, max(len(subset) * min(p_values[k] for k in subset) for subset in sets if place in subset))
        for place in places
    ]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_holm_is_the_closed_test_of_bonferronis(count):
    p_values = list(np.random.default_rng(count).uniform(0, 0.2, count))
    assert holm(p_values) == pytest.approx(closed_testing(p_values), abs=1e-12)
    assert holm([0.02, 0.02]) == [0.04, 0.04]
    assert holm([]) == []


def test_the_correction_counts_the_differences_of_a_table():
    rng = np.random.default_rng(1)
    runs = {name: dict(enumerate(rng.normal(0.6, 0.02, 4))) for name in ("kd", "a", "b", "c")}
    alone = {"a": stats.ttest_rel(*(list(runs[name].values()) for name in ("a", "kd")))}
    found = by_name(standings(runs | {"once": {0: 0.7}}, "kd"))  # which has no interval, and does not count
    expected = alone["a"].confidence_interval(1 - 0.05 / 3)
    assert (found["a"].difference.low_all, found["a"].difference.high_all) == pytest.approx(tuple(expected), abs=1e-12)
    p_values = [stats.ttest_rel([*runs[name].values()], [*runs["kd"].values()]).pvalue for name in ("a", "b", "c")]
    assert [found[name].difference.p_holm for name in ("a", "b", "c")] == pytest.approx(closed_testing(p_values))
    assert found["once"].difference.p_holm is None


def test_where_all_are_alike_one_table_in_twenty_calls_one_better_or_worse():
    rng = np.random.default_rng(2)
    tables = [standings({str(k): dict(enumerate(rng.normal(0.6, 0.02, 5))) for k in range(6)}, "0") for _ in range(300)]
    told = [[row.difference for row in table if row.difference is not None] for table in tables]
    corrected = np.mean([any(one.separable for one in table) for table in told])
    covered = np.mean([all(one.low_all <= 0 <= one.high_all for one in table) for table in told])
    alone = np.mean([any(not one.low <= 0 <= one.high for one in table) for table in told])
    slack = 3 * math.sqrt(0.05 * 0.95 / 300)
    assert corrected <= 0.05 + slack
    assert covered >= 0.95 - slack
    assert alone > corrected


def row(name, seed, top1, student="resnet8", teacher="resnet20", settings="a"):
    measures = {"top1": top1, "balanced_accuracy": top1, "macro_f1": top1, "validation_top1": top1}
    return {"name": name, "settings": settings, "teacher": teacher, "student": student, "method": "kd", "seed": seed,
            "schedule": "constant", "seconds": 1.0, **measures}  # fmt: skip


class TestTables:
    def test_contenders_with_several_students_share_a_table_of_their_teacher(self):
        rows = [row("kd", seed, 0.5 + seed / 100) for seed in (0, 1)]
        rows += [row("wide | large", seed, 0.6 + seed / 50, "resnet14") for seed in (0, 1)]
        found = Comparison(rows, "kd")
        ((pair, standing),) = found.as_dict().items()
        assert pair == "resnet20 → several students"
        assert [(one["name"], one["student"]) for one in standing] == [("wide | large", "resnet14"), ("kd", "resnet8")]
        text = found.markdown()
        assert "| wide \\| large | resnet14 | 2 | 61.00 ± 1.41 | +10.50 |" in text
        assert "| contender | student | seeds | top-1, mean ± sd | minus kd | 95 % interval | for all 1 |" in text

    def test_pairs_of_a_sweep_have_tables_of_their_own(self):
        rows = [row(name, 0, 0.5, student) for name in ("kd", "ce") for student in ("resnet8", "resnet14")]
        assert list(Comparison(rows, "kd").pairs) == ["resnet20 → resnet14", "resnet20 → resnet8"]

    def test_other_settings_under_one_name_are_not_mixed(self):
        rows = [row("kd", 0, 0.5), row("mine", 0, 0.5), row("mine", 1, 0.5, settings="b")]
        with pytest.raises(GkdError, match=r"mine .* was trained with other settings for other seeds"):
            Comparison(rows, "kd")

    def test_the_page_has_tables_and_plots_and_fetches_nothing(self):
        rows = [row("kd", seed, 0.5) for seed in (0, 1)] + [row("<b>mine", seed, 0.6) for seed in (0, 1)]
        page = Comparison(rows, "kd").html()
        assert "&lt;b&gt;mine" in page
        assert "<b>mine" not in page
        assert page.count("<svg") == 1
        assert "better" in page
        for sign in ("http://", "https://", "<script", "@import"):
            assert sign not in re.sub(r"xmlns(:\w+)?=\"[^\"]*\"|<metadata>.*?</metadata>", "", page, flags=re.DOTALL)


def test_a_student_may_be_a_function_and_a_contender_another_by_name():
    data = gkd.load_data("digits", train_images=60)
    teacher = gkd.create_model("resnet8", data=data)
    made = []

    def student(seed):
        made.append(seed)
        return gkd.create_model("resnet8", data=data, seed=seed)

    contenders = {
        "alone": {"distill": {"method": "ce"}},
        "other": {"distill": {"method": "ce"}, "student": {"name": "resnet14"}},
    }
    found = gkd.compare(student, teacher, data, contenders=contenders, seeds=[3], epochs=1, device="cpu")
    assert made == [3]
    ((_, standing),) = found.as_dict().items()
    assert {one["name"]: one["student"] for one in standing} == {"alone": "resnet8", "other": "resnet14"}
    assert found.reference == "alone"
