"""Terms of unlike size, each brought to the size of cross-entropy by running means of both."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gkd_core.data import shards

MOMENTUM = 0.99
LARGEST_FACTOR = 1000.0
"""A term that vanishes, as that of a student like its teacher does, is not blown up beyond this."""


class RunningScale(nn.Module):
    """Multiplies each term by m_ce / m_term, m the running means of the values: it becomes as large as cross-entropy.

    At every call in train mode m ← .99·m + .01·value, from m = 0 on, before the factors are taken. What a start at 0
    leaves out of both means cancels in their ratio: at the first step a scaled term has the value of the cross-entropy,
    later the ratio is that of means over the last hundred steps or so, fewer at the beginning. No gradient flows
    through the factors. In eval mode they are taken in the same way and nothing is remembered.

    The means are a buffer, so checkpoints hold them. Processes that share a batch take the means over all of it.

    Args:
        terms: how many there are, in the order in which they are given.
    Source: a loss divided by its running mean is from Groenendijk et al. 2021 (arXiv:2009.01717), who weigh it by its
        coefficient of variation. Cross-entropy as the measure, momentum and `LARGEST_FACTOR` are ours.

    Example:
        >>> scale = RunningScale(2)
        >>> scaled = scale(torch.tensor(2.0), {"far": torch.tensor(50.0), "near": torch.tensor(0.25)})
        >>> [round(term.item(), 4) for term in scaled.values()]
        [2.0, 2.0]
    """

    means: Tensor

    def __init__(self, terms: int) -> None:
        super().__init__()
        self.register_buffer("means", torch.zeros(1 + terms))

    def forward(self, cross_entropy: Tensor, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The terms [] by name, scaled."""
        values = torch.stack([value.detach().to(self.means) for value in (cross_entropy, *terms.values())])
        means = torch.lerp(self.means, shards.current().mean(values), 1 - MOMENTUM)
        if self.training:
            self.means.copy_(means)
        factors = (means[0] / means[1:].clamp_min(torch.finfo(means.dtype).tiny)).clamp_max(LARGEST_FACTOR)
        return {name: factor.to(term) * term for factor, (name, term) in zip(factors, terms.items(), strict=True)}
