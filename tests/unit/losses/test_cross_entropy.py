from gkd_core.losses.cross_entropy import CrossEntropy
from gkd_core.methods import hyperparameters


def test_is_the_steps_own_cross_entropy_and_nothing_else(make_network, make_context, make_step):
    context = make_context(make_network(), None)
    step = make_step(context)
    terms = CrossEntropy(context)(step)
    assert set(terms) == {"ce"}
    assert terms["ce"] == step.cross_entropy(step.student.logits)
    assert CrossEntropy(context).parameter_groups() == []


def test_has_no_hyperparameters():
    assert hyperparameters("ce") == {}
