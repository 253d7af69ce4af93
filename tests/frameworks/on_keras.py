"""Keras 3; the backend is in the environment variable KERAS_BACKEND."""

import random

import keras
import numpy as np
from contract import CLASSES, FEATURES, HIDDEN, batch, weights

from cyclr.keras import LearningRate
from cyclr.keras import range_test as run_range_test

RATES = np.float32
READ = []  # rates, in the order of the updates


class Rate(LearningRate):
    """Writes down the rates that the optimiser reads: JAX reads them inside its compiled step."""

    def __call__(self, step):
        rate = super().__call__(step)
        if keras.backend.backend() == "jax":
            import jax

            jax.debug.callback(lambda value: READ.append(float(value)), rate, ordered=True)
        else:
            READ.append(float(rate))
        return rate


def network(learning_rate):
    start = weights()
    net = keras.Sequential(
        [
            keras.layers.Input((FEATURES,)),
            keras.layers.Dense(HIDDEN, activation="relu"),
            keras.layers.Dense(CLASSES),
        ]
    )
    net.set_weights([start[name] for name in ("w1", "b1", "w2", "b2")])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    net.compile(keras.optimizers.SGD(learning_rate), loss, metrics=["accuracy"])
    return net


def bits(net):
    return b"".join(keras.ops.convert_to_numpy(each).tobytes() for each in net.weights)


def everything(net):
    """Weights, optimiser, metrics and random generators, as bytes."""
    others = [keras.ops.convert_to_numpy(each).tolist() for each in (*net.optimizer.variables, *net.metrics_variables)]
    return bits(net) + repr((others, random.getstate(), np.random.get_state()[1].tolist())).encode()


def train(schedule, start, stop, folder):
    folder.mkdir(exist_ok=True)
    path = folder / "net.keras"
    net = keras.saving.load_model(path, {"Rate": Rate}) if start else network(Rate(schedule))
    READ.clear()
    for step in range(start, stop):
        net.train_on_batch(*batch(step))
    rates = READ[:]
    net.save(path)
    return rates, bits(net)


def range_test(batches, ramp):
    net = network(0.1)
    net.train_on_batch(*batch(0))
    before = everything(net)
    try:
        result = run_range_test(net, batches, ramp=ramp)
    except Exception as error:
        result = error
    return result, before, everything(net)
