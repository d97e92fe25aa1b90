"""The page of results is what its raw tables say."""

import csv
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml

from benchmarks import results
from gkd_core.errors import GkdError
from gkd_core.evaluation.comparison import COLUMNS, WHERE, Comparison


def words(svg: str) -> list[str]:
    return [text.strip() for text in ElementTree.fromstring(svg).itertext() if text.strip()]


def test_page_and_figures_are_up_to_date():
    text, figures = results.page()
    assert (results.DOCS / "results.md").read_text() == text, "run `make docs`"
    for name, figure in figures.items():
        assert words((results.DOCS / "figures" / name).read_text()) == words(figure), "run `make docs`"


def test_the_example_of_a_comparison_is_one_of_these():
    """docs/comparing.md shows the table that `gkd compare` makes of trainings that are there."""
    _, rows = results.read_runs(results.DOCS / "results" / "flowers-mobilenet")
    numbers = [
        {"name": row["method"], "settings": "", "seed": int(row["seed"]), "top1": float(row["top1"])} for row in rows
    ]
    comparison = Comparison([row | own for row, own in zip(rows, numbers, strict=True)], "kd")
    shown = [line for line in comparison.markdown().splitlines() if line.startswith("|")]
    assert "\n".join(shown) in (results.DOCS / "comparing.md").read_text()


def test_every_training_has_a_seed_a_commit_and_hardware():
    for folder in (results.DOCS / "results").iterdir():
        if folder.is_dir() and (found := results.read_runs(folder)) is not None:
            about = results.read_about(folder / "about.yaml")
            for row in found[1]:
                assert "seed" in row, folder.name
                assert all(row.get(key) or getattr(about, key) for key in ("commit", "hardware", "torch")), folder.name


TOP1 = {  # name: (method, validation by seed, test by seed); the best on test is not the best on validation
    "kd: a": ("kd", (0.5, 0.7), (0.6, 0.9)),
    "kd: b": ("kd", (0.7, 0.7), (0.5, 0.6)),
    "gompertz: a": ("gompertz", (0.8, 0.8), (0.6, 0.65)),
    "gompertz: b": ("gompertz", (0.1, 0.2), (0.9, 0.9)),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One result of two methods, with two tries and two seeds each, as `gkd compare` writes it."""
    (tmp_path / "made").mkdir()
    (tmp_path / "page.md").write_text("# Words\n\n{{ made }}\n\nmore\n")
    row = dict.fromkeys(COLUMNS, "") | {"teacher": "t", "student": "s", "seconds": 10.0, "commit": "c", "torch": "2"}
    rows = [
        row | {"name": name, "settings": name, "method": method, "seed": seed, "hardware": f"CPU {seed}",
               "validation_top1": validation[seed], "top1": test[seed]}
        for name, (method, validation, test) in TOP1.items() for seed in (0, 1)
    ]  # fmt: skip
    write_rows(tmp_path, rows)
    write_about(tmp_path, tables=[{"reference": "kd: a", "labels": {"kd: a": "reference"}}])
    return tmp_path


def write_rows(folder: Path, rows: list[dict]) -> None:
    with (folder / "made" / "runs.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def read_rows(folder: Path) -> list[dict]:
    return list(csv.DictReader((folder / "made" / "runs.csv").open()))


def write_about(folder: Path, **content: object) -> None:
    (folder / "made" / "about.yaml").write_text(yaml.safe_dump({"commands": "Command: none."} | content))


def table(text: str, place: int = 0) -> list[dict[str, str]]:
    """The rows of the page's table at a place."""
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    lines = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in blocks[place]]
    return [dict(zip(lines[0], cells, strict=True)) for cells in lines[2:]]


class TestATable:
    def test_follows_from_the_rows(self, folder):
        text, figures = results.page(folder)
        assert text.startswith("# Words\n")
        assert text.endswith("\nmore\n")
        assert not figures
        rows = {row["contender"]: row for row in table(text)}
        assert list(rows) == ["gompertz: b", "reference", "gompertz: a", "kd: b"]
        assert rows["kd: b"]["top-1, mean ± sd"] == "55.00 ± 7.07"
        assert rows["kd: b"]["minus reference"] == "-20.00"
        assert rows["kd: b"]["seeds"] == "0, 1"
        assert "commit c; CPU 0 (4), CPU 1 (4); torch 2" in " ".join(text.split())
        assert "8 trainings, seeds 0, 1;" in " ".join(text.split())

    def test_shows_what_is_asked_for(self, folder):
        asked = {"reference": "kd: a", "only": ["gompertz: *"], "where": {"seed": 1}, "each_seed": True, "figure": True}
        write_about(folder, tables=[asked])
        text, figures = results.page(folder)
        rows = {row["contender"]: row for row in table(text)}
        assert list(rows) == ["gompertz: b", "kd: a", "gompertz: a"]
        assert rows["kd: a"]["each seed"] == "90.00"
        assert "kd: b" not in words(figures["made.svg"])
        assert "gompertz: a" in words(figures["made.svg"])

    def test_rows_say_what_about_does_not(self, folder):
        write_rows(folder, [row | dict.fromkeys(WHERE, "") for row in read_rows(folder)])
        write_about(folder, hardware="a laptop")
        text = " ".join(results.page(folder)[0].split())
        assert "commit not recorded; a laptop; torch not recorded" in text


class TestTheBestOfSeveralTries:
    @pytest.fixture
    def by_method(self, folder) -> Path:
        write_about(folder, tables=[{"reference": "kd", "choose_by": "method", "figure": True}])
        return folder

    def test_is_chosen_on_validation(self, by_method):
        text, figures = results.page(by_method)
        best = {row["tried"] for row in table(text) if any("best of 2 by validation" in cell for cell in row.values())}
        assert best == {"kd: b", "gompertz: a"}
        rows = {row["contender"]: row for row in table(text, 1)}
        assert {name: row["chosen"] for name, row in rows.items()} == {"gompertz": "gompertz: a", "kd": "kd: b"}
        assert rows["gompertz"]["top-1, mean ± sd"].startswith("62.50")
        assert rows["gompertz"]["minus kd"] == "+7.50"
        assert "kd" in words(figures["made.svg"])

    def test_nothing_of_the_test_is_shown_of_the_others(self, by_method):
        text, _ = results.page(by_method)
        assert "90.00" not in text

    def test_the_seeds_that_all_have_choose_and_the_others_of_the_chosen_tell(self, by_method):
        rows, made = read_rows(by_method), by_method / "made"
        write_rows(by_method, [row for row in rows if row["seed"] == "1"])  # with which kd's two are equal
        (made / "runs.csv").rename(made / "runs-tried.csv")
        write_rows(by_method, [row for row in rows if row["name"] in ("kd: a", "gompertz: a")])
        text, _ = results.page(by_method)
        assert {row["seeds"] for row in table(text)} == {"1"}
        assert {row["contender"]: row["seeds"] for row in table(text, 1)} == {"gompertz": "0", "kd": "0"}
        assert "6 trainings" in text, "what both files have is counted twice"
        assert "[runs-tried.csv](results/made/runs-tried.csv)" in text

    def test_without_a_seed_that_all_have_nothing_is_chosen(self, by_method):
        rows = read_rows(by_method)
        write_rows(by_method, [row for row in rows if (row["name"] == "kd: b") == (row["seed"] == "0")])
        with pytest.raises(GkdError, match="no seed in common"):
            results.page(by_method)


def test_a_frontier_is_shown_from_its_own_file(folder):
    measured = {"validation_top1": 0.5, "top1": 0.6, "low": None, "high": None, "size_mb": 0.3}
    cost = {"latency_ms_p50": 0.4, "latency_ms_p95": 0.5, "macs": 10**6, "parameters": 7}
    candidate = {"student": "s", "seeds": 2, **measured, **cost}
    candidates = [candidate | {"name": "small"}, candidate | {"name": "large", "size_mb": 2.0, "validation_top1": 0.9}]
    content = {"candidates": candidates, "max_latency_ms": 1.0, "max_mb": 1.0, "hardware": {"cpu": "a"}}
    (folder / "made" / "frontier.json").write_text(json.dumps(content))
    write_about(folder)
    text, _ = results.page(folder)
    assert "small (s): the most accurate on validation of the 1 of 2" in text
    assert {row["contender"] for row in table(text)} == {"small", "large"}


def test_before_anything_was_trained_the_page_says_so(folder):
    (folder / "made" / "runs.csv").unlink()
    text, _ = results.page(folder)
    assert "Not run.\n\n- Command: none." in text


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "page.md").write_text("{{ mad }}"), "page.md has {{ mad }} but .* has no folder mad"),
        (lambda folder: (folder / "page.md").write_text("words"), "page.md shows nothing of made"),
        (lambda folder: (folder / "made" / "about.yaml").unlink(), "about.yaml cannot be read"),
        (lambda folder: write_about(folder, table=[]), "about.yaml: table: Extra"),
        (lambda folder: write_about(folder, tables=[{"reference": "dkd"}]), "the reference 'dkd' is none of"),
        (
            lambda folder: write_rows(folder, [row | {"name": "kd: a", "settings": ""} for row in read_rows(folder)]),
            "'kd: a' is there twice with seed 0",
        ),
        (
            lambda folder: write_rows(folder, [row | {"settings": row["seed"]} for row in read_rows(folder)]),
            "stands for several settings",
        ),
    ],
)
def test_what_is_wrong_is_told(folder, spoil, said):
    spoil(folder)
    with pytest.raises(GkdError, match=said):
        results.page(folder)
