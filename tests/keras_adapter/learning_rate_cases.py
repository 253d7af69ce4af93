"""LearningRate on one backend; ../test_keras.py runs this."""

import json

import keras
import numpy as np
import pytest
from small_keras import BACKEND, CYCLE, QUIET, RAMP, fit, network

import cyclr
from cyclr.keras import AtCycleEnds, LearningRate, Momentum, range_test

pytestmark = QUIET


@pytest.mark.parametrize("policy", ["triangular2", "exp_range", "hann", "welch", "one_cycle"])
def test_each_rate_is_the_schedules_rounded_once(policy):
    schedule = {
        "triangular2": cyclr.triangular2(0.001, 0.006, 17),
        "exp_range": cyclr.exp_range(0.001, 0.006, 17, gamma=0.999),
        "hann": cyclr.hann(0.001, 0.006, 17),
        "welch": cyclr.welch(0.001, 0.006, 17),
        "one_cycle": cyclr.one_cycle(0.006, 150),
    }[policy]
    rate = LearningRate(schedule)
    steps = keras.Variable(0, dtype="int32", trainable=False)
    for step in range(200):
        steps.assign(step)
        got = keras.ops.convert_to_numpy(rate(steps))
        assert got.dtype == np.float32
        assert got == np.float32(schedule(step)) == keras.ops.convert_to_numpy(rate(step))


ONES = np.ones((8, 1), np.float32)


def moved_by_the_rate(optimizer):
    """Plain SGD on a linear model with a constant gradient: the weight moves by exactly the rate."""
    net = keras.Sequential(
        [keras.layers.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")]
    )
    net.compile(optimizer, loss=lambda y, out: -out)
    return net


def weights_after_each_batch(net, epochs):
    weights = [np.float32(0)]

    def see(batch, logs):
        if BACKEND == "jax":
            net.jax_state_sync()
        weights.append(net.get_weights()[0].item())

    seen = keras.callbacks.LambdaCallback(on_train_batch_end=see)
    net.fit(ONES, ONES, batch_size=1, epochs=epochs, verbose=0, callbacks=[seen])
    return np.float32(weights)


def weights_by_hand(updates):
    """The sums of the schedule's rates, in single precision."""
    return np.cumsum([0, *map(CYCLE, range(updates))], dtype=np.float32)


@pytest.mark.parametrize("tested_before", [False, True])
def test_every_update_of_a_fit_uses_the_schedules_rate(tested_before):
    net = moved_by_the_rate(keras.optimizers.SGD(0.1 if tested_before else LearningRate(CYCLE)))
    if tested_before:  # the step is compiled by then
        range_test(net, (ONES, ONES), batch_size=1, ramp=RAMP)
        net.optimizer.learning_rate = LearningRate(CYCLE)
    np.testing.assert_array_equal(weights_after_each_batch(net, epochs=2), weights_by_hand(16))


def test_a_saved_model_brings_its_schedule_and_goes_on_in_mid_cycle(tmp_path):
    net = network(keras.optimizers.Adam(LearningRate(CYCLE)))
    fit(net, epochs=1)
    net.save(tmp_path / "net.keras")
    loaded = keras.saving.load_model(tmp_path / "net.keras")
    assert loaded.optimizer._learning_rate.schedule == CYCLE
    assert float(loaded.optimizer.learning_rate) == np.float32(CYCLE(5))
    config = json.loads(json.dumps(net.optimizer.get_config()))
    assert config["learning_rate"]["config"]["schedule"] == CYCLE.to_dict()


def test_with_gradient_accumulation_every_real_update_uses_the_schedules_rate():
    """The weight stands still for three batches and moves in the fourth."""
    rate = LearningRate(CYCLE, accumulation=4)
    net = moved_by_the_rate(keras.optimizers.SGD(rate, gradient_accumulation_steps=4))
    batches = np.arange(41)
    np.testing.assert_array_equal(weights_after_each_batch(net, epochs=5), weights_by_hand(10)[batches // 4])
    assert LearningRate.from_config(rate.get_config()).accumulation == 4


@pytest.mark.parametrize(("counts", "steps"), [(1, 4), (4, None), (2, 4)])
@pytest.mark.parametrize("where", ["range test", "momentum", "cycle ends"])
def test_a_rate_that_would_count_batches_is_refused(where, counts, steps):
    rate = LearningRate(CYCLE, accumulation=counts)
    net = moved_by_the_rate(keras.optimizers.SGD(rate, momentum=0.9, gradient_accumulation_steps=steps))
    use = {
        "range test": lambda: range_test(net, (ONES, ONES), ramp=RAMP),
        "momentum": lambda: net.fit(ONES, ONES, verbose=0, callbacks=[Momentum(CYCLE.opposite(0.85, 0.95))]),
        "cycle ends": lambda: net.fit(ONES, ONES, verbose=0, callbacks=[AtCycleEnds(schedule=CYCLE)]),
    }[where]
    with pytest.raises(ValueError, match=f"gradient_accumulation_steps={steps}, .* accumulation={counts}, ") as seen:
        use()
    assert str(seen.value).endswith(f"make it LearningRate(schedule, accumulation={steps or 1})")
    net.optimizer.learning_rate = LearningRate(CYCLE, accumulation=steps or 1)
    use()


def test_something_else_than_a_schedule_is_refused():
    for kind in (LearningRate, Momentum):
        with pytest.raises(TypeError, match=r"schedule must be a cyclr schedule such as .*, got 0\.1"):
            kind(0.1)
    with pytest.raises(ValueError, match="accumulation must be at least 1, got 0"):
        LearningRate(CYCLE, accumulation=0)
