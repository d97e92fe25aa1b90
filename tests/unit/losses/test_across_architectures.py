"""Every method between a transformer and a convolutional network, both ways: it learns, or says why not."""

import pytest
import torch

from gkd_core.errors import GkdError
from gkd_core.methods import METHODS, create_loss
from gkd_core.models.network import Network, NetworkSpec

CLASSES = ("a", "b", "c", "d")
LABELS = torch.tensor([0, 3, 1, 2])
FACTS = {"seed": 0, "epochs": 2, "train_labels": LABELS}
SIZES = {"resnet8": 16, "timm:test_vit": 32, "timm:efficientvim_m1": 64}
ON_STAGES = {name for name, method in METHODS.items() if method.reads == "feature maps"}
PAIRS = [("resnet8", "timm:test_vit"), ("timm:test_vit", "resnet8")]


@pytest.fixture(scope="module")
def networks() -> dict[str, Network]:
    """A CNN, a transformer with tokens and a grid of patches, and one that hands its head several tensors."""
    torch.manual_seed(0)
    return {name: Network(NetworkSpec(name, "auto", CLASSES, 1, side, (0.3,), (0.3,))) for name, side in SIZES.items()}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("student", "teacher"), PAIRS, ids=["resnet by vit", "vit by resnet"])
def test_a_method_goes_from_one_architecture_to_another(networks, method, student, teacher):
    """Every term is finite and reaches the student."""
    learner, expert = networks[student], networks[teacher].eval()
    loss = create_loss(method, learner, expert if METHODS[method].teacher else None, {}, **FACTS)
    images = torch.rand(4, 1, 16, 16)
    with torch.no_grad():
        answer = expert(images)
    terms = loss(learner.train()(images), answer, LABELS, epoch=1.0, indices=torch.arange(4))
    for name, term in terms.items():
        assert term.shape == (), name
        assert term.isfinite(), name
        reached = torch.autograd.grad(term, list(learner.parameters()), retain_graph=True, allow_unused=True)
        assert sum(float(part.abs().sum()) for part in reached if part is not None) > 0, name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_network_without_a_last_stage_is_taken_or_refused_in_one_sentence(networks, method, role):
    """Methods on logits and embeddings take it; the others name method, role and network."""
    odd, plain = networks["timm:efficientvim_m1"], networks["resnet8"]
    student, teacher = (odd, plain) if role == "student" else (plain, odd)
    if method not in ON_STAGES or (role == "teacher" and not METHODS[method].teacher):
        create_loss(method, student, teacher if METHODS[method].teacher else None, {}, **FACTS)
        return
    with pytest.raises(GkdError) as caught:
        create_loss(method, student, teacher if METHODS[method].teacher else None, {}, **FACTS)
    sentence = str(caught.value)
    assert sentence.startswith(f"method {method} compares ")
    assert f"the {role} timm:efficientvim_m1 has none: choose" in sentence
    assert "\n" not in sentence
