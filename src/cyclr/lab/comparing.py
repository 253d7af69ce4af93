"""Comparison: the paper's advice. Policies x seeds in the found range, then which won, or that it cannot be told."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cyclr.lab.records import Record, append_record, find_record
from cyclr.lab.run import Progress
from cyclr.lab.task import Task
from cyclr.lab.training import train
from cyclr.plan import Plan, plan
from cyclr.policies import fixed
from cyclr.schedules import Cycle

BASELINE = "fixed"
NO_NUMBER = "cannot tell: no run of {} ended with a number; lower its rates"
COLUMNS = ("policy", "mean", "sd", "n", "updates", "difference to fixed (95 %)", "diverged")


@dataclass(frozen=True)
class Row:
    """One policy's result over its seeds.

    Attributes:
        policy: its name.
        values: the metric at the end of each run, in the order of the seeds; a run that diverged has none.
        mean, sd: their mean and standard deviation (nan for no seed, or for one).
        pairs: seeds whose run has a value both here and at the fixed rate.
        difference: 95 % interval of these pairs' mean difference, (low, high), or None.
        updates: updates in a run.
        diverged: how many runs did.
    """

    policy: str
    values: tuple[float, ...]
    mean: float
    sd: float
    pairs: int
    difference: tuple[float, float] | None
    updates: int
    diverged: int

    def cells(self) -> list[str]:
        """The row as a table shows it; the columns are `COLUMNS`."""
        return [
            self.policy,
            f"{self.mean:.4f}" if self.values else "",
            "" if len(self.values) < 2 else f"{self.sd:.4f}",
            str(len(self.values)),
            f"{self.updates:,}",
            "" if self.difference is None else f"{self.difference[0]:+.4f} to {self.difference[1]:+.4f}",
            str(self.diverged or ""),
        ]


def compare(
    task: Task,
    base_lr: float,
    max_lr: float,
    out: Path | str,
    *,
    policies: Sequence[str] = (BASELINE, "triangular", "triangular2"),
    seeds: Sequence[int] = (0, 1, 2),
    epochs: float | None = None,
    total_steps: int | None = None,
    precision: str | None = None,
    on: str = "local",
    cpus: float = 1.0,
    gpus: float = 0.0,
    progress: Callable[[str], Progress | None] | None = None,
) -> list[Record]:
    """Run every policy with every seed in the found range; what is done already is not done again.

    Args:
        task: what to train.
        base_lr, max_lr: the range, from `find`.
        out: folder for the records.
        policies: names from `cyclr.POLICIES`, or "fixed=0.01" for a fixed rate of your own. `fixed` alone is the
            geometric middle of the range.
        seeds: the same for every policy, so that differences are paired.
        epochs, total_steps: the budget of a run, one of the two.
        precision: the task's own by default.
        on: "local", one run after the other, or on Ray as many at once as there is room for: "ray", "ray:HOST:PORT"
            and more, see `cyclr.lab.on_ray.spread`. Runs go on from their checkpoints where `out` is a shared folder.
        cpus, gpus: what a run on Ray needs.
        progress: called with a run's title; returns a progress function for it, or None.
    """
    plans = [
        plan_for(policy, base_lr, max_lr, steps_per_epoch=task.steps_per_epoch, epochs=epochs, total_steps=total_steps)
        for policy in policies
    ]
    # Everybody is looked at in the middle and at the end of the cycles: that is where cycles differ from the rest.
    cycles = [each.schedule for each in plans if isinstance(each.schedule, Cycle)]
    halves = sorted({cycle.length // 2 for cycle in cycles if cycle.rise})
    jobs: list[dict[str, Any]] = []
    for seed in seeds:
        for each in plans:
            step = halves[0] if halves else max(1, each.total_steps // 10)
            evaluate_at = range(step, each.total_steps + 1, step)
            jobs.append(
                {
                    "schedule": each.schedule,
                    "total_steps": each.total_steps,
                    "out": Path(out).resolve(),
                    "policy": each.policy,
                    "seed": seed,
                    "evaluate_at": evaluate_at,
                    "precision": precision,
                }
            )
    if on != "local":
        return _compare_on_ray(task, jobs, on, cpus, gpus, progress)
    return [
        train(task, **job, progress=progress(f"{job['policy']}, seed {job['seed']}") if progress else None)
        for job in jobs
    ]


def _compare_on_ray(
    task: Task,
    jobs: Sequence[dict[str, Any]],
    on: str,
    cpus: float,
    gpus: float,
    progress: Callable[[str], Progress | None] | None,
) -> list[Record]:
    """The jobs' records, in their order."""
    from cyclr.lab.on_ray import spread

    records: dict[int, Record] = {}
    move = progress("runs on Ray") if progress else None
    for number, record in spread(train, task, jobs, on=on, cpus=cpus, gpus=gpus):
        folder = jobs[number]["out"]
        if find_record(folder, record["config"]) is None:  # the worker wrote into a folder of its own machine
            append_record(folder, record)
        records[number] = record
        if move is not None:
            move(len(records), len(jobs), jobs[number]["schedule"](0), score(record))
    return [records[number] for number in range(len(jobs))]


def plan_for(policy: str, base_lr: float, max_lr: float, **budget: Any) -> Plan:
    """The plan of a policy's name, or of "fixed=RATE"."""
    name, _, number = policy.partition("=")
    if not number:
        return plan(policy, base_lr, max_lr, **budget)
    if name != BASELINE:
        raise ValueError(f"only fixed takes a rate (fixed=0.01), got {policy!r}")
    try:
        rate = float(number)
    except ValueError:
        raise ValueError(f"fixed= needs a number such as fixed=0.01, got {policy!r}") from None
    whole = plan(BASELINE, base_lr, max_lr, **budget)
    return Plan(policy, fixed(rate), whole.total_steps, whole.reasons)


def score(record: Mapping[str, Any]) -> float:
    """What a run is judged by: the metric on the test data at the end, or on the validation data without any.

    It is nan for a run that diverged: the metric of a net of NaNs says something about the data alone.
    """
    result = record["result"]
    if result["status"] == "diverged":
        return math.nan
    value = result["test"] if result["test"] is not None else result["validation"]
    return math.nan if value is None else float(value)


def table(records: Sequence[Record]) -> list[Row]:
    """One row a policy, best mean first and those with runs that diverged last.

    Of several fixed rates, the others are held against the best.
    """
    by_policy: dict[str, dict[int, Record]] = {}
    for record in records:
        by_policy.setdefault(record["config"]["policy"], {})[record["config"]["seed"]] = record
    fixed_runs = [runs for policy, runs in by_policy.items() if _is_fixed(policy)]
    baseline = max(fixed_runs, key=_rank, default={})
    rows = []
    for policy, runs in sorted(by_policy.items(), key=lambda each: _rank(each[1]), reverse=True):
        values = known(score(runs[seed]) for seed in sorted(runs))
        shared = sorted(set(runs) & set(baseline)) if runs is not baseline else []
        differences = known(score(runs[seed]) - score(baseline[seed]) for seed in shared)
        rows.append(
            Row(
                policy=policy,
                values=tuple(values),
                mean=float(np.mean(values)) if values else math.nan,
                sd=float(np.std(values, ddof=1)) if len(values) > 1 else math.nan,
                pairs=len(differences),
                difference=interval(differences),
                updates=max(run["config"]["total_steps"] for run in runs.values()),
                diverged=sum(run["result"]["status"] == "diverged" for run in runs.values()),
            )
        )
    return rows


def _is_fixed(policy: str) -> bool:
    return policy.partition("=")[0] == BASELINE


def known(values: Iterable[float | None]) -> list[float]:
    """Without the runs that have no number: the one place where they are left out of a mean."""
    return [value for value in values if value is not None and math.isfinite(value)]


def _rank(runs: Mapping[int, Record]) -> float:
    """By the mean; a policy of which a run has no value is no advice."""
    mean = float(np.mean([score(record) for record in runs.values()]))
    return -math.inf if math.isnan(mean) else mean


def interval(differences: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of the mean of paired differences (Student's t); None for fewer than two."""
    n = len(differences)
    if n < 2:
        return None
    from scipy.stats import t  # takes longer to load than all of cyclr

    half = float(t.ppf(0.975, n - 1)) * float(np.std(differences, ddof=1)) / math.sqrt(n)
    mean = float(np.mean(differences))
    return mean - half, mean + half


def verdict(rows: Sequence[Row]) -> str:
    """Which won, or that it cannot be told, in one sentence."""
    others = [row for row in rows if not _is_fixed(row.policy)]
    baseline = [row for row in rows if _is_fixed(row.policy)]
    if not others or not baseline:
        best = rows[0]
        if not best.values:
            return NO_NUMBER.format(best.policy)
        return f"{best.policy} has the best mean, {best.mean:.4f}; there is no cyclic policy and fixed rate to compare"
    best, base = others[0], baseline[0]
    for row in (best, base):
        if not row.values:
            return NO_NUMBER.format(row.policy)
    numbers = f"{best.policy} {best.mean:.4f} against {base.policy} {base.mean:.4f}, n = {best.pairs}"
    if best.difference is None:
        return f"cannot tell: {numbers}; one seed says nothing about the spread, use at least 3"
    low, high = best.difference
    if low > 0:
        return f"{best.policy} won: {numbers}, difference {low:+.4f} to {high:+.4f} (95 %)"
    if high < 0:
        return f"{base.policy} won: {numbers}, difference {low:+.4f} to {high:+.4f} (95 %)"
    return f"cannot tell: {numbers}, difference {low:+.4f} to {high:+.4f} (95 %); more seeds would narrow it"
