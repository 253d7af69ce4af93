"""What a snapshot costs: its time relative to a cycle's, and an ensemble's relative to one model's.

    python benchmarks/snapshot_cost.py

The nets are the paper's for CIFAR-10 and torchvision's ResNet-18 at 32 pixels, in batches of 100. The cycle has 1,000
updates (CIFAR-10: two epochs), the shortest that the paper advises is twice that; one update is timed and multiplied. A
snapshot is written to this machine's temporary folder and flushed to its disk. An ensemble predicts 5,000 images, and
its time holds that of reading and checking its members.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from cyclr.lab.tasks.cifar10_caffe import CaffeNet
from cyclr.torch import Ensemble, Snapshots
from record import Row, main, row

BATCH, BATCHES, CYCLE, MEMBERS, REPETITIONS = 100, 50, 1000, 5, 5
MOST_SHARE = 1.0  # percent of a cycle


def resnet18() -> nn.Module:
    from torchvision.models import resnet18 as build

    return build(num_classes=10)  # type: ignore[no-any-return]


def seconds(function: Callable[[], object]) -> float:
    """On the wall, since a snapshot waits for the disk."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def update_of(model: nn.Module) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    x, y = torch.randn(BATCH, 3, 32, 32), torch.randint(10, (BATCH,))

    def update() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    return update


def shares(model: nn.Module, folder: Path) -> list[float]:
    """A snapshot's time in percent of a cycle's, each beside an update."""
    update, snapshots = update_of(model), Snapshots(folder, range(1, 1000), keep=MEMBERS)
    update()
    found = []
    for step in range(1, REPETITIONS + 1):
        cycle = CYCLE * seconds(update)
        found.append(100.0 * seconds(lambda step=step: snapshots(step, model)) / cycle)
    return found


def predicting(model: nn.Module, folder: Path) -> list[float]:
    """The time of an ensemble's probabilities over that of one model's, beside it."""
    ensemble, batches = Ensemble(folder, model), torch.randn(BATCHES, BATCH, 3, 32, 32)
    model.eval()

    def single() -> None:
        with torch.no_grad():
            torch.cat([model(batch).softmax(-1) for batch in batches])

    single()
    ratios = []
    for _ in range(REPETITIONS):
        alone = seconds(single)
        ratios.append(seconds(lambda: ensemble.probabilities(batches)) / alone)
    return ratios


def measure(arguments: argparse.Namespace) -> list[Row]:
    found = []
    for name, build in (("CaffeNet", CaffeNet), ("ResNet-18", resnet18)):
        with tempfile.TemporaryDirectory() as folder:
            model = build()
            share = shares(model, Path(folder))
            found.append(row(f"a snapshot of {name}, of a cycle of 1,000 updates", share, "%", most=MOST_SHARE))
            ratios = predicting(model, Path(folder))
            found.append(row(f"an ensemble of {MEMBERS} {name}s, of one", ratios, "x", most=float(MEMBERS)))
    return found


if __name__ == "__main__":
    main("snapshot_cost", __doc__, measure, packages=["torchvision", "safetensors"])
