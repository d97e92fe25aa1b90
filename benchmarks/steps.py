"""What a method's step costs beside the floor.

The floor is what no distillation with a teacher in the loop can do without: the teacher's forward pass, the student's
forward and backward pass with cross-entropy, the optimiser's step. A method's step is the same with its loss. Floor and
methods take turns in one process on one thread, batch after batch; a row is the median of the ratios of CPU time, each
to the floor's of the same turn. Networks are as they are initialised, CRD remembers 50,000 training images.

`python -m benchmarks.steps METHOD [--pair 1]`: where the time of a step goes, operation by operation.
"""

import argparse

import torch

from benchmarks.table import Goal, Row, Table
from benchmarks.timing import Candidate, in_turns, milliseconds, ratio
from gkd_core.data.loader import Batch
from gkd_core.data.shards import Shards
from gkd_core.methods import METHODS, create_loss
from gkd_core.models.network import Network, NetworkSpec
from gkd_core.training.learner import Learner
from gkd_core.training.optimizer import create_optimizer
from gkd_core.training.teacher import OnlineTeacher

ROUNDS = 9
PAIRS = (("resnet32x4", "resnet8x4"), ("resnet20", "resnet8"))
LARGE, SMALL = PAIRS
GOALS = {"gompertz": (1.10, 1.25), "crd": (1.3, 1.3), "reviewkd": (1.5, 1.5)}
"""Largest ratio wanted, by method, for each of PAIRS."""
MEASURED = {LARGE: ("kd", *GOALS), SMALL: tuple(name for name, method in METHODS.items() if method.teacher)}
"""Methods with a teacher, for the floor has one; a step of the larger pair takes seconds, so there few of them."""
TURNS = {LARGE: 0.5, SMALL: 1.0}
"""Of the rounds."""
FLOOR, BATCH, CLASSES, IMAGES, SIDE, EPOCHS = "floor", 64, 100, 50_000, 32, 240
CPU = torch.device("cpu")


def network(name: str, seed: int) -> Network:
    """Of CIFAR-100."""
    torch.manual_seed(seed)
    names = tuple(str(i) for i in range(CLASSES))
    spec = NetworkSpec(name, "auto", names, 3, SIDE, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
    return Network(spec)


def step(method: str, teacher_name: str, student_name: str) -> Candidate:
    """One step of a training after its warm-up, as the trainer makes it; `floor` is cross-entropy beside a teacher."""
    student = network(student_name, 0).to(memory_format=torch.channels_last)
    taught_by = network(teacher_name, 1)
    teacher = OnlineTeacher(taught_by, device=CPU, autocast=False)
    generator = torch.Generator().manual_seed(0)
    train_labels = torch.randint(CLASSES, (IMAGES,), generator=generator)
    known = {"seed": 0, "epochs": EPOCHS, "train_labels": train_labels}
    loss = create_loss("ce" if method == FLOOR else method, student, taught_by, {}, **known)
    learner = Learner(student, loss).train()
    optimizer = create_optimizer(learner, name="sgd", learning_rate=1e-3, weight_decay=5e-4)

    def run() -> None:
        indices = torch.randperm(IMAGES, generator=generator)[:BATCH]
        labels = train_labels[indices]
        images = torch.rand(BATCH, 3, SIDE, SIDE, generator=generator)
        output = teacher(images, indices, labels)
        batch = Batch(images, labels, indices, None, shards=Shards.of(BATCH))
        terms, _ = learner(batch, labels, output, EPOCHS / 2)
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()

    return run


def measure(rounds: int = ROUNDS) -> Table:
    torch.set_num_threads(1)
    rows = []
    for place, pair in enumerate(PAIRS):
        seconds = in_turns({name: step(name, *pair) for name in (FLOOR, *MEASURED[pair])}, turns(pair, rounds))
        for name, found in seconds.items():
            goal = Goal(GOALS[name][place]) if name in GOALS else None
            rows.append(Row((" → ".join(pair), name, milliseconds(found)), ratio(found, seconds[FLOOR]), goal))
    return Table(
        f"A training step, batches of {BATCH} images of {SIDE}×{SIDE}, {CLASSES} classes, one thread, every method "
        f"with its defaults; {turns(LARGE, rounds)} turns on the larger pair, {turns(SMALL, rounds)} on the small one. "
        "The floor is a step without a method: the teacher's forward pass, the student's with cross-entropy.",
        ("teacher → student", "step", "ms of CPU"),
        "÷ floor",
        rows,
        named=2,
    )


def turns(pair: tuple[str, str], rounds: int) -> int:
    return max(1, round(TURNS[pair] * rounds))


def profile(run: Candidate, rounds: int = 3) -> str:
    """Where the time of a step goes, operation by operation."""
    run()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        for _ in range(rounds):
            run()
    table: str = found.key_averages().table(sort_by="self_cpu_time_total", row_limit=30, max_name_column_width=50)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=[FLOOR, *METHODS], metavar="METHOD")
    parser.add_argument("--pair", type=int, default=1, choices=range(len(PAIRS)), help="0 is the larger one")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(profile(step(arguments.method, *PAIRS[arguments.pair])))


if __name__ == "__main__":
    main()
