"""`train.balance` in the trainer: what the loss is told, which images come, what is refused, exact on resume."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gkd_core.config import TrainingConfig
from gkd_core.data.prepared import Split
from gkd_core.errors import GkdError
from gkd_core.schemes import DistillationSpec
from gkd_core.training import trainer
from gkd_core.training.trainer import Trainer, Training
from tests.unit.stripes import CLASSES, network, stripes, stripes_data

COUNTS = (24, 9, 6, 3)


def long_tailed() -> SimpleNamespace:
    """42 stripes, of the last class 3."""
    many = stripes(400, 1)
    rows = np.concatenate([np.flatnonzero(many.labels == i)[:n] for i, n in enumerate(COUNTS)])
    rows = np.random.default_rng(0).permutation(rows)
    data = stripes_data(4)
    data.train = Split(many.images[rows], many.labels[rows], many.mean)
    return data


SCHEMES = {
    "kd": DistillationSpec("kd"),
    "ce": DistillationSpec("ce"),
    "mutual": DistillationSpec("kd", scheme="mutual"),
    "amalgamation": DistillationSpec("kd", scheme="amalgamation"),
    "ensemble": DistillationSpec("cmkd", scheme="ensemble"),
}


def run_of(balance: str, spec: DistillationSpec, work=None, **more) -> Trainer:
    parts = [CLASSES[:2], CLASSES[1:]] if spec.scheme == "amalgamation" else [CLASSES] * 2
    teachers = tuple(network("resnet8", 2 + i, part) for i, part in enumerate(parts))
    teachers = {"mutual": (), "single": teachers[:1]}.get(spec.scheme, teachers)
    config = TrainingConfig.model_validate({"epochs": 2, "batch_size": 16, "device": "cpu", "balance": balance} | more)
    return Trainer(Training(network("resnet8", 1), long_tailed(), config, spec, teachers), work)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_loss_of_every_scheme_is_told_how_large_the_classes_are(scheme):
    weights = run_of("weights", SCHEMES[scheme]).learner.loss
    assert weights.class_weights.tolist() == pytest.approx([42 / (4 * n) for n in COUNTS])
    assert weights.log_priors is None
    adjusted = run_of("logit-adjustment", SCHEMES[scheme]).learner.loss
    assert adjusted.log_priors.exp().tolist() == pytest.approx([n / 42 for n in COUNTS])
    assert adjusted.class_weights is None
    for balance in ("none", "sampler"):
        loss = run_of(balance, SCHEMES[scheme]).learner.loss
        assert loss.class_weights is loss.log_priors is None


def test_the_sampler_shows_all_classes_equally_often():
    def shown(balance):
        run = run_of(balance, SCHEMES["kd"])
        return np.bincount(np.concatenate([batch.labels for batch in run.loader.epoch(0)]), minlength=4).tolist()

    assert shown("sampler") in ([11, 11, 10, 10], [11, 10, 11, 10], [11, 10, 10, 11], [10, 11, 11, 10],
                                [10, 11, 10, 11], [10, 10, 11, 11])  # fmt: skip
    assert shown("weights") == list(COUNTS)


@pytest.mark.parametrize("balance", ["weights", "sampler", "logit-adjustment"])
def test_each_way_trains_another_network_and_resumes_to_the_bit(balance, tmp_path, monkeypatch):
    whole = run_of(balance, SCHEMES["kd"], tmp_path / "whole").run()
    plain = run_of("none", SCHEMES["kd"]).run()
    state = whole.network.state_dict()
    assert not all(torch.equal(state[key], value) for key, value in plain.network.state_dict().items())

    save = trainer.save_checkpoint

    def save_then_stop(path, content):
        save(path, content)
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "save_checkpoint", save_then_stop)
    with pytest.raises(KeyboardInterrupt):
        run_of(balance, SCHEMES["kd"], tmp_path / "cut").run()
    monkeypatch.undo()
    resumed = run_of(balance, SCHEMES["kd"], tmp_path / "cut").run()
    assert resumed.history.rows == whole.history.rows
    assert all(torch.equal(value, state[key]) for key, value in resumed.network.state_dict().items())


def test_a_checkpoint_of_another_balance_is_no_start(tmp_path):
    run_of("sampler", SCHEMES["kd"], tmp_path).run()
    with pytest.raises(GkdError, match="checkpoint"):
        run_of("weights", SCHEMES["kd"], tmp_path).run()


@pytest.mark.parametrize("method", ["rkd", "dist"])
def test_a_method_whose_terms_cannot_be_weighted_is_refused_by_name(method):
    with pytest.raises(GkdError, match=rf"train\.balance is weights, but method {method} .* sampler"):
        run_of("weights", DistillationSpec(method))
    run_of("sampler", DistillationSpec(method))
    run_of("logit-adjustment", DistillationSpec(method))


def test_rows_without_a_label_are_in_no_count():
    data = long_tailed()
    labels = np.where(np.arange(42) % 2 == 0, -1, data.train.labels)
    data.train = Split(data.train.images, labels, data.train.mean)
    config = TrainingConfig(epochs=1, batch_size=16, device="cpu", balance="weights")
    loss = Trainer(Training(network("resnet8", 1), data, config)).learner.loss
    known = np.bincount(labels[labels >= 0], minlength=4)
    assert loss.class_weights.tolist() == pytest.approx((known.sum() / (4 * known)).tolist())
