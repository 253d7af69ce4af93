"""LearningRate on one backend; ../test_keras.py runs this."""

import json

import keras
import numpy as np
import pytest
from small_keras import BACKEND, CYCLE, QUIET, RAMP, fit, network

import cyclr
from cyclr.keras import LearningRate, Momentum, range_test

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


@pytest.mark.parametrize("tested_before", [False, True])
def test_every_update_of_a_fit_uses_the_schedules_rate(tested_before):
    """Plain SGD on a linear model with a constant gradient: the weight moves by exactly the rate."""
    net = keras.Sequential(
        [keras.layers.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")]
    )
    net.compile(keras.optimizers.SGD(0.1 if tested_before else LearningRate(CYCLE)), loss=lambda y, out: -out)
    ones, weights = np.ones((8, 1), np.float32), [np.float32(0)]
    if tested_before:  # the step is compiled by then
        range_test(net, (ones, ones), batch_size=1, ramp=RAMP)
        net.optimizer.learning_rate = LearningRate(CYCLE)

    def see(batch, logs):
        if BACKEND == "jax":
            net.jax_state_sync()
        weights.append(net.get_weights()[0].item())

    seen = keras.callbacks.LambdaCallback(on_train_batch_end=see)
    net.fit(ones, ones, batch_size=1, epochs=2, verbose=0, callbacks=[seen])
    expected = [np.float32(0)]
    for step in range(16):
        expected.append(expected[-1] + np.float32(CYCLE(step)))
    np.testing.assert_array_equal(np.float32(weights), expected)


def test_a_saved_model_brings_its_schedule_and_goes_on_in_mid_cycle(tmp_path):
    net = network(keras.optimizers.Adam(LearningRate(CYCLE)))
    fit(net, epochs=1)
    net.save(tmp_path / "net.keras")
    loaded = keras.saving.load_model(tmp_path / "net.keras")
    assert loaded.optimizer._learning_rate.schedule == CYCLE
    assert float(loaded.optimizer.learning_rate) == np.float32(CYCLE(5))
    config = json.loads(json.dumps(net.optimizer.get_config()))
    assert config["learning_rate"]["config"]["schedule"] == CYCLE.to_dict()


def test_with_gradient_accumulation_the_rate_counts_real_updates():
    rate = LearningRate(CYCLE, accumulation=4)
    assert [float(rate(batch)) for batch in (3, 4, 7, 8)] == [np.float32(CYCLE(step)) for step in (0, 1, 1, 2)]
    assert LearningRate.from_config(rate.get_config()).accumulation == 4


def test_something_else_than_a_schedule_is_refused():
    for kind in (LearningRate, Momentum):
        with pytest.raises(TypeError, match=r"schedule must be a cyclr schedule such as .*, got 0\.1"):
            kind(0.1)
    with pytest.raises(ValueError, match="accumulation must be at least 1, got 0"):
        LearningRate(CYCLE, accumulation=0)
