"""The study's queue: every training is a line in records.jsonl; what is there already is not done again.

    python benchmarks/regret/study.py grid|curves|judge|peers|judge-peers|methods|all --data-dir DIR [--only TASK,...]
    python benchmarks/regret/study.py all --task FILE.py[:FUNCTION] --updates N    # a task of your own

grid: the oracle. curves: cyclr's range tests. judge: training inside the bounds read from them (when grid and curves
are done). peers: what other finders say; judge-peers: training with that. methods: training without a rate. Start each
once per core, as often as you like: processes share the work and lose at most one training to a `kill`. `--only TASK`
makes one task's cells. `--on ray` (or ray:HOST:PORT) starts as many as a cluster has room for; its machines must share
this folder and its locks. A task that raises is recorded with its error, and the study goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import advice
import grid
import torch
from tasks import CASES, Case

from cyclr import checks
from cyclr.lab import Task, load_task
from cyclr.lab.records import append_record, new_record, read_records
from records import SEEDS

HERE = Path(__file__).parent
POLICIES = ("one_cycle", "triangular", "linear_to_zero", "triangular2", "fixed")
# Part -> what a process does with one task at a time, and in which portions: first one portion of all tasks.
PARTS: dict[str, tuple[Callable[..., Any], Sequence[Any]]] = {
    "grid": (grid.search, POLICIES),
    "curves": (advice.curves, ()),
    "judge": (advice.judge, ()),
    "peers": (advice.peers, ()),
    "judge-peers": (advice.judge_peers, SEEDS),
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
        self.keep(config, result)
        return result

    def keep(self, config: dict[str, Any], result: dict[str, Any]) -> None:
        append_record(self.folder, new_record(config, result))
        self.done[key_of(config)] = result


def key_of(config: dict[str, Any]) -> tuple[Any, ...]:
    """What tells one cell from another."""
    return tuple(sorted((name, value) for name, value in config.items()))


@contextlib.contextmanager
def claimed(records: Path, name: str) -> Iterator[bool]:
    """Whether this process is the one that works on `name`; a process that dies gives its claim back.

    The locks lie beside the records, where the processes of all machines see them.
    """
    folder = records / ".claims"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".gitignore").write_text("*\n")  # wherever the records are, the locks are not committed with them
    with (folder / name).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=[*PARTS, "all"])
    parser.add_argument("--data-dir", default=os.environ.get("CYCLR_DATA"))
    parser.add_argument("--only", help="names of tasks, with commas between them")
    parser.add_argument("--task", help="a task of your own, as for `cyclr find`: FILE.py[:FUNCTION]")
    parser.add_argument("--updates", type=int, help="the length of its training")
    parser.add_argument("--out", type=Path, default=HERE / "records")
    parser.add_argument("--on", default="local", help="local, ray, or ray:HOST:PORT for a cluster")
    options = parser.parse_args()
    try:
        if options.on == "local":
            work(options)
        else:
            from cyclr.lab.on_ray import spread

            options.out, where, options.on = options.out.resolve(), options.on, "local"
            list(spread(work, options, None, on=where))
    except ValueError as error:
        sys.exit(str(error))


def work(options: argparse.Namespace) -> None:
    """What each process does."""
    names = list(CASES) if options.only is None else options.only.split(",")
    if options.task is not None:
        names = [add(options.task, options.updates, options.data_dir)]
    for name in names:
        checks.choice("task", name, CASES)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    study = Study(options.out, options.data_dir)
    for part in PARTS if options.part == "all" else (options.part,):
        make(study, part, names)


def add(spec: str, updates: int | None, data_dir: str | None) -> str:
    """Make a user's task one of the study's; its name."""
    task = load_task(spec, {}, data_dir)
    checks.whole("--updates", updates, least=80)
    if task.name in CASES:
        raise ValueError(f"the study has a task {task.name}; give yours another name")
    if not (isinstance(task.train, tuple) and isinstance(task.validation, tuple)):
        raise ValueError(f"task {task.name} must have training and validation data as pairs of tensors (x, y)")
    CASES[task.name] = Case(lambda _: task, updates - updates % 8, "your own")
    return task.name


def make(study: Study, part: str, names: Sequence[str]) -> None:
    """What is still missing of a part, apart from what another process is at."""
    work, portions = PARTS[part]
    for portion in portions or ("all",):
        for name in names:
            with claimed(study.folder, f"{part}-{name}-{portion}") as mine:
                if not mine:
                    continue
                study.read()
                try:
                    work(study, name, *([portion] if portions else []))
                except Exception as error:  # the task cannot even be built
                    traceback.print_exc()
                    study.keep(
                        {"task": name, "policy": part, "seed": None}, {"error": f"{type(error).__name__}: {error}"}
                    )
                print(part, name, portion, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
