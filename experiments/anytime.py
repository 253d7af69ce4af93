"""The anytime curve: how good a model one run with cycles has after each cycle, beside separate trainings that
were planned for that budget.

The paper's CIFAR-10 net with 5,000 of the training images held out, on which everything here is judged. A run with
cycles has a usable model at each cycle's end, and "best so far" keeps the best of them; a run with one long anneal has
one at its end. Its price elsewhere is read in the rows of the same number of updates.
"""

from __future__ import annotations

import statistics
from dataclasses import replace

import cyclr
from caffe_tasks import base
from cells import Cell, Record, Runs, Table
from cyclr.lab import Task
from cyclr.lab.data import held_out

CYCLE, CYCLES = 4000, 5  # updates, about 9 epochs of the 45,000 images that are left
BASE_LR, MAX_LR, PEAK = 0.001, 0.006, 0.004  # the paper's range; the peak that Table 1's anneals have
BUDGETS = tuple(CYCLE * count for count in range(1, CYCLES + 1))
NAME = "cifar10-caffe-held-out"


def task(data_dir: str | None) -> Task:
    whole = base(data_dir)
    train, validation = held_out(whole.train, 5000)
    return replace(whole, name=NAME, train=train, validation=validation)


WITH_CYCLES = {
    "triangular": cyclr.triangular(BASE_LR, MAX_LR, CYCLE // 2),
    "triangular2": cyclr.triangular2(BASE_LR, MAX_LR, CYCLE // 2),
    "triangular to zero": cyclr.triangular(0.0, PEAK, CYCLE // 2),
    "cosine restarts": cyclr.cosine_restarts(0.0, PEAK, CYCLE),
}
CELLS = (
    *(Cell("one run", name, NAME, schedule, BUDGETS[-1], every=CYCLE // 2) for name, schedule in WITH_CYCLES.items()),
    *(
        Cell("a run for this budget", f"linear to zero, {budget:,}", NAME, cyclr.decay(0.0, PEAK, budget), budget)
        for budget in BUDGETS
    ),
)


def after(record: Record, updates: int) -> float:
    """Accuracy on the held-out images after so many updates, in percent."""
    return 100.0 * next(p["validation"] for p in record["result"]["history"] if p["step"] == updates)


def best_so_far(record: Record, updates: int) -> float:
    """The best model at a cycle's end until then."""
    return max(after(record, end) for end in BUDGETS if end <= updates)


def at_the_end(record: Record) -> float:
    return after(record, record["config"]["total_steps"])


def remarks(table: Table, runs: Runs) -> str:
    """Best so far of each run with cycles, beside the separate trainings: means over the seeds."""
    lines = [
        "Best so far, at each cycle's end, and below it the separate trainings:",
        "",
        "| | " + " | ".join(f"{budget:,}" for budget in BUDGETS) + " |",
        "|" + "---|" * (len(BUDGETS) + 1),
    ]
    by_cell = {cell.name: [record for (name, _), record in runs.items() if name == cell.name] for cell in table.cells}
    for cell in table.cells[: len(WITH_CYCLES)]:
        if records := by_cell[cell.name]:
            shown = (f"{statistics.fmean(best_so_far(each, budget) for each in records):.2f}" for budget in BUDGETS)
            lines.append(f"| {cell.column} | " + " | ".join(shown) + " |")
    separate = [by_cell[cell.name] for cell in table.cells[len(WITH_CYCLES) :]]
    shown = (f"{statistics.fmean(map(at_the_end, records)):.2f}" if records else "" for records in separate)
    lines.append("| linear to zero, a training each | " + " | ".join(shown) + " |")
    return "\n".join(lines) if runs else ""


TABLE = Table(
    "anytime",
    "The anytime curve: one run with cycles beside a training for each budget",
    "The Caffe net, 45,000 images to train and 5,000 to judge. Cycles of 4,000 updates between 0.001 and 0.006 as in "
    "the paper, or between 0 and 0.004, which is also where the anneals start (known from a trial on Table 1, seed 0). "
    f"The five trainings together have {sum(BUDGETS):,} updates, a run with cycles {BUDGETS[-1]:,}.",
    {NAME: task},
    CELLS,
    value=at_the_end,
    unit="accuracy on the held-out images at the end of the run, %",
    remarks=remarks,
)
