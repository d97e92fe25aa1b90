import numpy as np
import ot
import pytest
import torch

from gkd_core.losses.wasserstein import wasserstein_loss


def test_against_pot_on_the_atoms():
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(3, 4, 3, 3, generator=generator, dtype=torch.float64)
    teacher = torch.randn(3, 4, 2, 4, generator=generator, dtype=torch.float64)
    expected = np.mean(
        [
            ot.emd2(
                np.full(9, 1 / 9),
                np.full(8, 1 / 8),
                ot.dist(s.flatten(1).T.numpy(), t.flatten(1).T.numpy(), "euclidean"),
            )
            for s, t in zip(student, teacher, strict=True)
        ]
    )
    assert wasserstein_loss(student, teacher, solver="exact").item() == pytest.approx(expected, abs=1e-12)
