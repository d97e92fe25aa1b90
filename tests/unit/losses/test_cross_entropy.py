from torch.nn import functional

from gkd_core.losses.cross_entropy import CrossEntropy
from gkd_core.methods import hyperparameters


def test_is_the_steps_own_cross_entropy_and_nothing_else(make_network, make_pair, make_batch):
    pair = make_pair(make_network(), None)
    batch = make_batch(pair)
    terms = CrossEntropy(*pair)(*batch)
    assert set(terms) == {"ce"}
    assert terms["ce"] == functional.cross_entropy(batch.student.logits, batch.labels)
    assert CrossEntropy(*pair).parameter_groups() == []


def test_has_no_hyperparameters():
    assert hyperparameters("ce") == {}
