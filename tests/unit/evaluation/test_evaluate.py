import numpy as np
import pytest
import torch

from gkd_core.data.loader import Loader
from gkd_core.data.prepared import PreparedData, Split
from gkd_core.errors import GkdError
from gkd_core.evaluation.evaluate import evaluate, predict
from gkd_core.models.create import create_model
from gkd_core.models.network import Network, NetworkSpec


def network(seed: int) -> Network:
    torch.manual_seed(seed)
    return Network(NetworkSpec("resnet8", "auto", ("a", "b", "c"), 1, 8, (0.3,), (0.2,)))


def loader(count: int = 23) -> Loader:
    random = np.random.default_rng(0)
    split = Split(random.integers(0, 256, (count, 8, 8, 1), dtype=np.uint8), random.integers(0, 3, count))
    return Loader(split, batch_size=5, device="cpu", shuffle=False, num_classes=3)


def test_logits_are_those_of_the_images_in_order_in_eval_mode() -> None:
    subject, data = network(0).train(), loader()
    logits = predict(subject, data, "it")
    images = torch.from_numpy(data.split.images).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        expected = network(0).eval()(images).logits.numpy()
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_a_network_that_gives_no_numbers_is_named() -> None:
    subject = network(0)
    with torch.no_grad():
        subject.classifier.fc.weight[0, 0] = float("inf")
    with pytest.raises(GkdError, match="the student resnet8 gives logits that are not finite"):
        predict(subject, loader(), "the student resnet8")


def test_an_evaluation_says_what_its_logits_say() -> None:
    data = loader(40).split
    subject = network(0)
    result = evaluate(subject, data, teacher=network(1), device="cpu")
    predicted = predict(subject, loader(40), "it").argmax(1)
    other = predict(network(1), loader(40), "it").argmax(1)
    assert result.top1 == (predicted == data.labels).mean()
    assert result.low < result.top1 < result.high
    assert result.agreement == (predicted == other).mean()
    assert result.per_class.support.tolist() == np.bincount(data.labels, minlength=3).tolist()
    assert result.logits.shape == (40, 3)
    assert evaluate(subject, data, device="cpu").agreement is None


def test_an_evaluation_reads_as_a_few_lines() -> None:
    shown = repr(evaluate(network(0), loader(40).split, teacher=network(1), device="cpu"))
    assert len(shown.splitlines()) == 7
    assert all(word in shown for word in ("resnet8", "40 images", "top-1", "ECE", "NLL", "agreement"))


def test_whole_data_is_measured_on_its_test_split_and_must_have_the_network_s_classes(digits) -> None:
    data = PreparedData.open(digits)
    with pytest.raises(GkdError, match="select_classes"):
        evaluate(network(0), data)
    assert evaluate(create_model("resnet8", data=data), data, device="cpu").images == len(data.test)
