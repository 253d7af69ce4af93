"""Curve: what a range test recorded, as data that can be kept, read again and analysed later."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from cyclr.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMAT, VERSION = "cyclr-curve", 1
AFTER_SHORT_CYCLE = " after a short cycle"  # ends the metric of a companion: against the cycles' peaks
Goal: TypeAlias = Literal["min", "max"]
Measured: TypeAlias = Literal["before", "after"]
Stopped: TypeAlias = Literal["non-finite", "diverged"]


@dataclass(frozen=True, eq=False)
class Curve:
    """One metric of a range test against the learning rate: one entry a point in `steps`, `lrs` and `values`.

    Attributes:
        metric: what was measured: "loss", "accuracy", "validation accuracy", ...
        steps: the update each point belongs to, counted from 0; int64, shape (points,).
        lrs: the rate that this update used; float64, shape (points,).
        values: the metric; float64, shape (points,), finite throughout.
        goal: "min" where lower is better, "max" where higher is.
        measured: "before" if a value was taken before its update (a training loss always is: it shows what the
            updates up to the one before did), "after" if the update had been made.
        stopped: None if the ramp ran to its end, "non-finite" or "diverged" if training broke first.
        stopped_at: the rate at which it broke. A value that wasn't finite is no point of the curve; one that showed
            the divergence is its last.
        ramp: the ramp as `Schedule.to_dict` describes it.
        meta: what else is known, in JSON's types: batch size, seed, versions.
        companions: other metrics of the same run, and "loss after a short cycle" against the cycles' peaks where the
            range test has tried some out.
    """

    metric: str
    steps: npt.NDArray[np.int64]
    lrs: npt.NDArray[np.float64]
    values: npt.NDArray[np.float64]
    goal: Goal = "min"
    measured: Measured = "before"
    stopped: Stopped | None = None
    stopped_at: float | None = None
    ramp: Mapping[str, Any] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)
    companions: tuple[Curve, ...] = ()

    def __post_init__(self) -> None:
        given = np.asarray(self.steps)
        if given.size and given.dtype.kind not in "iu":
            raise ValueError(f"a curve's steps are whole numbers, got an array of {given.dtype}")
        for name, kind in (("steps", np.int64), ("lrs", np.float64), ("values", np.float64)):
            array = np.array(getattr(self, name), dtype=kind)
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        if not (self.steps.ndim == 1 and self.steps.shape == self.lrs.shape == self.values.shape):
            raise ValueError(
                "a curve has one step, one rate and one value a point, "
                f"got shapes {self.steps.shape}, {self.lrs.shape} and {self.values.shape}"
            )
        if not (np.isfinite(self.values).all() and np.isfinite(self.lrs).all()):
            raise ValueError("a curve's values are finite, got NaN or infinity; end it before the first of them")
        if self.goal not in ("min", "max") or self.measured not in ("before", "after"):
            raise ValueError(
                f"goal is 'min' or 'max' and measured is 'before' or 'after', got {self.goal!r} and {self.measured!r}"
            )
        if self.stopped not in (None, *get_args(Stopped)):
            raise ValueError(f"stopped is None, 'non-finite' or 'diverged', got {self.stopped!r}")
        if not (isinstance(self.ramp, Mapping) and isinstance(self.meta, Mapping)):
            raise ValueError(f"a curve's ramp and meta are mappings, got {self.ramp!r} and {self.meta!r}")

    def __len__(self) -> int:
        return len(self.steps)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Curve) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    @property
    def short_cycles(self) -> Curve | None:
        """The companion with the short cycles' losses; None if the range test made none, or all of them broke."""
        return next((each for each in self.companions if each.metric.endswith(AFTER_SHORT_CYCLE) and len(each)), None)

    def of(self, metric: str) -> Curve:
        """The companion that measured `metric` (or this curve, if it did)."""
        curves = {curve.metric: curve for curve in (*self.companions, self)}
        if metric not in curves:
            raise ValueError(f"this range test did not measure {metric!r}; it has {', '.join(sorted(curves))}")
        return curves[metric]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and words, ready for JSON."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "metric": self.metric,
            "goal": self.goal,
            "measured": self.measured,
            "stopped": self.stopped,
            "stopped_at": self.stopped_at,
            "ramp": dict(self.ramp),
            "meta": dict(self.meta),
            "steps": self.steps.tolist(),
            "lrs": self.lrs.tolist(),
            "values": self.values.tolist(),
            "companions": [companion.to_dict() for companion in self.companions],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Curve:
        """The curve that `to_dict` described."""
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            raise ValueError(f"this is no curve: its 'format' must be {FORMAT!r}")
        if data.get("version") != VERSION:
            raise ValueError(
                f"a curve of version {data.get('version')}, this cyclr reads version {VERSION}: update cyclr"
            )
        numbers = {name: value for name, value in data.items() if name not in ("format", "version", "companions")}
        try:
            return cls(**numbers, companions=tuple(cls.from_dict(each) for each in data["companions"]))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"this curve is damaged: {error}") from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the curve as versioned JSON; the file appears whole or not at all."""
        write_atomically(path, (json.dumps(self.to_dict(), indent=None) + "\n").encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Curve:
        """Read what `save` wrote.

        Raises:
            ValueError: the file is no curve, is damaged, or comes from a later version.
            FileNotFoundError: there is none.
        """
        try:
            data = json.loads(Path(path).read_bytes())
        except ValueError as error:
            raise ValueError(f"{path}: this is no JSON, or not all of it: {error}") from None
        try:
            return cls.from_dict(data)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the values against the rate; needs matplotlib. Logarithmic where the ramp was."""
        if ax is None:
            try:
                from matplotlib import pyplot
            except ImportError:
                raise ImportError("a plot needs matplotlib: pip install 'cyclr[lab]'") from None
            ax = pyplot.subplots(figsize=(7, 4))[1]
        ax.plot(self.lrs, self.values, linewidth=1)
        ax.set(xlabel="learning rate", ylabel=self.metric, xscale=self.ramp.get("spacing", "linear"))
        return ax


def as_curves(curves: Curve | Sequence[Curve]) -> tuple[Curve, ...]:
    """One curve or several of the same kind, as a tuple."""
    several = (curves,) if isinstance(curves, Curve) else tuple(curves)
    if not several or not all(isinstance(curve, Curve) for curve in several):
        raise ValueError("give a curve or several, as cyclr.range_test returns them")
    if len({(curve.metric, curve.goal) for curve in several}) > 1:
        raise ValueError(f"curves of one metric can be read together, got {sorted({c.metric for c in several})}")
    return several
