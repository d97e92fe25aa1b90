"""What the plugin's author tests: the formula, and that gkd trains with it."""

import pytest
import torch
from own_method import CosineEmbedding

import gkd_core as gkd
from gkd_core.models.classifier import Output


class Network:
    """As much of one as the loss asks."""

    def __init__(self, size: int) -> None:
        self.size = size

    def embedding_size(self) -> int:
        return self.size


def output(embedding: list[list[float]]) -> Output:
    return Output(torch.zeros(len(embedding), 2), (), torch.tensor(embedding))


def test_the_angle_by_hand():
    loss = CosineEmbedding(Network(2), Network(2), weight=3.0, power=2.0)
    terms = loss(output([[1, 0], [2, 2]]), output([[0, 5], [1, 1]]), torch.tensor([0, 1]))
    assert terms["angle"].item() == pytest.approx(3 * (1 + 0) / 2, abs=1e-6)  # cos 0 and cos 1
    assert terms["ce"].item() == pytest.approx(0.6931472)  # ln 2


def test_an_option_beyond_its_limits_is_refused():
    with pytest.raises(ValueError, match="power"):
        CosineEmbedding(Network(2), Network(2), power=0.5)


def test_a_moment_of_training():
    data = gkd.load_data("digits", train_images=100)
    teacher, student = (gkd.create_model(name, data=data) for name in ("resnet8", "separable-32"))
    result = gkd.distill(
        student, teacher, data, method="cosine-embedding", epochs=1, device="cpu", augment={"own": {"noise": {}}}
    )
    assert "train_angle" in result.history[0]
    assert result.facts["plugins"].startswith("own_method@sha256:")
