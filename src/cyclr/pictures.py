"""The picture of a range test: the curve with its bounds, and the schedule that they make."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cyclr.bounds import Bounds
from cyclr.curve import AFTER_SHORT_CYCLE, Curve
from cyclr.files import write_atomically
from cyclr.policies import triangular

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, RED, GREEN, GREY = "#1f6fb2", "#c8442d", "#2b7a4b", "#8a8f98"


def draw_range_test(curves: Sequence[Curve], bounds: Bounds, metric: str, path: Path) -> None:
    """Write a PNG: the metric that was read, the validation metric and the short cycles against the rate; the schedule.

    The short cycles are drawn where they have measured the metric that was read.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    lines = _draw_curves(left, curves, metric)
    if bounds.base_lr is not None and bounds.max_lr is not None and bounds.interval is not None:
        for lr, name, side in ((bounds.base_lr, "base_lr", "right"), (bounds.max_lr, "max_lr", "left")):
            left.axvline(lr, color="black", linewidth=1)
            left.annotate(f" {name} {lr:.2g} ", (lr, 1.01), xycoords=("data", "axes fraction"), va="bottom", ha=side)
        label = "90 % interval of max_lr"
        lines.append(left.axvspan(*bounds.interval, color=GREY, alpha=0.25, linewidth=0, label=label))
        _draw_schedule(right, bounds.base_lr, bounds.max_lr)
    else:
        right.set_axis_off()
        right.text(0.5, 0.5, f"no bounds: {bounds.status}", ha="center", va="center", wrap=True)
    left.set_xlim(*_rates_shown(curves, bounds, metric))
    left.legend(handles=lines, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False)
    write_atomically(path, lambda part: figure.savefig(part, format="png", dpi=120))


def _draw_curves(axes: Axes, curves: Sequence[Curve], metric: str) -> list[Any]:
    """Draw the lines of all curves, and return one of each kind for the legend."""
    kinds: dict[str, Any] = {}
    for curve in curves:
        read = curve.of(metric)
        positive = read.lrs > 0
        label = f"{metric}, the rate rising"
        style: dict[str, Any] = {"color": BLUE, "linewidth": 0.6, "alpha": 0.5}
        (kinds[label],) = axes.plot(read.lrs[positive], read.values[positive], label=label, **style)
    for cycles in filter(None, (short_cycles(curve, metric) for curve in curves)):
        label = f"{cycles.metric}, at its peak rate"
        style = {"color": GREEN, "linewidth": 0.8, "marker": "o", "markersize": 5, "zorder": 3}
        (kinds[label],) = axes.plot(cycles.lrs, cycles.values, label=label, **style)
    axes.set(xlabel="learning rate", xscale="log", ylim=readable_range(curves, metric))
    axes.set_ylabel(metric, color=BLUE)
    if curves[0].metric != metric:
        other: Any = axes.twinx()
        for curve in curves:
            label = f"{curve.metric}, the rate rising"
            (kinds[label],) = other.plot(curve.lrs, curve.values, color=RED, linewidth=1.4, label=label)
        other.set_ylabel(curves[0].metric, color=RED)
    return list(kinds.values())


def _rates_shown(curves: Sequence[Curve], bounds: Bounds, metric: str) -> tuple[float, float]:
    """Ends of the logarithmic axis: every rate that was tried and every one that was found, with some room."""
    tried = [each.lrs for curve in curves for each in (curve, curve.of(metric), short_cycles(curve, metric)) if each]
    rates = np.concatenate([*tried, [lr for lr in (bounds.base_lr, bounds.max_lr, *(bounds.interval or ())) if lr]])
    low, high = float(rates[rates > 0].min()), float(rates.max())
    room = (high / low) ** 0.02 if high > low else 2.0
    return low / room, high * room


def short_cycles(curve: Curve, metric: str) -> Curve | None:
    """The short cycles of a range test, if it made some, they measured `metric` and not all of them broke."""
    cycles = curve.short_cycles
    return cycles if cycles is not None and cycles.metric == metric + AFTER_SHORT_CYCLE else None


def readable_range(curves: Sequence[Curve], metric: str) -> tuple[float, float]:
    """Ends of an axis that show the progress and leave out how far a diverging loss flew."""
    values = np.concatenate([curve.of(metric).values for curve in curves])
    first = float(np.mean([curve.of(metric).values[0] for curve in curves]))
    low, high = (float(each) for each in np.percentile(values, (0.5, 99.5)))
    cycles = [each.values for each in (short_cycles(curve, metric) for curve in curves) if each is not None]
    if curves[0].of(metric).goal == "min":
        low = min([low, *(float(each.min()) for each in cycles)])
        if first > low:  # otherwise nothing was gained, and how it got worse is what there is to see
            high = min(high, first + 0.5 * (first - low))
    else:
        high = max([high, *(float(each.max()) for each in cycles)])
    room = 0.05 * (high - low) or 0.5  # a flat curve has a place too
    return low - room, high + room


def _draw_schedule(axes: Axes, base_lr: float, max_lr: float) -> None:
    half = 1000
    steps = np.arange(6 * half + 1)
    axes.plot(steps / (2 * half), triangular(base_lr, max_lr, half)(steps), color=BLUE)
    axes.set(xlabel="cycle", ylabel="learning rate", ylim=(0.0, None))
    axes.set_title("the schedule in that range", fontsize="medium", pad=6)
