"""A schedule for the learning rate, and one for momentum."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras

from cyclr import checks
from cyclr.keras.state import inner
from cyclr.schedules import Schedule
from cyclr.stages import schedule_from_dict

MOMENTUM = {
    **dict.fromkeys(("SGD", "RMSprop"), "momentum"),
    **dict.fromkeys(("Adam", "AdamW", "Adamax", "Nadam", "Lion", "Lamb"), "beta_1"),
}


@keras.saving.register_keras_serializable(package="cyclr")
class LearningRate(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
    """A schedule as the learning rate of any Keras optimiser; it is saved with the model.

    Every update uses exactly `schedule(step)`, rounded to single precision. The step is the optimiser's own count of
    updates, so it is saved with the model and goes on where it stopped. `load_model` needs `import cyclr.keras` before.
    It may also replace a number later, `optimizer.learning_rate = LearningRate(...)`; on JAX Keras does not notice that
    one schedule replaces another, unless the model is compiled again.

    Args:
        schedule: a cyclr schedule.
        accumulation: the optimiser's gradient_accumulation_steps, if it has them. Keras then counts batches, and does
            not say whose they are: without it the cycles of a plain fit would be as many times too fast. `range_test`,
            `Momentum` and `AtCycleEnds` see both numbers and refuse such a pair.

    Raises:
        TypeError: schedule is no cyclr schedule.
        ValueError: accumulation below 1.

    Example:
        >>> import cyclr, keras
        >>> from cyclr.keras import LearningRate
        >>> optimizer = keras.optimizers.SGD(LearningRate(cyclr.triangular(0.001, 0.006, stepsize=2000)))
        >>> print(f"{float(optimizer.learning_rate):.6f}")
        0.001000

    Reference: Smith, arXiv 1506.01186, 3.1.
    """

    def __init__(self, schedule: Schedule, accumulation: int = 1) -> None:
        self.schedule = checked(schedule)
        self.accumulation = checks.whole("accumulation", accumulation, least=1)

    def __call__(self, step: Any) -> Any:
        """The rate at `step`, a tensor in Keras' floatx."""
        return keras.ops.convert_to_tensor(self.schedule(_step(step) // self.accumulation), keras.config.floatx())

    def get_config(self) -> dict[str, Any]:
        """The schedule's own numbers."""
        return {"schedule": self.schedule.to_dict(), "accumulation": self.accumulation}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> LearningRate:
        """The same again."""
        return cls(schedule_from_dict(config["schedule"]), config["accumulation"])


class Momentum(keras.callbacks.Callback):  # type: ignore[misc]
    """Momentum, or beta_1 where the optimiser has betas, follows a schedule in every update of a fit.

    Where the schedule ends, the optimiser's own momentum comes back, and so it does after the fit. What is saved is
    always the optimiser's own. The value is computed inside the training step from the optimiser's own count of
    updates; JAX compiles that step once for this callback and once for fits without it. An exception that ends a fit
    leaves the schedule in force until the next fit with a `Momentum` is over, or until its `on_train_end()` is called.

    Args:
        schedule: often `cycle.opposite(0.85, 0.95)`: momentum falls while the rate rises.

    Raises:
        TypeError: schedule is no cyclr schedule.
        ValueError: at the start of a fit: an optimiser without momentum, or one whose own momentum is 0; a
            LearningRate that expects another gradient accumulation than the optimiser has.

    Example:
        >>> import cyclr
        >>> from cyclr.keras import LearningRate, Momentum
        >>> cycle = cyclr.triangular(0.1, 1.0, stepsize=100)
        >>> callbacks = [Momentum(cycle.opposite(0.85, 0.95))]  # model.fit(..., callbacks=callbacks)

    Reference: Smith, arXiv 1803.09820, 4.3; the cycles are those of arXiv 1506.01186.
    """

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self.schedule = checked(schedule)
        self._own: Any = None
        self._compiled: tuple[Any, Any, Callable[..., Any]] | None = None

    def on_train_begin(self, logs: Any = None) -> None:
        """Let the optimiser follow."""
        optimizer = inner(self.model.optimizer)
        check_accumulation(optimizer)
        name = MOMENTUM.get(type(optimizer).__name__)
        if name is None:
            raise ValueError(
                f"{type(optimizer).__name__} has no momentum that could follow a schedule; choose {', '.join(MOMENTUM)}"
            )
        if not getattr(optimizer, name):
            raise ValueError(f"{type(optimizer).__name__}({name}=0.0) keeps no momentum; give it {name}=0.9, say")
        model: Any = self.model
        unfinished = "train_step" in vars(model)  # an exception ended the fit before
        self._own = None if unfinished else model.train_function
        vars(optimizer)["apply"] = self._applying(optimizer, name)
        vars(model)["train_step"] = self._training_step(optimizer)
        model.make_train_function(force=True)

    def on_train_end(self, logs: Any = None) -> None:
        """Back to the optimiser's own momentum, and to the step that is compiled for it."""
        model: Any = self.model
        vars(inner(model.optimizer)).pop("apply", None)
        vars(model).pop("train_step", None)
        model.train_function = self._own  # None is made anew

    def _applying(self, optimizer: Any, name: str) -> Callable[..., Any]:
        """The optimiser's `apply` with the schedule's value in place of its own number, while that runs."""

        def apply(*arguments: Any, **options: Any) -> Any:
            own = getattr(optimizer, name)
            vars(optimizer)[name] = self._now(optimizer.iterations, own)
            try:
                return type(optimizer).apply(optimizer, *arguments, **options)
            finally:
                vars(optimizer)[name] = own

        return apply

    def _training_step(self, optimizer: Any) -> Callable[..., Any]:
        """The model's own step as a function of its own: JAX would take the one compiled without this callback."""
        model = self.model
        if self._compiled is None or self._compiled[0] is not model or self._compiled[1] is not optimizer:
            self._compiled = model, optimizer, lambda *arguments: type(model).train_step(model, *arguments)
        return self._compiled[2]

    def _now(self, iterations: Any, own: float) -> Any:
        step, end = _step(iterations), self.schedule.end
        value = self.schedule(step)
        if isinstance(step, int):
            return _Number(own if end is not None and step >= end else value)
        return _Traced(value if end is None else keras.ops.where(step >= end, own, value))


class _NeverZero:
    """A momentum that passes through 0 is still one; Keras would leave its buffers out."""

    __hash__ = object.__hash__

    def __ne__(self, other: object) -> bool:
        return True

    def __gt__(self, other: object) -> bool:
        return True


class _Number(_NeverZero, float):
    """A momentum in torch's eager updates."""


class _Traced(_NeverZero):
    """A momentum in the step that JAX compiles, whose value cannot be compared with anything there."""

    def __init__(self, value: Any) -> None:
        self.value, self.dtype, self.shape = value, value.dtype, value.shape

    def __jax_array__(self) -> Any:
        return self.value

    def __rsub__(self, other: float) -> Any:  # 1 - beta_1
        return other - self.value

    def __rmul__(self, other: Any) -> Any:
        return other * self.value


def _step(iterations: Any) -> Any:
    """The number of updates: an int where it can be seen, JAX's tracer inside a compiled step."""
    value = keras.ops.convert_to_tensor(iterations)
    return int(value) if keras.backend.backend() == "torch" or not hasattr(value, "aval") else value


def check_accumulation(optimizer: Any) -> None:
    """That a LearningRate and its optimiser agree on how many batches make an update."""
    rate, batches = getattr(optimizer, "_learning_rate", None), optimizer.gradient_accumulation_steps or 1
    if isinstance(rate, LearningRate) and rate.accumulation != batches:
        raise ValueError(
            f"the optimiser has gradient_accumulation_steps={optimizer.gradient_accumulation_steps}, but its "
            f"LearningRate has accumulation={rate.accumulation}, so its steps would not be updates; make it "
            f"LearningRate(schedule, accumulation={batches})"
        )


def checked(schedule: Any) -> Schedule:
    """A schedule, or a sentence on what is none."""
    if not isinstance(schedule, Schedule):
        raise TypeError(f"schedule must be a cyclr schedule such as cyclr.triangular(...), got {schedule!r}")
    return schedule
