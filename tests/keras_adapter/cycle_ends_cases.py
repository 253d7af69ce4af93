"""AtCycleEnds on one backend; ../test_keras.py runs this."""

import keras
import numpy as np
import pytest
from small_keras import BACKEND, CYCLE, QUIET, X, Y, fit, linear, network

import cyclr
from cyclr.keras import AtCycleEnds, LearningRate

pytestmark = QUIET
LENGTH = CYCLE.length  # an epoch has 5 batches
OPTIMIZERS = {
    "plain": lambda: keras.optimizers.SGD(LearningRate(CYCLE), momentum=0.9),
    "accumulated": lambda: keras.optimizers.SGD(LearningRate(CYCLE, 3), gradient_accumulation_steps=3),
    "scaled": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(LearningRate(CYCLE))),
    "skipping": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=2.0**127),
}


def updates(net):
    return int(getattr(net.optimizer, "inner_optimizer", net.optimizer).iterations)


class ByHand(keras.callbacks.Callback):
    """The real updates and the weights after each batch."""

    def __init__(self):
        super().__init__()
        self.after = {}

    def on_train_batch_end(self, batch, logs=None):
        self.after.setdefault(updates(self.model), self.model.get_weights())


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_actions_are_called_once_at_each_end_with_the_net_after_that_update(kind):
    """In several fits, with ends in the middle of epochs; of what is skipped or accumulated only real updates count."""
    keras.utils.set_random_seed(0)
    net, by_hand, called = linear(OPTIMIZERS[kind]()), ByHand(), []

    def keep(step, model):
        called.append((step, "first", model is net))
        for got, expected in zip(model.get_weights(), by_hand.after[step], strict=True):
            np.testing.assert_array_equal(got, expected)
        model.evaluate(X, Y, verbose=0)  # the fit goes on after it, on JAX too

    ends = AtCycleEnds(keep, lambda step, model: called.append((step, "second", model is net)), schedule=CYCLE)
    x = 100 * X if kind == "skipping" else X
    for epochs in (6, 3, 12):  # the first ends with a cycle, if each batch is an update
        net.fit(x, Y, batch_size=8, epochs=epochs, verbose=0, callbacks=[by_hand, ends])
    made = updates(net)
    assert made < 105 if kind in ("accumulated", "skipping") else made == 105
    wanted = CYCLE.cycle_ends(made)
    assert len(wanted) > 4
    assert called == [(step, turn, True) for step in wanted for turn in ("first", "second")]


@pytest.mark.parametrize("accumulation", [1, 3])
def test_stop_ends_the_fit_at_the_cycles_end(accumulation):
    steps = accumulation if accumulation > 1 else None
    net = linear(keras.optimizers.SGD(LearningRate(CYCLE, accumulation), gradient_accumulation_steps=steps))
    order = []
    ends = AtCycleEnds(
        lambda step, model: order.append(("action", step)),
        schedule=CYCLE,
        stop=lambda step, model: order.append(("stop", step)) or step >= 2 * LENGTH,
    )
    fit(net, ends, epochs=20)
    assert updates(net) == 2 * LENGTH
    assert order == [(each, step) for step in (LENGTH, 2 * LENGTH) for each in ("action", "stop")]


def test_what_an_action_does_with_the_model_changes_nothing_of_the_training(tmp_path):
    nets = []
    for watched in (True, False):
        keras.utils.set_random_seed(0)
        net, saved = network(OPTIMIZERS["plain"]()), []

        def look(step, model, saved=saved):
            file = tmp_path / f"{step}.weights.h5"
            model.save_weights(file)
            saved.append((file, model.get_weights()))
            model.predict_on_batch(X)

        fit(net, *([AtCycleEnds(look, schedule=CYCLE)] if watched else []), epochs=4)
        nets.append(net)
        for file, weights in saved:
            other = keras.models.clone_model(net)
            other.load_weights(file)
            assert all(map(np.array_equal, other.get_weights(), weights))
        assert len(saved) == (3 if watched else 0)
    assert all(map(np.array_equal, nets[0].get_weights(), nets[1].get_weights()))


def test_a_model_that_was_saved_at_an_end_goes_on_without_repeating_it(tmp_path):
    """A cycle is shorter than an update's batches, so there are ends among the batches between two updates."""
    called, short = [], cyclr.triangular(0.01, 0.2, stepsize=1)
    net = linear(OPTIMIZERS["accumulated"]())
    for _ in range(2):
        fit(net, AtCycleEnds(lambda step, model: called.append(step), schedule=short), epochs=6)  # 10 updates
        net.save(tmp_path / "net.keras")
        net = keras.saving.load_model(tmp_path / "net.keras")
    assert called == [2, 4, 6, 8, 10, 12, 14, 16, 18, 20]


def test_what_it_cannot_do_is_refused_in_one_sentence():
    with pytest.raises(TypeError, match=r"^an action is called with \(step, model\), got str$"):
        AtCycleEnds("snapshots", schedule=CYCLE)
    with pytest.raises(TypeError, match=r"^an action is called with \(step, model\), got bool$"):
        AtCycleEnds(schedule=CYCLE, stop=True)
    with pytest.raises(TypeError, match="schedule must be a cyclr schedule"):
        AtCycleEnds(schedule=0.1)
    with pytest.raises(ValueError, match=r"acts at a cycle's end, but Fixed\(lr=0.1\) has no cycles; choose another"):
        AtCycleEnds(schedule=cyclr.fixed(0.1))


@pytest.mark.skipif(BACKEND == "torch", reason="Keras itself refuses it there")
def test_a_model_that_makes_several_updates_at_once_is_refused():
    net = linear(keras.optimizers.SGD(0.1), steps_per_execution=2)
    with pytest.raises(ValueError, match=r"the model makes 2 at once; compile it with steps_per_execution=1$"):
        fit(net, AtCycleEnds(schedule=CYCLE))
