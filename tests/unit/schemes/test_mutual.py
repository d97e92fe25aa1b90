"""Peers that learn from each other."""

import math

import pytest
import torch

from gkd_core.data.loader import Batch
from gkd_core.models.network import Network, NetworkSpec
from gkd_core.schemes import DistillationSpec, get
from gkd_core.schemes.mutual import MutualLearner, mutual_loss
from gkd_core.training.optimizer import create_optimizer

LABELS = torch.tensor([0, 1, 2, 1])
BATCH = Batch(torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(5)), LABELS, torch.arange(4), None)


def network(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return Network(NetworkSpec("resnet8", "auto", ("a", "b", "c"), 1, 8, (0.3,), (0.2,)))


def learner_of(student: Network, *, peers: int = 2, method: str = "kd") -> MutualLearner:
    spec = DistillationSpec(method, scheme="mutual", scheme_options={"peers": peers})
    return get("mutual").create_learner(
        spec, student, [], {"seed": 0, "epochs": 2, "train_labels": LABELS}, autocast=False
    )


def test_two_peers_by_hand():
    # p = (1/2, 1/2), q = (3/4, 1/4): KL(q‖p) + KL(p‖q).
    p, q = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([[math.log(3.0), 0.0]], dtype=torch.float64)
    first = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    second = 0.5 * math.log(2 / 3) + 0.5 * math.log(2)
    assert mutual_loss([p, q]).item() == pytest.approx(first + second, rel=1e-12)


def test_three_peers_take_the_mean_over_the_others():
    z = [torch.randn(5, 4, dtype=torch.float64) for _ in range(3)]

    def kl(teacher, student):
        return (teacher.softmax(1) * (teacher.log_softmax(1) - student.log_softmax(1))).sum(1).mean().item()

    expected = sum((kl(z[j], z[k]) + kl(z[i], z[k])) / 2 for k, j, i in [(0, 1, 2), (1, 0, 2), (2, 0, 1)])
    assert mutual_loss(z).item() == pytest.approx(expected, rel=1e-12)


def test_a_gradient_reaches_a_peer_only_as_the_one_that_learns():
    # d KL(q‖σ(z)) / dz = σ(z) − q; as a target it gets nothing.
    z = torch.randn(1, 3, dtype=torch.float64, requires_grad=True)
    w = torch.randn(1, 3, dtype=torch.float64, requires_grad=True)
    mutual_loss([z, w]).backward()
    torch.testing.assert_close(z.grad, (z.softmax(1) - w.softmax(1)).detach())
    torch.testing.assert_close(w.grad, (w.softmax(1) - z.softmax(1)).detach())


def test_the_terms_are_sums_over_peers():
    student = network()
    learner = learner_of(student, peers=3).train()
    terms, _ = learner(BATCH, LABELS, None, 0.0)
    with torch.no_grad():
        logits = [peer(BATCH.images).logits for peer in (student, *learner.others)]
    expected = sum(torch.nn.functional.cross_entropy(z, LABELS) for z in logits)
    assert terms["ce"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert terms["mutual"].item() == pytest.approx(mutual_loss(logits).item(), rel=1e-4)


def test_peers_start_apart_and_are_trained_and_kept_with_the_learner():
    student = network()
    learner = learner_of(student, peers=3)
    first = [next(net.parameters()) for net in (student, *learner.others)]
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[1], first[2])
    groups = create_optimizer(learner, name="sgd", learning_rate=0.1).param_groups
    assert [len(group["params"]) for group in groups] == [n * len(list(student.parameters())) for n in (1, 2)]
    assert {name.split(".")[1] for name in learner.state_dict() if name.startswith("others")} == {"0", "1"}
    assert list(learner.networks()) == ["", "peer2", "peer3"]
    again = learner_of(student, peers=3)
    assert all(torch.equal(a, b) for a, b in zip(learner.parameters(), again.parameters(), strict=True))


def test_without_an_exchange_only_labels_teach():
    terms, _ = learner_of(network(), method="ce")(BATCH, LABELS, None, 0.0)
    assert set(terms) == {"ce"}


@pytest.mark.parametrize(("tops", "best"), [((0.5, 0.7, 0.6), 2), ((0.7, 0.7, 0.6), 1), ((0.7, 0.6, 0.7), 3)])
def test_the_best_peer_becomes_the_student(tops, best):
    """By accuracy, then by likelihood: here the later peer has the larger nll, except the third."""
    student = network()
    learner = learner_of(student, peers=3)
    nlls = (1.0, 1.1, 0.9)
    weights = [{k: v.clone() for k, v in net.state_dict().items()} for net in (student, *learner.others)]
    history = [{"validation_top1": tops[0], "validation_nll": nlls[0]}]
    history[0] |= {f"validation_top1_peer{k}": tops[k - 1] for k in (2, 3)}
    history[0] |= {f"validation_nll_peer{k}": nlls[k - 1] for k in (2, 3)}
    facts = learner.on_train_end(history)
    assert facts == {"selected_peer": best, "peers_validation_top1": list(tops)}
    assert all(torch.equal(v, weights[best - 1][k]) for k, v in student.state_dict().items())
    assert history[0]["validation_top1"] == tops[best - 1]
    assert history[0]["validation_nll"] == nlls[best - 1]
    assert [history[0][f"validation_top1_peer{k}"] for k in (1, 2, 3)] == list(tops)
