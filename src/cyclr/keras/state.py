"""Leaving no trace: what training changes in a Keras model, and bringing it back."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
from keras.src.backend.common import global_state

GLOBAL_SEEDS = "global_seed_generator"  # Keras' own name for it


@contextmanager
def restored(model: Any, data: Any) -> Generator[Callable[[], None]]:
    """Whatever happens inside, afterwards everything is as it was; yields the function that goes back early."""
    restore = _keep(model, data)
    try:
        yield restore
    finally:
        restore()


def _keep(model: Any, data: Any) -> Callable[[], None]:
    """A function that brings back everything that training changes, as it is now."""
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()
    seeds = global_state.get_global_attribute(GLOBAL_SEEDS)
    states = [seeds.state] if seeds else []
    variables = {id(v): v for v in (*model.variables, *model.metrics_variables, *model.optimizer.variables, *states)}
    values = [(each, _copy(each.value)) for each in variables.values()]
    parts = (model.optimizer, inner(model.optimizer), model._compile_metrics, model._compile_loss)
    undos = [_keep_attributes(each) for each in parts if each is not None]
    if keras.backend.backend() == "torch":
        undos.append(_keep_gradients(model))
    undos.append(_keep_generators(data))

    def restore() -> None:
        if hasattr(model, "jax_state_sync"):
            model._jax_state, model._jax_state_synced = None, True  # a step that was cut off has left older values
        for variable, value in values:
            variable.assign(value)
        global_state.set_global_attribute(GLOBAL_SEEDS, seeds)
        for undo in undos:
            undo()

    return restore


def _copy(value: Any) -> Any:
    """In CPU memory; JAX gives the original away to the next step."""
    return value.detach().to("cpu", copy=True) if keras.backend.backend() == "torch" else np.array(value)


def _keep_attributes(thing: Any) -> Callable[[], Any]:
    """What it holds: an optimiser or metric that isn't built yet is so again, and the next fit builds it.

    It must: Keras reads the data once more for that, and so shuffles it once more.
    """
    attributes = dict(vars(thing))
    tracked = attributes["_tracker"].stored_ids.values() if "_tracker" in attributes else ()
    contents = [
        (kind, fill, each, kind(each))
        for kind, fill in ((list, list.extend), (dict, dict.update), (set, set.update))
        for each in (*attributes.values(), *tracked)
        if isinstance(each, kind)
    ]

    def restore() -> None:
        vars(thing).clear()
        vars(thing).update(attributes)
        for kind, fill, each, content in contents:  # the plain methods: Keras' own collections track what they get
            kind.clear(each)  # type: ignore[arg-type]
            fill(each, content)  # type: ignore[arg-type]

    return restore


def _keep_gradients(model: Any) -> Callable[[], None]:
    """Gradients, and the training mode of each module."""
    modes = [(module, module.training) for module in model.modules()]
    kept = [(v.value, None if v.value.grad is None else v.value.grad.clone()) for v in model.variables]
    model.train()  # as fit does

    def restore() -> None:
        for module, mode in modes:
            module.training = mode
        for tensor, gradient in kept:
            tensor.grad = None if gradient is None else gradient.clone()

    return restore


def _keep_generators(data: Any) -> Callable[[], Any]:
    """Random generators: Python's, NumPy's, and where torch is loaded its own and those of a DataLoader."""
    if "torch" in sys.modules:
        from cyclr.torch import SavedState

        loader = isinstance(data, sys.modules["torch"].utils.data.DataLoader)
        return SavedState([data] if loader else []).restore
    python, numpy = random.getstate(), np.random.get_state()
    return lambda: (random.setstate(python), np.random.set_state(numpy))


def inner(optimizer: Any) -> Any:
    """The optimiser that a LossScaleOptimizer wraps."""
    return getattr(optimizer, "inner_optimizer", optimizer)
