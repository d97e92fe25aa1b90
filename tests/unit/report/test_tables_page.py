"""The page of a table in a real browser: what is said of each row is seen before anything is scrolled."""

import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from gkd_core.evaluation.frontier import Candidate, Frontier
from gkd_core.report.tables_page import render_tables


def _frontier() -> Frontier:
    names = ["timm:mobilenetv3_small_100", "ShuffleNetV2, with larger steps", "resnet8"]
    students = [
        Candidate(
            name, name.partition(",")[0], 3, place / 4, 0.8, 0.7, 0.9, 12.5 / place, 20.25 / place, 9.5, 10**8, 10**6
        )
        for place, name in enumerate(names, start=1)
    ]
    return Frontier(students, 5.0, None, {"processor": "made up"}, "d" * 64, "t" * 64)


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (390, "dark")])
def test_the_verdict_is_in_sight(browser: Browser, tmp_path: Path, width: int, scheme: Any) -> None:
    _frontier().save(tmp_path)
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page = context.new_page()
    page.goto((tmp_path / "frontier.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == width, "the page scrolls sideways"
    verdicts = page.locator("td.remark")
    assert verdicts.all_inner_texts() == ["frontier, recommended", "", ""]
    card = page.locator(".scroll").first.bounding_box()
    for verdict in verdicts.all():
        box = verdict.bounding_box()
        assert card is not None
        assert box is not None
        assert box["x"] + box["width"] <= card["x"] + card["width"]
    context.close()


def test_what_is_said_of_a_row_stands_beside_its_name() -> None:
    tables = {"said": [["name", "size", "p", ""], ["a", "1", "2", "better"]], "plain": [["name", "size"], ["b", "3"]]}
    page = render_tables("T", tables, "<svg>", about="", caption="")
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", page)]
    assert rows == [["name", "", "size", "p"], ["a", "better", "1", "2"], ["name", "size"], ["b", "3"]]


def test_the_plot_follows_the_theme(tmp_path: Path) -> None:
    """Also its grid and its axes: pale lines and black ones are lost, or glare, at night."""
    _frontier().save(tmp_path)
    page = (tmp_path / "frontier.html").read_text()
    assert not re.search(r"(?:fill|stroke): ?#[0-9a-f]{6}", page.partition("<svg")[2])
    light, dark = re.findall(r":root \{(.*?)\}", page, flags=re.DOTALL)
    assert set(re.findall(r"var\(--([\w-]+)\)", page)) <= {*re.findall(r"--([\w-]+):", light)}
    assert {"grid", "axis"} <= {*re.findall(r"--([\w-]+):", dark)}
