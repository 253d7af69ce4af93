"""The LR range test by a model's own compiled step."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from cyclr import checks
from cyclr.batches import endless
from cyclr.curve import Curve, Goal
from cyclr.keras.schedule import check_accumulation
from cyclr.keras.state import inner, restored
from cyclr.range_test import Progress
from cyclr.range_test import range_test as run_range_test
from cyclr.schedules import Ramp

SKIPS = 20  # updates in a row that a LossScaleOptimizer may skip before training counts as broken


def range_test(
    model: Any,
    data: Any,
    *,
    batch_size: int = 32,
    ramp: Ramp | None = None,
    steps: int = 300,
    metric: str = "loss",
    goal: Goal | None = None,
    progress: Progress | None = None,
    meta: Mapping[str, Any] | None = None,
) -> Curve:
    """Train briefly with the model's own compiled step while the rate rises, record, and put everything back.

    Before, between and after fits. What is put back, also after an exception, Ctrl-C and NaN, bit for bit: weights and
    all other variables of the model, of its metrics and of its optimiser, the learning rate even where it is a schedule
    or a function, the gradients and modes that torch keeps, and the random generators of Python, NumPy, torch and
    Keras. So a fit afterwards gives the same bits as without. What layers, metrics or a data set keep in attributes of
    their own is not covered. The copy lies in CPU memory.

    Args:
        model: compiled and built.
        data: a tuple of arrays `(x, y)` or `(x, y, sample_weight)`, shuffled in each pass; a `keras.utils.PyDataset`
            or anything else that can be iterated again and again, which gives batches `(x, y)` in its own order.
        batch_size: examples in a batch of arrays; a last batch with fewer is left out.
        ramp: the rates, by default found without numbers from you: see `cyclr.range_test`.
        steps: updates in the default ramp's linear pass.
        metric: "loss", or the name of a metric that the model was compiled with; the others are `companions`. Each
            value is of that update's own batch, before the update. With gradient accumulation, a point is a real
            update and its value the mean over its batches.
        goal, progress, meta: as in `cyclr.range_test`.

    Raises:
        TypeError: something else than a Keras model; data in another form.
        ValueError: a model that isn't compiled or built, or is frozen; an optimiser that does not use the rate it
            is given, or whose LearningRate expects another gradient accumulation than it has; empty data, without
            targets for the loss, or an iterator, which can be read only once.

    Example:
        >>> import cyclr, keras, numpy
        >>> from cyclr.keras import range_test
        >>> x = numpy.random.default_rng(0).normal(size=(64, 4)).astype("float32")
        >>> model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(1)])
        >>> model.compile(keras.optimizers.SGD(0.1), loss="mse")
        >>> curve = range_test(model, (x, x[:, :1]), ramp=cyclr.ramp(0.0, 2.0, 60))
        >>> curve.metric, curve.steps[0]
        ('loss', np.int64(0))

    Reference: Smith, arXiv 1506.01186, 3.3.
    """
    _check_trainable(model)
    checks.whole("batch_size", batch_size, least=1)
    with restored(model, data) as restore:
        trial = _Trial(model, data, batch_size)

        def reset() -> None:
            restore()
            trial.start_over()

        return run_range_test(
            trial, ramp, steps=steps, reset=reset, metric=metric, goal=goal, progress=progress, meta=meta
        )


class _Trial:
    """One real update at a given rate by the model's own step, however many batches and attempts it takes."""

    def __init__(self, model: Any, data: Any, batch_size: int) -> None:
        self.model, self.data, self.batch_size = model, data, batch_size
        self.optimizer = inner(model.optimizer)
        self.scales = self.optimizer is not model.optimizer
        self.accumulation = self.optimizer.gradient_accumulation_steps or 1
        self.start_over()

    def start_over(self) -> None:
        """Read the data from the start again; the rate is a variable, which a compiled step reads."""
        if not isinstance(self.optimizer._learning_rate, keras.Variable):
            self.optimizer._learning_rate = keras.Variable(0.0, trainable=False, name="learning_rate")
        self.batches = _batches(self.data, self.batch_size)

    def __call__(self, lr: float) -> dict[str, float]:
        self.optimizer.learning_rate = lr
        for _ in range(SKIPS):
            before = int(self.optimizer.iterations) if self.scales else -1
            metrics = self._update()
            if not self.scales or np.isnan(metrics["loss"]) or int(self.optimizer.iterations) > before:
                return metrics
        return dict.fromkeys(metrics, float("nan"))  # no scale at which gradients are finite

    def _update(self) -> dict[str, float]:
        seen = []
        for _ in range(self.accumulation):
            x, y, weight = keras.utils.unpack_x_y_sample_weight(next(self.batches))
            _check_batch(self.model, x, y, weight)
            self.model.reset_metrics()  # older versions of Keras report the running mean
            seen.append(self.model.train_on_batch(x, y, sample_weight=weight, return_dict=True))
        return {name: float(np.mean([each[name] for each in seen])) for name in seen[0] if not np.ndim(seen[0][name])}


def _batches(data: Any, batch_size: int) -> Iterator[Any]:
    """Batches without end."""
    if isinstance(data, tuple):
        return endless(_Arrays(data, batch_size), "data")
    if isinstance(data, keras.utils.PyDataset):
        return endless(_Indexed(data), "data")
    if hasattr(data, "shape") or isinstance(data, str | Mapping) or not isinstance(data, Iterable):
        raise TypeError(
            f"data must be a tuple of arrays (x, y), a PyDataset or an iterable of batches, got {type(data).__name__}"
        )
    return endless(data, "data")


class _Arrays:
    """Batches of arrays, shuffled anew in each pass by a generator that NumPy's global one starts."""

    def __init__(self, data: tuple[Any, ...], batch_size: int) -> None:
        if len(data) not in (1, 2, 3):
            raise ValueError(
                f"data must be a tuple (x, y) or (x, y, sample_weight), got {len(data)} entries; give batches as a list"
            )
        _check_arrays("data", data)
        sizes = {(*each.shape, 0)[0] for each in keras.tree.flatten(data) if each is not None}
        if len(sizes) != 1:
            raise ValueError(f"data must be arrays (x, y) with the same number of examples, got {sorted(sizes)}")
        self.data, self.size = data, sizes.pop()
        self.batch_size = min(batch_size, self.size)

    def __iter__(self) -> Iterator[Any]:
        order = np.random.permutation(self.size)
        for start in range(0, self.size - self.batch_size + 1, self.batch_size or 1):
            rows = order[start : start + self.batch_size]
            if len(rows):
                yield keras.tree.map_structure(lambda each, rows=rows: None if each is None else each[rows], self.data)


class _Indexed:
    """The batches of a PyDataset; its ends of epochs are a fit's own affair."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __iter__(self) -> Iterator[Any]:
        count = self.data.num_batches
        return (self.data[index] for index in (range(count) if count is not None else itertools.count()))


def _check_batch(model: Any, x: Any, y: Any, weight: Any) -> None:
    """That Keras can train with it; some models of one's own need no targets."""
    _check_arrays("a batch", (x, y, weight))
    if y is None and model._compile_loss is not None and type(model).compute_loss is keras.Model.compute_loss:
        raise ValueError("the model's loss needs targets, but there are none; give a tuple (x, y), or batches (x, y)")


def _check_arrays(what: str, parts: Any) -> None:
    """That there are arrays, also in lists and dicts of inputs; a pandas frame would be indexed by its labels."""
    for each in keras.tree.flatten(parts):
        if each is not None and (not hasattr(each, "dtype") or hasattr(each, "iloc")):
            raise TypeError(f"{what} must hold arrays, got {type(each).__name__}; make arrays with numpy.asarray first")


def _check_trainable(model: Any) -> None:
    if not isinstance(model, keras.Model):
        raise TypeError(f"model must be a keras.Model, got {type(model).__name__}")
    if not model.compiled or model.optimizer is None:
        raise ValueError("the model is not compiled; call model.compile(optimizer=..., loss=...) first")
    if not all(layer.built for layer in model._flatten_layers()):
        raise ValueError("the model is not built, it has no weights yet; call model.build(input_shape) first")
    if not model.trainable_variables:
        raise ValueError("every variable of the model is frozen; set trainable=True on what is to be trained")
    optimizer = inner(model.optimizer)
    if not isinstance(optimizer, keras.optimizers.Optimizer) or not hasattr(optimizer, "_learning_rate"):
        raise ValueError(
            f"a range test needs one Keras optimiser with one learning rate, got {type(optimizer).__name__}"
        )
    check_accumulation(optimizer)
    if getattr(optimizer, "relative_step", False):
        raise ValueError(
            "Adafactor(relative_step=True) does not use the rate that it is given; set relative_step=False"
        )
