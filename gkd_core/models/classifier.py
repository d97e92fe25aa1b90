"""What every network is to the rest of the code: one output form, and a head that can be called alone."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from gkd_core.models.depth import parameter_depths

POSITIONS = ("class_token", "pos_embedding", "relative_position_bias_table")
"""What torchvision calls a transformer's class token and its positions."""


class Output(NamedTuple):
    """One forward pass.

    Attributes:
        logits: [B, C].
        stages: feature maps from shallow to deep, each [B, C_i, H_i, W_i]; empty for a network without feature maps.
            Of a transformer they are its patch tokens, where these lie in a grid.
        embedding: [B, D], the vector before the last linear layer.
        tokens: [B, C, N], what the head of a transformer sees where that is no feature map: all tokens after the last
            norm, class token and registers included; else None.
    """

    logits: Tensor
    stages: tuple[Tensor, ...]
    embedding: Tensor
    tokens: Tensor | None = None

    @property
    def last_stage(self) -> Tensor:
        """What the classification head sees, [B, C, H, W] or [B, C, N]: `classifier.head(last_stage)` is the logits.

        Raises:
            IndexError: the network has neither feature maps nor tokens.
        """
        return self.stages[-1] if self.tokens is None else self.tokens


class StagedNetwork(Protocol):
    """What a loss may ask of a network: a `Network`, what `gkd.wrap` makes of any module, or one of your own."""

    @property
    def name(self) -> str:
        """For error messages."""

    @property
    def num_classes(self) -> int:
        """C of the logits."""

    def __call__(self, images: Tensor, /) -> Output:
        """Images [B, C, H, W], as this network wants them → `Output`."""

    def stage_shapes(self) -> tuple[tuple[int, int, int], ...]:
        """(C_i, H_i, W_i) of every stage, from shallow to deep; empty for a network without feature maps."""

    def last_stage_shape(self) -> tuple[int, ...]:
        """(C, H, W) or, of tokens, (C, N) of what the head sees; empty for a network that has neither."""

    def embedding_size(self) -> int:
        """D of the embedding."""

    def head(self, last_stage: Tensor) -> Tensor:
        """Logits [B, C] from the last stage alone, [B, C_n, H_n, W_n] or tokens [B, C_n, N]."""

    def pooled_linear_weight(self) -> tuple[Tensor, Tensor | None] | None:
        """Weight [C, D] and bias [C] of a head that is global average pooling and one linear layer, else None."""


class Classifier(nn.Module, ABC):
    """Base of all architectures: normalised images [B, C, H, W] in, `Output` out.

    Class attributes:
        topology_size: length of the rows of persistence features the forward pass also wants, 0 for none.
    """

    topology_size = 0

    @abstractmethod
    def forward(self, images: Tensor) -> Output:
        """Normalised images [B, C, H, W] → `Output`."""

    @abstractmethod
    def head(self, last_stage: Tensor) -> Tensor:
        """Logits [B, C] from the last stage alone, [B, C_n, H_n, W_n] or tokens [B, C_n, N]."""

    @property
    def pooled_linear(self) -> nn.Linear | None:
        """The linear layer of a head that is global average pooling followed by exactly that layer, else None.

        Gradients with respect to the last stage have a closed form where it is given.
        """
        return None

    @property
    def head_layers(self) -> tuple[str, ...]:
        """Names of the layers that make the logits, new where the classes are: the last one, unless overridden."""
        *_, last = self.state_dict()
        return (last.rpartition(".")[0],)

    def renew_head(self) -> None:
        """Draw the weights of `head_layers` anew, on top of weights that were learnt: small, as torch's layers do.

        Some architectures (EfficientNet, in timm and in torchvision) draw theirs ten times as large. A training from
        noise gets over that; fine-tuning would pass the gradients of that loss on to all that was learnt.
        """
        for name in self.head_layers:
            layer: Any = self.get_submodule(name)
            layer.reset_parameters()

    def parameter_depths(self) -> dict[str, int]:
        """Depth of every parameter by its name: 0 in the stem, the largest in `head_layers` and there alone."""
        return parameter_depths(self, self.head_layers)

    def undecayed(self) -> frozenset[str]:
        """Names of the parameters that are spared together with biases and norms where weight decay spares these."""
        return frozenset(name for name, _ in self.named_parameters() if name.endswith(POSITIONS))


class StagedClassifier(Classifier):
    """A classifier with feature maps.

    A subclass gives `features`, `embed` and `classify`; the forward pass and the head are the same three in a row, so
    the head on the last stage gives the logits bit for bit (in eval mode, where dropout is off).
    """

    @abstractmethod
    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """Feature maps [B, C_i, H_i, W_i] from shallow to deep, the last one as the head sees it."""

    @abstractmethod
    def embed(self, last_stage: Tensor) -> Tensor:
        """[B, C_n, H_n, W_n] → [B, D], the vector before the last linear layer."""

    @abstractmethod
    def classify(self, embedding: Tensor) -> Tensor:
        """[B, D] → logits [B, C]."""

    def forward(self, images: Tensor) -> Output:
        """Normalised images [B, C, H, W] → `Output`."""
        stages = self.features(images)
        embedding = self.embed(stages[-1])
        return Output(self.classify(embedding), stages, embedding)

    def head(self, last_stage: Tensor) -> Tensor:
        """Logits [B, C] from the last stage [B, C_n, H_n, W_n] alone."""
        return self.classify(self.embed(last_stage))


class PooledClassifier(StagedClassifier):
    """A classifier whose head is global average pooling and one linear layer, which a subclass names."""

    @property
    @abstractmethod
    def pooled_linear(self) -> nn.Linear:
        """The linear layer [C, D]."""

    def embed(self, last_stage: Tensor) -> Tensor:
        """Mean over the pixels."""
        return last_stage.mean((2, 3))

    def classify(self, embedding: Tensor) -> Tensor:
        """The linear layer."""
        logits: Tensor = self.pooled_linear(embedding)
        return logits
