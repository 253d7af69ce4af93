"""The study's queue: every training is a line in records.jsonl; what is there already is not done again.

    python benchmarks/regret/study.py grid|curves|judge|peers|judge-peers|methods --data-dir DIR [--only TASK,...]

grid: the oracle. curves: cyclr's range tests. judge: training inside the bounds read from them (when grid and curves are
done). peers: what other finders say; judge-peers: training with that. methods: training without a rate. Start each once
per core, as often as you like: processes share the work and lose at most one training to a `kill`. `--only TASK` makes
one task's cells.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import advice
import grid
import torch
from tasks import CASES

from cyclr.lab import Task
from cyclr.lab.records import append_record, new_record, read_records
from records import SEEDS

HERE = Path(__file__).parent
POLICIES = ("one_cycle", "triangular", "linear_to_zero", "triangular2", "fixed")
# Part -> what one process does with a task at a time, and in which portions: those of all tasks come one after the other.
PARTS: dict[str, tuple[Callable[..., Any], Sequence[Any]]] = {
    "grid": (grid.search, POLICIES),
    "curves": (advice.curves, ()),
    "judge": (advice.judge, ()),
    "peers": (advice.peers, ()),
    "judge-peers": (advice.judge_peers, ()),
    "methods": (advice.methods, SEEDS),
}


class Study:
    """The trainings that have been made, and the making of more."""

    def __init__(self, folder: Path, data_dir: str | None) -> None:
        self.folder, self.data_dir = folder, data_dir
        self.tasks: dict[str, Task] = {}
        self.fingerprints: dict[str, str] = {}
        self.done: dict[tuple[Any, ...], dict[str, Any]] = {}
        self.read()

    def read(self) -> None:
        """Look at the records again: other processes write too."""
        self.done = {key_of(record["config"]): record["result"] for record in read_records(self.folder)}

    def task(self, name: str) -> Task:
        """A task of the study, built once."""
        if name not in self.tasks:
            self.tasks[name] = CASES[name].make(self.data_dir)
            self.fingerprints[name] = self.tasks[name].fingerprint()
        return self.tasks[name]

    def result(self, config: dict[str, Any], run: Callable[[Any, int], dict[str, Any]]) -> dict[str, Any]:
        """The result of one cell: from its record, or `run(task, updates)` now. An error is a result too."""
        name = config["task"]
        try:
            task, updates = self.task(name), CASES[name].updates
            config = {**config, "updates": updates, "fingerprint": self.fingerprints[name]}
            if key_of(config) in self.done:
                return self.done[key_of(config)]
            result = run(task, updates)
        except Exception as error:
            traceback.print_exc()
            result = {"error": f"{type(error).__name__}: {error}"}
        append_record(self.folder, new_record(config, result))
        self.done[key_of(config)] = result
        return result


def key_of(config: dict[str, Any]) -> tuple[Any, ...]:
    """What tells one cell from another."""
    return tuple(sorted((name, value) for name, value in config.items()))


@contextlib.contextmanager
def claimed(name: str) -> Iterator[bool]:
    """Whether this process is the one that works on `name`; a process that dies gives its claim back."""
    folder = Path(tempfile.gettempdir()) / "cyclr-regret-claims"
    folder.mkdir(exist_ok=True)
    with (folder / name).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--data-dir", default=os.environ.get("CYCLR_DATA"))
    parser.add_argument("--only", default=",".join(CASES))
    parser.add_argument("--out", type=Path, default=HERE / "records")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    study = Study(options.out, options.data_dir)
    work, portions = PARTS[options.part]
    for portion in portions or ("all",):
        for name in options.only.split(","):
            with claimed(f"{options.part}-{name}-{portion}") as mine:
                if not mine:
                    continue
                study.read()
                work(study, name, *([portion] if portions else []))
                print(options.part, name, portion, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
