"""What is to be done at the ends of cycles, once at each: the part that the adapters' callbacks share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from torch import nn

from cyclr.schedules import Schedule, check_cycles
from cyclr.torch.processes import everywhere, group_of
from cyclr.torch.scheduler import ScheduleLR

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
        schedule, self.last = self._at(schedulers, updates)
        if schedule is not None:
            check_cycles("AtCycleEnds acts", schedule, "choose another schedule")

    def reached(self, schedulers: Iterable[Any], updates: int, model: nn.Module) -> bool:
        """After an update: call the functions if a cycle has ended with it; whether to stop, as any process wants.

        Args:
            schedulers: of the training; the first ScheduleLR among them knows step and schedule.
            updates: made so far, for where there is no ScheduleLR.
            model: what the functions are given.

        Raises:
            ValueError: there is no ScheduleLR, and no schedule was given.
        """
        schedule, step = self._at(schedulers, updates)
        if schedule is None:
            raise ValueError(
                "this training has no cyclr.torch.ScheduleLR that says where cycles end; give AtCycleEnds(schedule=...)"
            )
        if step == self.last or not schedule.ends_cycle(step):
            return False
        self.last = step
        for action in self._actions:
            action(step, model)
        stop = self._stop is not None and bool(self._stop(step, model))
        return not everywhere(not stop, group_of(model))  # one that went on alone would wait for the others for ever

    def _at(self, schedulers: Iterable[Any], updates: int) -> tuple[Schedule | None, int]:
        """The schedule whose cycles count, if there is one, and its step."""
        ours = next((each for each in schedulers if isinstance(each, ScheduleLR)), None)
        if ours is None:
            return self._schedule, updates
        return self._schedule or ours.schedule, ours.last_epoch
