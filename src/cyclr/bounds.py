"""Bounds: base_lr and max_lr read off the curves of range tests, with an interval, or the reason why not.

Reading is a pure function of the curves. How it is done:

1. Values are smoothed over log10(rate) by local linear regression with symmetric weights, which does not lag. What got
   worse than the first level counts for at most as much as was gained.
2. Progress is the way from the first level to the best smoothed value. Learning has started where START of it is
   made: base_lr.
3. The plateau is where all but PLATEAU of it is made: from where the rise slows to where it has turned into a fall. Its
   middle is steadier than its ends and than the best value. max_lr is a share of the rate there that depends on the
   policy: what a ramp bears is too much for a whole training, the more so the longer a policy stays high and the less
   it has warmed up before.
4. Where the default range test has tried out short cycles, max_lr is read from them instead: the middle of the peaks
   within CYCLE_PLATEAU of the best one, times a share that is close to one. Training with that loses less.
5. All of this is repeated on resampled noise. Tasks differ by more than noise, so the interval reaches at least as far,
   by a factor both ways, as holds what is right for 9 in 10 tasks. Shares and factors come from trainings
   (benchmarks/regret).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from cyclr import checks
from cyclr.curve import Curve, as_curves
from cyclr.plan import POLICIES

Status: TypeAlias = Literal["ok", "flat", "too short", "too noisy", "broken from the start", "never broke"]
Array: TypeAlias = npt.NDArray[np.float64]

START, PLATEAU, CYCLE_PLATEAU = 0.3, 0.2, 0.03
SHARES = {"triangular": 0.33, "triangular2": 0.52, "one_cycle": 0.44, "linear_to_zero": 0.35}
CYCLE_SHARES = {"triangular": 0.8, "triangular2": 1.15, "one_cycle": 1.05, "linear_to_zero": 0.8}
SPREAD, CYCLE_SPREAD = 2.2, 1.8  # the interval's factor
THUMB = 4.0  # the paper's rule of thumb: base_lr = max_lr / 3 or max_lr / 4

GRID = 200  # rates at which the smoothed curve is looked at
BANDWIDTH = 0.08  # decades; wider where points are sparse: two bandwidths hold NEIGHBOURS points
NEIGHBOURS = 8
LEAST_POINTS = 12
RESAMPLES = 100
SIGNIFICANT = 3.5  # standard errors
WIDEST = 10.0  # an interval that spans a larger factor is no answer


@dataclass(frozen=True)
class Bounds:
    """The learning-rate range that a network can use, as far as it could be read.

    Attributes:
        base_lr: where learning starts; None if nothing could be read.
        max_lr: what a whole training bears; None if nothing could be read.
        interval: 90 % interval of max_lr, (low, high), or None: how far the advice was off on the tasks of a study,
            or the noise of the curves where that is more.
        base_interval: 90 % interval of base_lr from the noise alone; None where base_lr comes from the rule of thumb.
        status: "ok", or why there is nothing to read.
        reason: what was seen and, if nothing could be read, what to change.
    """

    base_lr: float | None
    max_lr: float | None
    interval: tuple[float, float] | None
    base_interval: tuple[float, float] | None
    status: Status
    reason: str


class _Unreadable(Exception):
    """A curve without bounds: its status and reason."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


def find_bounds(curves: Curve | Sequence[Curve], *, policy: str = "triangular", metric: str | None = None) -> Bounds:
    """Read base_lr, where accuracy starts to rise, and max_lr, where the rise slows, turns ragged or falls.

    Where the curves come from the default range test, which tries short cycles too, those decide on max_lr.

    Args:
        curves: what `cyclr.range_test` returned; several (other seeds, the same metric) give a better answer. If
            most of them can be read, those are.
        policy: what the bounds are for: one_cycle bears a larger max_lr than triangular.
        metric: which of the metrics that the ramp recorded is read; by default the one that the curve is about.

    Returns:
        The bounds; their status is "ok", or says why there are none, and then no number is given.

    Raises:
        ValueError: no curve, curves of different metrics, an unknown policy, or a metric that wasn't recorded.

    Example:
        >>> import cyclr, numpy
        >>> lrs = numpy.linspace(0, 0.02, 400)
        >>> accuracy = 0.1 + 0.4 / (1 + (0.002 / (lrs + 1e-9)) ** 3) - 0.4 * (lrs / 0.02) ** 4
        >>> curve = cyclr.Curve("accuracy", numpy.arange(400), lrs, accuracy, goal="max")
        >>> bounds = cyclr.find_bounds(curve)
        >>> bounds.status, 0.0005 < bounds.base_lr < 0.002, 0.002 < bounds.max_lr < 0.005
        ('ok', True, True)

    Reference: Smith, arXiv 1506.01186, 3.3.
    """
    several = as_curves(curves)
    checks.choice("policy", policy, POLICIES)
    generator = np.random.default_rng(0)
    read: list[_Reading] = []
    unread: list[_Unreadable] = []
    for curve in several:
        try:
            read.append(_reading(curve, metric or curve.metric, policy, generator))
        except _Unreadable as unreadable:
            unread.append(unreadable)
    if len(unread) >= len(read):
        return Bounds(None, None, None, None, unread[0].status, unread[0].reason)
    top, noise = _median_and_interval([each.top for each in read])
    if noise[1] > WIDEST * noise[0]:
        reason = (
            f"max_lr could be anything from {noise[0]:.2g} to {noise[1]:.2g}; run longer, with larger batches, "
            "or with several seeds"
        )
        return Bounds(None, None, None, None, "too noisy", reason)
    spread = max(each.spread for each in read)
    interval = min(noise[0], top / spread), max(noise[1], top * spread)
    plural = f"{len(read)} curves" if len(several) > 1 else "one curve, so one seed"
    if unread:
        plural += f", {len(unread)} more: {unread[0].status}"
    metric = metric or several[0].metric
    bases = [each.base for each in read if each.base is not None]
    base, base_interval = _median_and_interval(bases) if bases else (top, None)
    if base <= top / 3.0:
        reason = f"{metric} gets better from {base:.2g} on, and a whole training bears up to {top:.2g} ({plural})"
        return Bounds(base, top, interval, base_interval, "ok", reason)
    reason = (
        f"a whole training bears up to {top:.2g} ({plural}); where {metric} starts to get better cannot be told apart "
        f"from that, so base_lr is max_lr / {THUMB:g}, the rule of thumb"
    )
    return Bounds(top / THUMB, top, interval, None, "ok", reason)


def bears_as(policy: str) -> str:
    """The policy whose share of the plateau counts for this one: what was not studied bears what triangular does."""
    return policy if policy in SHARES else "triangular"


@dataclass(frozen=True)
class _Reading:
    """One range test: log10 of base_lr, if it could be read, and of max_lr, on resampled noise."""

    base: Array | None
    top: Array
    spread: float


def _median_and_interval(logs: Sequence[Array]) -> tuple[float, tuple[float, float]]:
    """The median rate and the middle 90 %."""
    middle, low, high = (float(each) for each in 10.0 ** np.percentile(np.concatenate(logs), (50, 5, 95)))
    return middle, (low, high)


def _reading(curve: Curve, metric: str, policy: str, generator: np.random.Generator) -> _Reading:
    """What one range test says: its short cycles on max_lr where it has some, and its ramp on the rest."""
    best_peak = _best_peak(curve)
    if best_peak is None:
        base, middle = _ramp_readings(curve.of(metric), generator)
        return _Reading(base, middle + np.log10(SHARES[bears_as(policy)]), SPREAD)
    top = np.array([best_peak + np.log10(CYCLE_SHARES[bears_as(policy)])])
    try:
        return _Reading(_ramp_readings(curve.of(metric), generator)[0], top, CYCLE_SPREAD)
    except _Unreadable:
        return _Reading(None, top, CYCLE_SPREAD)


def _best_peak(curve: Curve) -> float | None:
    """log10 of the middle of the best peaks of the short cycles; None without them."""
    cycles = curve.short_cycles
    if cycles is None:
        return None
    sign = 1.0 if cycles.goal == "min" else -1.0
    x, y, level = np.log10(cycles.lrs), sign * cycles.values, sign * cycles.meta["level"]
    grid = np.linspace(x[0], x[-1], GRID)
    fit = np.interp(grid, x, y)
    return float(grid[fit <= fit.min() + CYCLE_PLATEAU * max(0.0, level - fit.min())].mean())


def _ramp_readings(curve: Curve, generator: np.random.Generator) -> Array:
    """log10 of base_lr and of the plateau's middle, from the curve and from resampled noise; shape (2, resamples)."""
    x, raw = _log_rates_and_losses(curve)
    first = min(max(4, len(raw) // 50), 10)  # points: on a linear ramp the rate soon is a usual one
    # A loss that explodes counts for no more than all that was gained: the regression would overshoot in front of it.
    y = np.minimum(raw, 2.0 * raw[:first].mean() - raw.min())
    grid = np.linspace(x[0], x[-1], GRID)
    to_grid, to_points = _smoother(x, grid), _smoother(x, x)
    fit = to_points @ y
    noise = y - fit
    _check_readable(curve, x, y, grid, to_grid, noise, first, last=float(raw[-first:].mean()))
    resampled = fit[:, None] + _resampled(noise, RESAMPLES, generator)
    smoothed = to_grid @ np.column_stack([y, resampled])
    levels = np.column_stack([y, resampled])[:first].mean(axis=0)
    return np.array([_read(grid, smoothed[:, k], levels[k]) for k in range(smoothed.shape[1])]).T


def _log_rates_and_losses(curve: Curve) -> tuple[Array, Array]:
    """log10(rate) and a value that falls as training gets better, each paired with the update that caused it."""
    lrs, values = curve.lrs, curve.values if curve.goal == "min" else -curve.values
    if curve.measured == "before":  # what is seen before update k is what update k - 1 did
        lrs, values = lrs[:-1], values[1:]
    positive = lrs > 0.0
    x, y = np.log10(lrs[positive]), values[positive]
    order = np.argsort(x, kind="stable")
    if len(x) >= LEAST_POINTS and x.min() < x.max():
        return x[order], y[order]
    if curve.stopped is not None:
        raise _Unreadable(
            "broken from the start",
            f"training broke after {len(curve)} points, at {curve.stopped_at:.2g}; start lower or check the task",
        )
    raise _Unreadable("too short", f"{len(x)} points at different rates, {LEAST_POINTS} are needed; use more steps")


def _smoother(x: Array, at: Array) -> Array:
    """The matrix that maps values at `x` to their local linear regression at `at`; shape (at, x)."""
    distance = x[None, :] - at[:, None]
    reach = np.partition(np.abs(distance), NEIGHBOURS, axis=1)[:, NEIGHBOURS]
    width = np.maximum(BANDWIDTH, reach / 2.0)[:, None]
    weight = np.exp(-0.5 * (distance / width) ** 2)
    s0, s1, s2 = (np.sum(weight * distance**power, axis=1, keepdims=True) for power in range(3))
    matrix: Array = weight * (s2 - distance * s1) / (s0 * s2 - s1**2 + 1e-12)
    return matrix


def _resampled(noise: Array, count: int, generator: np.random.Generator) -> Array:
    """The noise with the signs of whole blocks of neighbours drawn anew; shape (points, count).

    A wild bootstrap: noise stays where it was, since it is far larger where training breaks, and neighbours stay
    together.
    """
    block = max(1, round(len(noise) ** (1 / 3)))
    signs = generator.choice([-1.0, 1.0], size=(-(-len(noise) // block), count))
    drawn: Array = noise[:, None] * np.repeat(signs, block, axis=0)[: len(noise)]
    return drawn


def _check_readable(
    curve: Curve, x: Array, y: Array, grid: Array, to_grid: Array, noise: Array, first: int, last: float
) -> None:
    """Raise for curves that hold no bounds."""
    smoothed = to_grid @ y
    least = int(np.argmin(smoothed))
    calm = noise[: max(LEAST_POINTS, len(x) // 4, int(np.searchsorted(x, grid[least])))]  # before training breaks
    sigma = float(1.4826 * np.median(np.abs(calm - np.median(calm))))
    error = sigma * float(np.hypot(first**-0.5, np.linalg.norm(to_grid[least])))  # of a level less a smoothed value
    error += 1e-9 * float(np.abs(y).max())  # rounding counts as noise
    level, best = float(y[:first].mean()), float(smoothed[least])
    tenths = [float(part.mean()) for part in np.array_split(y, 10)]
    broke = curve.stopped is not None or min(tenths) < tenths[-1] or last - best > SIGNIFICANT * error
    low, high = 10.0 ** x[0], 10.0 ** x[-1]
    if level - best <= SIGNIFICANT * error:
        if curve.stopped is not None or last - level > SIGNIFICANT * error:
            raise _Unreadable(
                "broken from the start",
                f"{curve.metric} never got better before training broke at {high:.2g}; start lower, raise the number "
                "of steps, or check the task",
            )
        if level - best > 0.5 * SIGNIFICANT * error and sigma > abs(level - best):
            raise _Unreadable(
                "too noisy",
                f"{curve.metric} may have changed, but less than its noise ({sigma:.2g}); use larger batches, more "
                "steps or a validation subset",
            )
        raise _Unreadable(
            "flat",
            f"{curve.metric} stayed near {abs(level):.3g} from {low:.2g} to {high:.2g}; raise end_lr or the number "
            "of steps, or check that the model can learn this",
        )
    if grid[least] <= x[first - 1]:
        raise _Unreadable(
            "broken from the start",
            f"{curve.metric} was best at the first rates of the ramp and got worse from {low:.2g} on; start lower",
        )
    if not broke:
        raise _Unreadable(
            "never broke",
            f"{curve.metric} was not yet getting worse at {high:.2g}, so max_lr cannot be read; raise end_lr, or run "
            "the default ramp, which looks for the end by itself",
        )


def _read(grid: Array, smoothed: Array, level: float) -> tuple[float, float]:
    """log10 of base_lr and of the plateau's middle from one smoothed curve."""
    best = int(np.argmin(smoothed))
    progress = max(0.0, level - smoothed[best])  # on resampled noise the level may be less
    started = _crossing(grid, smoothed, level - START * progress, best)
    plateau = grid[smoothed <= smoothed[best] + PLATEAU * progress]
    return started, float(plateau.mean())


def _crossing(grid: Array, smoothed: Array, height: float, best: int) -> float:
    """The last place before `best` at which the curve comes down through `height`, interpolated."""
    above = np.flatnonzero(smoothed[: best + 1] > height)
    if not len(above):
        return float(grid[0])
    i = int(above[-1])
    if i == best:
        return float(grid[best])
    share = (smoothed[i] - height) / (smoothed[i] - smoothed[i + 1])
    return float(grid[i] + share * (grid[i + 1] - grid[i]))
