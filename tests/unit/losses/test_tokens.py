"""Transformers: their tokens are a cloud of atoms, which any method that needs no grid takes."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from gkd_core.errors import GkdError
from gkd_core.losses.feature_maps import ChannelAdapter, ChannelRemap
from gkd_core.losses.gompertz import Gompertz
from gkd_core.losses.gradient import gradient_loss, head_gradient
from gkd_core.losses.wasserstein import SOLVERS, wasserstein_loss
from gkd_core.methods import METHODS, create_loss
from gkd_core.models.classifier import Output

CLASSES = 4


class Tokens(nn.Module):
    """Patches of 2 × 2 pixels and a class token, which the head looks at through attention; no grid by default."""

    name = "tokens"
    num_classes = CLASSES

    def __init__(self, channels: int = 6, *, grid: bool = False, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.patches = nn.Conv2d(3, channels, 2, stride=2)
        self.token = nn.Parameter(torch.randn(1, channels, 1))
        self.query = nn.Parameter(torch.randn(channels))
        self.linear = nn.Linear(channels, CLASSES)
        self.grid = grid

    def forward(self, images: Tensor) -> Output:
        patches = self.patches(images)
        tokens = torch.cat([self.token.expand(images.shape[0], -1, -1), patches.flatten(2)], 2)
        return Output(self.head(tokens), (patches,) if self.grid else (), tokens.mean(2), tokens)

    def head(self, last_stage: Tensor) -> Tensor:
        tokens = last_stage.transpose(1, 2)
        query = self.query.expand(tokens.shape[0], 1, -1)
        return self.linear(functional.scaled_dot_product_attention(query, tokens, tokens)[:, 0])

    def stage_shapes(self) -> tuple[tuple[int, int, int], ...]:
        return ((self.linear.in_features, 4, 4),) if self.grid else ()

    def last_stage_shape(self) -> tuple[int, ...]:
        return (self.linear.in_features, 17)

    def embedding_size(self) -> int:
        return self.linear.in_features

    def pooled_linear_weight(self) -> None:
        return None


@pytest.fixture
def networks(make_staged) -> dict[str, object]:
    """A convolutional network and a transformer; images of 8 × 8 pixels."""
    return {"cnn": make_staged(), "tokens": Tokens()}


IMAGES = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 3, 1, 2, 2])
FACTS = {"seed": 0, "epochs": 2, "train_labels": LABELS}


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_cloud_is_what_a_map_of_one_column_is(solver):
    generator = torch.Generator().manual_seed(0)
    tokens, grid = (torch.randn(*shape, generator=generator) for shape in ((2, 3, 5), (2, 3, 2, 4)))
    options = {"solver": solver, "normalise": "teacher_rms"}
    expected = wasserstein_loss(grid, tokens[..., None], **options)
    assert torch.equal(wasserstein_loss(grid, tokens, **options), expected)
    assert torch.equal(wasserstein_loss(grid.flatten(2), tokens, **options), expected)


def test_positions_and_tokens_do_not_go_together():
    with pytest.raises(ValueError, match="position_weight needs feature maps"):
        wasserstein_loss(torch.zeros(1, 2, 3), torch.zeros(1, 2, 2, 2), position_weight=0.5)


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4, 4, 4)])
def test_what_is_neither_map_nor_cloud_is_refused(shape):
    with pytest.raises(ValueError, match=r"\[B, C, H, W\] or tokens \[B, C, N\]"):
        wasserstein_loss(torch.zeros(shape), torch.zeros(2, 3, 4))


def test_gradients_are_compared_by_their_totals_where_one_side_has_tokens():
    """By hand: totals (3, 0) and (0, 4) are √(3² + 4²) = 5 apart and at right angles: ½·5 + ½·1."""
    student = torch.tensor([[[1.0, 2.0], [5.0, -5.0]]])
    teacher = torch.tensor([[[[1.0, -1.0]], [[1.0, 3.0]]]])
    assert gradient_loss(student, teacher).item() == pytest.approx(3.0)
    assert gradient_loss(teacher, student).item() == pytest.approx(3.0)
    assert gradient_loss(student, teacher.flatten(2)).item() == pytest.approx(3.0)


def test_the_gradient_of_the_head_is_one_of_each_token():
    """Beside finite differences, in float64."""
    network = Tokens().double()
    output = network(IMAGES.double())
    found = head_gradient(network, output, LABELS, differentiable=False)
    assert found.shape == output.tokens.shape
    step = torch.zeros_like(output.tokens)
    step[2, 3, 7] = 1e-6
    with torch.no_grad():
        losses = [
            functional.cross_entropy(network.head(output.tokens + sign * step), LABELS, reduction="sum")
            for sign in (1, -1)
        ]
    assert found[2, 3, 7].item() == pytest.approx((losses[0] - losses[1]).item() / 2e-6, rel=1e-5)


def test_channels_of_tokens_are_mapped_as_those_of_maps():
    tokens = torch.rand(2, 3, 5)
    for layer in (ChannelAdapter(3, 7, seed=0), ChannelRemap(3, 7, seed=0)):
        torch.testing.assert_close(layer(tokens), layer(tokens[..., None])[..., 0])


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(("student", "teacher"), [("cnn", "tokens"), ("tokens", "cnn"), ("tokens", "tokens")])
def test_gompertz_takes_a_transformer_on_either_side(networks, student, teacher, solver):
    """All terms are there and reach the student, through the fused attention of a head as well."""
    network, other = networks[student], networks[teacher] if student != teacher else Tokens(8, seed=1)
    other.eval().requires_grad_(False)
    loss = Gompertz(network, other, solver=solver)
    terms = loss(network(IMAGES), other(IMAGES), LABELS)
    assert set(terms) == {"ce", "wasserstein", "gradient", "kd"}
    for name, term in terms.items():
        network.zero_grad()
        term.backward(retain_graph=True)
        reached = [p.grad.abs().sum() for p in network.parameters() if p.grad is not None]
        assert sum(reached) > 0, name
        assert all(torch.isfinite(each) for each in reached)


def test_gompertz_refuses_positions_of_tokens(networks):
    with pytest.raises(GkdError, match=r"position_weight is 0\.5 but the teacher tokens gives tokens"):
        Gompertz(networks["cnn"], networks["tokens"], position_weight=0.5)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.reads == "feature maps"])
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_method_that_needs_a_grid_refuses_a_transformer_without_one(networks, name, role):
    """One sentence with method, role, network and a way out."""
    pair = {"student": networks["cnn"], "teacher": networks["cnn"], role: networks["tokens"]}
    if name == "gompertz" or (name == "self-distillation" and role == "teacher"):  # takes clouds; has no teacher
        return
    teacher = pair["teacher"] if METHODS[name].teacher else None
    with pytest.raises(GkdError, match=rf"{name} compares .* the {role} tokens has none: .*gompertz or kd"):
        create_loss(name, pair["student"], teacher, {}, **FACTS)


@pytest.mark.parametrize("name", ["at", "fitnet", "reviewkd"])
def test_a_method_that_needs_a_grid_takes_the_patches_of_a_transformer(networks, name):
    teacher = Tokens(grid=True).eval().requires_grad_(False)
    options = {"teacher_stage": 1} if name == "fitnet" else {}
    loss = create_loss(name, networks["cnn"], teacher, options, **FACTS)
    terms = loss(networks["cnn"](IMAGES), teacher(IMAGES), LABELS, epoch=1.0)
    assert all(torch.isfinite(term) for term in terms.values())
