"""The JAX adapter: the LR range test of a pure update function.

A schedule needs no adapter: it is an Optax schedule as it is, `optax.sgd(cyclr.triangular(0.001, 0.006, 2000))`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np

from cyclr import checks, frameworks

frameworks.check("jax")

import jax

from cyclr.batches import endless
from cyclr.curve import Curve
from cyclr.range_test import Progress, check_options
from cyclr.range_test import range_test as run_range_test
from cyclr.schedules import Ramp

State: TypeAlias = Any  # a pytree: parameters, the optimiser's state, batch statistics, random keys
Update: TypeAlias = Callable[[State, Any, Any], tuple[State, Any]]


def range_test(
    update: Update,
    state: State,
    batches: Iterable[Any],
    *,
    ramp: Ramp | None = None,
    steps: int = 300,
    metric: str = "loss",
    validate: Callable[[State], Any] | None = None,
    validate_every: int | None = None,
    progress: Progress | None = None,
    meta: Mapping[str, Any] | None = None,
) -> Curve:
    """Train briefly while the rate rises, and record. Nothing is changed: the states in between are thrown away.

    Args:
        update: `update(state, batch, lr)` returns the next state and the loss, or a dict of metrics, before the
            update. It may be compiled, and may donate its state. The rate is a scalar array, so it is compiled once; it
            is weakly typed as a Python number is, so weights in bfloat16 stay so.
        state: what `update` starts from, any pytree.
        batches: anything that can be iterated again and again; it starts over when it is exhausted.
        ramp: the rates, by default found without numbers from you: see `cyclr.range_test`.
        steps: updates in the default ramp's linear pass.
        metric: what a plain number from `update` is, and which of several the curve is about.
        validate: `validate(state)` returns the metric of that name on a fixed validation subset; for an accuracy let
            `update` return {"loss": ...}, and give metric="accuracy".
        validate_every, progress, meta: as in `cyclr.range_test`.

    Raises:
        TypeError: no function, batches, name or dict where one belongs.
        ValueError: batches that are empty or can be read only once; an `update` or `validate` that returns something
            else.

    Example:
        >>> import jax, cyclr
        >>> from cyclr.jax import range_test
        >>> def update(w, x, lr):
        ...     loss, slope = jax.value_and_grad(lambda w: (w - x) ** 2)(w)
        ...     return w - lr * slope, loss
        >>> data = [0.9, 1.0, 1.2]
        >>> curve = range_test(jax.jit(update), jax.numpy.asarray(5.0), data, ramp=cyclr.ramp(0.0, 3.0, 100))
        >>> curve.stopped, 1.0 < curve.stopped_at < 3.0
        ('diverged', True)

    Reference: Smith, arXiv 1506.01186, 3.3.
    """
    checks.kind("validate", validate, Callable | None, "a function validate(state)")
    trial = _Trial(update, state, batches)
    return run_range_test(
        trial,
        ramp,
        steps=steps,
        reset=trial.reset,
        metric=metric,
        validate=None if validate is None else lambda: validate(trial.state),
        validate_every=validate_every,
        progress=progress,
        meta=meta,
    )


def range_tests(
    update: Update,
    states: State,
    batches: Iterable[Any],
    ramp: Ramp,
    *,
    metric: str = "loss",
    progress: Progress | None = None,
    meta: Mapping[str, Any] | None = None,
) -> list[Curve]:
    """Several seeds at once: one vectorised update for all (`jax.vmap`), and a curve of each for `cyclr.find_bounds`.

    Args:
        update: as in `range_test`, for a single seed.
        states: one state a seed, stacked along a new first axis of every leaf, as `jax.vmap` of your initialisation
            over the keys gives them. All seeds see the same batches at the same rates.
        ramp: the rates. Where a first `range_test` found them, `cyclr.schedule_from_dict(curve.ramp)`.
        batches, metric, progress, meta: as in `range_test`; the progress shows the mean.

    Raises:
        TypeError: as in `range_test`.
        ValueError: leaves that do not agree in their first axis; a missing ramp; what `range_test` refuses.

    Example:
        >>> import jax, cyclr
        >>> from cyclr.jax import range_tests
        >>> def update(w, x, lr):
        ...     loss, slope = jax.value_and_grad(lambda w: (w - x) ** 2)(w)
        ...     return w - lr * slope, loss
        >>> curves = range_tests(update, jax.numpy.asarray([5.0, 4.0]), [0.9, 1.0, 1.2], cyclr.ramp(0.0, 3.0, 100))
        >>> [curve.stopped for curve in curves]
        ['diverged', 'diverged']

    Reference: Smith, arXiv 1506.01186, 3.3.
    """
    if not isinstance(ramp, Ramp):
        raise ValueError(f"ramp must come from cyclr.ramp(start_lr, end_lr, steps), got {ramp!r}")
    sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(states)}
    if len(sizes) != 1 or sizes == {()}:
        raise ValueError(
            "every leaf of states must have one first axis of the same size, an entry a seed, "
            f"got first axes {sorted(size[0] if size else 0 for size in sizes)}; stack the seeds' states with jax.vmap"
        )
    ((seeds,),) = sizes
    check_options(metric, progress, meta)
    trial = _Trial(update, states, batches)
    trial.update = jax.jit(jax.vmap(update, in_axes=(0, None, None)))
    seen: list[dict[str, np.ndarray[Any, Any]]] = []
    for step in range(ramp.steps):
        metrics = trial(ramp(step))
        values = metrics if isinstance(metrics, Mapping) else {metric: metrics}
        seen.append({name: _one_each(name, value, seeds) for name, value in values.items()})
        means = [float(np.mean(value)) for value in seen[-1].values()]
        if progress is not None:
            progress(step + 1, ramp.steps, ramp(step), means[0])
        if not any(np.isfinite(sum(value[seed] for value in seen[-1].values())) for seed in range(seeds)):
            break
    return [run_range_test(_replayed(seen, seed), ramp, metric=metric, meta=meta) for seed in range(seeds)]


def _one_each(name: str, value: Any, seeds: int) -> np.ndarray[Any, Any]:
    """A metric's numbers, one a seed."""
    if getattr(value, "shape", None) != (seeds,) or jax.numpy.iscomplexobj(value):
        raise ValueError(
            f"update must return one real number as {name!r}, got {jax.tree.map(jax.typeof, value)} from {seeds} seeds"
        )
    return np.asarray(value)


def _replayed(seen: list[dict[str, np.ndarray[Any, Any]]], seed: int) -> Callable[[float], dict[str, float]]:
    """What one of the seeds saw, once more, one update at a time: where its curve ends is the core's decision."""
    updates = iter(seen)
    return lambda lr: {name: float(values[seed]) for name, values in next(updates).items()}


class _Trial:
    """One update at a given rate, from the latest state; the first one is kept."""

    def __init__(self, update: Update, state: State, batches: Iterable[Any]) -> None:
        checks.kind("update", update, Callable, "a function update(state, batch, lr)")
        self.update, self.start, self.data = update, state, batches
        self.reset()

    def reset(self) -> None:
        """Back to the start. `update` may take its state's memory, so it never gets the caller's own."""
        self.state = jax.tree.map(lambda leaf: leaf.copy() if isinstance(leaf, jax.Array) else leaf, self.start)
        self.batches = endless(self.data)

    def __call__(self, lr: float) -> Any:
        # Without a dtype the rate is weakly typed: a float32 rate would turn a bfloat16 state into float32.
        result = self.update(self.state, next(self.batches), jax.numpy.asarray(lr))
        if not isinstance(result, tuple) or len(result) != 2:
            raise ValueError(f"update must return (state, loss) or (state, metrics), got {type(result).__name__}")
        self.state, metrics = result
        return metrics
