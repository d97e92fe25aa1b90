"""`make bench`: every question is asked, what it measures is counted right, and the page says it. Nothing is timed."""

import re
from pathlib import Path

import pytest

from benchmarks import __main__ as program
from benchmarks import commands, epoch, loader, memory, predicting, questions, steps, threads, transport
from benchmarks.questions import QUESTIONS
from benchmarks.table import BEGIN, END, Goal, Row, Table, goals, written
from benchmarks.timing import in_turns, milliseconds, ratio
from gkd_core.config import parse_params
from gkd_core.config.load import load_params

ROOT = Path(__file__).parents[2]
PAGE = "# Page\nby hand\n" + "".join(
    f"{BEGIN.format(name=name)}\nold\n{END.format(name=name)}\nafter {name}\n" for name in (*QUESTIONS, program.GOALS)
)
TABLE = Table("How.", ("what", "ms"), "÷ floor", [Row(("a", "2"), 1.304, Goal(1.3)), Row(("b", "1"), 1.0)])


# --- every question has its file and its place


def test_every_file_that_measures_is_a_question_and_the_other_way_round():
    files = {
        file.stem for file in (ROOT / "benchmarks").glob("*.py") if re.search(r"^def measure\(", file.read_text(), re.M)
    }
    assert files == set(QUESTIONS)
    assert len(set(QUESTIONS)) == len(QUESTIONS)


def test_the_page_has_one_place_for_each_question_and_no_other():
    page = (ROOT / "docs" / "performance.md").read_text()
    for name in (*QUESTIONS, program.GOALS):
        written(page, name, "")
    named = re.findall(r"^<!-- bench (\w+): written", page, re.MULTILINE)
    assert sorted(named) == sorted((*QUESTIONS, program.GOALS))


def test_make_bench_asks_all_and_writes(monkeypatch):
    command = (ROOT / "Makefile").read_text().split("\nbench: ")[1].splitlines()[1].strip().removeprefix("@").split()
    assert command[:3] == ["python", "-m", "benchmarks"]
    asked = []
    monkeypatch.setattr(program, "report", lambda *arguments: not asked.append(arguments))
    monkeypatch.setattr(program.sys, "argv", command[2:])
    with pytest.raises(SystemExit) as ended:
        program.main()
    assert not ended.value.code
    assert asked == [([*QUESTIONS], None, ROOT / "docs" / "performance.md")]


def test_an_unknown_question_is_refused_with_the_known_ones(monkeypatch, capsys):
    monkeypatch.setattr(program.sys, "argv", ["benchmarks", "sped"])
    with pytest.raises(SystemExit) as ended:
        program.main()
    assert ended.value.code == 2
    assert "sped" in (said := capsys.readouterr().err)
    assert "steps" in said


# --- counting


def test_candidates_take_turns_and_the_warm_up_does_not_count():
    now, calls = [0.0], []

    def takes(name, seconds):
        def run():
            calls.append(name)
            now[0] += seconds * len(calls)  # every call is slower than the one before

        return run

    seconds = in_turns({"a": takes("a", 1), "b": takes("b", 10)}, 2, warmup=1, clock=lambda: now[0])
    assert calls == ["a", "b"] * 3
    assert seconds == {"a": [3, 5], "b": [40, 60]}


def test_a_ratio_is_the_median_of_the_ratios_of_the_turns():
    assert ratio([1.0, 30.0, 2.0], [1.0, 10.0, 4.0]) == 1.0  # 1, 3, .5; of the medians it were .5


def test_milliseconds_are_shown_with_three_digits():
    assert [milliseconds([s]) for s in (0.0001234, 0.01234, 1.2345)] == ["0.123", "12.3", "1,234"]


@pytest.mark.parametrize(
    ("goal", "measured", "met"),
    [
        (Goal(1.1), 1.1, True),
        (Goal(1.1), 1.104, True),
        (Goal(1.1), 1.106, False),
        (Goal(0.95, smallest=True), 0.9, False),
    ],
)
def test_a_goal_is_judged_by_the_digits_shown(goal, measured, met):
    assert goal.met(measured) is met


def test_large_steps_have_fewer_turns_and_never_more_than_asked():
    assert threads.turns(49_000_000, 15) == 15
    assert threads.turns(3_412_000_000, 15) == 5
    assert threads.turns(69_313_000_000, 15) == 3
    assert threads.turns(69_313_000_000, 1) == 1
    assert [steps.turns(pair, 1) for pair in steps.PAIRS] == [1, 1]


def test_the_numbers_of_threads_tried_are_powers_of_two_and_all_cores():
    assert threads.numbers(1) == [1]
    assert threads.numbers(6) == [1, 2, 4, 6]


def test_every_shipped_configuration_has_trainings_to_measure():
    for file in (ROOT / "params.yaml", *(ROOT / "configs").glob("*.yaml")):
        assert list(threads.trainings_of(load_params(file))), file


# --- tables and the page


def test_a_table_has_the_goal_beside_the_ratio():
    assert TABLE.markdown() == (
        "How.\n\n| what | ms | ÷ floor | goal |\n| --- | --- | --- | --- |\n"
        "| a | 2 | 1.30 | ≤ 1.30, met |\n| b | 1 | 1.00 |  |\n"
    )


def test_a_goal_without_a_measurement_is_not_met():
    row = Row(("geomloss", "not measured: …"), None, Goal(1.0))
    assert row.judged() == ("", "≤ 1.00, not measured")
    table = goals({"one": TABLE, "two": Table("", ("what",), "", [row])})
    assert [line.cells for line in table.rows] == [("one", "a"), ("two", "geomloss")]
    assert table.how.startswith("1 of 2 ")


def test_writing_touches_only_what_stands_between_the_marks():
    page = written(PAGE, "steps", "new\n")
    assert page == PAGE.replace("old", "new", 1)
    assert written(page, "steps", "old") == PAGE
    assert written(PAGE, "steps", r"\1 \g<0>").count(r"\1 \g<0>") == 1


@pytest.mark.parametrize("page", ["nothing", PAGE + PAGE])
def test_a_page_without_one_place_is_refused_by_name(page):
    with pytest.raises(LookupError, match="steps"):
        written(page, "steps", "new")


def test_a_question_that_fails_says_so_and_keeps_none_of_the_others(tmp_path, monkeypatch, capsys):
    def ask(name, rounds):
        assert rounds == 2
        if name == "epoch":
            raise RuntimeError("no such luck\nmore")
        return TABLE

    monkeypatch.setattr(program, "answer_apart", ask)
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    assert program.report(QUESTIONS, 2, page) is False
    text = page.read_text()
    assert "it failed: no such luck\n" in text
    assert text.count("| a | 2 | 1.30 |") == len(QUESTIONS) - 1
    assert f"{len(QUESTIONS) - 1} of {len(QUESTIONS) - 1} goals are met" in text
    assert "; not answered: epoch" in text
    assert "old" not in text
    assert "## steps" in capsys.readouterr().out


def test_some_questions_leave_the_table_of_all_goals_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(program, "answer_apart", lambda name, rounds: TABLE)
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    assert program.report(["loader"], None, page) is True
    assert page.read_text().count("old") == len(QUESTIONS)


# --- single questions, as small as they can be


def test_a_question_is_asked_with_its_own_number_of_rounds_or_the_given_one(monkeypatch):
    monkeypatch.setattr(loader, "measure", lambda rounds=7: rounds)
    assert questions.answer("loader", None) == 7
    assert questions.answer("loader", 1) == 1


def test_solvers_are_compared_with_the_exact_one(monkeypatch):
    monkeypatch.setattr(transport, "PAIRS", 2)
    monkeypatch.setattr(transport, "SIDE", 4)
    rows = {row.cells[:2]: row for row in transport.measure(1).rows}
    kinds = {kind for kind, _ in rows}
    for kind in kinds:
        ours, theirs = (rows[kind, name].cells for name in ("gkd, exact", "POT, exact"))
        assert ours[3:] == theirs[3:] == ("0.00 %", "1.000")
        mine, batched = (
            rows[kind, name].cells for name in (transport.OURS, "POT, batched Sinkhorn, same ε and iterations")
        )
        assert mine[3:] == batched[3:]
        near = [row for (of, name), row in rows.items() if of == kind and name.startswith("geomloss, equal error")]
        assert len(near) == 1
        wanted = transport.AS_NEAR * float(mine[3].removesuffix(" %"))
        assert float(near[0].cells[3].removesuffix(" %")) <= wanted + 0.01


def test_a_peer_that_is_not_installed_has_a_row_that_says_so(monkeypatch):
    monkeypatch.setattr(transport, "PAIRS", 2)
    monkeypatch.setattr(transport, "SIDE", 4)
    monkeypatch.setattr(epoch, "IMAGES", 64)
    for module, package in ((transport, "geomloss"), (epoch, "torchdistill")):
        monkeypatch.setattr(module, "installed", lambda name: False)
        said = [row for row in module.measure(1).rows if row.ratio is None]
        assert said
        for row in said:
            assert package in row.cells
            assert any(f"{package} is not installed" in cell for cell in row.cells)
            assert row.judged()[1].endswith("not measured")


@pytest.mark.slow
def test_all_three_epochs_train(monkeypatch):
    monkeypatch.setattr(epoch, "IMAGES", 64)
    assert [row.cells[0] for row in epoch.measure(1).rows] == [epoch.OURS, epoch.PLAIN, epoch.PEER]


def test_memory_is_told_with_and_without_pages_of_files(tmp_path):
    memory.make(tmp_path, 200)
    for how in memory.WAYS:
        found = memory.train(tmp_path, how)
        assert found["peak"] > found["anonymous"] > 0


def test_a_folder_becomes_a_table_beside_a_loop_that_says_the_same(tmp_path, monkeypatch, make_deploy):
    model = make_deploy(tmp_path / "model", seed=4, side=8, channels=3) / "model.onnx"
    monkeypatch.setattr(predicting, "SIDE", 8)
    monkeypatch.setattr(predicting, "PHOTOS", (("12 × 9", (12, 9), 25),))
    monkeypatch.setattr(predicting, "exported", lambda *_: model)
    rows = predicting.speed(tmp_path, 1)
    assert [(row.cells[:2], row.goal is None) for row in rows] == [
        (("25 of 12 × 9", predicting.OURS), False),
        (("25 of 12 × 9", predicting.LOOP), True),
    ]
    said = [line.split(",")[1] for line in (tmp_path / "out.csv").read_text().splitlines()[1:]]
    assert said == [f"class {number}" for number in predicting.loop(model, tmp_path / "12 × 9")]
    assert len({file.stat().st_ino for file in (tmp_path / "12 × 9").rglob("*.jpg")}) == predicting.DIFFERENT


def test_the_smallest_pipeline_is_a_valid_configuration_of_ours():
    import yaml

    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    tiny = commands.overlaid(params, commands.TINY)
    parsed = parse_params(tiny)
    assert parsed.teacher.train.epochs == parsed.train.epochs == 1
    assert parsed.data.train_images == 200
    assert parsed.teacher.train.batch_size == params["teacher"]["train"]["batch_size"]


def test_a_command_that_fails_is_named_with_what_it_said(tmp_path):
    with pytest.raises(RuntimeError, match=r"sh .* ended with 3: oh no"):
        commands.run(tmp_path, "sh", "-c", "echo oh no; exit 3")
