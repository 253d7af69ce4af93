"""JAX with Optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from contract import batch, weights

from cyclr.jax import range_test as run_range_test

RATES = np.float32


def loss_of(net, pair):
    x, y = pair
    hidden = jax.nn.relu(x @ net["w1"] + net["b1"])
    return optax.softmax_cross_entropy_with_integer_labels(hidden @ net["w2"] + net["b2"], y).mean()


def update(transform, state, pair):
    net, inner = state
    loss, gradients = jax.value_and_grad(loss_of)(net, pair)
    changes, inner = transform.update(gradients, inner, net)
    return (optax.apply_updates(net, changes), inner), loss


def bits(state):
    return b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state))


def train(schedule, start, stop, folder):
    folder.mkdir(exist_ok=True)
    net = jax.tree.map(jnp.asarray, weights())
    transform = optax.inject_hyperparams(optax.sgd)(learning_rate=schedule)
    state = net, transform.init(net)
    if start:
        with np.load(folder / "state.npz") as saved:
            leaves = [jnp.asarray(saved[name]) for name in saved.files]
        state = jax.tree.unflatten(jax.tree.structure(state), leaves)
    step_of = jax.jit(lambda state, pair: update(transform, state, pair))
    rates = []
    for step in range(start, stop):
        state, _ = step_of(state, batch(step))
        rates.append(float(state[1].hyperparams["learning_rate"]))  # what this update used
    np.savez(folder / "state.npz", *jax.tree.leaves(state))
    return rates, bits(state[0])


def range_test(batches, ramp):
    """The state that went in is alive afterwards, though the update takes its memory."""
    transform = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)
    net = jax.tree.map(jnp.asarray, weights())
    state, _ = update(transform, (net, transform.init(net)), batch(0))

    def update_at(state, pair, lr):
        state[1].hyperparams["learning_rate"] = lr
        return update(transform, state, pair)

    before = bits(state)
    try:
        result = run_range_test(jax.jit(update_at, donate_argnums=0), state, batches, ramp=ramp)
    except Exception as error:
        result = error
    return result, before, bits(state)
