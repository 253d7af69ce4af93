"""Stages: schedules one after the other; and any schedule from its description."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import accumulate
from typing import Any, ClassVar

from cyclr import checks
from cyclr.arrays import Scalars
from cyclr.schedules import Cycle, Exponential, Fixed, Ramp, Schedule


@dataclass(frozen=True, slots=True, repr=False)
class Stages(Schedule):
    """Schedules one after the other, each counting its own steps from 0; the last one goes on past its length."""

    kind: ClassVar[str] = "stages"
    stages: tuple[tuple[Schedule, int], ...]

    def __post_init__(self) -> None:
        pairs = []
        for schedule, steps in _pairs(self.stages):
            if not isinstance(schedule, Schedule):
                raise ValueError(f"a stage is a pair (schedule, steps), got {(schedule, steps)!r}")
            pairs.append((schedule, checks.whole("a stage's steps", steps, least=1)))
        if not pairs:
            raise ValueError("stages got no stage; give at least one pair (schedule, steps)")
        object.__setattr__(self, "stages", tuple(pairs))

    @property
    def end(self) -> int | None:
        start, last = self._starting()[-1]
        return None if last.end is None else start + last.end

    def _starting(self) -> list[tuple[int, Schedule]]:
        """Each schedule with the step at which it takes over."""
        lengths = [steps for _, steps in self.stages]
        starts = accumulate(lengths[:-1], initial=0)
        return [(start, schedule) for start, (schedule, _) in zip(starts, self.stages, strict=True)]

    def formula(self, step: Any, xp: Any) -> Any:
        if xp is Scalars:
            start, schedule = next(pair for pair in reversed(self._starting()) if step >= pair[0])
            return schedule.formula(step - start, xp)
        rates: Any = None
        for start, schedule in self._starting():
            later = step >= start
            local = schedule.formula(xp.where(later, step - start, 0), xp)
            rates = local if rates is None else xp.where(later, local, rates)
        return rates

    def cycle_at(self, step: int) -> int:
        checks.whole("step", step, least=0)
        start, schedule = next(pair for pair in reversed(self._starting()) if step >= pair[0])
        return len(self.cycle_ends(start)) + schedule.cycle_at(step - start)

    def cycle_ends(self, total_steps: int) -> list[int]:
        total = checks.whole("total_steps", total_steps, least=0)
        starting = self._starting()
        stops = [start for start, _ in starting[1:]] + [total]
        return [
            start + end
            for (start, schedule), stop in zip(starting, stops, strict=True)
            for end in schedule.cycle_ends(max(0, min(stop, total) - start))
        ]

    def ends_cycle(self, updates: int) -> bool:
        checks.whole("updates", updates, least=0)
        # A cycle that ends where the next stage begins is the earlier stage's.
        start, schedule = next(pair for pair in reversed(self._starting()) if updates > pair[0] or pair[0] == 0)
        return schedule.ends_cycle(updates - start)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "stages": [[schedule.to_dict(), steps] for schedule, steps in self.stages]}


def _pairs(stages: Any) -> list[tuple[Any, Any]]:
    """The pairs (schedule, steps), as tuples or as JSON's lists."""
    pairs = []
    for stage in stages if isinstance(stages, list | tuple) else [stages]:
        if not (isinstance(stage, list | tuple) and len(stage) == 2):
            raise ValueError(f"a stage is a pair (schedule, steps), got {stage!r}")
        pairs.append((stage[0], stage[1]))
    return pairs


_KINDS: dict[str, type[Schedule]] = {c.kind: c for c in (Fixed, Exponential, Ramp, Cycle, Stages)}


def schedule_from_dict(data: Mapping[str, Any]) -> Schedule:
    """The schedule that `Schedule.to_dict` described. An unknown kind or a wrong number is refused with a sentence.

    Example:
        >>> import cyclr
        >>> cyclr.schedule_from_dict({"kind": "fixed", "lr": 0.1})
        Fixed(lr=0.1)
    """
    if not isinstance(data, Mapping) or "kind" not in data:
        raise ValueError(f"a schedule's description needs a 'kind' ({', '.join(_KINDS)}), got {data!r}")
    kind = _KINDS[checks.choice("kind of schedule", data["kind"], _KINDS)]
    numbers = {name: value for name, value in data.items() if name != "kind"}
    known = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    for name in numbers:
        checks.choice(f"number of a {data['kind']} schedule", name, known)
    if kind is Stages:
        numbers["stages"] = [(schedule_from_dict(one), steps) for one, steps in _pairs(numbers.get("stages", []))]
    try:
        return kind(**numbers)
    except TypeError as error:
        raise ValueError(f"the description of a {data['kind']} schedule is incomplete: {error}") from None
