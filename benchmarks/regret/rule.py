"""The rule of cyclr's finder, fitted without the task that it is judged on.

`cyclr.find_bounds` puts max_lr at a share of what it reads from a range test. Here that share is the one with the least
mean regret over the other tasks, interpolated on their grids, and the interval's factor is the one that holds what was
right for 90 % of them.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

import cyclr
from cyclr.bounds import CYCLE_SHARES, SHARES, Bounds

NEAR = 0.5  # points
WORST = 8.0  # points: no task counts for more
TRIED = np.arange(-1.6, 0.6, 0.02)  # log10 of shares
STEADY = 9  # shares next to each other whose mean regret counts: what is right on the edge of a cliff is not
HELD = 0.9  # of the tasks, by the interval


def right_rates(means: Mapping[float, float], near: float = NEAR) -> tuple[float, float]:
    """log10 of the ends of the range around the best rate in which training is at most `near` points worse."""
    logs, values = np.log10(list(means)), np.array(list(means.values()))
    order = np.argsort(logs)
    fine = np.linspace(logs.min(), logs.max(), 600)
    good = np.interp(fine, logs[order], values[order]) >= values.max() - near
    best = int(np.argmin(np.abs(fine - logs[np.argmax(values)])))
    low = high = best
    while low > 0 and good[low - 1]:
        low -= 1
    while high < len(fine) - 1 and good[high + 1]:
        high += 1
    return float(fine[low]), float(fine[high])


@functools.cache
def read(curve: str, policy: str) -> Bounds:
    """The bounds with the package's own share; `curve` is its JSON."""
    return cyclr.find_bounds(cyclr.Curve.from_dict(json.loads(curve)), policy=policy)


def own_share(curve: str, policy: str) -> float:
    """The package's own share, which is in what it reads."""
    return (CYCLE_SHARES if "after a short cycle" in curve else SHARES)[policy]


def regret(means: Mapping[float, float], log_rate: float) -> float:
    """Points below the grid's best, interpolated between its rates."""
    logs = np.log10(sorted(means))
    return max(means.values()) - float(np.interp(log_rate, logs, [means[rate] for rate in sorted(means)]))


def share_from(
    curves: Mapping[str, Sequence[str]], grids: Mapping[str, Mapping[float, float]], policy: str, without: str | None
) -> float | None:
    """The share of what is read that is right for a policy, from all tasks but one.

    Args:
        curves: task -> its range tests.
        grids: task -> rate -> mean metric under the policy.
        policy: which one.
        without: the task that the share is for; None uses all, as the package's own constants do.
    """
    lost = [each for task in grids if task != without for each in [losses(curves.get(task, ()), grids[task], policy)]]
    known = [each for each in lost if each is not None]
    if not known:
        return None
    mean = np.convolve(np.pad(np.mean(known, axis=0), STEADY // 2, mode="edge"), np.ones(STEADY) / STEADY, "valid")
    return float(10.0 ** TRIED[np.argmin(mean)])


def losses(curves: Sequence[str], grid: Mapping[float, float], policy: str) -> np.ndarray | None:
    """A task's mean regret with each share TRIED; None where none of its range tests could be read."""
    logs = [logarithm for each in curves if (logarithm := unscaled(each, policy)) is not None]
    if not logs:
        return None
    return np.array([np.mean([min(WORST, regret(grid, log + share)) for log in logs]) for share in TRIED])


def unscaled(curve: str, policy: str) -> float | None:
    """log10 of what is read, before the share."""
    top = read(curve, policy).max_lr
    return None if top is None else math.log10(top / own_share(curve, policy))


def missed_by(curve: str, grid: Mapping[float, float], policy: str, share: float) -> float | None:
    """Decades between the advice and the nearest rate within half a point of the best."""
    log = unscaled(curve, policy)
    if log is None:
        return None
    low, high = right_rates(grid)
    return max(0.0, low - log - math.log10(share), log + math.log10(share) - high)


def spread_from(misses: Iterable[float]) -> float:
    """The factor of an interval that holds what was right for HELD of the cases."""
    return float(10.0 ** np.quantile(list(misses), HELD, method="higher"))


def advised(curve: str, policy: str, share: float) -> Bounds:
    """The bounds with another share than the package's."""
    bounds = read(curve, policy)
    if bounds.max_lr is None or bounds.base_lr is None:
        return bounds
    top = bounds.max_lr * share / own_share(curve, policy)
    return replace(bounds, base_lr=min(bounds.base_lr, top / 4.0), max_lr=top)
