"""A training step of any networks on noise, by labels and perhaps a teacher."""

import torch
from torch.nn import functional

from benchmarks.timing import Candidate
from gkd_core.models.macs import multiply_accumulates
from gkd_core.models.registry import create_classifier


def step_of(student: str, teacher: str | None, channels: int, side: int, images: int) -> tuple[Candidate, int]:
    """The step, and the multiply-accumulates that our number of threads goes by."""
    names = [student] if teacher is None else [student, teacher]
    made = [create_classifier(name, 10, in_channels=channels, image_size=side) for name in names]
    networks = [network.to(memory_format=torch.channels_last) for network in made]
    work = images * max(multiply_accumulates(network, channels, side) for network in networks)
    batch = torch.randn(images, channels, side, side).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (images,))
    trained, *teachers = networks
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.01)

    def step() -> None:
        logits = trained(batch).logits
        loss = functional.cross_entropy(logits, labels)
        for frozen in teachers:
            with torch.no_grad():
                answers = frozen.eval()(batch).logits.softmax(1)
            loss = loss + functional.cross_entropy(logits, answers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step, work
