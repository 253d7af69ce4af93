"""Pretrains GoogLeNet on CIFAR-100, for where ImageNet's weights cannot be had: the start of googlenet-pneumonia.

    python experiments/pretrain_googlenet.py --data-dir DIR
    export CYCLR_GOOGLENET=experiments/googlenet/googlenet.safetensors

Resumable; leaves the weights, and the record of the run with its speed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import cyclr
from cells import HERE
from cyclr.lab import Task, train
from cyclr.lab.data import crop_and_flip
from cyclr.lab.images import load_images
from cyclr.lab.records import Record
from cyclr.lab.tasks.googlenet_pneumonia import MEAN, STD, googlenet


def googlenet_cifar100(data_dir: str | None = None) -> Task:
    """GoogLeNet on CIFAR-100 at its own 32 pixels, cropped and mirrored."""
    (x, y), (test_x, test_y) = load_images("cifar100", data_dir)
    return Task(
        name="googlenet-cifar100",
        model=partial(googlenet, 100),
        optimizer=lambda model: torch.optim.SGD(
            model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4
        ),
        loss=nn.functional.cross_entropy,
        train=(normalised(x), y),
        test=(normalised(test_x), test_y),
        batch_size=64,
        augment=crop_and_flip(),
    )


def normalised(x: Tensor) -> Tensor:
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (MEAN, STD))
    return ((x.float() / 255.0 - mean) / std).contiguous(memory_format=torch.channels_last)


def pretrain(task: Task, epochs: float, out: Path) -> Record:
    """One cycle, then the weights under a name of their own."""
    plan = cyclr.plan("one_cycle", 0.004, 0.05, steps_per_epoch=task.steps_per_epoch, epochs=epochs)
    every = range(task.steps_per_epoch, plan.total_steps, task.steps_per_epoch)

    def say(done: int, steps: int, lr: float, value: float) -> None:
        print(f"\r{done:,} of {steps:,} updates, lr {lr:.3g}, accuracy {value:.4f} ", end="", file=sys.stderr)

    record = train(task, plan.schedule, plan.total_steps, out, policy="one_cycle", evaluate_at=every, progress=say)
    if record["result"]["status"] != "done":
        sys.exit(f"the pretraining diverged after {record['result']['steps']:,} updates; no weights are left")
    shutil.copyfile(out / "weights" / f"{record['run']}.safetensors", out / "googlenet.safetensors")
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default=os.environ.get("CYCLR_DATA"), help="folder with cifar100's Parquet files")
    parser.add_argument("--epochs", type=float, default=12.0)
    parser.add_argument("--out", type=Path, default=HERE / "googlenet")
    given = parser.parse_args()
    record = pretrain(googlenet_cifar100(given.data_dir), given.epochs, given.out)
    print(f"\naccuracy {record['result']['test']:.4f} on the test data; weights in {given.out}/googlenet.safetensors")


if __name__ == "__main__":
    main()
