import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image, ImageOps

from gkd_core.data.images import BORDER, fit
from gkd_core.errors import GkdError
from gkd_core.export.manifest import CHANNELS
from gkd_core.export.pixels import pixels_parity, write_pixels
from gkd_core.export.session import session

BILINEAR = Image.Resampling.BILINEAR


def pass_through(path, side: int, channels: int, form: str = "uint8_nhwc"):
    """A model that answers with the pixels it is given, from 0 to 255, so that one sees what the resizing makes."""
    shape = ["batch", side, side, channels] if form == "uint8_nhwc" else ["batch", channels, side, side]
    kind = TensorProto.UINT8 if form == "uint8_nhwc" else TensorProto.FLOAT
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("Flatten", ["float"], ["logits"]),
        ],
        "pass",
        [helper.make_tensor_value_info("image", kind, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", side * side * channels])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    helper.set_model_props(model, {"input": form, "classes": "[]"})
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def resized(tmp_path):
    """A function: pictures [N, H, W, 3] → what the model inside is given, uint8 [N, side, side, channels]."""
    made = {}

    def resize(pictures, side, channels=3, crop="center", form="uint8_nhwc"):
        key = (side, channels, crop, form)
        if key not in made:
            source = pass_through(tmp_path / "model.onnx", side, channels, form)
            write_pixels(source, tmp_path / "pixels.onnx", crop=crop)
            made[key] = session(tmp_path / "pixels.onnx", 1)
        answer = made[key].run(None, {"pixels": pictures})[0]
        if form == "float_nchw":
            answer = (answer * 255).round().reshape(-1, channels, side, side).transpose(0, 2, 3, 1)
        return answer.reshape(-1, side, side, channels).astype(np.uint8)

    return resize


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, CHANNELS), dtype=np.uint8)


# Wide, tall (Pillow then begins with the height), smaller and larger, by odd differences, and as narrow as can be.
SIZES = [(40, 40), (40, 41), (41, 40), (121, 80), (80, 121), (90, 203), (300, 77), (13, 21), (1, 150), (150, 2), (1, 1)]


@pytest.mark.parametrize(
    ("side", "channels", "crop", "form"),
    [
        (40, 3, "center", "uint8_nhwc"),
        (40, 3, "squash", "float_nchw"),
        (40, 3, "border", "uint8_nhwc"),
        (8, 1, "center", "float_nchw"),
        (8, 1, "border", "uint8_nhwc"),
        (97, 3, "center", "float_nchw"),
    ],
)
def test_every_level_is_the_one_that_pillow_makes(resized, side, channels, crop, form):
    for height, width in SIZES:
        picture = noise(height, width)
        expected = fit(picture, side, channels, crop)
        found = resized(picture[None], side, channels, crop, form)[0]
        np.testing.assert_array_equal(found, expected, err_msg=f"{width} × {height}")


def test_the_resizing_is_that_of_image_ops(resized):
    picture = noise(90, 203)
    image = Image.fromarray(picture)
    grey = (BORDER,) * 3
    for crop, expected in (
        ("center", ImageOps.fit(image, (40, 40), BILINEAR)),
        ("squash", image.resize((40, 40), BILINEAR)),
        ("border", ImageOps.pad(image, (40, 40), BILINEAR, grey)),
    ):
        np.testing.assert_array_equal(resized(picture[None], 40, crop=crop)[0], np.asarray(expected))


def test_values_worked_out_by_hand(resized):
    # The centre square of two pixels side by side begins at half a pixel: each counts half, and halves are rounded up.
    assert (resized(np.array([[[[10] * 3, [25] * 3]]], np.uint8), 1) == 18).all()
    # Two by two pixels in one: first each row, rounded up, then both. (0 + 1)/2 → 1, (0 + 0)/2 → 0, (1 + 0)/2 → 1;
    # rounded once at the end it would be 0.
    block = np.array([[[0], [1]], [[0], [0]]], np.uint8).repeat(3, 2)
    assert (resized(block[None], 1) == 1).all()
    # Grey: (19595 · 200 + 38470 · 100 + 7471 · 50 + 32768) / 65536 = 124.7 rounded down, half a level added before.
    assert resized(np.array([[[[200, 100, 50]]]], np.uint8), 1, 1).item() == 124


def test_a_batch_holds_pictures_of_one_size_and_each_is_resized_alone(resized):
    pictures = np.stack([noise(50, 70), noise(70, 50).transpose(1, 0, 2), np.full((50, 70, 3), 255, np.uint8)])
    together = resized(pictures, 40)
    for picture, found in zip(pictures, together, strict=True):
        np.testing.assert_array_equal(found, fit(picture, 40, 3))
    assert (together[2] == 255).all()


@pytest.fixture
def deploy(tmp_path, make_deploy):
    return make_deploy(tmp_path / "deploy", side=12, channels=3)


def test_answers_and_metadata_are_those_of_the_model_inside(deploy, tmp_path):
    source, target = deploy / "model.onnx", tmp_path / "model_pixels.onnx"
    write_pixels(source, target, crop="center")
    pictures = np.stack([noise(30, 55), noise(30, 55)[::-1]])
    expected = session(source).run(None, {"image": np.stack([fit(picture, 12, 3) for picture in pictures])})
    np.testing.assert_allclose(session(target).run(None, {"pixels": pictures})[0], expected[0], rtol=0, atol=1e-5)

    inside, facts = (session(file).get_modelmeta().custom_metadata_map for file in (source, target))
    assert facts["input"] == "pixels_nhwc"
    assert facts["side"] == "12"
    assert {key: facts[key] for key in inside if key != "input"} == {k: v for k, v in inside.items() if k != "input"}
    assert [list(each.shape) for each in session(target).get_inputs()] == [["batch", "height", "width", 3]]

    before = target.read_bytes()
    write_pixels(source, target, crop="center")
    assert target.read_bytes() == before


def test_all_outputs_of_the_model_stay(deploy, tmp_path):
    source, target = deploy / "model.onnx", tmp_path / "model_pixels.onnx"
    model = onnx.load(source)
    model.graph.node.append(helper.make_node("ArgMax", ["logits"], ["decision"], axis=1, keepdims=0))
    model.graph.output.append(helper.make_tensor_value_info("decision", TensorProto.INT64, ["batch"]))
    onnx.save(model, source)
    write_pixels(source, target, crop="center")
    logits, decision = session(target).run(["logits", "decision"], {"pixels": noise(20, 30)[None]})
    assert decision.tolist() == logits.argmax(1).tolist()
    images = np.stack([noise(12, 12), noise(12, 12)])
    assert pixels_parity(source, target, images, crop="center", tolerance=1e-4)["max_abs"] <= 1e-4


def test_parity_counts_the_levels_and_refuses_another_crop(deploy, tmp_path):
    source, target = deploy / "model.onnx", tmp_path / "model_pixels.onnx"
    images = np.stack([noise(12, 12), noise(12, 12)[::-1]])
    write_pixels(source, target, crop="center")
    found = pixels_parity(source, target, images, crop="center", tolerance=1e-4)
    assert found["values"] == len(found["sizes"]) * 12 * 12 * 3
    assert found["differing"] == 0
    write_pixels(source, target, crop="squash")
    with pytest.raises(
        GkdError, match=r"model_pixels\.onnx differs from model\.onnx by .* raise export\.parity_tolerance"
    ):
        pixels_parity(source, target, images, crop="center", tolerance=1e-4)


def test_a_model_of_no_square_pictures_cannot_be_wrapped(tmp_path):
    source = pass_through(tmp_path / "model.onnx", 8, 2)
    with pytest.raises(GkdError, match="no square grey or colour pictures"):
        write_pixels(source, tmp_path / "pixels.onnx", crop="center")
    assert not (tmp_path / "pixels.onnx").exists()
