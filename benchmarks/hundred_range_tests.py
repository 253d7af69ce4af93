"""A hundred range tests in one job of four processes, which break at random updates: all end, and all alike.

    python benchmarks/hundred_range_tests.py

Each has a net, data, rates and a start of its own, DDP or FSDP2; the ramps end far beyond what training bears, and in
every other range test one batch of one process is NaN. The processes (gloo, on this machine) write down what they saw.
Counted are range tests: those that ended, those in which the processes' curves differ in any bit, and those after which
a process's state is not the one before. A job that does not end in time is killed, and what is missing then hung.
"""

from __future__ import annotations

import argparse
import datetime
import json
import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import cyclr
from cyclr.torch import SavedState, range_test
from record import Row, main, row

PROCESSES = 4
WAIT = 60  # seconds that a process waits for the others
LIMIT = 3600  # seconds for all


def process(rank: int, folder: Path, tests: int) -> None:
    """One process of the job: a line for each range test."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    wait = datetime.timedelta(seconds=WAIT)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=PROCESSES, timeout=wait)
    with (folder / f"{rank}.jsonl").open("w") as lines:
        for seed in range(tests):
            print(json.dumps(range_test_of(seed)), file=lines, flush=True)
    dist.destroy_process_group()


def range_test_of(seed: int) -> dict[str, Any]:
    """One range test, as this process sees it."""
    pick = random.Random(seed)  # the same in all processes
    torch.manual_seed(seed)
    features, hidden, classes = pick.randrange(4, 20), pick.randrange(5, 40), pick.randrange(2, 7)
    net = nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Dropout(0.1), nn.Linear(hidden, classes))
    if pick.random() < 0.7:
        model = DistributedDataParallel(net)
    else:
        fully_shard(net[3])
        model = fully_shard(net)
    adam = pick.random() < 0.3
    optimizer = torch.optim.AdamW(model.parameters()) if adam else torch.optim.SGD(model.parameters(), 0.1, 0.9)
    scale, end = 10 ** pick.uniform(-1, 1), 10 ** pick.uniform(0, 4)
    ramp = cyclr.ramp(end * 1e-5, end, pick.randrange(60, 200), pick.choice(["linear", "log"]))
    ill, update = pick.randrange(2 * PROCESSES), pick.randrange(100)  # nobody is ill in half of them
    data = batches(scale, features, classes, seed, update if dist.get_rank() == ill else None)
    before = SavedState([model, optimizer]).checksum
    curve = range_test(model, optimizer, nn.functional.cross_entropy, data, ramp=ramp)
    return {
        "values": [value.hex() for value in curve.values.tolist()],
        "lrs": [rate.hex() for rate in curve.lrs.tolist()],
        "stopped": curve.stopped,
        "restored": SavedState([model, optimizer]).checksum == before,
    }


def batches(scale: float, features: int, classes: int, seed: int, ill: int | None) -> list[Any]:
    """This process's own."""
    generator = torch.Generator().manual_seed(1000 * dist.get_rank() + seed)
    x = scale * torch.randn(100, 16, features, generator=generator)
    y = (x[..., :classes] + scale * torch.randn(100, 16, min(classes, features), generator=generator)).argmax(-1)
    if ill is not None:
        x[ill] = float("nan")
    return list(zip(x, y, strict=True))


def measure(arguments: argparse.Namespace) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        job = mp.start_processes(process, (Path(folder), arguments.tests), PROCESSES, join=False, start_method="spawn")
        started = time.monotonic()
        while not job.join(timeout=1) and time.monotonic() < started + LIMIT:
            pass
        seconds = time.monotonic() - started
        for each in job.processes:
            each.kill()
        seen = [[json.loads(line) for line in path.open()] for path in sorted(Path(folder).glob("*.jsonl"))]
    ended = list(zip(*seen, strict=False))
    print("stopped:", dict(Counter(str(each[0]["stopped"]) for each in ended)))
    print("updates:", sorted(len(each[0]["values"]) for each in ended))
    differing = sum(any(one != each[0] for one in each) for each in ended)
    changed = sum(not all(one["restored"] for one in each) for each in ended)
    broke = sum(each[0]["stopped"] is not None for each in ended)
    name = f"of {arguments.tests} range tests on {PROCESSES} processes"
    return [
        row(f"ended, {name}", [len(ended)], "", least=arguments.tests),
        row(f"broke before the ramp's end, {name}", [broke], ""),
        row(f"curves that differ among processes, {name}", [differing], "", most=0),
        row(f"states that are not the ones before, {name}", [changed], "", most=0),
        row("all of them", [seconds], "s"),
    ]


if __name__ == "__main__":
    tests = {"type": int, "default": 100, "help": "range tests to make"}
    main("hundred_range_tests", __doc__, measure, tests=tests)
