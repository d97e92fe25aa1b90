"""What channels-last weights save on a CPU; the training steps use them."""

import torch
from torch.nn import functional

from benchmarks.timing import side_by_side
from gkd_core.models.registry import create_classifier


def memory_format(rounds: int) -> dict[str, float]:
    """A training step of resnet8 on 128 images of 32×32"""
    images, labels = torch.randn(128, 3, 32, 32), torch.randint(0, 10, (128,))

    def step(layout: torch.memory_format):
        network = create_classifier("resnet8", 10).to(memory_format=layout)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01)

        def run() -> None:
            optimizer.zero_grad()
            functional.cross_entropy(network(images).logits, labels).backward()
            optimizer.step()

        return run

    formats = {"channels last": torch.channels_last, "contiguous": torch.contiguous_format}
    return side_by_side({name: step(layout) for name, layout in formats.items()}, rounds=rounds)
