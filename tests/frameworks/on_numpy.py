"""No framework: the net by hand, in NumPy and in double precision.

Nobody tells which rate an update used: it is what a weight has moved by, divided by its gradient. That has some 13
digits, so it is compared in single precision. And nobody puts the net back after a range test.
"""

import numpy as np
from contract import batch, weights

import cyclr

RATES = np.float32


def gradients_of(net, x, y):
    """The gradients, and the loss."""
    hidden = np.maximum(x @ net["w1"] + net["b1"], 0)
    scores = hidden @ net["w2"] + net["b2"]
    exponentials = np.exp(scores - scores.max(1, keepdims=True))
    shares = exponentials / exponentials.sum(1, keepdims=True)
    loss = -np.log(shares[np.arange(len(y)), y]).mean()
    errors = (shares - np.eye(shares.shape[1])[y]) / len(y)
    back = errors @ net["w2"].T * (hidden > 0)
    return {"w1": x.T @ back, "b1": back.sum(0), "w2": hidden.T @ errors, "b2": errors.sum(0)}, float(loss)


def updated(net, x, y, lr):
    """The net after an update, and the loss before it."""
    gradients, loss = gradients_of(net, x, y)
    return {name: net[name] - lr * gradients[name] for name in net}, loss


def rate_between(before, after, x, y):
    """The rate of the update that led from one net to the other, from the weight with the largest gradient."""
    gradient = gradients_of(before, x, y)[0]["w2"]
    most = np.abs(gradient).argmax()
    return (before["w2"] - after["w2"]).flat[most] / gradient.flat[most]


def at_start():
    return {name: value.astype(np.float64) for name, value in weights().items()}


def bits(net):
    return b"".join(net[name].tobytes() for name in sorted(net))


def train(schedule, start, stop, folder):
    folder.mkdir(exist_ok=True)
    net = dict(np.load(folder / "net.npz")) if start else at_start()
    rates = []
    for step in range(start, stop):
        before = net
        net, _ = updated(before, *batch(step), schedule(step))
        rates.append(rate_between(before, net, *batch(step)))
    np.savez(folder / "net.npz", **net)
    return rates, bits(net)


def range_test(batches, ramp):
    net, _ = updated(at_start(), *batch(0), 0.1)
    before = bits(net)
    endless = (pair for _ in iter(int, 1) for pair in batches)

    def train_at(lr):
        nonlocal net
        net, loss = updated(net, *next(endless), lr)
        return loss

    try:
        result = cyclr.range_test(train_at, ramp)
    except Exception as error:
        result = error
    return result, before, bits(net)
