"""Layer-wise fine-tuning: a pretrained GoogLeNet on chest X-rays, with cyclical and fixed rates.

First `python experiments/pretrain_googlenet.py --data-dir DIR` makes the weights, or CYCLR_GOOGLENET names others. A
run has 12 epochs in four cycles. Cyclical rates use the range that one range test of the same task read; of the fixed
rates the page names the one that is best on the validation data.
"""

from __future__ import annotations

import functools
import os
import statistics
from collections.abc import Callable

import cyclr
from cells import HERE, Cell, Found, Record, Runs, Table
from cyclr.lab import Task
from cyclr.lab.tasks.googlenet_pneumonia import googlenet_pneumonia
from cyclr.schedules import Schedule

HALF = 110  # 1.5 epochs; there are four cycles
UPDATES = 8 * HALF
EVERY = 2 * HALF // 5  # the cycles' ends are among these, so that all rows are looked at equally often
FIXED = (0.003, 0.01, 0.03)
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
    *(cell(layers, f"fixed, {lr:g}", cyclr.fixed(lr)) for layers in ("all", "depth") for lr in FIXED),
)


def score_of(record: Record, name: str = SCORE) -> float:
    """A score on the test data at the end, in percent."""
    value = record["result"]["scores"][name]  # none if the run diverged
    return float("nan") if value is None else 100.0 * value


def validated(record: Record) -> list[tuple[int, float]]:
    """Updates, and the balanced accuracy on the validation data after them, until the run diverged if it did."""
    points = [(point["step"], point[f"validation {SCORE}"]) for point in record["result"]["history"]]
    return [(step, value) for step, value in points if value is not None]


def remarks(table: Table, runs: Runs) -> str:
    """AUC, and the updates until the best fixed rate's best validation score is reached: seed by seed."""
    by_cell: dict[str, dict[int, Record]] = {}
    for (name, seed), record in runs.items():
        by_cell.setdefault(name, {})[seed] = record
    best = {
        name: {seed: max((v for _, v in validated(each)), default=0.0) for seed, each in seeds.items()}
        for name, seeds in by_cell.items()
    }
    fixed = [cell.name for cell in table.cells if cell.column.startswith("fixed") and cell.name in best]
    if not fixed:
        return ""
    first = max(fixed, key=lambda name: statistics.fmean(best[name].values()))
    lines = [
        f"The best fixed rate on the validation data is {title(table, first)}. The last column says after how many "
        f"updates a run first reached that rate's best validation {SCORE} of the same seed (in so many of the runs).",
        "",
        "| row | column | AUC on the test set, % | updates to the fixed rate's best |",
        "|---|---|---|---|",
    ]
    for cell in table.cells:
        if seeds := by_cell.get(cell.name):
            auc = [score_of(record, "AUC") for record in seeds.values()]
            shared = sorted(seeds.keys() & best[first].keys())
            firsts = [next((s for s, v in validated(seeds[seed]) if v >= best[first][seed]), None) for seed in shared]
            reached = [each for each in firsts if each is not None]
            when = (
                f"{statistics.median(reached):,.0f} ({len(reached)} of {len(shared)})"
                if reached
                else f"none of {len(shared)}"
            )
            lines.append(f"| {cell.row} | {cell.column} | {spread(auc)} | {when} |")
    return "\n".join(lines)


def title(table: Table, name: str) -> str:
    cell = next(cell for cell in table.cells if cell.name == name)
    return f"{cell.column.removeprefix('fixed, ')} ({cell.row})"


def spread(values: list[float]) -> str:
    sd = f" (sd {statistics.stdev(values):.2f})" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{sd}"


TABLE = Table(
    "pneumonia",
    "Fine-tuning GoogLeNet on chest X-rays, layer by layer",
    "PneumoniaMNIST at 32 pixels; GoogLeNet pretrained on CIFAR-100 by [pretrain_googlenet.py](pretrain_googlenet.py) "
    "([its record](googlenet/records.jsonl)). Layer by layer: five groups by depth, each at 1/2.6 of the next one's "
    "rate. Four cycles in 880 updates (12 epochs). The cyclical range is what one range test of the task read. "
    "BatchNorm's statistics follow the X-rays in all rows, the last layer's too.",
    {name: task_of(layers) for layers, name in NAMES.items()},
    CELLS,
    value=score_of,
    unit="balanced accuracy on the test set, %",
    remarks=remarks,
)
