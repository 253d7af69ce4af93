"""What bf16 takes on this processor: an update of the paper's CIFAR-10 net, relative to one in single precision.

    python benchmarks/precision.py

Below 1 where the processor computes in bf16. Where torch only imitates it, about 10, and `cyclr.lab` computes its
products in single precision: `cyclr.lab.precision.ProductsInSingle`. It is not part of `make bench`, since the record
is about one processor; it names it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from cyclr.lab.precision import ProductsInSingle
from cyclr.lab.tasks.cifar10_caffe import CaffeNet, caffe_sgd
from record import Row, main, paired_ratios, row

BATCH, REPETITIONS = 100, 9


def update(
    precision: torch.dtype | None, inside: Callable[[], AbstractContextManager[object]] = nullcontext
) -> Callable[[], None]:
    net = CaffeNet()
    optimizer = caffe_sgd(net)
    x = torch.randn(BATCH, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    y = torch.randint(10, (BATCH,))

    def once() -> None:
        optimizer.zero_grad()
        with inside():
            with torch.autocast("cpu", dtype=precision, enabled=precision is not None):
                loss = torch.nn.functional.cross_entropy(net(x), y)
            loss.backward()
        optimizer.step()

    return once


def measure(arguments: argparse.Namespace) -> list[Row]:
    ways = {
        "an update of CaffeNet in bf16, of one in single precision": update(torch.bfloat16),
        "with its products computed in single precision": update(torch.bfloat16, ProductsInSingle),
    }
    ratios = paired_ratios(update(None), ways, REPETITIONS)
    return [row(what, ratios[what], "x") for what in ways]


if __name__ == "__main__":
    main("precision", __doc__, measure)
