import numpy as np
import pytest
import torch

from gkd_core.data.loader import Loader
from gkd_core.data.prepared import Split
from gkd_core.errors import GkdError
from gkd_core.evaluation.predictions import predict
from gkd_core.models.ensemble import Ensemble
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


def test_an_ensemble_gives_the_mean_of_the_probabilities() -> None:
    members, data = [network(0), network(1)], loader(7)
    together = predict(Ensemble(members), data, "ensemble")
    each = [torch.from_numpy(predict(member, data, "member")).softmax(1) for member in members]
    np.testing.assert_allclose(torch.from_numpy(together).softmax(1), (each[0] + each[1]) / 2, atol=1e-6)
    # The logits are log-probabilities already: the mean of distributions is one.
    np.testing.assert_allclose(np.exp(together).sum(1), 1.0, atol=1e-5)
