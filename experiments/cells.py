"""What a table is made of: cells as data, the folder with their records, and the rules by which a record counts.

A table's script (table1.py, ...) declares one `Table`. Its cells say what is trained; run.py trains them and rebuild.py
reads what they left. Neither knows more than what is here.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import cyclr
from cyclr.files import write_atomically
from cyclr.lab import Task, find, read_records, train
from cyclr.lab.comparing import known
from cyclr.schedules import Ramp, Schedule

HERE = Path(__file__).parent
LEAST = 3  # runs, or pairs of runs, before they answer anything
Record: TypeAlias = dict[str, Any]
Runs: TypeAlias = dict[tuple[str, int], Record]  # (cell's name, seed) -> its record


class Busy(Exception):
    """Another process is at it."""


@dataclass(frozen=True)
class Found:
    """A schedule made of the bounds that a range test reads, without a number from anybody.

    Args:
        folder: where the test's curves and bounds are records, below experiments/.
        make: (base_lr, max_lr) -> schedule. It gets three digits of each, as a person would type them.
        policy: what the bounds are read for.
        ramp: the range test's rates; by default it finds its own end.
    """

    folder: str
    make: Callable[[float, float], Schedule]
    policy: str = "triangular"
    ramp: Ramp | None = None

    def path(self, root: Path) -> Path:
        return root / self.folder / f"bounds-{self.policy}.json"


@dataclass(frozen=True)
class Cell:
    """One number of a table: the mean of runs that differ in their seed only.

    Args:
        row, column: where it stands; both together are its name, and a name keeps its meaning.
        task: what is trained, by its name in the table.
        schedule: the rate, or how to make it of found bounds.
        updates: length of a run.
        paper: the paper's number, in the table's unit.
        seeds: how many runs there are to be.
        every: updates between two evaluations; the cycles' ends come on top.
        scaled: a smaller setting than the paper's.
    """

    row: str
    column: str
    task: str
    schedule: Schedule | Found
    updates: int
    paper: float | None = None
    seeds: int = 3
    every: int = 1000
    scaled: bool = False

    @property
    def name(self) -> str:
        return re.sub(r"[^a-z0-9.]+", "-", f"{self.row} {self.column}".lower()).strip("-")

    def schedule_in(self, root: Path) -> Schedule | None:
        """The schedule; None while its bounds have not been read."""
        if isinstance(self.schedule, Schedule):
            return self.schedule
        path = self.schedule.path(root)
        if not path.exists():
            return None
        bounds = json.loads(path.read_text())
        if bounds["status"] != "ok":
            raise ValueError(f"{path} has no bounds ({bounds['status']}), so {self.name} cannot be trained")
        return self.schedule.make(*(float(f"{bounds[end]:.3g}") for end in ("base_lr", "max_lr")))

    def settings(self, schedule: Schedule, seed: int) -> dict[str, Any]:
        """What the record of its run must say."""
        ends = schedule.cycle_ends(self.updates)
        points = {*range(self.every, self.updates, self.every), *ends, self.updates}
        return {
            "task": self.task,
            "policy": self.name,
            "schedule": schedule.to_dict(),
            "total_steps": self.updates,
            "seed": seed,
            "evaluate_at": sorted(points),
        }


Train: TypeAlias = Callable[..., Record]  # as cyclr.lab.train


def percent(share: float | None) -> float:
    """NaN where a record has no number, since its run diverged or ended before."""
    return math.nan if share is None else 100.0 * share


def accuracy_of(record: Record) -> float:
    """Accuracy on the test data at the end of the run, in percent; a net that diverged has none but that of chance."""
    result = record["result"]
    if result["status"] == "diverged":
        return math.nan
    return percent(result["test"] if result["test"] is not None else result["validation"])


@dataclass(frozen=True)
class Summary:
    """Runs that differ in their seed only: mean, standard deviation, and how many have a number."""

    mean: float | None
    sd: float | None
    n: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Summary:
        found = known(values)
        return cls(
            statistics.fmean(found) if found else None, statistics.stdev(found) if len(found) > 1 else None, len(found)
        )

    def shown(self, decimals: int = 2) -> tuple[str, str]:
        """Mean and standard deviation as a table shows them, empty where there is none."""
        mean, sd = ("" if value is None else f"{value:.{decimals}f}" for value in (self.mean, self.sd))
        return mean, sd

    def __str__(self) -> str:
        mean, sd = self.shown()
        return mean and f"{mean} ({f'sd {sd}, ' if sd else ''}n = {self.n})"


@dataclass(frozen=True)
class Table:
    """A table or figure of the paper.

    Args:
        name: of its script and its folder.
        title, note: above and below it in README.md.
        tasks: name -> function of the data folder.
        cells: in the order of the table, the closest calls first.
        value: a record's number, NaN if it has none; `unit` says of what, and it is shown with so many `decimals`.
        train: what makes a run, as `cyclr.lab.train`.
        gpu: too large for two cores; the queue leaves it out unless it is named.
        remarks: text below the table, made of its records.
        more: what else its records hold, for cells.json: cells that are not trained, each with a number a run.
    """

    name: str
    title: str
    note: str
    tasks: Mapping[str, Callable[[str | None], Any]]
    cells: tuple[Cell, ...]
    value: Callable[[Record], float] = accuracy_of
    unit: str = "accuracy on the test set, %"
    decimals: int = 2
    train: Train = train
    gpu: bool = False
    remarks: Callable[[Table, Runs], str] = lambda table, runs: ""
    more: Callable[[Table, Runs], Sequence[tuple[Cell, list[float]]]] = lambda table, runs: ()

    def __post_init__(self) -> None:
        names = [cell.name for cell in self.cells]
        if len(set(names)) < len(names):
            raise ValueError(f"{self.name} has two cells of one name: {sorted(n for n in names if names.count(n) > 1)}")

    def runs(self, root: Path = HERE) -> Runs:
        """The records, each with its cell.

        Raises:
            ValueError: a record is damaged, of another version, of no cell here, or was made with another configuration
                than the cell has now. Nothing is mixed; a last line that is not whole is no record yet.
        """
        path = root / self.name / "records.jsonl"
        cells = {cell.name: cell for cell in self.cells}
        runs: Runs = {}
        for record in read_records(path.parent):
            config = record["config"]
            cell = cells.get(config["policy"])
            if cell is None:
                raise ValueError(f"{path} has a record of {config['policy']!r}, which is no cell of {self.name}")
            key = cell.name, config["seed"]
            if key in runs:
                raise ValueError(f"{path} has two records of {cell.name} with seed {config['seed']}; remove one")
            self._check(path, cell, config, root)
            runs[key] = record
        self._check_alike(path, runs)
        return runs

    def _check(self, path: Path, cell: Cell, config: Mapping[str, Any], root: Path) -> None:
        schedule = cell.schedule_in(root)
        if schedule is None:
            raise ValueError(f"{path} has a record of {cell.name}, but the bounds it was made with are gone")
        wanted = json.loads(json.dumps(cell.settings(schedule, config["seed"])))
        if changed := [key for key, value in wanted.items() if config.get(key) != value]:
            raise ValueError(
                f"{path} has a record of {cell.name} (seed {config['seed']}) that was made with another "
                f"{', '.join(changed)}; give the cell a new name, or remove the record"
            )

    def _check_alike(self, path: Path, runs: Runs) -> None:
        """All runs of a task trained the same thing."""
        first: dict[str, Record] = {}
        for record in runs.values():
            config = record["config"]
            other = first.setdefault(config["task"], record)["config"]
            for key in ("fingerprint", "precision", "batch_size", "accumulation", "steps_per_epoch"):
                if config.get(key) != other.get(key):
                    raise ValueError(
                        f"{path} has records of {config['task']} with different {key} ({other.get(key)} and "
                        f"{config.get(key)}); give the changed task a new name, or remove the older records"
                    )


@contextlib.contextmanager
def claimed(root: Path, name: str) -> Iterator[None]:
    """This process alone works on `name`; the kernel takes the claim back when it dies, however it dies.

    Raises:
        Busy: another process has it.
    """
    folder = root / ".claims"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name.replace("/", "-")).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(name) from None
        yield


def read_bounds(found: Found, task: Task, root: Path) -> None:
    """Make the range test's record, unless it has been made; the curves serve for every policy."""
    path = found.path(root)
    if path.exists():
        return
    saved = [cyclr.Curve.load(each) for each in sorted(path.parent.glob("curve*.json"))]
    if not saved:
        saved, _ = find(task, ramp=found.ramp)
        path.parent.mkdir(parents=True, exist_ok=True)
        for number, curve in enumerate(saved):
            curve.save(path.parent / ("curve.json" if number == 0 else f"curve-seed{number}.json"))
    bounds = cyclr.find_bounds(saved, policy=found.policy, metric="loss")
    content = {"task": task.name, "policy": found.policy, **asdict(bounds)}
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())
