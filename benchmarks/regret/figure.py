"""The figure of the study: regret of each adviser on each task."""

from __future__ import annotations

import statistics
from pathlib import Path

from advice import CYCLR, SCHEDULES
from findings import Findings

from cyclr.files import write_atomically


def draw(study: Findings, path: Path) -> None:
    """Regret of each adviser on each task, one dot a task."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [(f"cyclr, {policy}", study.cyclr(policy), "#1f6fb2") for policy in CYCLR]
    rows += [(f"{adviser}, {policy}", study.peer(adviser), "#8a8f98") for adviser, policy in SCHEDULES.items()]
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for row, (_, per_task, colour) in enumerate(rows):
        values = [max(value, 0.05) for value in per_task.values()]
        axes.plot(values, [row] * len(values), "o", color=colour, alpha=0.5, markersize=6)
        if values:
            axes.plot([statistics.fmean(values)], [row], "|", color="black", markersize=16, markeredgewidth=2)
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="points below the best rate of a grid under the same schedule (bar: mean)")
    axes.set_xticks([0.05, 0.1, 0.5, 1, 5, 10, 50], ["0", "0.1", "0.5", "1", "5", "10", "50"])
    axes.grid(axis="x", alpha=0.3)
    write_atomically(path, lambda part: figure.savefig(part, format="png", dpi=120))
