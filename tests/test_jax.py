"""JAX and Optax: a schedule is an Optax schedule; a range test of a pure update; several seeds at once."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cyclr
from cyclr.jax import range_test, range_tests

CYCLES = cyclr.triangular2(0.01, 0.1, stepsize=20)
RAMP = cyclr.ramp(0.0, 2.0, 80)

_rng = np.random.default_rng(0)
X = _rng.normal(size=(12, 64, 4)).astype(np.float32)
BATCHES = [(x, (x[:, 0] + 0.5 * x[:, 1] > 0).astype(np.float32)) for x in X]


def start(key):
    """Weights, momentum and a random key: all that training changes."""
    weights, key = jax.random.split(key)
    net = {"w": 0.1 * jax.random.normal(weights, (4,)), "b": jnp.zeros(())}
    return {"net": net, "speed": jax.tree.map(jnp.zeros_like, net), "key": key}


def loss_of(net, key, batch):
    x, y = batch
    kept = jax.random.bernoulli(key, 0.9, x.shape)
    return optax.sigmoid_binary_cross_entropy((x * kept) @ net["w"] + net["b"], y).mean()


def update(state, batch, lr):
    key, now = jax.random.split(state["key"])
    loss, slopes = jax.value_and_grad(loss_of)(state["net"], now, batch)
    speed = jax.tree.map(lambda v, g: 0.9 * v + g, state["speed"], slopes)
    return {"net": jax.tree.map(lambda w, v: w - lr * v, state["net"], speed), "speed": speed, "key": key}, loss


def bits(state):
    leaves = [
        jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in jax.tree.leaves(state)
    ]
    return [np.asarray(leaf).tobytes() for leaf in leaves]


class Traced:
    """A function that counts how often JAX traces it, which it does before it compiles."""

    def __init__(self, function):
        self.function, self.count = function, 0

    def __call__(self, *arguments):
        self.count += 1
        return self.function(*arguments)


@pytest.mark.parametrize("policy", ["triangular", "exp_range", "hann", "one_cycle"])
def test_optax_uses_the_schedules_rates_for_1000_updates_and_compiles_once(policy):
    schedules = {
        "triangular": cyclr.triangular(0.001, 0.006, 100),
        "exp_range": cyclr.exp_range(0.001, 0.006, 100, gamma=0.999),
        "hann": cyclr.hann(0.001, 0.006, 100),
        "one_cycle": cyclr.one_cycle(0.006, 1000),
    }
    schedule = schedules[policy]
    transform = optax.sgd(schedule)

    def one(weight, state):
        changes, state = transform.update(jnp.ones(()), state, weight)
        return -changes, state  # the gradient is 1, so the change is the rate

    traced = Traced(one)
    compiled = jax.jit(traced)
    weight, state = jnp.zeros(()), transform.init(jnp.zeros(()))
    used = []
    for _ in range(1000):
        rate, state = compiled(weight, state)
        used.append(rate)
    assert traced.count == 1
    assert compiled._cache_size() == 1
    np.testing.assert_array_equal(np.asarray(used), schedule(np.arange(1000)).astype(np.float32))


def test_schedules_of_rate_and_momentum_are_injected_and_joined():
    momentum = CYCLES.opposite(0.85, 0.95)
    transform = optax.inject_hyperparams(optax.sgd)(learning_rate=CYCLES, momentum=momentum)

    def one(state, _):
        _, state = transform.update(jnp.ones(()), state)
        return state, (state.hyperparams["learning_rate"], state.hyperparams["momentum"])

    _, (rates, momenta) = jax.lax.scan(one, transform.init(jnp.zeros(())), length=100)
    steps = np.arange(100)
    np.testing.assert_array_equal(np.asarray(rates), CYCLES(steps).astype(np.float32))
    np.testing.assert_array_equal(np.asarray(momenta), momentum(steps).astype(np.float32))

    joined = jax.jit(optax.join_schedules([CYCLES, cyclr.fixed(0.5)], boundaries=[50]))
    assert [float(joined(step)) for step in (20, 49, 50, 99)] == pytest.approx([0.1, CYCLES(49), 0.5, 0.5])


@pytest.mark.parametrize("options", [{}, {"donate_argnums": 0}])
@pytest.mark.parametrize("ramp", [None, RAMP])
def test_a_range_test_compiles_once_and_changes_nothing(ramp, options):
    state = start(jax.random.key(0))
    before = bits(state)
    traced = Traced(update)
    curve = range_test(jax.jit(traced, **options), state, BATCHES, ramp=ramp, steps=200)
    assert traced.count == 1
    assert bits(state) == before
    assert len(curve.values) > 30
    assert [companion.metric for companion in curve.companions] == ([] if ramp else ["loss after a short cycle"])

    again = range_test(jax.jit(update), state, BATCHES, ramp=ramp, steps=200)  # each pass from the same start
    assert again == curve


@pytest.mark.parametrize("seeds", [None, 3])
def test_weights_in_half_precision_stay_so_and_the_update_is_traced_once(seeds):
    """A rate in float32 would make them float32 in the first update, and the second would be traced again."""
    traced = []

    def lean(weights, x, lr):
        traced.append((weights.dtype, lr.shape))
        loss, slopes = jax.value_and_grad(lambda w: jnp.mean((x @ w - 1) ** 2))(weights)
        return weights - lr * slopes, loss

    weights, data = jnp.zeros((seeds or 1, 4), jnp.bfloat16), list(jnp.asarray(X, jnp.bfloat16))
    if seeds:
        assert all(len(curve.lrs) > 10 for curve in range_tests(lean, weights, data, RAMP))
    else:
        assert len(range_test(jax.jit(lean), weights[0], data, ramp=RAMP).lrs) > 10
    assert traced == [(jnp.bfloat16, ())]


def test_every_pass_starts_from_the_first_state_and_batch():
    firsts = []

    def noting(state, batch, lr):
        if state["updates"] == 0:
            firsts.append(batch[0] is BATCHES[0][0])
        inner, loss = compiled(state["inner"], batch, lr)
        return {"inner": inner, "updates": state["updates"] + 1}, loss

    compiled = jax.jit(update)
    range_test(noting, {"inner": start(jax.random.key(0)), "updates": 0}, BATCHES, steps=205)
    assert len(firsts) > 3
    assert all(firsts)


def test_each_update_has_the_ramps_rate_and_the_next_batch():
    seen = []

    def spy(state, batch, lr):
        seen.append((float(lr), batch))
        return state + 1, {"loss": 2.0, "accuracy": state / 100}

    curve = range_test(spy, 0, ["a", "b", "c"], ramp=cyclr.ramp(0.0, 1.0, 7), metric="accuracy")
    assert [lr for lr, _ in seen] == [np.float32(cyclr.ramp(0.0, 1.0, 7)(step)) for step in range(7)]
    assert [batch for _, batch in seen] == list("abcabca")
    assert (curve.metric, curve.goal) == ("accuracy", "max")
    assert curve.values.tolist() == [step / 100 for step in range(7)]
    assert [each.metric for each in curve.companions] == ["loss"]


def test_validation_sees_the_state_after_the_update():
    seen = []
    curve = range_test(
        lambda state, batch, lr: (state + 1, 1.0), 10, [0], ramp=cyclr.ramp(0.0, 1.0, 6),
        validate=lambda state: seen.append(state) or state, validate_every=2,
    )  # fmt: skip
    assert seen == [12, 14, 16]
    assert curve.metric == "validation loss"


def test_an_exception_comes_out_and_the_state_is_alive():
    state = start(jax.random.key(0))
    before, compiled = bits(state), jax.jit(update, donate_argnums=0)

    def failing(state, batch, lr):
        if lr > 1.0:
            raise OSError("no more data")
        return compiled(state, batch, lr)

    with pytest.raises(OSError, match="no more data"):
        range_test(failing, state, BATCHES, ramp=RAMP)
    assert bits(state) == before


def test_seeds_at_once_have_the_curves_that_they_have_alone():
    keys = jax.random.split(jax.random.key(1), 3)
    traced = Traced(update)
    together = range_tests(traced, jax.vmap(start)(keys), BATCHES, RAMP, meta={"by": "test"})
    assert traced.count == 1
    for key, curve in zip(keys, together, strict=True):
        alone = range_test(jax.jit(update), start(key), BATCHES, ramp=RAMP)
        assert (curve.stopped, curve.ramp, curve.meta) == (alone.stopped, alone.ramp, {"by": "test"})
        np.testing.assert_allclose(curve.values, alone.values, rtol=1e-3)
    assert not np.array_equal(together[0].values, together[1].values)


def test_a_seed_that_breaks_does_not_end_the_others():
    def bursting(state, batch, lr):
        return state, jnp.where(lr > state, jnp.nan, 1.0)

    first, other, whole = range_tests(bursting, jnp.asarray([0.25, 0.5, 9.0]), [0], cyclr.ramp(0.0, 1.0, 9))
    assert (first.stopped_at, other.stopped_at, whole.stopped_at) == (0.375, 0.625, None)
    assert len(whole.values) == 9
    made = []
    gone = range_tests(
        bursting, jnp.asarray([0.25, 0.5]), [0], cyclr.ramp(0.0, 1.0, 9), progress=lambda *now: made.append(now)
    )
    assert [done for done, *_ in made] == [1, 2, 3, 4, 5, 6]
    assert [curve.stopped_at for curve in gone] == [0.375, 0.625]


def still(state, batch, lr):
    return state, 1.0


def seeds_with(metrics):
    """The range tests of two seeds whose update returns this."""
    return range_tests(lambda state, batch, lr: (state, metrics), jnp.ones(2), [1], RAMP)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: range_test(update, 0, iter([1]), ramp=RAMP), "batches can be read only once"),
        (lambda: range_test(update, 0, [], ramp=RAMP), "batches yielded no batch"),
        (lambda: range_test(None, 0, [1], ramp=RAMP), "update must be a function"),
        (lambda: range_test(lambda *_: 1.0, 0, [1], ramp=RAMP), "update must return .state, loss."),
        (lambda: range_tests(update, jnp.ones(2), [1], None), "ramp must come from cyclr.ramp"),
        (lambda: range_tests(update, {"a": jnp.ones(2), "b": jnp.ones(3)}, [1], RAMP), "same size.* first axes .2, 3"),
        (lambda: range_tests(update, jnp.ones(()), [1], RAMP), "same size"),
        (
            lambda: range_test(update, 0, None, ramp=RAMP),
            "batches must be a list of batches or a loader .* got NoneType",
        ),
        (lambda: range_test(update, 0, {"x": X}, ramp=RAMP), "batches must be a list of batches .* got dict"),
        (lambda: range_test(update, 0, "digits", ramp=RAMP), "batches must be a list of batches .* got str"),
        (
            lambda: range_test(still, 0, [1], ramp=RAMP, validate=0.3),
            "validate must be a function validate.state., got",
        ),
        (lambda: range_test(still, 0, [1], ramp=RAMP, validate=lambda _: X), "validate must return a number, got"),
        (lambda: range_tests(None, jnp.ones(2), [1], RAMP), "update must be a function update.state, batch, lr., got"),
        (lambda: range_tests(still, jnp.ones(2), [1], RAMP, metric=["loss"]), "metric must be the name of a metric"),
        (lambda: range_tests(still, jnp.ones(2), [1], RAMP, progress=3), "progress must be a function .*, got int"),
        (lambda: range_tests(still, jnp.ones(2), [1], RAMP, meta=3), "meta must be a dict, got int"),
        (lambda: seeds_with(None), "update must return one real number as 'loss', got None from 2 seeds"),
        (lambda: seeds_with(jnp.ones(3)), r"one real number as 'loss', got float32\[2,3\] from 2 seeds"),
        (lambda: seeds_with(jnp.complex64(1j)), r"one real number as 'loss', got complex64\[2\] from 2 seeds"),
        (lambda: seeds_with({"loss": 1.0, "norms": jnp.ones(3)}), "one real number as 'norms'"),
    ],
)
def test_wrong_input_is_refused_with_a_sentence(call, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        call()


def test_a_jax_that_is_too_old_for_a_schedule_is_named(monkeypatch):
    monkeypatch.setattr(jax, "__version__", "0.7.2")
    sentence = (
        r"^a schedule at a step of JAX needs JAX 0\.8 or later, found 0\.7\.2: pip install --upgrade 'cyclr\[jax\]'$"
    )
    with pytest.raises(ImportError, match=sentence):
        CYCLES(jnp.asarray(3))
