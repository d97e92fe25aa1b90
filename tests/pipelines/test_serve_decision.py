"""A model that says "none of these": by the protocol, /classify, the page and `gkd predict`, with one threshold between
two pictures."""

import json
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton
from PIL import Image
from playwright.sync_api import expect
from typer.testing import CliRunner

from gkd_core.decision import Decision, Shown
from gkd_core.export.session import run_session, session
from pipelines.cli import app
from tests.pipelines.test_serve_page import shown

SIDE = 16


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Path]:
    """A picture that the model is surer of, and one that it is not."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, value in (("sure", 250), ("unsure", 20)):
        rows, columns = np.mgrid[0:SIDE, 0:SIDE]
        pixels = np.stack([rows + value - SIDE, columns, rows], -1).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return [folder / "sure.png", folder / "unsure.png"]


@pytest.fixture(scope="module")
def decided(tmp_path_factory, make_deploy, pictures) -> tuple[Path, Decision, np.ndarray]:
    """The deploy folder, its decision, and the logits of the pictures as the file without a decision gives them."""
    root, made = tmp_path_factory.mktemp("decided"), {"seed": 5, "side": SIDE, "channels": 3, "count": 12}
    plain = make_deploy(root / "plain", **made) / "model.onnx"
    logits = run_session(session(plain), np.stack([np.array(Image.open(file)) for file in pictures]))
    told = Shown(images=30, coverage=0.8, precision=0.95, nll=0.7, calibrated_nll=0.6)
    draft = Decision(score="energy", threshold=0.0, temperature=2.0, asked="precision", target=0.95, validation=told)
    scores = draft.scores(logits)
    assert scores[0] > scores[1] + 0.1
    decision = draft.model_copy(update={"threshold": float(scores.mean())})
    return make_deploy(root / "deploy", decision=decision, pixels=True, **made), decision, logits


@pytest.fixture(scope="module")
def server(start, decided):
    return start(decided[0])


def test_the_protocol_lists_four_outputs_and_answers_all_or_those_that_are_asked_for(server, decided, pictures):
    _, decision, logits = decided
    images = np.stack([np.array(Image.open(file)) for file in pictures])
    tensor = triton.InferInput("image", images.shape, "UINT8")
    tensor.set_data_from_numpy(images)
    pixels = triton.InferInput("pixels", images.shape, "UINT8")
    pixels.set_data_from_numpy(images)
    with triton.InferenceServerClient(server.address) as client:
        known = client.get_model_metadata("gkd-student")
        assert client.get_model_metadata("gkd-student-pixels")["outputs"] == known["outputs"]
        of_any_size = client.infer("gkd-student-pixels", [pixels])
        everything = client.infer("gkd-student", [tensor])
        alone = client.infer("gkd-student", [tensor], outputs=[triton.InferRequestedOutput("logits")])
    assert known["outputs"] == [
        {"name": "logits", "datatype": "FP32", "shape": [-1, 12]},
        {"name": "probabilities", "datatype": "FP32", "shape": [-1, 12]},
        {"name": "score", "datatype": "FP32", "shape": [-1]},
        {"name": "decision", "datatype": "INT64", "shape": [-1]},
    ]
    assert known["parameters"]["decision"] == json.loads(decision.as_json())
    assert np.allclose(everything.as_numpy("probabilities"), decision.probabilities(logits), atol=1e-6)
    named, score = decision.decide(logits)
    assert everything.as_numpy("decision").tolist() == named.tolist() == [logits[0].argmax(), -1]
    assert np.allclose(everything.as_numpy("score"), score, rtol=1e-5)
    for output in ("logits", "probabilities", "score", "decision"):
        assert np.allclose(of_any_size.as_numpy(output), everything.as_numpy(output), rtol=1e-5), output
    assert [output["name"] for output in alone.get_response()["outputs"]] == ["logits"]
    assert np.allclose(alone.as_numpy("logits"), logits, atol=1e-5)


def test_predict_classify_and_the_page_say_the_same(server, decided, pictures, browser):
    deploy, decision, logits = decided
    run = CliRunner().invoke(app, ["predict", *map(str, pictures), "--model", str(deploy), "--json", "--top", "10"])
    answers = json.loads(run.stdout.splitlines()[-1])
    sure, unsure = answers
    assert sure["decision"] == sure["predictions"][0]["class"] == f"class {logits[0].argmax()}"
    assert unsure["decision"] is None
    for answer, row, score in zip(answers, decision.probabilities(logits), decision.scores(logits), strict=True):
        assert answer["predictions"][0]["probability"] == pytest.approx(row.max(), abs=2e-6)
        assert answer["score"] == pytest.approx(score, rel=1e-4)
    table = CliRunner().invoke(app, ["predict", *map(str, pictures), "--model", str(deploy)]).stdout
    assert f"{pictures[1]}: none of these" in table
    assert f"{pictures[0]}: none of these" not in table

    for file, answer in zip(pictures, answers, strict=True):
        request = urllib.request.Request(f"{server.url}/classify?top=10", file.read_bytes())
        with urllib.request.urlopen(request) as reply:
            found = json.load(reply)
        assert {key: found[key] for key in ("predictions", "decision", "score")} == {
            key: answer[key] for key in ("predictions", "decision", "score")
        }

    page = browser.new_page()
    page.goto(server.url)
    for file, answer in ((pictures[1], unsure), (pictures[0], sure)):
        page.set_input_files("#file", file)
        likeliest = answer["predictions"][0]["class"]
        said = f"It looks like: {likeliest}"
        if answer["decision"] is None:
            said = f"None of these; the likeliest would be {likeliest}"
        expect(page.get_by_role("status")).to_have_text(said)
        rows = [(each["class"], f"{100 * each['probability']:.1f} %") for each in answer["predictions"]]
        assert shown(page) == rows
        assert ("unsure" in (page.locator("#result").get_attribute("class") or "")) == (answer["decision"] is None)
    page.close()


def test_a_decision_that_its_graph_does_not_make_is_refused(decided, tmp_path, make_deploy):
    import onnx

    model = onnx.load(decided[0] / "model.onnx")
    del model.graph.output[3]
    onnx.save(model, tmp_path / "model.onnx")
    result = CliRunner().invoke(app, ["predict", "x.png", "--model", str(tmp_path / "model.onnx")])
    assert result.exit_code != 0
    assert "4 outputs where it decides" in str(result.exception) + result.output
