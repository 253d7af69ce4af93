"""Keras' range test on one backend; ../test_keras.py runs this."""

import random

import keras
import numpy as np
import pytest
from small_keras import BACKEND, CYCLE, LOSS, QUIET, RAMP, X, Y, everything, fit, linear, network

import cyclr
from cyclr.keras import LearningRate, range_test

pytestmark = QUIET


class Dataset(keras.utils.PyDataset):
    """Shuffles itself at the end of an epoch, and may fail or give NaN."""

    def __init__(self, fails_at=None, error=None, nan_at=None):
        super().__init__()
        self.order, self.read, self.error = np.arange(5), 0, error
        self.fails_at, self.nan_at = fails_at, nan_at

    def __len__(self):
        return 5

    def __getitem__(self, index):
        self.read += 1
        random.random(), np.random.rand()
        if self.read == self.fails_at:
            raise self.error
        rows = slice(8 * self.order[index], 8 * self.order[index] + 8)
        return X[rows] * (np.nan if self.read == self.nan_at else 1), Y[rows]

    def on_epoch_end(self):
        np.random.shuffle(self.order)


def constant():
    return 0.05


SCHEDULED = {
    "number": lambda: keras.optimizers.SGD(0.05, momentum=0.9),
    "schedule": lambda: keras.optimizers.Adam(LearningRate(CYCLE)),
    "Keras' own": lambda: keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(0.1, 50)),
    "function": lambda: keras.optimizers.SGD(constant),
    "average": lambda: keras.optimizers.SGD(0.05, use_ema=True, ema_overwrite_frequency=3),
    "scaled": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.05, momentum=0.9)),
    "accumulated": lambda: keras.optimizers.SGD(0.05, gradient_accumulation_steps=2),
}


@pytest.mark.parametrize("kind", SCHEDULED if BACKEND == "torch" else ["schedule", "function", "scaled"])
def test_a_fit_after_a_range_test_has_the_bits_of_one_without(kind):
    """Tests before, between and after fits; with arrays, a data set, and batches, on all that a model may keep."""
    histories, states = [], []
    for data in ([(X, Y), Dataset(), [(X[:8], Y[:8]), (X[8:24], Y[8:24])]], []):
        keras.utils.set_random_seed(0)
        net = network(SCHEDULED[kind]())
        history = []
        for turn in range(3):
            if data:
                random_before = random.getstate(), np.random.get_state()[1].tobytes()
                before = everything(net) if turn else None
                curve = range_test(net, data[turn], batch_size=8, ramp=RAMP)
                assert curve.lrs.tolist() == [RAMP(step) for step in range(12)]
                assert before is None or before == everything(net)
                assert random_before == (random.getstate(), np.random.get_state()[1].tobytes())
            if turn < 2:
                history.append(fit(net))
        histories.append(history)
        states.append(everything(net)[0])
    assert histories[0] == histories[1]
    assert states[0] == states[1]


@pytest.mark.parametrize("kind", ["number", "schedule"])
@pytest.mark.parametrize("error", [OSError("the disk is gone"), KeyboardInterrupt()])
def test_after_an_exception_everything_is_as_it_was(kind, error):
    net = network(SCHEDULED[kind]())
    fit(net)
    before = everything(net)
    with pytest.raises(type(error)):
        range_test(net, Dataset(fails_at=7, error=error), ramp=RAMP)
    assert everything(net) == before


def test_ctrl_c_in_the_middle_of_an_update_leaves_everything_as_it_was(monkeypatch):
    """On JAX the old values are given away by then and the new ones not yet there."""
    net = network()
    fit(net)
    before, run, calls = everything(net), net.train_function, []

    def cut_off(*given):
        result = run(*given)
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(net, "train_function", cut_off)
    with pytest.raises(KeyboardInterrupt):
        range_test(net, (X, Y), ramp=RAMP)
    monkeypatch.undo()
    if BACKEND == "jax":
        net.jax_state_sync()
    assert everything(net) == before
    fit(net)


def test_nan_ends_the_curve_and_everything_is_as_it_was():
    net = network()
    fit(net)
    before = everything(net)
    curve = range_test(net, Dataset(nan_at=7), ramp=RAMP)
    assert (curve.stopped, len(curve.lrs), curve.stopped_at) == ("non-finite", 6, RAMP(6))
    assert everything(net) == before


def test_each_value_is_that_updates_own_at_exactly_the_ramps_rate():
    """The same updates by hand: train_on_batch at each rate; a running mean would be another number."""
    net, batches = network(keras.optimizers.SGD(LearningRate(CYCLE))), [(X[:8], Y[:8]), (X[8:24], Y[8:24])]
    start = net.get_weights()
    curve = range_test(net, batches, ramp=RAMP)
    other = network(keras.optimizers.SGD(0.1))
    other.set_weights(start)
    losses, shares = [], []
    for step in range(12):
        other.optimizer.learning_rate = RAMP(step)
        x, y = batches[step % 2]
        other.reset_metrics()
        loss, share = other.train_on_batch(x, y)
        losses.append(loss)
        shares.append(share)
    np.testing.assert_array_equal(curve.values, np.float64(losses))
    (accuracy,) = curve.companions
    assert (accuracy.metric, accuracy.goal) == ("accuracy", "max")
    np.testing.assert_array_equal(accuracy.values, np.float64(shares))


def test_with_gradient_accumulation_a_point_is_a_real_update():
    net = linear(keras.optimizers.SGD(0.1, gradient_accumulation_steps=3))
    data = Dataset()
    curve = range_test(net, data, ramp=RAMP)
    assert (len(curve.lrs), data.read) == (12, 36)


def test_updates_that_the_loss_scale_skips_are_made_again_and_are_no_points():
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=2.0**127)
    net, batches = linear(scaled), [(100 * X[:8], Y[:8])]
    curve = range_test(net, batches, ramp=cyclr.ramp(0.0, 0.0, 12))
    assert len(curve.lrs) == 12
    assert len(set(curve.values)) == 1
    moving = range_test(net, batches, ramp=cyclr.ramp(0.0001, 0.0001, 12))
    assert len(set(moving.values)) == 12  # each of them has moved the weights


def test_arrays_are_shuffled_and_the_seed_decides_how():
    net, curves = linear(keras.optimizers.SGD(0.1)), []
    order = np.argsort(Y)
    for seed in (1, 1, 2):
        keras.utils.set_random_seed(seed)
        curves.append(range_test(net, (X[order], Y[order]), batch_size=16, ramp=RAMP).values.tolist())
    assert curves[0] == curves[1] != curves[2]


def test_the_default_ramp_finds_bounds():
    net = linear(keras.optimizers.SGD(0.1))
    before = net.get_weights()
    x = np.random.default_rng(1).normal(size=(800, 6)).astype(np.float32)
    curve = range_test(net, (x, (x[:, 0] > 0).astype(np.int64)), steps=60, meta={"who": "digits"})
    assert cyclr.find_bounds(curve).status == "ok"
    assert curve.meta["who"] == "digits"
    assert all(map(np.array_equal, before, net.get_weights()))


def frozen():
    net = network()
    net.trainable = False
    net.compile(keras.optimizers.SGD(0.1), LOSS)
    return net


def unbuilt():
    net = keras.Sequential([keras.layers.Dense(3)])
    net.compile("sgd", LOSS)
    return net


class Labelled:
    """As a pandas Series, which looks rows up by their labels."""

    def __init__(self, values):
        self.values, self.dtype, self.shape, self.iloc = values, values.dtype, values.shape, values

    def __len__(self):
        return len(self.values)

    def __getitem__(self, labels):
        return self.values[::-1][labels]


WRONG = {
    "model": (lambda: X, (X, Y), TypeError, "model must be a keras.Model, got ndarray"),
    "compiled": (lambda: keras.Sequential([keras.layers.Input((6,))]), (X, Y), ValueError, "the model is not compiled"),
    "built": (unbuilt, (X, Y), ValueError, "the model is not built, it has no weights yet"),
    "frozen": (frozen, (X, Y), ValueError, "every variable of the model is frozen"),
    "rate": (lambda: linear(keras.optimizers.Adafactor(0.1)), (X, Y), ValueError, "Adafactor.relative_step=True. does"),
    "iterator": (network, iter([(X, Y)]), ValueError, "data can be read only once"),
    "empty": (network, [], ValueError, "data yielded no batch"),
    "no examples": (network, (X[:0], Y[:0]), ValueError, "data yielded no batch"),
    "array": (network, X, TypeError, "data must be a tuple of arrays .* got ndarray"),
    "lengths": (network, (X, Y[:5]), ValueError, r"the same number of examples, got \[5, 40\]"),
    "lists": (network, (X.tolist(), Y.tolist()), TypeError, "data must hold arrays, got float; make arrays with numpy"),
    "numbers": (network, (np.asarray(1.0), np.asarray(2.0)), ValueError, "data yielded no batch"),
    "by labels": (network, (X, Labelled(Y)), TypeError, "data must hold arrays, got Labelled"),
    "tuple of batches": (network, ((X, Y),) * 5, ValueError, r"tuple \(x, y\) or .*, got 5 entries; give batches as a"),
    "lists in batches": (network, [(X, Y.tolist())], TypeError, "a batch must hold arrays, got int; make arrays with"),
    "text": (network, "digits", TypeError, "data must be a tuple of arrays .* got str"),
    "no targets": (network, (X, None), ValueError, "the model's loss needs targets, but there are none; give a tuple"),
    "list of arrays": (network, [X, Y], ValueError, "the model's loss needs targets, but there are none"),
    "metric": (network, None, ValueError, "the metric asked for is 'auc'"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_cannot_be_tested_is_refused_in_one_sentence(wrong):
    make, data, kind, message = WRONG[wrong]
    options = {"metric": "auc"} if data is None else {}
    with pytest.raises(kind, match=message):
        range_test(make(), (X, Y) if data is None else data, ramp=RAMP, **options)


class Rebuilding(keras.Sequential):
    """Its targets are its inputs."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return keras.ops.mean(keras.losses.mean_squared_error(x, y_pred))


@pytest.mark.parametrize("data", [(X,), [X[:8], X[8:16]]])
def test_a_model_whose_own_loss_needs_no_targets_has_its_range_test(data):
    net = Rebuilding([keras.layers.Input((6,)), keras.layers.Dense(6)])
    net.compile(keras.optimizers.SGD(0.1), "mse")
    assert len(range_test(net, data, ramp=RAMP).lrs) == 12


class Noisy(keras.layers.Layer):
    """Unseeded noise, from Keras' global generator."""

    def call(self, x, training=False):
        return x + 0.01 * keras.random.normal(keras.ops.shape(x)) if training else x


class Watched(keras.Sequential):
    modes = ()

    def train_step(self, data):
        self.modes = (*self.modes, self.training)
        return super().train_step(data)


@pytest.mark.skipif(BACKEND != "torch", reason="torch alone keeps gradients and modes; JAX refuses unseeded noise")
def test_gradients_modes_and_the_global_seeds_are_as_they_were():
    net = Watched([keras.layers.Input((6,)), Noisy(), keras.layers.Dense(3)])
    net.compile(keras.optimizers.SGD(0.1), LOSS)
    range_test(net, (X, Y), ramp=RAMP)
    assert keras.src.backend.common.global_state.get_global_attribute("global_seed_generator") is None
    fit(net)
    net.eval()
    gradients = [v.value.grad.clone() for v in net.variables]
    before, net.modes = everything(net), ()
    range_test(net, (X, Y), ramp=RAMP)
    assert set(net.modes) == {True}  # as in a fit
    assert not net.training
    assert all(bool((v.value.grad == was).all()) for v, was in zip(net.variables, gradients, strict=True))
    assert everything(net) == before
