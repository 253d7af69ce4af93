"""What is to be done at the ends of cycles, once at each: the part that the adapters' callbacks share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from torch import nn

from cyclr.schedules import Schedule
from cyclr.torch.processes import everywhere, group_of
from cyclr.torch.scheduler import ScheduleLR
from cyclr.torch.snapshots import has_cycles

Action: TypeAlias = Callable[[int, nn.Module], Any]


class CycleEnds:
    """Calls functions at the ends of a schedule's cycles, once at each; what it takes is said at the callbacks."""

    def __init__(self, *actions: Action, schedule: Schedule | None = None, stop: Action | None = None) -> None:
        self._actions, self._schedule, self._stop = list(actions), schedule, stop
        for action in [*self._actions, *([stop] if stop is not None else [])]:
            if not callable(action):
                raise TypeError(f"an action is called with (step, model), got {type(action).__name__}")
        if schedule is not None and not isinstance(schedule, Schedule):
            raise TypeError(f"schedule must be a schedule such as cyclr.triangular(...), got {type(schedule).__name__}")
        self.last = 0  # the last end that was reached

    def begin(self, schedulers: Iterable[Any], updates: int) -> None:
        """At the start of a training, also of one that goes on: what ended before it is not repeated.

        Raises:
            ValueError: the schedule has no cycles, so that nothing would ever be called.
        """
        ours = _ours(schedulers)
        self.last = _step(ours, updates)
        schedule = self._schedule or (None if ours is None else ours.schedule)
        if schedule is not None and not has_cycles(schedule):
            raise ValueError(f"AtCycleEnds acts at a cycle's end, but {schedule!r} has no cycles; choose another one")

    def reached(self, schedulers: Iterable[Any], updates: int, model: nn.Module) -> bool:
        """After an update: call the functions if a cycle has ended with it; whether to stop, as any process wants.

        Args:
            schedulers: of the training; the first ScheduleLR among them knows step and schedule.
            updates: made so far, for where there is no ScheduleLR.
            model: what the functions are given.

        Raises:
            ValueError: there is no ScheduleLR, and no schedule was given.
        """
        ours = _ours(schedulers)
        schedule = self._schedule or (None if ours is None else ours.schedule)
        if schedule is None:
            raise ValueError(
                "this training has no cyclr.torch.ScheduleLR that says where cycles end; give AtCycleEnds(schedule=...)"
            )
        step = _step(ours, updates)
        if step == self.last or not schedule.ends_cycle(step):
            return False
        self.last = step
        for action in self._actions:
            action(step, model)
        stop = self._stop is not None and bool(self._stop(step, model))
        return not everywhere(not stop, group_of(model))  # one that went on alone would wait for the others for ever


def _ours(schedulers: Iterable[Any]) -> ScheduleLR | None:
    return next((each for each in schedulers if isinstance(each, ScheduleLR)), None)


def _step(ours: ScheduleLR | None, updates: int) -> int:
    return updates if ours is None else ours.last_epoch
