"""The LR range test: one short run under a ramp, recorded. It knows no framework: `train_at(lr)` does one update."""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, get_args

import numpy as np

from cyclr import checks
from cyclr.curve import AFTER_SHORT_CYCLE, Curve, Goal, Measured, Stopped
from cyclr.policies import triangular
from cyclr.schedules import Ramp, Schedule

TrainAt: TypeAlias = Callable[[float], float | Mapping[str, float]]
Progress: TypeAlias = Callable[[int, int, float, float], None]

SCOUT = Ramp(1e-7, 10.0, 96, "log")  # 12 rates a decade, over every rate in common use
AHEAD = 3.0  # the linear pass goes this far past the rate at which the scout's loss was least
PASSES = 4  # of the linear ramp at most, until its least loss lies well inside:
EARLY, LATE = 0.15, 0.85  # shares of its updates
MORE, LESS = 2.5, 0.3  # the next pass's end where the least loss came late, or training broke before it learned
SIGNIFICANT = 4.0  # standard errors of a smoothed loss

CYCLE = 128  # updates of a short cycle, or half of the linear pass if that is less
THUMB = 4.0  # it rises from a quarter of its peak, the paper's rule of thumb
FIRST = 0.25  # the first one's peak, as a share of the rate at the linear pass's least loss
PER_DECADE, REACH = 4, 4  # the others, up to a decade away on both sides ...
WORSE = 0.06  # ... until this share of the progress is lost

POINTS = 100  # validations in a range test, unless validate_every says otherwise

WINDOW = 5  # the level of training is the median of the last few values
LOST = 0.9  # broken: this share of all progress is lost ...
SIGMAS = 10.0  # ... and by more than the noise explains ...
LEAST, RECENT = 30, 300  # ... which is known from so many levels at least, and at most
QUANTA = 3.0


def range_test(
    train_at: TrainAt,
    ramp: Ramp | None = None,
    *,
    steps: int = 300,
    reset: Callable[[], None] | None = None,
    metric: str = "loss",
    goal: Goal | None = None,
    measured: Measured = "before",
    validate: Callable[[], float] | None = None,
    validate_every: int | None = None,
    progress: Progress | None = None,
    meta: Mapping[str, Any] | None = None,
) -> Curve:
    """One short run while the rate rises: it shows where learning starts and the largest rate that training bears.

    Args:
        train_at: does one update at the rate it is given and returns the metric, or several by name
            (`{"loss": 2.3, "accuracy": 0.1}`). Any framework.
        ramp: the rates, one update each: `cyclr.ramp(0, 0.02, 4000)` is the paper's, linear over several epochs;
            `cyclr.ramp(1e-6, 1, 100, "log")` is the fast one. The default needs no numbers: a short logarithmic
            pass from 1e-7 to 10 finds where the loss is least, and the linear pass of `steps` updates goes from 0
            to three times that rate; again with another end if its least loss comes at its start or end. Short
            triangular cycles with different peaks, each from the start, then try out what the curve suggests:
            their losses are a companion of the curve, "loss after a short cycle".
        steps: updates in the default ramp's linear pass, at least 20. A short cycle has half of them, at most 128.
        reset: puts the training back to its start; the default ramp calls it before each pass.
        metric: what a plain number from train_at is, and which of several the curve is about.
        goal: "min" or "max"; by default "max" for a metric with "accuracy" in its name.
        measured: whether train_at's values were taken "before" its update (a training loss) or "after".
        validate: returns the metric of that name on a fixed validation subset. The curve is then about this
            "validation loss", say, and the training metrics are its `companions`. The paper's curve is of an accuracy:
            `train_at` returns {"loss": ...}, and metric="accuracy".
        validate_every: updates between two validations, at most the ramp's; a 100th of them by default.
        progress: called after each update with (updates done in this pass, updates in it at most, rate, value).
        meta: kept with the curve.

    Returns:
        The curve. It ends before the first value that isn't finite, and where training diverged: where it lost
        nine tenths of what it had gained, and more than noise explains, whatever the sign and scale of the loss.

    Raises:
        TypeError: no function, name or dict where one belongs.
        ValueError: an argument out of range; a default ramp without `reset`; no number from train_at or validate.

    Example: one parameter, loss w**2; any rate above 1 makes it grow, from where it is then.
        >>> import cyclr
        >>> w = [1.0]
        >>> def train_at(lr):
        ...     loss = w[0] ** 2
        ...     w[0] -= lr * 2 * w[0]
        ...     return loss
        >>> curve = cyclr.range_test(train_at, cyclr.ramp(0.0, 3.0, steps=300))
        >>> curve.stopped, 1.0 < curve.stopped_at < 3.0
        ('diverged', True)

    Reference: Smith, arXiv 1506.01186, 3.3.
    """
    checks.kind("train_at", train_at, Callable, "a function train_at(lr)")
    checks.kind("validate", validate, Callable | None, "a function validate()")
    check_options(metric, progress, meta)
    checks.choice("measured", measured, get_args(Measured))
    if goal is not None:
        checks.choice("goal", goal, get_args(Goal))
    if validate_every is not None:
        checks.whole("validate_every", validate_every, least=1)
    recorder = _Recorder(train_at, metric, goal, measured, validate, validate_every, progress, dict(meta or {}))
    if ramp is not None:
        if not isinstance(ramp, Ramp):
            raise ValueError(f"ramp must come from cyclr.ramp(start_lr, end_lr, steps), got {ramp!r}")
        _check_validated(validate_every, ramp.steps)
        return recorder.run(ramp, ramp.steps)
    if reset is None:
        raise ValueError("the default ramp makes several passes and needs reset=...; or give ramp=cyclr.ramp(...)")
    _check_validated(validate_every, checks.whole("steps", steps, least=20))
    end = _end_of_linear_pass(recorder.run(SCOUT, SCOUT.steps, validated=False))
    for _ in range(PASSES):
        reset()
        curve = recorder.run(Ramp(0.0, end, steps), steps)
        better = _better_end(curve, end)
        if better is None:
            break
        end = better
    cycles = _short_cycles(recorder, curve, min(steps // 2, CYCLE), reset)
    return curve if cycles is None else replace(curve, companions=(*curve.companions, cycles))


def _check_validated(every: int | None, steps: int) -> None:
    if every is not None and every > steps:
        raise ValueError(
            f"validate_every must be at most the ramp's {steps} updates, or nothing is validated; got {every}"
        )


def check_options(metric: Any, progress: Any, meta: Any) -> None:
    """That what is the same for a range test of any framework has the right type."""
    checks.kind("metric", metric, str, 'the name of a metric, such as "loss"')
    checks.kind("progress", progress, Callable | None, "a function progress(done, total, lr, value)")
    checks.kind("meta", meta, Mapping | None, "a dict")


def _end_of_linear_pass(scout: Curve) -> float:
    """Some way past the rate at which the scout's loss was least, or where it broke if it learned nothing before."""
    broke = SCOUT.end_lr if scout.stopped_at is None else scout.stopped_at
    least = _least(_trained(scout))
    return broke if least is None else min(AHEAD * float(_trained(scout).lrs[least]), broke)


def _better_end(curve: Curve, end: float) -> float | None:
    """A new end for the linear pass where its least loss came early or late, or None where it is well inside."""
    trained = _trained(curve)
    least = _least(trained)
    if least is None:  # it broke before it learned anything, or there is nothing to learn
        return LESS * curve.stopped_at if curve.stopped_at else None
    share = least / curve.ramp["steps"]
    if share > LATE and curve.stopped_at is None and end < SCOUT.end_lr:
        return min(MORE * end, SCOUT.end_lr)
    if share < EARLY:
        return max(AHEAD * float(trained.lrs[least]), 2 * end * EARLY / AHEAD)
    return None


def _short_cycles(recorder: _Recorder, curve: Curve, length: int, reset: Callable[[], None]) -> Curve | None:
    """The loss at the end of short cycles against their peaks, from the best peak both ways; None if nothing learns.

    What a network bears in a short cycle is nearly what it bears in a whole training; a ramp, which is over soon after
    the rate has become too large, shows less of that.
    """
    trained = _trained(curve)
    least = _least(trained)
    if least is None:
        return None
    first, sign = FIRST * float(trained.lrs[least]), 1.0 if trained.goal == "min" else -1.0
    level = sign * float(trained.values[:WINDOW].mean())
    lost: dict[int, float] = {}
    visit: int | None = 0
    while visit is not None:
        reset()
        peak = first * 10.0 ** (visit / PER_DECADE)
        cycle = _trained(recorder.run(triangular(peak / THUMB, peak, length // 2), length, validated=False))
        lost[visit] = math.inf if cycle.stopped else sign * float(cycle.values[-(length // 4) :].mean())
        visit = _next_peak(lost, level)
    whole = sorted(k for k in lost if lost[k] < math.inf)
    broken = [first * 10.0 ** (k / PER_DECADE) for k in lost if k not in whole]
    return Curve(
        metric=trained.metric + AFTER_SHORT_CYCLE,
        steps=[length] * len(whole),  # type: ignore[arg-type]
        lrs=[first * 10.0 ** (k / PER_DECADE) for k in whole],  # type: ignore[arg-type]
        values=[sign * lost[k] for k in whole],  # type: ignore[arg-type]
        goal=trained.goal,
        measured="after",
        stopped="diverged" if broken else None,
        stopped_at=min(broken, default=None),
        meta={"level": sign * level},
    )


def _next_peak(lost: Mapping[int, float], level: float) -> int | None:
    """The better one of the two neighbours of what was tried, if its own neighbour is not WORSE than the best."""
    best = min(lost.values())
    limit = best + WORSE * max(0.0, level - best)
    ends = ((min(lost), -1), (max(lost), 1))
    open_ends = [(lost[k], k + way) for k, way in ends if lost[k] <= limit and abs(k + way) <= REACH]
    return min(open_ends)[1] if open_ends else None


def _trained(curve: Curve) -> Curve:
    """The training loss of a run where there is one, whatever else was measured."""
    return next((each for each in curve.companions if each.metric == "loss"), curve)


def _least(trained: Curve) -> int | None:
    """The point with the least smoothed loss; None if that is not significantly below the first level."""
    values = trained.values if trained.goal == "min" else -trained.values
    width = max(5, len(values) // 20)
    if len(values) < 2 * width:
        return None
    kernel = np.hanning(width + 2)[1:-1]
    smoothed = np.convolve(values, kernel / kernel.sum(), "valid")
    least = int(np.argmin(smoothed))
    noise = float(np.median(np.abs(np.diff(values)))) / np.sqrt(width)
    return least + width // 2 if smoothed[0] - smoothed[least] > SIGNIFICANT * noise else None


@dataclass
class _Recorder:
    """Runs a schedule and writes down what is seen."""

    train_at: TrainAt
    metric: str
    goal: Goal | None
    measured: Measured
    validate: Callable[[], float] | None
    validate_every: int | None
    progress: Progress | None
    meta: dict[str, Any]

    def goal_of(self, metric: str) -> Goal:
        if self.goal is not None and metric in (self.metric, f"validation {self.metric}"):
            return self.goal
        return "max" if "accuracy" in metric else "min"

    def run(self, schedule: Schedule, steps: int, *, validated: bool = True) -> Curve:
        main = f"validation {self.metric}" if self.validate is not None and validated else self.metric
        series = defaultdict(_Series, {main: _Series()})  # there, if empty, should training break before a point
        watch: _Divergence | None = None
        stopped: Stopped | None = None
        every = max(1, steps // POINTS) if self.validate_every is None else self.validate_every
        lr = schedule(0)
        for step in range(steps):
            lr = schedule(step)
            values = self._values(self.train_at(lr))
            if not all(math.isfinite(value) for value in values.values()):
                stopped = "non-finite"
                break
            for name, value in values.items():
                series[name].add(step, lr, value)
            judged = next(name for name in ("loss", self.metric, *values) if name in values)
            watch = watch or _Divergence(self.goal_of(judged))
            if watch.broken(values[judged]):
                stopped = "diverged"
                break
            if self.progress is not None:
                self.progress(step + 1, steps, lr, values[judged])
            if self.validate is not None and validated and (step + 1) % every == 0:
                value = _validated(self.validate())
                if not math.isfinite(value):
                    stopped = "non-finite"
                    break
                series[f"validation {self.metric}"].add(step, lr, value)
        curves = {
            name: Curve(
                metric=name,
                steps=points.steps,  # type: ignore[arg-type]
                lrs=points.lrs,  # type: ignore[arg-type]
                values=points.values,  # type: ignore[arg-type]
                goal=self.goal_of(name),
                measured="after" if name.startswith("validation ") else self.measured,
                stopped=stopped,
                stopped_at=lr if stopped else None,
                ramp=schedule.to_dict(),
                meta=self.meta,
            )
            for name, points in series.items()
        }
        return replace(curves.pop(main), companions=tuple(curves.values()))

    def _values(self, result: float | Mapping[str, float]) -> dict[str, float]:
        try:
            if not isinstance(result, Mapping):
                return {self.metric: float(result)}
            values = {name: float(value) for name, value in result.items()}
        except (TypeError, ValueError, RuntimeError):  # the last is torch's, for a tensor of several numbers
            raise ValueError(f"train_at must return a number or a dict of numbers, got {result!r}") from None
        if not values or (self.validate is None and self.metric not in values):
            raise ValueError(f"train_at returned {sorted(values)}, but the metric asked for is {self.metric!r}")
        return values


def _validated(result: Any) -> float:
    try:
        return float(result)
    except (TypeError, ValueError, RuntimeError):  # as for train_at's values
        raise ValueError(f"validate must return a number, got {result!r}") from None


@dataclass
class _Series:
    steps: list[int] = field(default_factory=list)
    lrs: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, step: int, lr: float, value: float) -> None:
        self.steps.append(step)
        self.lrs.append(lr)
        self.values.append(value)


class _Divergence:
    """Whether training has broken, judged from the values alone: any sign, any scale, any offset.

    The level is the median of the last few values. It is compared with the levels that share no value with it.
    Training is broken when it has given back LOST of the way from the first of them to the best one, SIGMAS times
    their noise, and more than QUANTA of the smallest steps that the metric makes (a share of a batch is coarse, and
    so is a loss in half precision).
    """

    def __init__(self, goal: Goal) -> None:
        self._sign = 1.0 if goal == "min" else -1.0
        self._last: deque[float] = deque(maxlen=WINDOW)
        self._levels: list[float] = []
        self._best = math.inf
        self._quantum = math.inf
        self._noise: float | None = None
        self._losses: deque[float] = deque(maxlen=RECENT)  # from one level to the next that shares no value with it

    def broken(self, value: float) -> bool:
        """Take the next value; True once training has broken."""
        value *= self._sign
        if self._last and value != self._last[-1]:
            self._quantum = min(self._quantum, abs(value - self._last[-1]))
        self._last.append(value)
        if len(self._last) < WINDOW:
            return False
        self._levels.append(sorted(self._last)[WINDOW // 2])
        past = len(self._levels) - 1 - WINDOW
        if past < 0:
            return False
        self._best = min(self._best, self._levels[past])
        if past >= WINDOW:
            self._losses.append(max(0.0, self._levels[past] - self._levels[past - WINDOW]))
        if len(self._losses) < LEAST:
            return False
        if past % WINDOW == 0 or self._noise is None:  # once for each level that shares no value with the last one
            self._noise = math.hypot(*self._losses) / math.sqrt(len(self._losses))  # half of all losses are gains
        lost = self._levels[-1] - self._best
        explained = max(SIGMAS * self._noise, QUANTA * self._quantum)
        return lost > explained and lost >= LOST * (self._levels[0] - self._best)
