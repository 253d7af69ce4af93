"""Table 4: ResNet, stochastic depth and DenseNet on CIFAR-10 and CIFAR-100, fixed rates against a cyclical one.

The rate, or the range, falls to a tenth at half and at three quarters of the run, as in the nets' own programs; a cycle
is a tenth of the run. Two settings: the paper's, for a GPU, and a scaled one that two cores bear.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

import cyclr
from cells import Cell, Table
from cyclr.lab import Task
from cyclr.lab.data import crop_and_flip
from cyclr.lab.images import load_images
from cyclr.lab.residual import DenseNet, ResNet
from cyclr.schedules import Ramp, Schedule
from cyclr.stages import Stages

IMAGES = 50_000
DATA = {"CIFAR-10": ("cifar10", 10), "CIFAR-100": ("cifar100", 100)}
FIXED = (0.1, 0.2, 0.3)


@dataclass(frozen=True)
class Net:
    """One of the nets, full and scaled.

    Args:
        make, small: number of classes -> the net.
        batch_size, epochs, drops: its own program's; drops are epochs.
        max_lr: of the paper's range, which starts at 0.1.
        paper: accuracies by data set: at each fixed rate, then with CLR.
        capturable: as in `Task`; stochastic depth draws on the CPU what it leaves out.
    """

    make: Callable[[int], nn.Module]
    small: Callable[[int], nn.Module]
    batch_size: int
    epochs: int
    drops: tuple[int, int]
    max_lr: float
    paper: dict[str, tuple[float, float, float, float]]
    capturable: bool = True


NETS = {
    "ResNet": Net(
        lambda classes: ResNet(110, classes), lambda classes: ResNet(20, classes), 128, 164, (81, 122), 0.3,
        {"CIFAR-10": (92.8, 93.3, 91.8, 93.6), "CIFAR-100": (71.2, 71.6, 71.9, 72.5)},
    ),
    "Stochastic Depth": Net(
        lambda classes: ResNet(110, classes, survival=0.5), lambda classes: ResNet(20, classes, survival=0.8),
        128, 500, (250, 375), 0.3,
        {"CIFAR-10": (94.6, 94.5, 94.2, 94.5), "CIFAR-100": (75.2, 75.2, 74.6, 75.4)}, capturable=False,
    ),
    "DenseNet": Net(
        lambda classes: DenseNet(40, classes, growth=12), lambda classes: DenseNet(13, classes, growth=8),
        64, 300, (150, 225), 0.2,
        {"CIFAR-10": (94.5, 94.5, 94.2, 94.9), "CIFAR-100": (75.2, 75.3, 74.5, 75.9)},
    ),
}  # fmt: skip
SCALED_EPOCHS, SCALED_DROPS = 12, (6, 9)


def fixed_with_drops(lr: float, total: int, drops: tuple[int, ...]) -> Stages:
    """A tenth of the rate after each drop."""
    edges = pairwise((0, *drops, total))
    return cyclr.stages(*((cyclr.fixed(lr / 10**k), stop - start) for k, (start, stop) in enumerate(edges)))


def cycles_with_drops(base_lr: float, max_lr: float, half: int, total: int, drops: tuple[int, ...]) -> Stages:
    """Triangular cycles whose range falls to a tenth after each drop; a cycle under way goes on where it was."""
    pairs: list[tuple[Schedule, int]] = []
    for k, (start, stop) in enumerate(pairwise((0, *drops, total))):
        cycles = cyclr.triangular(base_lr / 10**k, max_lr / 10**k, half)
        position, left = start % (2 * half), stop - start
        if 0 < position < half:
            pairs.append((Ramp(cycles(position), cycles.max_lr, half - position + 1), min(left, half - position)))
            left, position = left - pairs[-1][1], half
        if position >= half and left:
            pairs.append(
                (Ramp(cycles(position), cycles.base_lr, 2 * half - position + 1), min(left, 2 * half - position))
            )
            left -= pairs[-1][1]
        if left:
            pairs.append((cycles, left))
    return cyclr.stages(*pairs)


@functools.lru_cache(maxsize=1)
def images(name: str, data_dir: str | None) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Training and test images, each channel with mean 0 and standard deviation 1 over the training set."""
    (x, y), (test_x, test_y) = load_images(name, data_dir)
    pixels = x.float()
    mean, std = pixels.mean((0, 2, 3), keepdim=True), pixels.std((0, 2, 3), keepdim=True)
    last = torch.channels_last
    return (
        (((pixels - mean) / std).contiguous(memory_format=last), y),
        (((test_x.float() - mean) / std).contiguous(memory_format=last), test_y),
    )


def nesterov(model: nn.Module) -> Optimizer:
    return SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)


def task_of(name: str, data: str, net: Net, scaled: bool) -> Callable[[str | None], Task]:
    folder, classes = DATA[data]

    def make(data_dir: str | None) -> Task:
        train, test = images(folder, data_dir)
        build = net.small if scaled else net.make
        return Task(
            name=name, model=lambda: build(classes), optimizer=nesterov, loss=nn.functional.cross_entropy,
            train=train, test=test, batch_size=net.batch_size, augment=crop_and_flip(4),
            precision="bf16", capturable=net.capturable,
        )  # fmt: skip

    return make


def table(name: str, title: str, note: str, *, scaled: bool) -> Table:
    tasks: dict[str, Callable[[str | None], Task]] = {}
    cells: list[Cell] = []
    for data in DATA:
        for row, net in NETS.items():
            task = f"{DATA[data][0]}-{row.lower().replace(' ', '-')}{'-scaled' if scaled else ''}"
            tasks[task] = task_of(task, data, net, scaled)
            epoch = IMAGES // net.batch_size
            epochs, drops = (SCALED_EPOCHS, SCALED_DROPS) if scaled else (net.epochs, net.drops)
            total, at = epochs * epoch, tuple(drop * epoch for drop in drops)
            total -= total % 20  # a whole number of cycles
            clr = cycles_with_drops(0.1, net.max_lr, total // 20, total, at)
            columns = [(f"CLR 0.1-{net.max_lr:g}", clr)]
            columns += [(f"fixed {lr:g}", fixed_with_drops(lr, total, at)) for lr in FIXED]
            paper = dict(zip((*(f"fixed {lr:g}" for lr in FIXED), columns[0][0]), net.paper[data], strict=True))
            cells += [
                Cell(row, f"{data}, {column}", task, schedule, total, paper[column], 3 if scaled else 5, epoch, scaled)
                for column, schedule in columns
            ]
    return Table(name, title, note, tasks, tuple(cells), gpu=not scaled)


SCALED = table(
    "table4-scaled",
    "Table 4, scaled: the residual family, small and short",
    "Not the paper's setting: ResNet-20, Stochastic Depth of 20 layers (survival 0.8) and DenseNet-13-8, "
    f"{SCALED_EPOCHS} epochs each, bf16; the paper's rates and optimiser, drops at half and three quarters, cycles of "
    "a tenth of the run (so half a cycle is shorter than the two epochs that the paper advises). The paper's numbers "
    "are of its large nets.",
    scaled=True,
)
TABLE = table(
    "table4",
    "Table 4: the residual family",
    "ResNet-110 (164 epochs, drops at 81 and 122), Stochastic Depth of 110 layers (500; 250 and 375), DenseNet-40-12 "
    "(300; 150 and 225); Nesterov's momentum 0.9, weight decay 1e-4, crops and flips, bf16. All 50,000 images train.",
    scaled=False,
)
