"""Real process groups on this machine: `python launch.py FOLDER [SCENARIO ...]` prints what each process saw, as JSON.

A scenario is a function of (rank, size); its processes are forks of this one, so that torch is imported
once. They meet in a file, which needs no port. What does not end in time is killed, and its outcome is "hung".
"""

import datetime
import json
import os
import sys
import time
import traceback
from pathlib import Path

import agreeing  # noqa: F401
import going_on  # noqa: F401
import keeping  # noqa: F401
import losing  # noqa: F401
import torch
import torch._dynamo  # the first optimiser loads it: here once for all processes
import torch.distributed as dist
from scenario import SCENARIOS

SECONDS = 120  # a scenario takes one or two; those in which somebody dies, the group's timeout


def process(function, rank, size, folder):
    """One process's life; its outcome lies in a file afterwards, unless it dies."""
    os.dup2(os.open(folder / f"{rank}.log", os.O_WRONLY | os.O_CREAT), 2)
    torch.set_num_threads(1)
    limit = datetime.timedelta(seconds=function.timeout)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size, timeout=limit)
    try:
        outcome = function(rank, size)
    except BaseException:
        outcome = {"raised": traceback.format_exc()}
    (folder / f"{rank}.json").write_text(json.dumps(outcome))
    os._exit(0)  # leave nobody waiting


def run(name, size, folder):
    """What each process of a scenario came to: its outcome, or {"exit": code} if it died."""
    folder.mkdir(parents=True)
    sys.stdout.flush()
    alive = {}
    for rank in range(size):
        if (pid := os.fork()) == 0:
            process(SCENARIOS[name], rank, size, folder)
        alive[pid] = rank
    died, deadline = {}, time.monotonic() + SECONDS
    while alive and time.monotonic() < deadline:
        for pid in list(alive):
            if os.waitpid(pid, os.WNOHANG) != (0, 0):
                died[alive.pop(pid)] = True
        time.sleep(0.01)
    for pid in alive:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    return [outcome(folder / f"{rank}.json", rank in died) for rank in range(size)]


def outcome(path, ended):
    if path.exists():
        return json.loads(path.read_text())
    return {"died": path.with_suffix(".log").read_text()[-2000:]} if ended else "hung"


if __name__ == "__main__":
    base = Path(sys.argv[1])
    names = sys.argv[2:] or [f"{name}-{size}" for name, function in SCENARIOS.items() for size in function.sizes]
    seen = {each: run(each.rpartition("-")[0], int(each.rpartition("-")[2]), base / each) for each in names}
    os.write(1, ("\n" + json.dumps(seen) + "\n").encode())
