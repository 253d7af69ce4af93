"""What every adapter promises, on one task: rates, resuming, a range test that leaves no trace.

`python contract.py NAME FOLDER` runs the module `on_NAME` beside this file and prints what was seen as JSON;
`--continue` makes the second half of the interrupted training, in this new process. Such a module has

    RATES                               np.float64, or np.float32 where the framework holds rates in that, or where
                                        they can be known no better
    train(schedule, start, stop, folder)
        does updates start to stop - 1 on `batch(step)` from `weights()`, or from what an earlier call left in `folder`
        where start is above 0, and saves everything there; returns the rate that the optimiser used in each update,
        and the weights as bytes
    range_test(batches, ramp)
        a model and optimiser that have been trained a little, tested on `batches` (pairs of arrays, to be iterated
        again and again); returns the curve, or the exception that came out, and the whole state before and
        after, as bytes: weights, optimiser, random generators, and the adapter's own things such as callbacks
"""

import hashlib
import importlib
import json
import os
import sys
from pathlib import Path

import numpy as np

import cyclr

FEATURES, HIDDEN, CLASSES, EXAMPLES, BATCH = 8, 16, 3, 96, 8
SCHEDULE = cyclr.triangular(0.01, 0.5, stepsize=5)
STEPS, STOP = 30, 13  # three cycles; stopped in the middle of the second
RAMP = cyclr.ramp(0.0, 1.0, 40)
FAILS_AT, NAN_AT = 17, 23

_rng = np.random.default_rng(0)
X = _rng.normal(size=(EXAMPLES, FEATURES)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64) + (X[:, 1] > 0)


def batch(step):
    """The examples of update `step`: in order, epoch after epoch."""
    rows = (step * BATCH + np.arange(BATCH)) % EXAMPLES
    return X[rows], Y[rows]


def weights():
    """The net at its start, inputs first: x @ w1 + b1, ReLU, @ w2 + b2, softmax cross entropy. Plain SGD trains it."""
    rng = np.random.default_rng(1)
    return {
        "w1": rng.normal(size=(FEATURES, HIDDEN), scale=0.4).astype(np.float32),
        "b1": np.zeros(HIDDEN, np.float32),
        "w2": rng.normal(size=(HIDDEN, CLASSES), scale=0.3).astype(np.float32),
        "b2": np.zeros(CLASSES, np.float32),
    }


class Batches:
    """The batches of an epoch, again and again; one of them may raise, or be NaN, counted from the first ever read."""

    def __init__(self, fails_at=None, nan_at=None):
        self.fails_at, self.nan_at, self.read = fails_at, nan_at, 0

    def __len__(self):
        return EXAMPLES // BATCH

    def __iter__(self):
        for step in range(len(self)):
            if self.read == self.fails_at:
                raise OSError("the disk with the data is gone")
            x, y = batch(step)
            yield (x * np.float32("nan") if self.read == self.nan_at else x), y
            self.read += 1


def _digest(state):
    return hashlib.sha256(state).hexdigest()


def _trained(framework, start, stop, folder):
    rates, state = framework.train(SCHEDULE, start, stop, folder)
    return {"rates": [float(rate) for rate in rates], "weights": _digest(state)}


def _tested(framework, **trouble):
    result, before, after = framework.range_test(Batches(**trouble), RAMP)
    seen = {"before": _digest(before), "after": _digest(after)}
    if isinstance(result, Exception):
        return seen | {"error": repr(result)}
    return seen | {"lrs": result.lrs.tolist(), "values": result.values.tolist(), "stopped": result.stopped}


def main(name, folder, *options):
    framework = importlib.import_module(f"on_{name}")
    if options:
        return _trained(framework, STOP, STEPS, folder / "stopped")
    return {
        "precision": np.dtype(framework.RATES).name,
        "whole": _trained(framework, 0, STEPS, folder / "whole"),
        "stopped": _trained(framework, 0, STOP, folder / "stopped"),
        "tested": _tested(framework),
        "failed": _tested(framework, fails_at=FAILS_AT),
        "poisoned": _tested(framework, nan_at=NAN_AT),
    }


if __name__ == "__main__":
    seen = main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
    sys.stdout.flush()
    os.write(1, ("\n" + json.dumps(seen) + "\n").encode())  # the last line, whatever a framework prints
