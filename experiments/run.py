"""The queue: trains the cells of the tables, one after the other, until all have their records.

    for core in $(seq $(nproc)); do python experiments/run.py --data-dir DIR --commit & done; wait

Processes share the queue: each claims a run, and the claim of a process that dies goes back to the others, which go
on from its last checkpoint, on a CPU to the same bits. Start as many as there are cores, stop them as you like, start
them again. Seed 0 of all tables comes first, so whatever is finished is already a table; within a seed the order is
that of the tables on the command line and of their cells. Then: python experiments/rebuild.py

On a GPU `--at-once 8` makes eight runs at once in one process, so that one's small kernels fill the gaps of another's;
for tasks that can be captured only, since threads share the CPU's random numbers.

`--on ray` (or ray:HOST:PORT) starts as many such processes as a cluster has room for, with `--gpus 1` a GPU for each.
Its machines must share this folder and its locks.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from cells import HERE, Busy, Cell, Found, Record, Table, claimed, read_bounds
from cyclr.lab import Task, processes
from cyclr.lab.captured import ONE_AT_A_TIME
from cyclr.lab.precision import shares_precision
from tables import TABLES

PAUSE = 10.0  # seconds between looks at what others do, when nothing is left to claim
MOST_AT_ONCE = 16  # torch has 32 CUDA streams for a process; two runs must not share one
UNCHANGED = ("nothing to commit", "nothing added to commit", "no changes added")
LOCKED = ("index.lock", "cannot lock ref", "Unable to create")


class TimeIsUp(Exception):
    """The slice that this process was given is over."""


class Elsewhere(Exception):
    """A task that this process leaves to another one."""


@dataclass(frozen=True)
class Run:
    """A cell with one of its seeds."""

    table: Table
    cell: Cell
    seed: int

    @property
    def name(self) -> str:
        return f"{self.table.name}-{self.cell.name}-seed{self.seed}"


@dataclass
class Queue:
    """The runs that are to be made, in their order, and how they are made."""

    tables: Sequence[Table]
    data_dir: str | None = None
    seeds: int | None = None
    root: Path = HERE
    checkpoint_seconds: float = 60.0
    until: float = float("inf")  # a time of day, as time.time() has it: a monotonic clock is one machine's own
    commit: bool = False
    only: str = ""
    threads: bool = False  # of one process, each with a copy of this queue
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True)

    def __post_init__(self) -> None:
        self.failed: dict[str, str] = {}  # run -> why
        self._built: tuple[tuple[str, str], Task] | None = None  # one at a time: data sets are large

    def order(self) -> list[Run]:
        """Seed 0 of everything first."""
        runs = [
            Run(table, cell, seed)
            for table in self.tables
            for cell in table.cells
            for seed in range(self.seeds or cell.seeds)
        ]
        return sorted((run for run in runs if self.only in run.name), key=lambda run: run.seed)

    def left(self) -> list[Run]:
        """The runs without a record."""
        done = {table.name: table.runs(self.root) for table in self.tables}
        return [run for run in self.order() if (run.cell.name, run.seed) not in done[run.table.name]]

    def work(self) -> None:
        """Until every run has its record: those of other processes are waited for, since one of them may die."""
        while runs := [run for run in self.left() if run.name not in self.failed]:
            if not any(self._tried(run) for run in runs):
                if time.time() > self.until:
                    raise TimeIsUp
                time.sleep(PAUSE)

    def _tried(self, run: Run) -> bool:
        """Whether this process could have the run; then it is done, or has failed."""
        try:
            with claimed(self.root, run.name):
                if run not in self.left():  # another process finished it since
                    return True
                record = self._train(run)
        except Busy:
            return False
        except TimeIsUp:
            raise
        except Elsewhere as error:  # and so are the task's other runs
            alike = [each for each in self.left() if (each.table, each.cell.task) == (run.table, run.cell.task)]
            self.failed |= {each.name: str(error) for each in alike}
            self.say(f"{len(alike)} runs of {run.table.name} are left: {error}")
            return True
        except Exception as error:  # this run's own trouble: the others go on
            self.failed[run.name] = str(error)
            self.say(f"{run.name} failed: {type(error).__name__}: {error}")
            return True
        speed = record["result"]["updates_per_second"]
        self.say(f"{run.name}: {run.table.value(record):.{run.table.decimals}f} ({speed:.1f} updates a second)")
        if self.commit:
            self._commit(run.table.name, f"Record: {run.table.name}, {run.cell.name}, seed {run.seed}")
        return True

    def _train(self, run: Run) -> Record:
        table, cell = run.table, run.cell
        task = self._task(table, cell.task)
        if self.threads and not task.capturable:
            raise Elsewhere(
                f"{cell.task} may draw random numbers on the CPU, which the threads of a process share; "
                "train it without --at-once"
            )
        if self.threads and not shares_precision(task.precision):
            raise Elsewhere(
                f"{cell.task} computes in {task.precision}, other runs of this process do not; start another one"
            )
        if isinstance(cell.schedule, Found):
            with ONE_AT_A_TIME, claimed(self.root, cell.schedule.folder):
                read_bounds(cell.schedule, task, self.root)
            if self.commit:
                self._commit(cell.schedule.folder, f"Range test: {cell.schedule.folder}")
        schedule = cell.schedule_in(self.root)
        self._same_as_before(table, cell, task)
        settings = cell.settings(schedule, run.seed)
        return table.train(
            task, schedule, cell.updates, self.root / table.name, policy=cell.name, seed=run.seed,
            evaluate_at=settings["evaluate_at"], checkpoint_seconds=self.checkpoint_seconds, progress=self._progress,
        )  # fmt: skip

    def _task(self, table: Table, name: str) -> Task:
        if self._built is None or self._built[0] != (table.name, name):
            self._built = None
            with ONE_AT_A_TIME:  # of several threads one decodes the images, and the others find them
                self._built = (table.name, name), table.tasks[name](self.data_dir)
        return self._built[1]

    def _same_as_before(self, table: Table, cell: Cell, task: Task) -> None:
        """Found out now, not when the run is over: is the task what it was for the records that there are?"""
        now = task.fingerprint(), task.precision
        for record in table.runs(self.root).values():
            config = record["config"]
            if config["task"] == cell.task and (config["fingerprint"], config["precision"]) != now:
                raise ValueError(
                    f"task {cell.task} is no longer what the records of {table.name} were made with; "
                    "give it a new name, or remove those records"
                )

    def _progress(self, *_: object) -> None:
        if time.time() > self.until:
            raise TimeIsUp

    def _commit(self, folder: str, message: str) -> None:
        """Commit a folder's records and nothing else; other processes may be at the same, so try again."""
        paths = [str(path) for path in (self.root / folder).glob("*.json*")]
        git = ["git", "-C", str(self.root)]
        for _ in range(30):
            subprocess.run([*git, "add", "--", *paths], capture_output=True)
            done = subprocess.run([*git, "commit", "-qm", message, "--", *paths], capture_output=True, text=True)
            if done.returncode == 0 or any(sign in done.stdout for sign in UNCHANGED):
                return
            if not any(sign in done.stderr for sign in LOCKED):
                break
            time.sleep(1.0)
        self.say(f"the records in {folder} could not be committed, they are in place: {done.stderr or done.stdout}")


def work_at_once(queue: Queue, count: int) -> None:
    """The queue, worked on by so many threads, on a GPU each with a stream of its own."""
    queues = [replace(queue, threads=True) for _ in range(count)]
    for each in queues:
        each.failed = queue.failed
    processes.count()  # Accelerate's state is made by one thread

    def work(mine: Queue) -> None:
        stream = torch.cuda.Stream() if torch.cuda.is_available() else None
        with torch.cuda.stream(stream), contextlib.suppress(TimeIsUp):
            mine.work()

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)  # seconds: while one thread sets a run up, the others' must not wait for it
    try:
        with ThreadPoolExecutor(count) as pool:
            working = [pool.submit(work, each) for each in queues]
            try:
                wait(working, return_when=FIRST_EXCEPTION)
            finally:  # after an error, or Ctrl-C, the others stop at their next look at the clock
                for each in queues:
                    each.until = 0.0
        for each in working:
            each.result()
    finally:
        sys.setswitchinterval(before)


def work_on(queue: Queue) -> dict[str, str]:
    """What a process on Ray does; the runs that failed, with why."""
    warnings.simplefilter("ignore")
    with contextlib.suppress(TimeIsUp):
        queue.work()
    return queue.failed


def spread_over(on: str, queue: Queue, cpus: float, gpus: float) -> None:
    """The queue, worked on by as many processes as a cluster has room for."""
    from cyclr.lab.on_ray import spread

    for _, failed in spread(work_on, queue, None, on=on, cpus=cpus, gpus=gpus):
        queue.failed |= failed
        for run, why in failed.items():
            queue.say(f"{run} failed: {why}")


def show(queue: Queue) -> None:
    """The queue as a list, with the work that is left."""
    left = queue.left()
    for run in queue.order():
        print(f"{'to do' if run in left else 'done':6}{run.cell.updates:>8,}  {run.name}")
    print(f"{len(left)} runs left, {sum(run.cell.updates for run in left):,} updates")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "tables", nargs="*", metavar="TABLE", help=f"of {', '.join(TABLES)}, by default those that need no GPU"
    )
    parser.add_argument("--data-dir", default=os.environ.get("CYCLR_DATA"), help="folder with the data sets")
    parser.add_argument("--seeds", type=int, help="so many runs of each cell, instead of its own number")
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="just the runs whose name, as --list has it, holds this"
    )
    parser.add_argument("--commit", action="store_true", help="commit each record as its run ends")
    parser.add_argument("--list", action="store_true", help="show the queue and train nothing")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("--checkpoint-seconds", type=float, default=60.0)
    parser.add_argument("--threads", type=int, default=1, help="torch's threads; 1, for one process a core")
    parser.add_argument("--at-once", type=int, default=1, metavar="N", help="on a GPU, runs at once in this process")
    parser.add_argument("--on", default="local", help="local, ray, or ray:HOST:PORT for a cluster")
    parser.add_argument("--cpus", type=float, default=1.0, help="of each process on Ray")
    parser.add_argument("--gpus", type=float, default=0.0, help="of each process on Ray")
    options = parser.parse_args()
    if not 1 <= options.at_once <= MOST_AT_ONCE:
        parser.error(f"--at-once must be from 1 to {MOST_AT_ONCE}, got {options.at_once}; start more processes instead")
    if options.at_once > 1 and options.on != "local":
        parser.error("--at-once is for this machine; with --on ray give each process a part of a GPU, --gpus 0.25 say")
    for name in ("threads", "seeds"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    if not options.minutes > 0:
        parser.error(f"--minutes must be above 0, got {options.minutes:g}")
    if unknown := [name for name in options.tables if name not in TABLES]:
        parser.error(f"there is no table {unknown[0]}; there are {', '.join(TABLES)}")
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    queue = Queue(
        [TABLES[name] for name in options.tables or [name for name in TABLES if not TABLES[name].gpu]],
        options.data_dir,
        options.seeds,
        checkpoint_seconds=options.checkpoint_seconds,
        until=time.time() + 60.0 * options.minutes,
        commit=options.commit,
        only=options.only,
    )
    if not queue.order():
        parser.error(f"no run's name holds {options.only!r}; --list without --only shows the names")
    try:
        if options.list:
            show(queue)
        elif options.on != "local":
            spread_over(options.on, queue, options.cpus, options.gpus)
        elif options.at_once > 1:
            work_at_once(queue, options.at_once)
        else:
            queue.work()
    except TimeIsUp:
        sys.exit(0)
    except (ValueError, ImportError) as error:  # records that cannot be believed, or no Ray: nothing is trained
        print(error, file=sys.stderr)
        sys.exit(2)
    sys.exit(1 if queue.failed else 0)


if __name__ == "__main__":
    main()
