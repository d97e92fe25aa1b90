"""Several networks as one: the mean of their probabilities, over those that know a class."""

import math

import numpy as np
import pytest
import torch

from gkd_core.errors import GkdError
from gkd_core.models.ensemble import Ensemble, mean_log_probabilities
from gkd_core.models.network import Network, NetworkSpec

NONE = -math.inf


def network(seed: int, classes: tuple[str, ...]) -> Network:
    torch.manual_seed(seed)
    return Network(NetworkSpec("resnet8", "auto", classes, 1, 8, (0.3,), (0.2,))).eval()


def test_the_mean_by_hand():
    each = torch.tensor([[[0.5, 0.25, 0.25]], [[0.1, 0.8, 0.1]]]).log()
    torch.testing.assert_close(mean_log_probabilities(each).exp(), torch.tensor([[0.3, 0.525, 0.175]]))
    weights = torch.tensor([[0.25], [0.75]])
    expected = torch.tensor([[0.2, 0.6625, 0.1375]])
    torch.testing.assert_close(mean_log_probabilities(each, weights).exp(), expected)


def test_who_does_not_know_a_class_is_left_out_of_its_mean_by_hand():
    # a: (.6), b: mean of .4 and .2, c: (.8); their sum 1.7 is brought to 1.
    each = torch.tensor([[[0.6, 0.4, 0.0]], [[0.0, 0.2, 0.8]]]).log()
    torch.testing.assert_close(mean_log_probabilities(each).exp(), torch.tensor([[0.6, 0.3, 0.8]]) / 1.7)


def test_weight_zero_counts_for_nothing():
    each = torch.tensor([[[0.5, 0.5]], [[0.1, 0.9]]]).log()
    weights = torch.tensor([[0.0], [1.0]])
    torch.testing.assert_close(mean_log_probabilities(each, weights).exp(), torch.tensor([[0.1, 0.9]]))


def test_parts_are_matched_by_name_in_any_order():
    first, second = network(0, ("c", "a")), network(1, ("b", "c"))
    images = torch.rand(4, 1, 8, 8)
    p1, p2 = first(images).logits.softmax(1), second(images).logits.softmax(1)
    expected = torch.stack([p1[:, 1], p2[:, 0], (p1[:, 0] + p2[:, 1]) / 2], 1)
    got = Ensemble([first, second], ("a", "b", "c"))(images)
    torch.testing.assert_close(got.logits.exp(), expected / expected.sum(1, keepdim=True))
    assert got.stages == ()


def test_at_a_temperature_each_is_softened_before_the_mean():
    networks = [network(seed, ("a", "b", "c")) for seed in (0, 1)]
    images = torch.rand(4, 1, 8, 8)
    each = Ensemble(networks).log_probabilities(images, 4.0)
    torch.testing.assert_close(each[1], (networks[1](images).logits / 4).log_softmax(1))


@pytest.mark.parametrize(
    "parts", [pytest.param((("a", "b", "c"), ("a", "b", "c")), marks=pytest.mark.slow), (("a", "b"), ("c", "b"))]
)
def test_it_exports(tmp_path, parts):
    import onnxruntime

    from gkd_core.export.onnx import write_onnx

    together = Ensemble([network(i, part) for i, part in enumerate(parts)], ("a", "b", "c")).eval()
    path = tmp_path / "ensemble.onnx"
    write_onnx(
        together, path, classes=("a", "b", "c"), channels=1, image_size=8, input="float_nchw", opset=18, name="it"
    )
    images = torch.rand(3, 1, 8, 8)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    np.testing.assert_allclose(logits, together(images).logits.detach().numpy(), atol=1e-5)


def test_a_class_that_no_network_knows_is_refused():
    with pytest.raises(GkdError, match="no network of the ensemble knows the class 'c'"):
        Ensemble([network(0, ("a", "b")), network(1, ("b",))], ("a", "b", "c"))
