import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from gkd_core.decision import Decision, Shown
from gkd_core.evaluation.calibration import reliability
from gkd_core.evaluation.frontier import Candidate, Frontier
from gkd_core.report import Findings, render_report
from gkd_core.report.figures import confusion, learning_curves, schedule_and_terms
from gkd_core.report.findings import verdicts
from gkd_core.report.page import smaller_sentences

NASTY = '<b>"x"</b>'
CLASSES = (NASTY, "$\\alpha$ & co", "猫", "a class whose name goes on and on")


def findings(
    classes: tuple[str, ...] = CLASSES, roles: tuple[str, ...] = ("teacher", "baseline", "kd", "student")
) -> Findings:
    count = len(classes)
    random = np.random.default_rng(0)
    labels = np.arange(5 * count) % count
    logits = random.normal(size=(5 * count, count)) + 2 * np.eye(count)[labels]
    confusion = np.zeros((count, count), np.int64)
    np.add.at(confusion, (labels, logits.argmax(1)), 1)
    metrics: dict[str, Any] = {
        "data": {"sha256": "d" * 64, "source": "folder", "test_images": len(labels)},
        "differences": {
            f"student_minus_{role}": {"difference": 0.021, "low": 0.004, "high": 0.038, "standard_error": 0.009}
            for role in ("baseline", "kd")
            if role in roles
        },
        "onnx": {"top1": 0.9, "agreement_with_student": 1.0, "onnx_bytes": 314744, "parity_max_abs": 2e-6},
    }
    timings: dict[str, Any] = {
        "hardware": {"processor": "a <fast> one", "threads": 1, "onnxruntime": "1.31"},
        "onnx": {"latency_ms_p50": 0.08, "latency_ms_p95": 0.1},
    }
    for role in roles:
        metrics[role] = {
            "network": "resnet20" if role == "teacher" else "resnet8",
            **{"top1": 0.9, "top1_low": 0.85, "top1_high": 0.94, "nll": 0.3, "ece": 0.02},
            **{"parameters": 272474 if role == "teacher" else 78042, "macs": 12345678, "onnx_bytes": 1234567},
        }
        timings[role] = {"latency_ms_p50": 0.2, "latency_ms_p95": 0.3}
    terms = {"train_ce": 1.0, "train_kd": 30.0, "train_loss": 31.0, "train_top1": 0.5, "validation_top1": 0.6}
    return Findings(
        metrics=metrics,
        timings=timings,
        classes=classes,
        confidence=0.95,
        histories={role: [{"epoch": epoch, **terms} for epoch in (1, 2)] for role in roles},
        schedule=[{"epoch": t / 10, "beta": 0.1 + t / 25} for t in range(20)],
        confusion=confusion,
        reliability={role: reliability(logits, labels) for role in roles},
        per_class=[
            {"name": name, "support": 5, "recall": None if i == 0 else i / count, "precision": 0.5, "f1": 0.5}
            | {f"{role}_recall": 0.5 for role in roles if role != "student"}
            for i, name in enumerate(classes)
        ],
        training={"method": "gompertz", "schedule": "gompertz"},
        manifest={
            "model": {
                "file": "model.onnx",
                "input": "uint8_nhwc",
                "input_shape": [8, 8, 1],
                "opset": 18,
                "sha256": "e" * 64,
            },
            **{"data_sha256": "d" * 64, "teacher_digest": "a" * 64, "student_digest": "b" * 64},
            **{"config_digest": "c" * 64, "code_sha256": "f" * 64},
        },
        configuration={"data": {"source": NASTY}},
    )


@pytest.fixture(scope="module")
def page() -> str:
    return render_report(findings())


def test_a_frontier_is_shown_where_there_is_one(page: str) -> None:
    cost = {"latency_ms_p50": 1.0, "latency_ms_p95": 2.0, "size_mb": 0.5, "macs": 10**6, "parameters": 10}
    one = Candidate(NASTY, "resnet8", 3, 0.8, 0.7, 0.6, 0.75, **cost)
    shown = Frontier([one], 2.0, None, {"processor": "a <fast> one"}, "d" * 64, "t" * 64)
    html = render_report(replace(findings(), frontier=shown))
    section = html[html.index("Which student for which cost") :]
    section = section[: section.index("</section>")]
    assert "Which student for which cost" not in page
    assert html.replace(section, "") != page
    assert NASTY not in html
    assert "the most accurate on validation of the 1 of 1 that keep to 2 ms; 70.00 % on test" in section
    assert "<td>[60.00, 75.00]</td>" in section
    assert "Measured on: processor a &lt;fast&gt; one." in section
    assert '<svg role="img" aria-label="Accuracy of the students' in section
    assert "var(--student)" in section
    assert "#0b6fa4" not in section
    ids = re.findall(r' id="([^"]+)"', html)
    clips = [each for each in ids if re.fullmatch(r"p[0-9a-f]{10}|m[0-9a-f]{10}", each)]
    assert len(clips) == len(set(clips)), "what one figure defines would be taken by another"


class Elements(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attributes)))


def test_the_page_fetches_nothing_and_runs_nothing(page: str) -> None:
    elements = Elements(page).seen
    assert not {"script", "link", "iframe", "object", "embed"} & {tag for tag, _ in elements}
    for _, attributes in elements:
        assert "src" not in attributes
        # Within the page's own figures only.
        assert all((value or "").startswith("#") for name, value in attributes.items() if name.endswith("href"))
        assert not any(name.startswith("on") for name in attributes)
    assert "@import" not in page
    assert set(re.findall(r"url\(([^)]*)", page)) == {u for u in re.findall(r"url\(([^)]*)", page) if u.startswith("#")}


def test_names_are_shown_as_they_are_and_never_as_markup(page: str) -> None:
    assert NASTY not in page
    assert "&lt;b&gt;&#34;x&#34;&lt;/b&gt;" in page
    assert "a &lt;fast&gt; one" in page
    assert "b" not in {tag for tag, attributes in Elements(page).seen if attributes.get("class") == "name"}
    assert "$\\alpha$ &amp; co" in page
    assert "猫" in page


def test_every_figure_is_well_formed_and_wears_the_pages_colours(page: str) -> None:
    drawings = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(drawings) == 5
    for drawing in drawings:
        # Inline SVG needs no namespaces in HTML; an XML parser does.
        root = ElementTree.fromstring(drawing.replace("xlink:href", "href"))
        assert root.get("aria-label")
        assert root.get("viewBox")
        assert not re.search(r"#0000[01][0-9a-f]\b", drawing)
        assert not re.search(r"(?:fill|stroke): ?#(?!none)[0-9a-f]{6}", drawing)
    used = set(re.findall(r"var\(--([\w-]+)\)", page))
    light, dark = re.findall(r":root \{(.*?)\}", page, flags=re.DOTALL)
    assert used <= set(re.findall(r"--([\w-]+):", light))
    assert used - {"font"} <= set(re.findall(r"--([\w-]+):", dark))
    identifiers = [re.findall(r'\bid="((?:[pmhC]|image)[0-9a-f]{10})"', drawing) for drawing in drawings]
    flat = [name for group in identifiers for name in set(group)]
    assert len(flat) == len(set(flat)), "two figures share an id that one of them may refer to"


def test_the_page_says_what_was_found(page: str) -> None:
    text = re.sub(r"<[^>]+>", "", page).replace("\u00a0", " ")
    for words in (
        "resnet20 distilled into resnet8 by gompertz",
        "+2.10points over the same student trained alone",
        "95 % interval +0.40 to +3.80: more than chance explains.",
        "85.00 % – 94.00 %",
        "272 k",
        "12.3 M",
        "1.23 MB",
        "within 2.0e-06 of torch",
        "e" * 64,
    ):
        assert words in text


def test_the_same_findings_give_the_same_page(page: str) -> None:
    assert render_report(findings()) == page


def test_the_worst_class_comes_first_and_one_without_images_last(page: str) -> None:
    rows = re.findall(r'<td class="name">([^<]*)</td>', page)
    assert rows[0] == "$\\alpha$ &amp; co"
    assert rows[-1].startswith("&lt;b&gt;")


@pytest.mark.parametrize(
    ("low", "high", "tone", "conclusion"),
    [
        (0.004, 0.038, "good", "more than chance explains"),
        (-0.004, 0.038, "open", "this test set cannot tell the two apart"),
        (-0.04, -0.001, "bad", "worse than chance explains"),
    ],
)
def test_a_verdict_follows_its_interval(low: float, high: float, tone: str, conclusion: str) -> None:
    found = findings(roles=("teacher", "baseline", "student"))
    found.metrics["differences"]["student_minus_baseline"] |= {"low": low, "high": high, "difference": (low + high) / 2}
    (verdict,) = verdicts(found.metrics, 0.95)
    assert verdict["tone"] == tone
    assert conclusion in verdict["detail"]
    assert "-" not in verdict["points"]


def test_a_student_without_references_or_schedule_has_a_report_all_the_same() -> None:
    alone = replace(findings(roles=("teacher", "student")), schedule=[], histories={})
    page = render_report(alone)
    assert "plain KD" not in page
    assert "student alone" not in page


def test_a_hundred_classes_are_named_and_three_hundred_are_drawn() -> None:
    hundred, many = (confusion(findings(tuple(f"class {i}" for i in range(count)))) for count in (100, 300))
    assert hundred.count(">class 99</text>") == 2
    assert ">class 99</text>" not in many


def test_a_few_classes_are_not_drawn_larger_than_many() -> None:
    """The page's own least width, made for wide figures, would blow up three cells."""
    for count, narrowest, widest in ((3, 100, 300), (100, 640, 1100)):
        drawing = confusion(findings(tuple(f"class {i}" for i in range(count))))
        styled = re.search(r'style="min-width:(\d+)px;max-width:(\d+)px"', drawing)
        assert styled is not None
        least, most = map(int, styled.groups())
        assert narrowest <= least <= min(most, 640)
        assert most <= widest


def test_a_training_of_one_epoch_has_no_fractions_of_it_below_its_curves() -> None:
    made = findings()
    one = replace(made, histories={role: rows[:1] for role, rows in made.histories.items()})
    right = schedule_and_terms(one).partition('<g id="axes_2">')[2]
    for drawing in (learning_curves(one), right):
        ticks = re.findall(r'<g id="xtick_\d+">.*?<text[^>]*>([^<]*)</text>', drawing, re.DOTALL)
        assert set(ticks) == {"1"}


def test_the_report_says_what_became_of_the_smaller_files() -> None:
    made = findings()
    assert smaller_sentences(made) == []  # exported before there were any
    measured = {"top1": 0.89, "agreement_with_fp32": 0.99, "onnx_bytes": 314744 // 4, "parity_max_abs": 0.4}
    change = {"difference": -0.01, "low": -0.02, "high": 0.0, "standard_error": 0.005}
    smaller = {
        "int8": {"kept": True, "file": "model_int8.onnx"},
        "fp16": {"kept": False, "reason": "float16 differs by <2>"},
    }
    told = replace(
        made,
        metrics=made.metrics | {"int8": measured | {"difference_to_fp32": change}},
        timings=made.timings | {"int8": {"latency_ms_p50": 0.1, "latency_ms_p95": 0.2}},
        manifest=made.manifest | smaller,
    )
    assert smaller_sentences(told) == [
        "The int8 file is 4.0 times smaller and names the same class as float32 on 99.00 % of the test images; for one "
        "image on this machine it is slower (1.25 times the time).",
        "There is no float16 file: float16 differs by <2>.",
    ]
    page = render_report(told)
    assert "<td>−1.00 (−2.00 to +0.00)</td>" in page
    assert "model_int8.onnx" in page
    assert "float16 differs by &lt;2&gt;" in page


def test_a_fixed_number_of_views_is_said():
    found = findings()
    assert "fixed views" not in render_report(found)
    training = found.training | {"training": {"teacher_views": 8}}
    assert "had 8 fixed views each" in render_report(replace(found, training=training))


def decided(unknown: bool = True) -> Findings:
    part = {"coverage": 0.8, "precision": 0.95, "coverage_at_precision": 0.85}
    measured: dict[str, Any] = {"asked": "precision", "target": 0.95, "score": "energy", "aurc": 0.01}
    for name, value in part.items():
        measured |= {name: value, f"{name}_low": value - 0.04, f"{name}_high": value + 0.04}
    measured |= {"ece": 0.2, "calibrated_ece": 0.02, "nll": 0.5, "calibrated_nll": 0.4}
    if unknown:
        measured["unknown"] = {"images": 1234, "refused": 0.9, "auroc": 0.98, "fpr_at_95_tpr": 0.07, "unreadable": 2}
    page = findings()
    shown = Shown(images=30, coverage=0.81, precision=0.96, nll=0.5, calibrated_nll=0.4)
    decision = Decision(score="energy", threshold=3.5, asked="precision", target=0.95, validation=shown)
    curve = [{"threshold": 5.0 - i, "coverage": (i + 1) / 5, "risk": i / 40} for i in range(5)]
    return replace(page, metrics=page.metrics | {"decision": measured}, decision=decision, risk_coverage=curve)


def test_the_decision_is_told_with_its_measures_and_its_curve():
    text = render_report(decided())
    for part in (
        "None of these",
        "80.00 %",
        "76.0 % to 84.0 %",
        "95.00 %",
        "0.2000 → 0.0200",
        "1,234 pictures",
        "7.00 %",
    ):
        assert part in text
    assert 'aria-label="Risk by coverage, and coverage and precision by threshold"' in text
    without = render_report(decided(unknown=False))
    assert "Pictures of no class" not in without
    assert "None of these" not in render_report(findings())
    nobody = decided(unknown=False)
    nobody.metrics["decision"] |= {"coverage": 0.0, "precision": None}
    assert "<td>–</td>" in render_report(nobody)
