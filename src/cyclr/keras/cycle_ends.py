"""A callback for the ends of cycles in a Keras fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import keras

from cyclr.keras.schedule import check_accumulation, checked
from cyclr.keras.state import inner
from cyclr.schedules import Schedule, check_cycles

Action: TypeAlias = Callable[[int, Any], Any]


class AtCycleEnds(keras.callbacks.Callback):  # type: ignore[misc]
    """Does something at the end of each cycle: saves the weights, stops.

    Args:
        actions: each is called as `action(step, model)`, after the update that completes a cycle. `model.evaluate` in
            one would leave its numbers in this epoch's training metrics; predict and score instead.
        schedule: whose cycles.
        stop: called in the same way, last; True ends the fit there.

    The step is the optimiser's own count of updates. A fit that goes on, also with a model that was saved and loaded,
    does not repeat what was done before it.

    Raises:
        TypeError: an action that cannot be called; schedule is no cyclr schedule.
        ValueError: a schedule without cycles; at the start of a fit: a model that makes several updates at once; a
            LearningRate that expects another gradient accumulation than the optimiser has.

    Example:
        >>> import cyclr
        >>> from cyclr.keras import AtCycleEnds
        >>> def save(step, model):
        ...     model.save_weights(f"{step}.weights.h5")
        >>> schedule = cyclr.triangular(0.001, 0.006, stepsize=2000)
        >>> callbacks = [AtCycleEnds(save, schedule=schedule, stop=lambda step, model: step >= 20_000)]

    Reference: the paper, 3.2: it is best to stop at the end of a cycle.
    """

    def __init__(self, *actions: Action, schedule: Schedule, stop: Action | None = None) -> None:
        super().__init__()
        self.schedule = checked(schedule)
        check_cycles("AtCycleEnds acts", schedule, "choose another schedule")
        self._actions, self._stop = actions, stop
        for action in (*actions, *([stop] if stop is not None else [])):
            if not callable(action):
                raise TypeError(f"an action is called with (step, model), got {type(action).__name__}")
        self._most = self._last = 0  # as many updates as there can be by now, and the last end that was reached

    def on_train_begin(self, logs: Any = None) -> None:
        """See where the training is."""
        check_accumulation(inner(self.model.optimizer))
        at_once = self.model.steps_per_execution
        if at_once != 1:
            raise ValueError(
                f"AtCycleEnds looks after every update, but the model makes {at_once} at once; compile it with "
                "steps_per_execution=1"
            )
        self._most = self._last = self._updates()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Call the functions if a cycle has ended with this batch."""
        # A batch is an update at most. JAX would wait for each step if the real number were read after every one.
        self._most += 1
        if not self.schedule.ends_cycle(self._most):
            return
        step = self._most = self._updates()
        if step == self._last or not self.schedule.ends_cycle(step):
            return
        self._last = step
        model: Any = self.model  # by reading it, Keras brings its variables up to date on JAX
        for action in self._actions:
            action(step, model)
        if self._stop is not None and self._stop(step, model):
            model.stop_training = True

    def _updates(self) -> int:
        return int(inner(self.model.optimizer).iterations)
