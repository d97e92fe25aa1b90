"""The topological teacher: a network that looks at an image's persistence features beside the image."""

import torch
from torch import Tensor, nn

from gkd_core.data.topology import FEATURES
from gkd_core.errors import GkdError
from gkd_core.models.classifier import Classifier, Output, PooledClassifier, StagedClassifier


class TopologicalClassifier(PooledClassifier):
    """Pooled convolutional features and persistence features, joined before one classification layer.

    The layer on the joined vector [pooled, norm(topology)] is kept as its two blocks of columns, W for the pooled
    features (the network's own last layer, with the bias) and V for the topology: z = W·pooled + b + V·norm(topology).
    So the closed form of ∂CE/∂f through W holds unchanged. The batch norm, without parameters of its own, brings
    features of very different size to one scale.

    This part of the Gompertz method is a reconstruction (see `gkd_core.data.topology`).

    Args:
        base: the convolutional network.
        num_classes: C.
        name: of the network, for errors.
    Raises:
        GkdError: the network does not end in global average pooling and one linear layer.
    Source: Yang & Qin 2025, §3 and figure 1 (arXiv:2510.21649).
    """

    topology_size = FEATURES

    def __init__(self, base: Classifier, num_classes: int, name: str) -> None:
        super().__init__()
        if not isinstance(base, StagedClassifier) or base.pooled_linear is None:
            raise GkdError(
                f"teacher.topological joins features before the last layer of a network that ends in average pooling "
                f"and one linear layer, and {name} does not: take a resnet, say, or set it to false"
            )
        self.base: StagedClassifier = base
        self.norm = nn.BatchNorm1d(FEATURES, affine=False)
        self.topology = nn.Linear(FEATURES, num_classes, bias=False)

    @property
    def pooled_linear(self) -> nn.Linear:
        """W and b, the block of the joined layer that the pooled features go through."""
        layer = self.base.pooled_linear
        assert layer is not None
        return layer

    @property
    def head_layers(self) -> tuple[str, ...]:
        """Both blocks of the joined layer."""
        return (*(f"base.{name}" for name in self.base.head_layers), "topology")

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """The convolutional network's feature maps."""
        return self.base.features(images)

    def embed(self, last_stage: Tensor) -> Tensor:
        """The pooled features alone."""
        return self.base.embed(last_stage)

    def forward(self, images: Tensor, topology: Tensor | None = None) -> Output:
        """Normalised images [B, C, H, W] and their rows [B, FEATURES] → `Output`, its embedding the joined vector.

        Raises:
            GkdError: there are no rows.
        """
        if topology is None:
            raise GkdError(
                "the topological teacher needs persistence features and the data has none: set data.topology to true "
                "and run `gkd prepare` again"
            )
        stages = self.features(images)
        pooled = self.embed(stages[-1])
        rows = self.norm(topology.to(images.dtype))
        return Output(self.classify(pooled) + self.topology(rows), stages, torch.cat((pooled, rows), 1))

    def head(self, last_stage: Tensor) -> Tensor:
        """Not supported: the last stage alone does not give the logits."""
        raise GkdError("the topological teacher's head needs persistence features beside the last stage")


class OneRow(nn.Module):
    """A topological network as a function of images alone, with the same row of zeros for each.

    For what depends on no values: its size, its cost, its latency; the work on the diagrams is not in it.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Output:
        """[B, C, H, W] in [0, 1] → `Output`."""
        rows = images.new_zeros(images.shape[0], FEATURES)
        output: Output = self.network(images, rows)
        return output


def images_only(network: nn.Module) -> nn.Module:
    """The network itself, or `OneRow` of a topological one."""
    return OneRow(network) if getattr(network, "topology_size", 0) else network
