"""Updates a second on this GPU, of the Caffe net and of small residual nets: computed or captured, alone or at once.

    python experiments/gpu_plan/measure.py [--at-once 1 4 8 16] [--updates 1000] [--nets caffe resnet resnet-compiled]

Random images: nothing is learnt, and no data is needed. A line of JSON for each measurement. Runs at once are threads
of one process, each with a CUDA stream of its own; the number is their sum.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

import cyclr
from cyclr.lab import Task, train
from cyclr.lab.data import crop_and_flip
from cyclr.lab.residual import DenseNet, ResNet
from cyclr.lab.run import UPDATES
from cyclr.lab.tasks.cifar10_caffe import CaffeNet, caffe_sgd
from table4 import nesterov

IMAGES = 10_000


def compiled(net: torch.nn.Module) -> torch.nn.Module:
    net.compile(dynamic=False)  # in place: the names of its weights stay
    return net


def tasks() -> dict[str, Task]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(IMAGES, 3, 32, 32, generator=generator).contiguous(memory_format=torch.channels_last)
    y = torch.randint(10, (IMAGES,), generator=generator)
    caffe = Task(
        name="caffe", model=CaffeNet, optimizer=caffe_sgd, loss=torch.nn.functional.cross_entropy,
        train=(60 * x, y), test=(60 * x[:1000], y[:1000]), batch_size=100, precision="bf16", capturable=True,
    )  # fmt: skip
    small = replace(
        caffe, name="resnet", model=lambda: ResNet(20, 10), optimizer=nesterov, train=(x, y), test=(x[:1000], y[:1000]),
        batch_size=64, precision="no", augment=crop_and_flip(4),
    )  # fmt: skip
    return {
        "caffe": caffe,
        "resnet": small,
        "resnet-compiled": replace(small, name="resnet-compiled", model=lambda: compiled(ResNet(20, 10))),
        "densenet": replace(small, name="densenet", model=lambda: DenseNet(22, 10, growth=8)),
    }


def speed(task: Task, at_once: int, updates: int) -> float:
    """Updates a second of so many runs together, from the moment at which all are under way until all are done."""
    started: list[float] = []
    under_way = threading.Barrier(at_once, action=lambda: started.append(time.perf_counter()), timeout=120)
    first = threading.local()

    def wait_for_all(*_: object) -> None:
        if not hasattr(first, "past"):
            first.past = True
            under_way.wait()

    def run(seed: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            out = Path(folder)
            try:
                train(task, cyclr.fixed(0.001), updates, out, seed=seed, evaluate_at=[updates], progress=wait_for_all)
            except BaseException:
                under_way.abort()  # or the others would wait
                raise

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(at_once) as pool:
        list(pool.map(run, range(at_once)))
        return at_once * (updates - UPDATES) / (time.perf_counter() - started[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--nets", nargs="+", default=["caffe", "resnet", "resnet-compiled", "densenet"])
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    about = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    made = tasks()
    for net in options.nets:
        for way, count in (("computed", 1), *(("captured", count) for count in options.at_once)):
            task = replace(made[net], capturable=way == "captured")
            found = speed(task, count, options.updates if task.capturable else options.updates // 5)
            print(
                json.dumps({"net": net, "way": way, "at_once": count, "per_second": round(found), **about}), flush=True
            )


if __name__ == "__main__":
    main()
