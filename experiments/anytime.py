"""The anytime curve: how good a model one run with cycles has after each cycle, beside separate trainings that
were planned for that budget.

The paper's CIFAR-10 net with 5,000 of the training images held out. A run with cycles has a usable model at each
cycle's end, and "best so far" keeps the best of them; a run with one long anneal has one at its end. The images that
choose the best of several flatter it, so one half of those held out chooses, and the other half judges all rows.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

import cyclr
from caffe_tasks import base
from cells import Cell, Record, Runs, Summary, Table, known, percent
from cyclr.lab import Task, accuracy
from cyclr.lab.data import held_out

CYCLE, CYCLES = 4000, 5  # updates, about 9 epochs of the 45,000 images that are left
BASE_LR, MAX_LR, PEAK = 0.001, 0.006, 0.004  # the paper's range; the peak that Table 1's anneals have
BUDGETS = tuple(CYCLE * count for count in range(1, CYCLES + 1))
NAME = "cifar10-caffe-held-out"
HELD_OUT = 5000


def first_half(output: Tensor, target: Tensor) -> float:
    half = len(target) // 2
    return float(accuracy(output[:half], target[:half]))


def second_half(output: Tensor, target: Tensor) -> float:
    half = len(target) // 2
    return float(accuracy(output[half:], target[half:]))


SCORES = {"choosing": first_half, "judging": second_half}  # of images that were held out in a random order


def task(data_dir: str | None) -> Task:
    whole = base(data_dir)
    train, validation = held_out(whole.train, HELD_OUT)
    return replace(whole, name=NAME, train=train, validation=validation, test=None, scores=SCORES)


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


def after(record: Record, updates: int, score: str = "judging") -> float:
    """Accuracy on a half of the held-out images after so many updates, in percent; NaN if the run did not get there."""
    points = {point["step"]: point for point in record["result"]["history"]}
    return percent(points.get(updates, {}).get(f"validation {score}"))


def best_so_far(record: Record, updates: int) -> float:
    """The model at a cycle's end until then that one half chooses, judged by the other; NaN if there is none.

    A run that diverges keeps the models that it had.
    """
    ends = [end for end in BUDGETS if end <= updates and known([after(record, end, "choosing")])]
    return after(record, max(ends, key=lambda end: after(record, end, "choosing"))) if ends else percent(None)


def at_the_end(record: Record) -> float:
    return after(record, record["config"]["total_steps"])


def remarks(table: Table, runs: Runs) -> str:
    """Best so far of each run with cycles, beside the separate trainings."""
    lines = [
        "Best so far, at each cycle's end, and below it the separate trainings:",
        "",
        "| | " + " | ".join(f"{budget:,}" for budget in BUDGETS) + " |",
        "|" + "---|" * (len(BUDGETS) + 1),
    ]
    by_cell = {cell.name: [record for (name, _), record in runs.items() if name == cell.name] for cell in table.cells}
    for cell in table.cells[: len(WITH_CYCLES)]:
        if records := by_cell[cell.name]:
            shown = (str(Summary.of(best_so_far(each, budget) for each in records)) for budget in BUDGETS)
            lines.append(f"| {cell.column} | " + " | ".join(shown) + " |")
    separate = (map(at_the_end, by_cell[cell.name]) for cell in table.cells[len(WITH_CYCLES) :])
    lines.append("| linear to zero, a training each | " + " | ".join(str(Summary.of(each)) for each in separate) + " |")
    if records := by_cell[table.cells[-1].name]:
        shown = (str(Summary.of(after(each, budget) for each in records)) for budget in BUDGETS)
        lines.append("| the longest of these, on its way | " + " | ".join(shown) + " |")
    return "\n".join(lines) if runs else ""


TABLE = Table(
    "anytime",
    "The anytime curve: one run with cycles beside a training for each budget",
    "The Caffe net, 45,000 images to train. Of the 5,000 held out, 2,500 choose the best cycle's end so far and the "
    "other 2,500 judge it, and all else here (2,500 images know an accuracy of 80 % to 0.8 points, one standard error; "
    "all rows have the same). Cycles of 4,000 updates between 0.001 and 0.006 as in the paper, or between 0 and 0.004, "
    "which is also where the anneals start (known from a trial on Table 1, seed 0). The price of a model at each end "
    "of a cycle: what a training planned for the same number of updates is better by, column by column below; images "
    "to choose by that are not trained on; a look at them and a copy of the weights at each such end. What it saves: "
    f"the five trainings together have {sum(BUDGETS):,} updates, a run with cycles {BUDGETS[-1]:,}.",
    {NAME: task},
    CELLS,
    value=at_the_end,
    unit="accuracy on the judging half of the held-out images at the end of the run, %",
    remarks=remarks,
)
