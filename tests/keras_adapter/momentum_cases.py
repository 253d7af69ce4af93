"""Momentum on one backend; ../test_keras.py runs this."""

import keras
import numpy as np
import pytest
from small_keras import BACKEND, QUIET, fit, linear

import cyclr
from cyclr.keras import Momentum

pytestmark = QUIET
OPPOSITE = cyclr.triangular(0.1, 1.0, stepsize=3).opposite(0.0, 0.95)
KINDS = {
    "SGD": lambda: keras.optimizers.SGD(0.05, momentum=0.7),
    "Nesterov": lambda: keras.optimizers.SGD(0.05, momentum=0.7, nesterov=True),
    "RMSprop": lambda: keras.optimizers.RMSprop(0.01, momentum=0.7),
    "Adam": lambda: keras.optimizers.Adam(0.01, beta_1=0.7),
    "AdamW": lambda: keras.optimizers.AdamW(0.01, beta_1=0.7),
    "Adamax": lambda: keras.optimizers.Adamax(0.01, beta_1=0.7),
    "Nadam": lambda: keras.optimizers.Nadam(0.01, beta_1=0.7),
    "Lion": lambda: keras.optimizers.Lion(0.001, beta_1=0.7),
    "Lamb": lambda: keras.optimizers.Lamb(0.01, beta_1=0.7),
}


class ByHand(keras.callbacks.Callback):
    """The number itself, before each eager update: what the callback must come to."""

    def __init__(self, schedule, own=0.7):
        super().__init__()
        self.schedule, self.own, self.step = schedule, own, 0

    def on_train_batch_begin(self, batch, logs=None):
        optimizer = self.model.optimizer
        ended = self.schedule.end is not None and self.step >= self.schedule.end
        value = self.own if ended else self.schedule(self.step) or 1e-30  # at 0 Keras leaves its buffers out
        setattr(optimizer, "momentum" if hasattr(optimizer, "momentum") else "beta_1", value)
        self.step += 1


@pytest.mark.parametrize("kind", KINDS)
def test_momentum_follows_its_schedule_in_every_update_and_after_its_end_is_the_optimisers_own(kind):
    low = 0.0 if kind in ("SGD", "Nesterov", "RMSprop") else 0.1
    schedule = cyclr.triangular(0.1, 1.0, stepsize=2).opposite(low, 0.95)
    schedule = cyclr.schedule_from_dict(schedule.to_dict() | {"cycles": 2})
    weights = []
    for eager, follower in ((False, Momentum(schedule)), (True, ByHand(schedule))):
        keras.utils.set_random_seed(0)
        net = linear(KINDS[kind](), run_eagerly=eager)
        fit(net, follower)
        weights.append(net.get_weights()[0])
    np.testing.assert_allclose(*weights, rtol=1e-4, atol=1e-6)


def test_momentum_is_the_optimisers_own_before_and_after_and_in_what_is_saved(tmp_path):
    """Three fits, with and without the callback: those without have the bits of a model that never had it."""
    net, plain, momentum = (*(linear(KINDS["SGD"]()) for _ in range(2)), Momentum(OPPOSITE))
    save = keras.callbacks.ModelCheckpoint(tmp_path / "{batch}.keras", save_freq=3)
    for callbacks in ([], [momentum, save], []):
        for each in (net, plain):
            keras.utils.set_random_seed(1)
            fit(each, *(callbacks if each is net else []))
        same = all(map(np.array_equal, net.get_weights(), plain.get_weights()))
        assert same == (not callbacks)
        if callbacks:
            plain.set_weights(net.get_weights())
            plain.optimizer.set_weights([v.numpy() for v in net.optimizer.variables])
    assert net.optimizer.momentum == 0.7
    saved = keras.saving.load_model(next(tmp_path.glob("*.keras")))
    assert saved.optimizer.momentum == 0.7


def test_jax_compiles_once_for_a_callback_and_once_without(monkeypatch):
    net, momentum, traced = linear(KINDS["SGD"]()), Momentum(OPPOSITE), []
    original = type(net).train_step
    monkeypatch.setattr(type(net), "train_step", lambda self, *given: traced.append(1) or original(self, *given))
    counts = []
    for callbacks in ([], [momentum], [momentum], [], [momentum]):
        fit(net, *callbacks)
        counts.append(len(traced))
    assert counts == ([1, 2, 2, 2, 2] if BACKEND == "jax" else [10, 20, 30, 40, 50])


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (keras.optimizers.Adagrad, r"Adagrad has no momentum that could follow a schedule; choose SGD, RMSprop, Adam"),
        (keras.optimizers.SGD, r"SGD\(momentum=0\.0\) keeps no momentum; give it momentum=0\.9, say"),
    ],
)
def test_an_optimiser_without_momentum_is_refused(optimizer, message):
    net = linear(optimizer())
    with pytest.raises(ValueError, match=message):
        fit(net, Momentum(OPPOSITE))
    fit(net)


def test_after_an_exception_the_next_fit_ends_with_the_optimisers_own_momentum():
    net, plain = linear(KINDS["SGD"]()), linear(KINDS["SGD"]())

    def stop(batch, logs):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(net, Momentum(OPPOSITE), keras.callbacks.LambdaCallback(on_train_batch_end=stop))
    fit(net, Momentum(OPPOSITE))
    fit(plain)
    plain.set_weights(net.get_weights())
    plain.optimizer.set_weights([v.numpy() for v in net.optimizer.variables])
    for each in (net, plain):
        keras.utils.set_random_seed(1)
        fit(each)
    assert all(map(np.array_equal, net.get_weights(), plain.get_weights()))
