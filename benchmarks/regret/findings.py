"""What the study's records say, put together: regrets, rates and misses, for the tables and the figure.

A share of cyclr's rule is always fitted without the task that a number is about.
"""

from __future__ import annotations

import functools
import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence

from advice import CYCLR, LENGTHS, SCHEDULES, usual
from rule import missed_by, read, regret, share_from, spread_from, unscaled
from tasks import CASES

from records import SEEDS, Records

PerTask = dict[str, float]


class Findings:
    """What the records say, put together for the tables.

    Attributes:
        tasks: those that the tables are about.
        swept: all tasks -> cyclr's range tests of the usual length.
    """

    def __init__(self, records: Records, only: str | None = None) -> None:
        self.records = records
        if only is not None and only not in records.updates:
            raise ValueError(f"there are no records of task {only}; there are some of {', '.join(records.updates)}")
        every = [name for name in records.updates if name in CASES or name == only]
        self.tasks = [name for name in CASES if name in every] if only is None else [only]
        self.swept = {name: records.curves(self.usual(name)).get(name, {}) for name in every}

    def usual(self, task: str) -> int:
        """Steps of the range test that cyclr is judged by."""
        return usual(self.records.updates[task])

    def curves(self, *, ramp_alone: bool = False) -> dict[str, list[str]]:
        """Task -> cyclr's range tests of the usual length, with or without their short cycles."""
        return {
            task: [without_cycles(curve) if ramp_alone else curve for curve in curves.values()]
            for task, curves in self.swept.items()
        }

    def grids(self, policy: str) -> dict[str, dict[float, float]]:
        """Task -> rate -> mean metric, where the grid has a best rate."""
        return {task: self.records.grid(task, policy) for task in self.swept if self.records.best(task, policy)}

    def lost(self, task: str, policy: str, metrics: Iterable[float]) -> float | None:
        """Points below the best of a policy's grid, mean over seeds; None where nothing was trained."""
        best, found = self.records.best(task, policy), list(metrics)
        return None if best is None or not found else best[1] - statistics.fmean(found)

    def inside(self, policy: str) -> dict[str, list[float]]:
        """Task -> what training inside the bounds that cyclr gave reaches, one number a seed."""
        return {task: [each[2] for each in self.records.inside[task, policy].values()] for task in self.tasks}

    def cyclr(self, policy: str) -> PerTask:
        """Task -> regret of training inside the bounds that cyclr gave."""
        return known({task: self.lost(task, policy, metrics) for task, metrics in self.inside(policy).items()})

    def short(self) -> dict[str, list[str]]:
        """Task -> cyclr's shortest range tests."""
        found = self.records.curves(LENGTHS[0])
        return {task: list(found.get(task, {}).values()) for task in self.swept}

    def interpolated(self, curves: dict[str, list[str]], policy: str) -> PerTask:
        """Task -> regret of what these range tests say, interpolated on the grid."""
        grids = self.grids(policy)
        found = {}
        for task, grid in grids.items():
            share = share_from(curves, grids, policy, without=task)
            logs = [log for curve in curves[task] if (log := unscaled(curve, policy)) is not None]
            if share and logs:
                found[task] = statistics.fmean(regret(grid, log + math.log10(share)) for log in logs)
        return found

    def said(self, adviser: str, task: str, steps: int) -> dict[int, float]:
        """Seed -> the rate that a peer advises after a sweep of a length."""
        sweeps = {seed: self.records.swept.get((task, finder_of(adviser), steps, seed)) for seed in SEEDS}
        rates = {seed: sweep["advice"][adviser]["lr"] for seed, sweep in sweeps.items() if sweep}
        return {seed: rate for seed, rate in rates.items() if rate is not None}

    def peer(self, adviser: str) -> PerTask:
        """Task -> regret of training with what a peer says, under the schedule that its users follow."""
        policy = SCHEDULES[adviser]
        found = {}
        for task in self.tasks:
            rates = self.said(adviser, task, LENGTHS[0])
            cells = {
                seed: self.records.trained.get((task, policy, float(f"{lr:.4g}"), None), {})
                for seed, lr in rates.items()
            }
            found[task] = self.lost(task, policy, [cell[seed] for seed, cell in cells.items() if seed in cell])
        return known(found)

    def cost(self, finder: str, steps: Callable[[str], int]) -> float:
        """Updates of a range test, the median over tasks and seeds."""
        updates = []
        for (task, who, length, _), result in self.records.swept.items():
            if who == finder and length == steps(task):
                updates.append(
                    next(iter(result["advice"].values()))["updates"] if "advice" in result else result["updates"]
                )
        return statistics.median(updates) if updates else math.nan

    def cyclr_rates(self, task: str, lengths: Sequence[int]) -> list[float]:
        """max_lr for triangular, after the sweeps of these lengths."""
        curves = [curve for steps in lengths for curve in self.records.curves(steps).get(task, {}).values()]
        return [rate for curve in curves if (rate := read(curve, "triangular").max_lr) is not None]

    def peer_rates(self, adviser: str, task: str, lengths: Sequence[int]) -> list[float]:
        """The same of a peer."""
        return [rate for steps in lengths for rate in self.said(adviser, task, steps).values()]

    def interval_factor(self, without: str | None) -> float:
        """The factor that holds what was right for nine tenths of the other tasks' cases."""
        return spread_from(miss for task, miss in self.misses if task != without)

    @functools.cached_property
    def misses(self) -> list[tuple[str, float]]:
        """(task, decades between advice and the nearest right rate), one for each task, policy and seed."""
        found = []
        for policy in CYCLR:
            curves, grids = self.curves(), self.grids(policy)
            for task, grid in grids.items():
                share = share_from(curves, grids, policy, without=task)
                misses = [missed_by(curve, grid, policy, share) for curve in curves[task]] if share else []
                found += [(task, miss) for miss in misses if miss is not None]
        return found


def finder_of(adviser: str) -> str:
    """The finder that makes the sweep: fastai's gives four answers."""
    return adviser.split()[0] if adviser.startswith("fastai") else adviser


def known(found: dict[str, float | None]) -> PerTask:
    return {task: value for task, value in found.items() if value is not None}


def without_cycles(curve: str) -> str:
    return json.dumps({**json.loads(curve), "companions": []})
