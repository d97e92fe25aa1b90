"""`python -m benchmarks.steps [--rounds N] [--methods NAME …] [--profile NAME]`: what a method costs beside the floor.

The floor is what no distillation with a teacher in the loop can do without: the teacher's forward pass, the student's
forward and backward pass with cross-entropy, the optimiser's step. A method's step is the same with its loss. Floor and
methods take turns in one process on one thread, batch after batch; a row is the median of the ratios of CPU time, each
to the floor's of the same turn, so what else the machine does hits both alike. Batches of 64 images of 32×32, 100
classes, 50,000 training images (CRD remembers each), networks as they are initialised.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch

from gkd_core.data.loader import Batch
from gkd_core.data.shards import Shards
from gkd_core.methods import METHODS, create_loss
from gkd_core.models.network import Network, NetworkSpec
from gkd_core.training.learner import Learner
from gkd_core.training.optimizer import create_optimizer
from gkd_core.training.teacher import OnlineTeacher

PAIRS = (("resnet32x4", "resnet8x4"), ("resnet20", "resnet8"))
GOALS = {"gompertz": (1.10, 1.25), "crd": (1.3, 1.3), "reviewkd": (1.5, 1.5)}
"""Largest ratio wanted, by method, for each of PAIRS."""
FLOOR, BATCH, CLASSES, IMAGES, SIDE, EPOCHS = "floor", 64, 100, 50_000, 32, 240
WARMUP = 1
CPU = torch.device("cpu")


def network(name: str, seed: int) -> Network:
    """Of CIFAR-100."""
    torch.manual_seed(seed)
    names = tuple(str(i) for i in range(CLASSES))
    spec = NetworkSpec(name, "auto", names, 3, SIDE, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
    return Network(spec)


def step(method: str, teacher_name: str, student_name: str) -> Callable[[], None]:
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


def side_by_side(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each step, turn by turn."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(WARMUP + rounds):
        for name, run in steps.items():
            start = time.process_time()
            run()
            if turn >= WARMUP:
                seconds[name].append(time.process_time() - start)
    return seconds


def profile(run: Callable[[], None], rounds: int) -> str:
    """Where the time of a step goes, operation by operation."""
    for _ in range(WARMUP):
        run()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        for _ in range(rounds):
            run()
    table: str = found.key_averages().table(sort_by="self_cpu_time_total", row_limit=30, max_name_column_width=50)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="NAME")
    parser.add_argument("--pairs", nargs="+", type=int, default=[0, 1], choices=[0, 1], help="0 is the larger pair")
    parser.add_argument("--profile", action="store_true", help="operations by their own time, instead of ratios")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{platform.processor() or platform.machine()}, 1 thread, torch {torch.__version__}, {arguments.rounds} turns"
    )
    print("\n| teacher → student | step | ms of CPU, median | ÷ floor, median | goal |\n|---|---|---|---|---|")
    for place in arguments.pairs:
        names = " → ".join(PAIRS[place])
        steps = {name: step(name, *PAIRS[place]) for name in (FLOOR, *arguments.methods)}
        if arguments.profile:
            for name, run in steps.items():
                print(f"{names}, {name}\n{profile(run, arguments.rounds)}")
            continue
        seconds = side_by_side(steps, arguments.rounds)
        for name, values in seconds.items():
            ratio = statistics.median(a / b for a, b in zip(values, seconds[FLOOR], strict=True))
            goal = f"≤ {GOALS[name][place]:.2f}" if name in GOALS else ""
            print(f"| {names} | {name} | {1000 * statistics.median(values):.1f} | {ratio:.2f} | {goal} |", flush=True)


if __name__ == "__main__":
    main()
