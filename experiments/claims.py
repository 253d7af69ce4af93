"""The paper's claim, held against the records of Table 1: does a cyclical rate reach in 25,000 updates what a fixed one
reaches in 70,000? And in 20,000, in a range that was read and not chosen?
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence

from cells import HERE, LEAST, Cell, Record, Runs, Summary, Table, known
from cyclr.lab.comparing import interval

FIXED = "fixed-70-000"
TO_REPEAT = HERE / "gpu_plan" / "to_repeat.json"  # run -> when its record was made


def seeds_of(cell: Cell, runs: Runs) -> list[int]:
    return sorted(seed for name, seed in runs if name == cell.name)


def cyclical(record: Record) -> bool:
    """Two cycles at least; one way down, or up and down once, is no cycle."""
    return len(record["config"]["cycle_ends"]) >= 2


def differences(table: Table, cell: Cell, runs: Runs, other: str = FIXED) -> list[float]:
    """To another cell's runs with the same seeds; a pair in which one run has no number is none."""
    shared = [seed for seed in seeds_of(cell, runs) if (other, seed) in runs]
    return known(table.value(runs[cell.name, seed]) - table.value(runs[other, seed]) for seed in shared)


def said(values: Sequence[float]) -> str:
    """A mean difference with its 95 % interval, which means nothing for two seeds."""
    if not values:
        return "no pair of runs with a number"
    mean, bounds = f"{statistics.fmean(values):+.2f}", interval_of_enough(values)
    if bounds is None:
        return f"{mean} ({len(values)} seed{'s' * (len(values) > 1)})"
    return f"{mean} ({bounds[0]:+.2f} to {bounds[1]:+.2f})"


def interval_of_enough(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of the mean; None for fewer than LEAST."""
    return interval(values) if len(values) >= LEAST else None


def to_repeat(runs: Runs) -> str:
    """How many of these runs are to be repeated, and why."""
    listed = json.loads(TO_REPEAT.read_text())
    count = sum(listed.get(record["run"]) == record["finished"] for record in runs.values())
    if not count:
        return ""
    return (
        f"{count} of these runs are to be repeated: one of them may have made 50 updates on wrong images "
        "([gpu_plan](gpu_plan/README.md))."
    )


def reached(cell: Cell, runs: Runs) -> tuple[list[int], int]:
    """Updates at which each run had fixed's final accuracy first, at a cycle's end; and of how many runs.

    Where there are no two cycles, every evaluation counts. A run that diverged may have reached it before; where the
    fixed rate's did, there is nothing to reach.
    """
    first: list[int] = []
    finals = {seed: record["result"] for (name, seed), record in runs.items() if name == FIXED}
    shared = [seed for seed in seeds_of(cell, runs) if finals.get(seed, {}).get("status") == "done"]
    for seed in shared:
        record, target = runs[cell.name, seed], finals[seed]["test"]
        ends = set(record["config"]["cycle_ends"]) if cyclical(record) else None
        steps = [
            point["step"]
            for point in record["result"]["history"]
            if point["test"] is not None and point["test"] >= target and (ends is None or point["step"] in ends)
        ]
        first += steps[:1]
    return first, len(shared)


def best(table: Table, runs: Runs, most: int, *, only_cyclical: bool, found: bool = False) -> Cell | None:
    """The cell of at most so many updates with the best mean, among those with the most seeds that have a number."""
    cells = [
        cell
        for cell in table.cells
        if cell.updates <= most
        and differences(table, cell, runs)
        and ("found range" in cell.row or not found)
        and (not only_cyclical or cyclical(runs[cell.name, seeds_of(cell, runs)[0]]))
    ]
    most_seeds = max((len(differences(table, cell, runs)) for cell in cells), default=0)
    cells = [cell for cell in cells if len(differences(table, cell, runs)) == most_seeds]
    return max(cells, key=lambda cell: statistics.fmean(differences(table, cell, runs)), default=None)


QUESTIONS = (
    ("a policy with cycles, at most 25,000 updates", 25_000, True, False),
    ("any policy, at most 25,000 updates", 25_000, False, False),
    ("a policy with cycles in a range that `cyclr find` read, 20,000 updates", 20_000, True, True),
    ("any policy in a range that `cyclr find` read, 20,000 updates", 20_000, False, True),
)


def text(table: Table, runs: Runs) -> str:
    """The claim's two tables for README.md."""
    if not any(name == FIXED for name, _ in runs):
        return "No fixed rate has been trained to its end yet, so there is nothing to compare with."
    lines = ["| question | best | n | difference to fixed at 70,000, points (95 %) | answer |", "|---|---|---|---|---|"]
    for question, most, only_cyclical, found in QUESTIONS:
        cell = best(table, runs, most, only_cyclical=only_cyclical, found=found)
        if cell is None:
            lines.append(f"| {question} | not run yet | 0 | | |")
            continue
        values = differences(table, cell, runs)
        lines.append(f"| {question} | {cell.row}, {cell.column} | {len(values)} | {said(values)} | {answer(values)} |")
    lines += [
        "",
        "Which one is best was read off the same numbers that it is then judged by: that favours it a little. "
        + to_repeat(runs),
        "",
        "| policy | updates | n | difference to fixed, points (95 %) | reached fixed's final accuracy | first at |",
        "|---|---|---|---|---|---|",
    ]
    for cell in table.cells:
        first, of = reached(cell, runs)
        if of:
            values = differences(table, cell, runs)
            at = f"{statistics.median(first):,.0f}" if first else "never"
            own = "" if cell.name == FIXED else said(values)
            lines.append(f"| {cell.row} | {cell.updates:,} | {len(values)} | {own} | {len(first)} of {of} | {at} |")
    lines += [
        "",
        "n: pairs of runs that both have a final accuracy, which a run that diverged has not. First at: the median "
        "update over the runs that did, at the ends of cycles or, without cycles, each 1,000.",
    ]
    return "\n".join(lines)


def differ(table: Table, runs: Runs, pairs: Sequence[tuple[str, str]]) -> str:
    """What is the difference of these pairs of cells, over the seeds that both have?"""
    cells = {cell.name: cell for cell in table.cells}
    lines = ["| here | held against | n | difference, points (95 %) |", "|---|---|---|---|"]
    for name, other in pairs:
        if values := differences(table, cells[name], runs, other):
            first, second = (f"{cells[each].row}, {cells[each].column}" for each in (name, other))
            lines.append(f"| {first} | {second} | {len(values)} | {said(values)} |")
    caution = "So many intervals, each of so few seeds: one that leaves out 0 may be chance."
    return "\n".join([*lines, "", caution]) if len(lines) > 2 else ""


def answer(values: Sequence[float]) -> str:
    """Whether what is held against these differences is reached."""
    bounds = interval_of_enough(values)
    if bounds is None:
        return f"cannot tell from {len(values)}"
    if bounds[0] > 0:
        return "yes"
    return "no" if bounds[1] < 0 else "cannot tell apart"


def front(table: Table, runs: Runs) -> str:
    """The rows that matter, for the project's first page: fixed, the paper's policy, and the best of the rest."""
    cells = {cell.name: cell for cell in table.cells}
    names = [FIXED, "triangular2-three-stages-25-000"]
    rest = [best(table, runs, most, only_cyclical=False, found=found) for _, most, _, found in QUESTIONS[1::2]]
    names += [cell.name for cell in rest if cell is not None and cell.name not in names]
    shown = [cells[name] for name in names if seeds_of(cells[name], runs)]
    if len(shown) < 2:
        return ""
    lines = ["| CIFAR-10, the paper's net | updates | the paper | here | sd | n |", "|---|---|---|---|---|---|"]
    for cell in shown:
        summary = Summary.of(table.value(runs[cell.name, seed]) for seed in seeds_of(cell, runs))
        mean, sd = summary.shown()
        paper = "" if cell.paper is None else f"{cell.paper:g}"
        lines.append(f"| {cell.row} | {cell.updates:,} | {paper} | {mean} | {sd} | {summary.n} |")
    return "\n".join(
        [*lines, "", "All rows, with their records and what is to be repeated: [experiments/](experiments/README.md)."]
    )
