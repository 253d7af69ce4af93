"""The figures: range tests with the bounds read, and accuracy against updates, from the records."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cyclr
from cells import HERE, Cell, Found, Runs, Table
from cyclr.bounds import Bounds
from cyclr.files import write_atomically
from cyclr.pictures import draw_range_test

# Figure -> its table and the beginnings of its cells' names, a line each.
AGAINST_UPDATES: dict[str, tuple[str, tuple[str, ...]]] = {
    "figure1": ("table1", ("fixed", "triangular2-three-stages-25", "triangular-24")),
    "figure4": ("table1", ("exp-70", "exp-range-42")),
    "figure5": ("table3", ("nesterov", "adam")),
    "figure6": ("figure6", ("fixed", "triangular")),
    "anytime": ("anytime", ("one-run",)),
}
COLOURS = ("#1f6fb2", "#c8442d", "#3d8b54", "#8a5fb0", "#d28b1f", "#5a6472", "#b05f86")
BY_EYE = {"base_lr": 0.001, "max_lr": 0.006}  # what the paper read off its Figure 3


def read(folder: Path, policy: str = "triangular") -> tuple[list[cyclr.Curve], Bounds]:
    """A range test's curves and the bounds that were read off them."""
    curves = [cyclr.Curve.load(path) for path in sorted(folder.glob("curve*.json"))]
    content = json.loads((folder / f"bounds-{policy}.json").read_text())
    numbers = {name: value for name, value in content.items() if name not in ("task", "policy")}
    return curves, Bounds(**numbers)


def bounds_text(folder: Path) -> str:
    """Figure 3's bounds beside the paper's."""
    curves, bounds = read(folder)
    intervals = {"base_lr": bounds.base_interval, "max_lr": bounds.interval}
    lines = ["| | the paper, by eye | here | 90 % interval |", "|---|---|---|---|"]
    for name, paper in BY_EYE.items():
        interval = "{:.2g} to {:.2g}".format(*intervals[name]) if intervals[name] else "rule of thumb"
        lines.append(f"| {name} | {paper:g} | {getattr(bounds, name):.2g} | {interval} |")
    updates = curves[0].ramp["steps"]
    return "\n".join([*lines, "", f"{len(curves)} range tests of up to {updates:,} updates: {bounds.reason}."])


def draw(tables: Mapping[str, Table], runs: Mapping[str, Runs], root: Path = HERE) -> None:
    """All figures for which there are records."""
    policies: dict[str, str] = {}  # of a range test, the first that it was read for
    for each in (cell.schedule for table in tables.values() for cell in table.cells):
        if isinstance(each, Found) and each.path(root).exists():
            policies.setdefault(each.folder, each.policy)
    for folder, policy in policies.items():
        curves, bounds = read(root / folder, policy)
        draw_range_test(curves, bounds, "loss", root / folder / "range_test.png")
    for name, table in tables.items():
        for figure, cells in against_updates(table, runs[name]).items():
            draw_against_updates(cells, runs[name], root / name / f"{figure}.png")


def against_updates(table: Table, runs: Runs) -> dict[str, list[Cell]]:
    """A table's figures for which there are records -> the cells with records that they show."""
    trained = {name for name, _ in runs}
    found = {}
    for figure, (name, beginnings) in AGAINST_UPDATES.items():
        cells = [cell for cell in table.cells if cell.name.startswith(beginnings) and cell.name in trained]
        if name == table.name and cells:
            found[figure] = cells
    return found


def draw_against_updates(cells: list[Cell], runs: Runs, path: Path) -> None:
    """Accuracy against updates, a thin line a run; dots where a cycle ends."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for cell, colour in zip(cells, COLOURS, strict=False):
        records = [record for (name, _), record in sorted(runs.items()) if name == cell.name]
        for number, record in enumerate(records):
            label = f"{cell.row}, {cell.column}" if number == 0 else None
            steps, values = history(record)
            axes.plot(steps, values, color=colour, linewidth=1.1, alpha=0.8, label=label)
            ends = set(record["config"]["cycle_ends"])
            dots = [(step, value) for step, value in zip(steps, values, strict=True) if step in ends]
            axes.plot(*zip(*dots, strict=True), ".", color=colour, markersize=5) if dots else None
    judged = {"test": "test set", "validation": "held-out images"}
    on = next(judged[name] for name in judged if any(name in p for r in runs.values() for p in r["result"]["history"]))
    axes.set(xlabel="updates", ylabel=f"accuracy on the {on}, %")
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    write_atomically(path, lambda part: figure.savefig(part, format="png", dpi=110))


def history(record: Mapping[str, Any]) -> tuple[list[int], list[float]]:
    """Updates, and the accuracy in percent after them: on the test data, or on held-out data where that is judged."""
    seen = [(point["step"], point.get("test", point.get("validation"))) for point in record["result"]["history"]]
    points = [(step, 100.0 * value) for step, value in seen if value is not None]
    return [step for step, _ in points], [value for _, value in points]
