"""Layer-wise fine-tuning: a pretrained GoogLeNet on chest X-rays, with cyclical and fixed rates.

First `python experiments/pretrain_googlenet.py --data-dir DIR` makes the weights, or CYCLR_GOOGLENET names others. A
run has 6 epochs in three cycles. Cyclical rates use the range that one range test of the same task read; of the fixed
rates the page names the one that is best on the validation data.
"""

from __future__ import annotations

import functools
import math
import os
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import cyclr
from cells import HERE, LEAST, Cell, Found, Record, Runs, Summary, Table, known, percent
from cyclr.lab import Task
from cyclr.lab.tasks.googlenet_pneumonia import googlenet_pneumonia
from cyclr.schedules import Schedule

HALF = 75  # an epoch has 73 updates
UPDATES = 6 * HALF  # three cycles
EVERY = HALF // 3  # the cycles' ends are among these, so that all rows are looked at equally often
FIXED = {"all": (0.003, 0.01, 0.03), "depth": (0.01, 0.03, 0.1, 0.3)}  # around the ranges that the tests read
SCORE = "balanced accuracy"


def task_of(layers: str) -> Callable[[str | None], Task]:
    def build(data_dir: str | None) -> Task:
        weights = os.environ.get("CYCLR_GOOGLENET", HERE / "googlenet" / "googlenet.safetensors")
        return googlenet_pneumonia(data_dir, layers=layers, weights=str(weights))

    return build


NAMES = {"depth": "googlenet-pneumonia", "all": "googlenet-pneumonia-all", "last": "googlenet-pneumonia-last"}
ROWS = {"depth": "layer by layer", "all": "whole net, one rate", "last": "last layer only"}


def cell(layers: str, column: str, schedule: Schedule | Found) -> Cell:
    return Cell(ROWS[layers], column, NAMES[layers], schedule, UPDATES, seeds=5, every=EVERY)


def cyclical(layers: str) -> Found:
    return Found(f"pneumonia/{layers}", functools.partial(cyclr.triangular2, stepsize=HALF))


CELLS = (
    *(cell(layers, "triangular2, found range", cyclical(layers)) for layers in ROWS),
    *(cell(layers, f"fixed, {lr:g}", cyclr.fixed(lr)) for layers, rates in FIXED.items() for lr in rates),
)


def score_of(record: Record, name: str = SCORE) -> float:
    """A score on the test data at the end, in percent."""
    return percent(record["result"]["scores"][name])  # none if the run diverged


def validated(record: Record) -> list[tuple[int, float]]:
    """Updates, and the balanced accuracy on the validation data after them, until the run diverged if it did."""
    points = [(point["step"], point[f"validation {SCORE}"]) for point in record["result"]["history"]]
    return [(step, value) for step, value in points if value is not None]


def best_of(record: Record) -> float | None:
    """A run's best validation score; None if it diverged before the first one."""
    return max((value for _, value in validated(record)), default=None)


def first_at(record: Record, target: float) -> float:
    """Updates after which a run first had this validation score; infinite if it never did."""
    return next((float(step) for step, value in validated(record) if value >= target), math.inf)


def best_and_its_grid(cells: Sequence[Cell], runs: Runs) -> tuple[Cell, list[float]] | None:
    """Of fixed rates, the one with the best mean of its runs' best validation scores; and the rates tried in its row.

    One with fewer seeds than others was tried, but is not the best. None if there are no runs.
    """
    scores = {
        cell.name: known(best_of(record) for (name, _), record in runs.items() if name == cell.name) for cell in cells
    }
    most = max(map(len, scores.values()), default=0)
    if not most:
        return None
    complete = [cell for cell in cells if len(scores[cell.name]) == most]
    best = max(complete, key=lambda cell: statistics.fmean(scores[cell.name]))
    trained = {name for name, _ in runs}
    tried = [cell for cell in cells if cell.row == best.row and cell.name in trained]
    return best, sorted(cell.schedule(0) for cell in tried)  # type: ignore[operator]


def paired(cell: Cell, fixed: Cell, runs: Runs) -> list[tuple[float, float]]:
    """Updates until a run, and the fixed rate's with its seed, first had the best validation score of the latter."""
    seeds = sorted(seed for name, seed in runs if name == fixed.name and (cell.name, seed) in runs)
    targets = {seed: best_of(runs[fixed.name, seed]) for seed in seeds}
    return [
        (first_at(runs[cell.name, seed], target), first_at(runs[fixed.name, seed], target))
        for seed, target in targets.items()
        if target is not None
    ]


def remarks(table: Table, runs: Runs) -> str:
    """The claim, then what else the runs say, and what their updates leave out."""
    parts = (claim(table, runs), others(table, runs), chosen_by(table))
    return "\n\n".join(part for part in parts if part) if runs else ""


def claim(table: Table, runs: Runs) -> str:
    """Does CLR, layer by layer, reach the fixed rate's best validation score in at most half of its updates?"""
    lines = [
        f"The claim: layer by layer, CLR reaches the fixed rate's best validation {SCORE} in at most half of the "
        f"updates that this took the fixed rate, seed by seed (all runs are looked at each {EVERY} updates). The best "
        "fixed rate is the one with the best mean of these scores.",
        "",
        "| among the fixed rates | the best | at its grid's edge? | reached | in at most half | median ratio | so |",
        "|---|---|---|---|---|---|---|",
    ]
    layered = ROWS["depth"]
    cyclic = next(cell for cell in table.cells if cell.row == layered and isinstance(cell.schedule, Found))
    fixed = fixed_cells(table)
    for among, cells in ((layered, [cell for cell in fixed if cell.row == layered]), ("all", fixed)):
        if found := best_and_its_grid(cells, runs):
            best, grid = found
            ratios = [ours / theirs for ours, theirs in paired(cyclic, best, runs)]
            lines.append(f"| {among} | {title(best)} | {edge(best, grid)} | {judged(ratios)} |")
    return "\n".join(lines) if len(lines) > 4 else ""


def judged(ratios: Sequence[float]) -> str:
    """How often the claim held, and whether it did; an infinite ratio is a run that never got there."""
    n, within = len(ratios), sum(each <= 0.5 for each in ratios)
    median = statistics.median(ratios) if ratios else math.nan
    verdict = "yes" if within == n else "no" if 2 * within < n else "not in every run"
    return " | ".join((
        f"{len(known(ratios))} of {n}",
        f"{within} of {n}",
        "never" if median == math.inf else f"{median:.2f}" if ratios else "",
        verdict if n >= LEAST else f"cannot tell from {n}",
    ))  # fmt: skip


def edge(best: Cell, grid: Sequence[float]) -> str:
    """A best rate with no worse one beside it may not be the best."""
    rate, tried = best.schedule(0), ", ".join(f"{each:g}" for each in grid)  # type: ignore[operator]
    ends = [name for name, end in (("smallest", grid[0]), ("largest", grid[-1])) if rate == end]
    return f"yes, the {' and '.join(ends)} of {tried}" if ends else f"no, within {tried}"


def others(table: Table, runs: Runs) -> str:
    """AUC, and the updates until the best fixed rate's best validation score is reached."""
    found = best_and_its_grid(fixed_cells(table), runs)
    if found is None:
        return ""
    lines = [
        f"Of all rows, with {title(found[0])} as the fixed rate: the median of the updates, in so many of the runs.",
        "",
        "| row | column | AUC on the test set, % | updates to the fixed rate's best |",
        "|---|---|---|---|",
    ]
    for cell in table.cells:
        if records := [record for (name, _), record in runs.items() if name == cell.name]:
            auc = Summary.of(score_of(record, "AUC") for record in records)
            firsts = [ours for ours, _ in paired(cell, found[0], runs)]
            reached = known(firsts)
            when = f"{statistics.median(reached):,.0f} ({len(reached)} of {len(firsts)})" if reached else ""
            lines.append(f"| {cell.row} | {cell.column} | {auc} | {when or f'none of {len(firsts)}'} |")
    return "\n".join(lines)


def chosen_by(table: Table, root: Path = HERE) -> str:
    """What choosing a rate took, which is in no run's updates."""
    fixed = fixed_cells(table)
    grids = [(row, sum(cell.row == row for cell in fixed)) for row in dict.fromkeys(cell.row for cell in fixed)]
    found = [(cell.row, cell.schedule) for cell in table.cells if isinstance(cell.schedule, Found)]
    tests = [(row, sum(map(recorded, (root / each.folder).glob("curve*.json")))) for row, each in found]
    parts = ["In no row's updates is what choosing its rate took. Fixed rates, a seed of the whole grid:"]
    parts.append(", ".join(f"{row} {count} x {UPDATES} = {count * UPDATES:,} updates" for row, count in grids) + ".")
    if told := [f"{row} {updates:,} updates" for row, updates in tests if updates]:
        parts.append(
            f"The range tests, once for all seeds: {', '.join(told)}, which their curves hold; the first look for "
            "the ramp's end, ramps that were made again and short cycles that broke come on top and are not on record."
        )
    return " ".join(parts)


def recorded(path: Path) -> int:
    """Updates of a range test that its curve shows: its last ramp's and its short cycles'."""
    curve = cyclr.Curve.load(path)
    cycles = curve.short_cycles
    ramps = [each for each in (curve, *curve.companions) if each is not cycles and len(each)]
    ramp = max((int(each.steps[-1]) + 1 for each in ramps), default=0)
    return ramp if cycles is None else ramp + int(cycles.steps.sum())


def fixed_cells(table: Table) -> list[Cell]:
    return [cell for cell in table.cells if cell.column.startswith("fixed")]


def title(cell: Cell) -> str:
    return f"{cell.column.removeprefix('fixed, ')} ({cell.row})"


TABLE = Table(
    "pneumonia",
    "Fine-tuning GoogLeNet on chest X-rays, layer by layer",
    "PneumoniaMNIST at 32 pixels; GoogLeNet pretrained on CIFAR-100 by [pretrain_googlenet.py](pretrain_googlenet.py) "
    "([its record](googlenet/records.jsonl)). Layer by layer: five groups by depth, each at 1/2.6 of the next one's "
    "rate. Three cycles in 450 updates (6 epochs). The cyclical range is what one range test of the task read. "
    "BatchNorm's statistics follow the X-rays in all rows, the last layer's too. A row's updates are those of a run: "
    "what choosing its rate took, a range test or a grid of fixed rates, comes on top.",
    {name: task_of(layers) for layers, name in NAMES.items()},
    CELLS,
    value=score_of,
    unit="balanced accuracy on the test set, %",
    remarks=remarks,
)
