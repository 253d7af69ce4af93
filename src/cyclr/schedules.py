"""Schedules: the learning rate as a pure function of the step (the paper's formulas).

A schedule is a frozen value. Call it with an int, a NumPy array, a torch tensor or a JAX tracer of steps and it
returns the rates in the same shape; the same lines serve all four. Steps count optimiser updates from 0:
`schedule(0)` is what the first update uses. There are five kinds:

    Fixed         one rate
    Exponential   base_lr * gamma**step
    Ramp          one way from start_lr to end_lr, then it stays there
    Cycle         rise and fall between two bounds: window, decline and the two lengths are chosen independently
    Stages        schedules one after the other

`cyclr.policies` has the paper's names for points in this space (`triangular`, `exp_range`, `one_cycle`, ...).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, TypeAlias, get_args, overload

import numpy as np
import numpy.typing as npt

from cyclr import checks
from cyclr.arrays import Scalars, between, evaluated, power

Window: TypeAlias = Literal["triangular", "welch", "hann"]
Spacing: TypeAlias = Literal["linear", "log"]


class Schedule:
    """A learning rate as a function of the step: a frozen value, comparable, hashable, picklable, printable.

    Example:
        >>> import cyclr, numpy
        >>> s = cyclr.triangular(base_lr=0.001, max_lr=0.006, stepsize=2000)
        >>> s(0), s(2000), s(4000)
        (0.001, 0.006, 0.001)
        >>> s(numpy.array([[0, 1000], [2000, 3000]])).shape
        (2, 2)
        >>> s.cycle_ends(10_000), s.cycle_at(4000)
        ([4000, 8000], 1)
        >>> s == cyclr.schedule_from_dict(s.to_dict())
        True
    """

    kind: ClassVar[str]

    @overload
    def __call__(self, step: int) -> float: ...
    @overload
    def __call__(self, step: npt.NDArray[Any]) -> npt.NDArray[np.float64]: ...
    @overload
    def __call__(self, step: Any) -> Any: ...
    def __call__(self, step: Any) -> Any:
        """The rate at `step`: an int or an array of ints, at least 0; the answer has the same shape.

        NumPy and torch answer in float64; JAX in its default precision, rounded from float64, so that all frameworks
        have the same rates. Negative steps are refused where they can be seen (int, NumPy).
        """
        if type(step) is int and step >= 0:
            return self.formula(step, Scalars)
        return evaluated(self.formula, step)

    def formula(self, step: Any, xp: Any) -> Any:
        """The rate at steps that are known to be right, with the array functions `xp`: what each kind defines."""
        raise NotImplementedError

    @property
    def end(self) -> int | None:
        """Steps after which the schedule no longer changes; None where it goes on without end."""
        return None

    def cycle_at(self, step: int) -> int:
        """The cycle that `step` belongs to, counted from 0; always 0 where there are no cycles."""
        checks.whole("step", step, least=0)
        return 0

    def cycle_ends(self, total_steps: int) -> list[int]:
        """The numbers of updates, up to `total_steps`, after which a cycle is complete: the rate is lowest there."""
        checks.whole("total_steps", total_steps, least=0)
        return []

    def ends_cycle(self, updates: int) -> bool:
        """Whether a cycle is complete after so many updates: the moment to evaluate, to keep weights or to stop.

        Example:
            >>> import cyclr
            >>> cyclr.triangular(0.001, 0.006, stepsize=2000).ends_cycle(4000)
            True
        """
        checks.whole("updates", updates, least=0)
        return False

    def __repr__(self) -> str:
        """The numbers that differ from their defaults."""
        given = [(f.name, getattr(self, f.name)) for f in fields(self) if getattr(self, f.name) != f.default]  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in given)})"

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and words, ready for JSON; `cyclr.schedule_from_dict` reads them."""
        return {"kind": self.kind} | {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, repr=False)
class Fixed(Schedule):
    """One rate: lr(step) = lr."""

    kind: ClassVar[str] = "fixed"
    lr: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "lr", checks.rate("lr", self.lr))

    def formula(self, step: Any, xp: Any) -> Any:
        return self.lr if xp is Scalars else self.lr + 0.0 * step


@dataclass(frozen=True, slots=True, repr=False)
class Exponential(Schedule):
    """Exponential decline: lr(step) = base_lr * gamma**step, 0 < gamma <= 1."""

    kind: ClassVar[str] = "exponential"
    base_lr: float
    gamma: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "base_lr", checks.rate("base_lr", self.base_lr, above=True))
        object.__setattr__(self, "gamma", checks.fraction("gamma", self.gamma))

    def formula(self, step: Any, xp: Any) -> Any:
        return self.base_lr * power(self.gamma, step, xp)


@dataclass(frozen=True, slots=True, repr=False)
class Ramp(Schedule):
    """One way from start_lr to end_lr in `steps` rates, evenly spaced, both ends included; then it stays there.

        fraction = min(step / (steps - 1), 1)
        linear:  start_lr * (1 - fraction) + end_lr * fraction
        log:     start_lr**(1 - fraction) * end_lr**fraction

    Args:
        start_lr, end_lr: the ends, at least 0; above 0 on a logarithmic ramp. It may also fall.
        steps: rates from end to end, at least 2.
        spacing: "linear" (equal differences) or "log" (equal factors).
    """

    kind: ClassVar[str] = "ramp"
    start_lr: float
    end_lr: float
    steps: int
    spacing: Spacing = "linear"

    def __post_init__(self) -> None:
        checks.choice("spacing", self.spacing, get_args(Spacing))
        for name in ("start_lr", "end_lr"):
            number = checks.rate(name, getattr(self, name))
            if number == 0.0 and self.spacing == "log":
                raise ValueError(f"{name} must be above 0 on a logarithmic ramp, got 0; start at 1e-7, say")
            object.__setattr__(self, name, number)
        object.__setattr__(self, "steps", checks.whole("steps", self.steps, least=2))

    def formula(self, step: Any, xp: Any) -> Any:
        last = self.steps - 1
        fraction = xp.clip(step, 0, last) / last
        if self.spacing == "linear":
            return between(self.start_lr, self.end_lr, fraction)
        return self.start_lr ** (1.0 - fraction) * self.end_lr**fraction

    @property
    def end(self) -> int:
        return self.steps


@dataclass(frozen=True, slots=True, repr=False)
class Cycle(Schedule):
    """Rise from base_lr to max_lr in `rise` updates, fall back in `fall`, again and again.

        height = min(position / rise, (rise + fall - position) / fall)     position: updates into the cycle
        window = height | 1 - (1 - height)**2 | (1 + cos(pi * (1 - height))) / 2     triangular | welch | hann
        lr     = base_lr + (max_lr - base_lr) * window * gamma**n          gamma_scales = "amplitude"
        lr     = (base_lr + (max_lr - base_lr) * window) * gamma**n        gamma_scales = "bounds"

    The paper's x is 1 - height, its stepsize is rise = fall.

    Args:
        base_lr, max_lr: lower and upper bound, 0 <= base_lr <= max_lr.
        rise, fall: updates up and down, at least 0 each and 1 together. rise=0 restarts at max_lr.
        window: the shape between the bounds.
        gamma: factor of decline, 0 < gamma <= 1; 1 is none, 0.5 per cycle is triangular2.
        gamma_per: n above counts steps or cycles.
        gamma_scales: what declines, the amplitude above base_lr or both bounds.
        final_lr: where a fall ends, if that isn't base_lr (a one-cycle policy goes far below its start).
        cycles: how many; afterwards the rate stays where the last one ended. None: without end.
        inverted: from max_lr down to base_lr and back, as momentum does while the rate rises.
    """

    kind: ClassVar[str] = "cycle"
    base_lr: float
    max_lr: float
    rise: int
    fall: int
    window: Window = "triangular"
    gamma: float = 1.0
    gamma_per: Literal["step", "cycle"] = "step"
    gamma_scales: Literal["amplitude", "bounds"] = "amplitude"
    final_lr: float | None = None
    cycles: int | None = None
    inverted: bool = False

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "base_lr", checks.rate("base_lr", self.base_lr))
        put(self, "max_lr", checks.rate("max_lr", self.max_lr, above=True))
        checks.ordered("base_lr", self.base_lr, "max_lr", self.max_lr)
        put(self, "rise", checks.whole("rise", self.rise, least=0))
        put(self, "fall", checks.whole("fall", self.fall, least=0 if self.rise else 1))
        put(self, "gamma", checks.fraction("gamma", self.gamma))
        checks.choice("window", self.window, get_args(Window))
        checks.choice("gamma_per", self.gamma_per, ("step", "cycle"))
        checks.choice("gamma_scales", self.gamma_scales, ("amplitude", "bounds"))
        if self.final_lr is not None:
            put(self, "final_lr", checks.rate("final_lr", self.final_lr))
            checks.ordered("final_lr", self.final_lr, "max_lr", self.max_lr)
        if self.cycles is not None:
            put(self, "cycles", checks.whole("cycles", self.cycles, least=1))
        if not isinstance(self.inverted, bool):
            raise ValueError(f"inverted must be True or False, got {self.inverted!r}")
        if self.inverted and self.final_lr is not None:
            raise ValueError("an inverted cycle ends where it starts, at max_lr; leave final_lr out")

    @property
    def length(self) -> int:
        """Updates in one cycle."""
        return self.rise + self.fall

    @property
    def end(self) -> int | None:
        return None if self.cycles is None else self.cycles * self.length

    def formula(self, step: Any, xp: Any) -> Any:
        rise, fall = self.rise, self.fall
        length = rise + fall
        if self.cycles is not None:  # a decline by step ends there too
            step = xp.clip(step, 0, self.cycles * length)
        cycle, position = step // length, step % length
        if self.cycles is not None:  # at the very end the last fall is complete
            cycle = xp.clip(cycle, 0, self.cycles - 1)
            position = step - cycle * length
        if not fall:
            height = position / rise
        elif not rise:
            height = (length - position) / fall
        else:
            height = xp.minimum(position / rise, (length - position) / fall)
        if self.window == "welch":
            height = 1.0 - (1.0 - height) ** 2
        elif self.window == "hann":
            height = (1.0 + xp.cos(math.pi * (1.0 - height))) / 2.0
        rest, peak = (self.max_lr, self.base_lr) if self.inverted else (self.base_lr, self.max_lr)
        low = rest
        if self.final_lr is not None:  # "+ 0 *" keeps torch from falling back to single precision
            low = xp.where(position < rise, rest + 0.0 * height, self.final_lr)
        if self.gamma == 1.0:
            return low * (1.0 - height) + peak * height
        decline = power(self.gamma, step if self.gamma_per == "step" else cycle, xp)
        if self.gamma_scales == "bounds":
            return between(low, peak, height) * decline
        return between(low, between(rest, peak, decline), height)

    def cycle_at(self, step: int) -> int:
        cycle = checks.whole("step", step, least=0) // self.length
        return cycle if self.cycles is None else min(cycle, self.cycles - 1)

    def cycle_ends(self, total_steps: int) -> list[int]:
        most = checks.whole("total_steps", total_steps, least=0) // self.length
        most = most if self.cycles is None else min(most, self.cycles)
        return [self.length * (cycle + 1) for cycle in range(most)]

    def ends_cycle(self, updates: int) -> bool:
        cycles, rest = divmod(checks.whole("updates", updates, least=0), self.length)
        return rest == 0 and 1 <= cycles <= (self.cycles or cycles)

    def opposite(self, low: float, high: float) -> Cycle:
        """The same cycles upside down between `low` and `high`: momentum that falls while the rate rises.

        A decline acts on the amplitude, so in the end the value rests at `high`.

        Example:
            >>> import cyclr
            >>> momentum = cyclr.triangular(0.1, 1.0, stepsize=10).opposite(0.85, 0.95)
            >>> momentum(0), momentum(10)
            (0.95, 0.85)
        """
        return replace(
            self, base_lr=low, max_lr=high, final_lr=None, gamma_scales="amplitude", inverted=not self.inverted
        )


def check_cycles(what: str, schedule: Schedule, instead: str) -> None:
    """Raise ValueError where no cycle ever ends, so that nothing would be done there."""
    if not any(schedule.cycle_ends(2**power) for power in range(40)):
        raise ValueError(f"{what} at a cycle's end, but {schedule!r} has no cycles; {instead}")
