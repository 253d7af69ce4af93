"""A small net, its data, and everything about it that a range test must leave alone."""

import random

import keras
import numpy as np
import pytest

import cyclr

QUIET = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")  # Keras' own
BACKEND = keras.backend.backend()
RAMP = cyclr.ramp(0.0, 0.5, 12)
CYCLE = cyclr.triangular(0.01, 0.2, stepsize=3)
_rng = np.random.default_rng(0)
X = _rng.normal(size=(40, 6)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64) + (X[:, 1] > 0)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def network(optimizer=None, **options):
    """All that a model may keep: batch statistics, dropout, metrics."""
    net = keras.Sequential(
        [
            keras.layers.Input((6,)),
            keras.layers.Dense(8),
            keras.layers.BatchNormalization(),
            keras.layers.Activation("relu"),
            keras.layers.Dropout(0.2, seed=3),
            keras.layers.Dense(3),
        ]
    )
    optimizer = keras.optimizers.SGD(0.05, momentum=0.9) if optimizer is None else optimizer
    net.compile(optimizer, LOSS, metrics=["accuracy"], **options)
    return net


def linear(optimizer, **options):
    """Every gradient is far from 0, so what divides by its size is no noise."""
    net = keras.Sequential([keras.layers.Input((6,)), keras.layers.Dense(3, kernel_initializer="zeros")])
    net.compile(optimizer, LOSS, **options)
    return net


def fit(net, *callbacks, epochs=2):
    return net.fit(X, Y, batch_size=8, epochs=epochs, verbose=0, callbacks=list(callbacks)).history


def everything(net):
    seeds = keras.src.backend.common.global_state.get_global_attribute("global_seed_generator")
    variables = [*net.variables, *net.optimizer.variables, *net.metrics_variables, *([seeds.state] if seeds else [])]
    return (
        [keras.ops.convert_to_numpy(each).tobytes() for each in variables],
        [random.getstate(), np.random.get_state()[1].tobytes(), np.random.get_state()[2]],
        float(net.optimizer.learning_rate),
        net.optimizer.get_config(),
    )
