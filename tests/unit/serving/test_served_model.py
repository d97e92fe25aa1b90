"""A model is tried before it is served, and stays until a better one has been; the token gives nothing away."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from PIL import Image

from components.model_source import FolderSource
from gkd_core.data.images import fit
from gkd_core.errors import GkdError
from gkd_core.serving.authorisation import read_token
from gkd_core.serving.classify import classify_files, ranked
from gkd_core.serving.metrics import Metrics
from gkd_core.serving.model import Model, ModelFile
from gkd_core.serving.reload import Served, file_fingerprint


@pytest.fixture(scope="module")
def deploys(tmp_path_factory, make_deploy) -> list[Path]:
    root = tmp_path_factory.mktemp("models")
    return [make_deploy(root / str(seed), seed=seed) / "model.onnx" for seed in (1, 2)]


def written(folder: Path, nodes, inputs, outputs, initializers=(), opset: int = 18) -> Path:
    graph = helper.make_graph(nodes, "odd", inputs, outputs, list(initializers))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    (folder / "odd.onnx").write_bytes(model.SerializeToString())
    return folder / "odd.onnx"


def value(name: str, shape: list, kind: int = TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def test_a_lone_file_knows_its_classes_and_where_it_comes_from(deploys):
    model = Model(ModelFile(deploys[0]), version="1")
    assert model.classes == tuple(f"class {number}" for number in range(10))
    assert model.facts["data_sha256"] == "1" * 64
    assert model.picture == (8, 1)
    assert model.run(np.zeros((3, 8, 8, 1), np.uint8)).shape == (3, 10)


def test_batches_and_single_images_agree(deploys):
    model = Model(ModelFile(deploys[0]), version="1")
    images = np.random.default_rng(0).integers(0, 256, (33, 8, 8, 1), dtype=np.uint8)
    alone = np.concatenate([model.run(image[None]) for image in images])
    assert np.allclose(model.run(images), alone, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def any_size(tmp_path_factory, make_deploy) -> Path:
    """A deploy folder with a file for pictures of any size, and a reference to compare answers with."""
    reference = {"images": 10, "predicted": [1] * 10, "mean_confidence": 0.5}
    folder = tmp_path_factory.mktemp("any") / "deploy"
    return make_deploy(folder, side=8, channels=3, pixels=True, reference=reference)


def test_the_same_model_for_pictures_of_any_size_stands_beside_it(any_size):
    model = Model(FolderSource(any_size).fetch(), version="1")
    assert (model.input.shape, model.pixels.input.shape) == ((-1, 8, 8, 3), (-1, -1, -1, 3))
    assert (model.picture, model.pixels.picture) == ((8, 3), (8, 3))
    assert model.pixels.classes == model.classes
    pictures = np.random.default_rng(0).integers(0, 256, (2, 30, 21, 3), dtype=np.uint8)
    squares = np.stack([fit(picture, 8, 3) for picture in pictures])
    assert np.allclose(model.pixels.run(pictures), model.run(squares), rtol=1e-5, atol=1e-5)
    assert sum(model.answers.read()[0]) == 4, "answers of both are counted, and what was tried out is not"
    model.renumber("2")
    assert (model.version, model.pixels.version) == ("2", "2")
    assert Model(ModelFile(any_size / "model.onnx"), version="1").pixels is None


def test_a_lone_file_for_any_size_reads_a_picture_as_the_model_inside_does(any_size, tmp_path):
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (90, 200, 4), dtype=np.uint8), "RGBA")
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter
    picture.save(tmp_path / "p.webp", exif=turned, lossless=True)
    plain, pixels = (Model(ModelFile(any_size / name), version="1") for name in ("model.onnx", "model_pixels.onnx"))
    one, other = (classify_files(model, [tmp_path / "p.webp"], 10)[0]["predictions"] for model in (plain, pixels))
    assert [row["class"] for row in one] == [row["class"] for row in other]
    assert [row["probability"] for row in one] == pytest.approx([row["probability"] for row in other], abs=1e-5)


def test_a_file_for_any_size_that_does_not_say_its_own_is_refused(any_size, tmp_path):
    model = onnx.load(any_size / "model_pixels.onnx")
    facts = {entry.key: entry.value for entry in model.metadata_props}
    helper.set_model_props(model, facts | {"side": "-8"})
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(GkdError, match="does not say how large the pictures are"):
        Model(ModelFile(tmp_path / "model.onnx"), version="1")


def test_floats_are_taken_too(tmp_path):
    nodes = [helper.make_node("ReduceMean", ["image"], ["planes"], keepdims=0, axes=[2, 3])]
    graph_in, graph_out = [value("image", ["batch", 3, 4, 4])], [value("planes", ["batch", 3])]
    model = Model(ModelFile(written(tmp_path, nodes, graph_in, graph_out, opset=17)), version="1")
    assert (model.picture, model.classes) == ((4, 3), ("0", "1", "2"))
    pictures = np.full((1, 4, 4, 3), 255, np.uint8)
    assert model.run(model.from_pictures(pictures)).tolist() == [[1.0, 1.0, 1.0]]


@pytest.mark.parametrize(
    ("nodes", "inputs", "outputs", "sentence"),
    [
        ([("Add", ["a", "b"], ["c"])], [("a", ["n", 2]), ("b", ["n", 2])], [("c", ["n", 2])], "2 inputs and 1 outputs"),
        ([("Relu", ["a"], ["c"])], [("a", [1, 2])], [("c", [1, 2])], "batches of 1 only"),
        ([("Relu", ["a"], ["c"])], [("a", ["n", "m"])], [("c", ["n", "m"])], "not a batch of images"),
        ([("Relu", ["a"], ["c"])], [("a", ["n", 2, 2])], [("c", ["n", 2, 2])], "FP32 logits"),
        ([("Log", ["a"], ["c"])], [("a", ["n", 2])], [("c", ["n", 2])], "finite logits"),
    ],
)
def test_what_is_no_image_classifier_is_refused(tmp_path, nodes, inputs, outputs, sentence):
    file = written(
        tmp_path,
        [helper.make_node(*node) for node in nodes],
        [value(*one) for one in inputs],
        [value(*one) for one in outputs],
    )
    with pytest.raises(GkdError, match=sentence):
        Model(ModelFile(file), version="1")


def test_a_file_is_what_its_manifest_says_or_it_is_refused(deploys):
    with pytest.raises(GkdError, match="sha256 differs"):
        Model(ModelFile(deploys[0], sha256="0" * 64), version="1")
    with pytest.raises(GkdError, match="class names are not 10 texts"):
        Model(ModelFile(deploys[0], manifest={"classes": ["a", "b"]}), version="1")


def graph(*tensors: TensorProto, nodes: tuple[onnx.NodeProto, ...] = (), sparse=()) -> onnx.GraphProto:
    found = helper.make_graph(list(nodes), "g", [], [], list(tensors))
    found.sparse_initializer.extend(sparse)
    return found


def node(**attribute) -> onnx.NodeProto:
    return onnx.NodeProto(op_type="Constant", attribute=[onnx.AttributeProto(name="value", **attribute)])


INSIDE = helper.make_tensor("inside", TensorProto.FLOAT, [2], [1.0, 2.0])
PLACES = {
    "initializer": lambda tensor: {"graph": graph(INSIDE, tensor)},
    "sparse": lambda tensor: {"graph": graph(sparse=[onnx.SparseTensorProto(values=INSIDE, indices=tensor)])},
    "constant": lambda tensor: {"graph": graph(nodes=(node(t=tensor),))},
    "constants": lambda tensor: {"graph": graph(nodes=(node(tensors=[INSIDE, tensor]),))},
    "branch": lambda tensor: {"graph": graph(nodes=(node(g=graph(nodes=(node(graphs=[graph(tensor)]),))),))},
    "function": lambda tensor: {"functions": [onnx.FunctionProto(name="f", node=[node(t=tensor)])]},
    "training": lambda tensor: {"training_info": [onnx.TrainingInfoProto(algorithm=graph(tensor))]},
}


@pytest.mark.parametrize("place", PLACES)
def test_a_tensor_in_another_file_is_found_wherever_a_model_may_have_one(tmp_path, place):
    by_location, by_entry = (TensorProto(name="outside", data_type=TensorProto.FLOAT, dims=[2]) for _ in range(2))
    by_location.data_location = TensorProto.EXTERNAL
    by_entry.external_data.add(key="location", value="weights")
    for outside in (by_location, by_entry):
        (tmp_path / "m.onnx").write_bytes(onnx.ModelProto(ir_version=10, **PLACES[place](outside)).SerializeToString())
        with pytest.raises(GkdError, match="keeps the tensor 'outside' in another file"):
            Model(ModelFile(tmp_path / "m.onnx"), version="1")


def test_what_is_beside_a_model_cannot_be_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("token").write_text("open-sesame")
    secret = TensorProto(name="secret", data_type=TensorProto.UINT8, dims=[11], data_location=TensorProto.EXTERNAL)
    for key, text in (("location", "token"), ("offset", "0"), ("length", "11")):
        secret.external_data.add(key=key, value=text)
    nodes = [
        helper.make_node("Cast", ["secret"], ["letters"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["image", "none"], ["nothing"]),
        helper.make_node("Add", ["nothing", "letters"], ["logits"]),
    ]
    none = helper.make_tensor("none", TensorProto.FLOAT, [1], [0.0])
    file = written(tmp_path, nodes, [value("image", ["n", 1])], [value("logits", ["n", 11])], [secret, none])
    told = onnxruntime.InferenceSession(file.read_bytes()).run(None, {"image": np.zeros((1, 1), np.float32)})[0]
    assert bytes(told[0].astype(np.uint8)) == b"open-sesame"  # what onnxruntime alone would answer
    with pytest.raises(GkdError, match="keeps the tensor 'secret' in another file"):
        Model(ModelFile(file), version="1")


def test_only_onnx_files_are_opened(tmp_path, deploys):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "m.ort")  # onnxruntime's own format, by the file's ending
    onnxruntime.InferenceSession(deploys[0], options)
    assert onnxruntime.InferenceSession((tmp_path / "m.ort").read_bytes()).get_inputs()
    with pytest.raises(GkdError, match="is not an ONNX model"):
        Model(ModelFile(tmp_path / "m.ort"), version="1")


class Shelf:
    """A source whose file is put there by hand."""

    def __init__(self, file: Path) -> None:
        self.file, self.fingerprint, self.silent = file, 0, False
        self.trouble: Exception | None = None

    def put(self, file: Path) -> None:
        self.file, self.fingerprint = file, self.fingerprint + 1

    def poll(self) -> int:
        if self.silent:
            raise GkdError("it is away")
        return self.fingerprint

    def fetch(self) -> ModelFile:
        if self.trouble is not None:
            raise self.trouble
        return ModelFile(self.file)


def test_a_model_stays_until_another_has_been_tried(tmp_path, deploys):
    shelf, metrics = Shelf(deploys[0]), Metrics()
    served = Served(shelf, metrics)
    first = served.model
    assert not served.refresh()  # nothing new

    (tmp_path / "garbage").write_bytes(b"no model")
    shelf.put(tmp_path / "garbage")
    assert not served.refresh()
    assert served.model is first
    assert b"gkd_model_stale 1.0" in metrics.text()
    assert not served.refresh()  # said once, not tried again until it changes
    assert metrics.registry.get_sample_value("gkd_reloads_total", {"outcome": "refused"}) == 1

    shelf.silent = True
    assert not served.refresh()
    shelf.silent = False

    shelf.put(deploys[0])  # the same again, only touched
    assert not served.refresh()
    assert served.model is first
    assert b"gkd_model_stale 0.0" in metrics.text()

    shelf.put(deploys[1])
    assert served.refresh()
    assert (served.model.version, first.version) == ("2", "1")
    assert f'model_sha256="{served.model.sha256}"' in metrics.text().decode()
    assert first.sha256 not in metrics.text().decode()


@pytest.mark.parametrize("trouble", [GkdError("the registry is away"), OSError("connection reset"), None])
def test_what_could_not_be_fetched_is_tried_again(tmp_path, deploys, caplog, trouble):
    shelf, metrics = Shelf(deploys[0]), Metrics()
    served = Served(shelf, metrics)
    first = served.model

    shelf.put(deploys[1] if trouble else tmp_path / "late.onnx")  # the latter is not there yet
    shelf.trouble = trouble
    for _ in range(2):
        assert not served.refresh()
        assert served.model is first
        assert metrics.registry.get_sample_value("gkd_model_stale") == 1
    assert metrics.registry.get_sample_value("gkd_reloads_total", {"outcome": "failed"}) == 2
    assert len(caplog.records) == 1  # said once

    shelf.trouble = None
    if trouble is None:
        (tmp_path / "late.onnx").write_bytes(deploys[1].read_bytes())
    assert served.refresh()  # though the fingerprint is the one it was at the failure
    assert served.model.sha256 != first.sha256
    assert metrics.registry.get_sample_value("gkd_model_stale") == 0
    assert not served.refresh()


def test_a_failure_is_forgotten_when_the_old_model_is_wanted_again(deploys):
    shelf, metrics = Shelf(deploys[0]), Metrics()
    served = Served(shelf, metrics)
    first, fingerprint = served.model, shelf.fingerprint
    shelf.put(deploys[1])
    shelf.trouble = OSError("connection reset")
    assert not served.refresh()
    shelf.file, shelf.fingerprint, shelf.trouble = deploys[0], fingerprint, None
    assert not served.refresh()
    assert served.model is first
    assert metrics.registry.get_sample_value("gkd_model_stale") == 0


def test_a_folder_that_is_not_what_its_manifest_says_is_read_again_when_it_has_changed(tmp_path, make_deploy):
    folder, coming = make_deploy(tmp_path / "deploy", seed=1), make_deploy(tmp_path / "coming", seed=2)
    metrics = Metrics()
    served = Served(FolderSource(folder), metrics)
    first, content = served.model, (coming / "model.onnx").read_bytes()

    def refused() -> float | None:
        return metrics.registry.get_sample_value("gkd_reloads_total", {"outcome": "refused"})

    for count, part in enumerate((content[:1000], content[:2000], content), start=1):  # it is being copied
        (folder / "model.onnx").write_bytes(part)
        for _ in range(3):
            assert not served.refresh()
        assert refused() == count  # read once each
        assert metrics.registry.get_sample_value("gkd_model_stale") == 1
    (folder / "manifest.json").write_bytes((coming / "manifest.json").read_bytes())
    assert served.refresh()
    assert served.model.sha256 != first.sha256
    assert metrics.registry.get_sample_value("gkd_model_stale") == 0
    assert metrics.registry.get_sample_value("gkd_reloads_total", {"outcome": "failed"}) == 0


def test_a_mark_changes_with_what_may_be_read(tmp_path):
    (tmp_path / "a").write_text("a")
    before = file_fingerprint(tmp_path / "a")
    assert file_fingerprint(tmp_path / "a") == before
    (tmp_path / "a").chmod(0o400)
    assert file_fingerprint(tmp_path / "a") != before


def test_there_must_be_something_to_begin_with(tmp_path):
    with pytest.raises(GkdError, match="does not exist"):
        Served(Shelf(tmp_path / "none.onnx"), Metrics())


def test_probabilities_by_hand():
    rows = ranked(np.log(np.array([[1, 2, 5], [1, 1, 1]], np.float32)), ("a", "b", "c"), 2)
    assert rows[0] == [{"class": "c", "probability": 0.625}, {"class": "b", "probability": 0.25}]
    assert [row["class"] for row in rows[1]] == ["a", "b"]  # of equals the first
    assert ranked(np.array([[1000.0, 0.0]], np.float32), ("a", "b"), 1)[0][0]["probability"] == 1.0


def test_the_token(tmp_path, monkeypatch):
    monkeypatch.delenv("GKD_TOKEN", raising=False)
    assert read_token(None) is None
    monkeypatch.setenv("GKD_TOKEN", "from-environment")
    (tmp_path / "token").write_text("from-file\n")
    token = read_token(tmp_path / "token")
    assert token is not None
    assert token.admits(b"Bearer from-file")
    assert token.admits(b"bearer from-file")
    for wrong in (None, b"", b"Bearer", b"Bearer ", b"Bearer from-fil", b"Bearer From-File", b"Basic from-file"):
        assert not token.admits(wrong)
    assert "from" not in f"{token!r} {token}"
    assert read_token(None).admits(b"Bearer from-environment")
    for bad in ("", " ", "two words", "bücher"):
        (tmp_path / "token").write_text(bad)
        with pytest.raises(GkdError, match="holds no token") as told:
            read_token(tmp_path / "token")
        assert not bad.strip() or bad not in str(told.value)
    with pytest.raises(GkdError, match="cannot be read"):
        read_token(tmp_path / "none")


def test_facts_are_json(deploys):
    facts = Model(ModelFile(deploys[0]), version="1").facts
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
