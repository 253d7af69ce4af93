"""The range test's core: it uses the ramp's rates, records every update, and stops where training breaks."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cyclr

LONG = cyclr.ramp(0.0, 1.0, 3000)


def replay(values, **options):
    """A range test in which training shows `values`, whatever the rate."""
    series = iter(values)
    ramp = cyclr.ramp(0.0, 1.0, max(2, len(values)))
    return cyclr.range_test(lambda lr: next(series), ramp, **options)


class Quadratic:
    """Loss w**2 under gradient descent: w shrinks below lr = 1 and grows above it."""

    def __init__(self):
        self.resets, self.passes = 0, [[]]
        self.w = 1.0

    def train_at(self, lr):
        self.passes[-1].append(lr)
        loss = self.w**2
        self.w -= lr * 2 * self.w
        return loss

    def reset(self):
        self.resets, self.w = self.resets + 1, 1.0
        self.passes.append([])


class Noisy:
    """A bowl of 20 weights and the given curvature, under gradient noise: large rates end on a high floor."""

    def __init__(self, seed, curvature):
        self.seed, self.curvature, self.passes = seed, curvature, []
        self.reset()

    def train_at(self, lr):
        self.passes[-1].append(lr)
        loss = 0.5 * self.curvature * float(self.w @ self.w)
        self.w = self.w - lr * self.curvature * (self.w + 0.1 * self.noise.standard_normal(20))
        return loss

    def reset(self):
        self.w, self.noise = np.ones(20), np.random.default_rng(self.seed)
        self.passes.append([])


@pytest.mark.parametrize("ramp", [cyclr.ramp(0.0, 0.02, 37), cyclr.ramp(1e-6, 1.0, 100, "log"), cyclr.ramp(1, 0.1, 9)])
def test_the_rates_used_are_the_ramps_and_every_update_is_a_point(ramp):
    used = []
    curve = cyclr.range_test(lambda lr: used.append(lr) or -lr, ramp, meta={"seed": 3})
    assert used == curve.lrs.tolist() == [ramp(step) for step in range(ramp.steps)]
    assert curve.steps.tolist() == list(range(ramp.steps))
    assert curve.values.tolist() == [-lr for lr in used]
    assert (curve.stopped, curve.stopped_at, curve.ramp, curve.meta) == (None, None, ramp.to_dict(), {"seed": 3})


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 1, 30])
def test_stops_at_the_first_value_that_is_not_finite_which_is_no_point(bad, at):
    curve = replay([2.0] * at + [bad] + [1.0] * 50)
    assert curve.values.tolist() == [2.0] * at
    assert curve.stopped == "non-finite"
    assert curve.stopped_at == pytest.approx(at / (at + 50), rel=1e-12)


def test_one_metric_that_is_not_finite_ends_them_all():
    curve = replay([{"loss": 1.0, "accuracy": 0.5}, {"loss": 1.0, "accuracy": math.nan}])
    assert (len(curve), len(curve.of("accuracy")), curve.stopped) == (1, 1, "non-finite")


def broken_training(rng, noise, top=2.3, n=200):
    """From 2.3 down to 1.5, then up to `top` at 70 % of the way."""
    at = np.array([0, 0.1, 0.5, 0.7, 0.75, 1]) * n
    return np.interp(np.arange(n), at, [2.3, 2.3, 1.5, 1.5, top, top]) + noise * rng.normal(size=n)


@pytest.mark.parametrize(("noise", "top"), [(0.0, 2.3), (0.03, 2.3), (0.1, 4.0), (0.0, 1e30)])
def test_lost_progress_is_divergence_soon_after_it_happens(noise, top):
    for seed in range(10):
        curve = replay(broken_training(np.random.default_rng(seed), noise, top))
        assert curve.stopped == "diverged"
        assert 0.69 <= curve.stopped_at <= 0.85


def test_half_of_the_progress_lost_is_no_divergence_however_clear():
    for seed in range(10):
        assert replay(broken_training(np.random.default_rng(seed), 0.005, top=1.9)).stopped is None


def test_explosion_and_growing_swings_are_divergence():
    learned = np.linspace(2.3, 1.5, 80)
    swings = 3.0 + 2.0 * (-1.0) ** np.arange(80)
    for end in (1.5 * 2.0 ** np.arange(80), 1.5 * 1.1 ** np.arange(80), swings):
        curve = replay([*learned, *end])
        assert curve.stopped == "diverged"
        assert 80 <= len(curve) <= 125


exact = st.tuples(st.integers(-8, 8).map(lambda n: 2.0**n), st.integers(-4096, 4096).map(float))


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.02, 0.1, 0.3, 1.0]), exact)
def test_divergence_is_judged_alike_at_any_offset_and_scale_and_mirrored_for_a_metric_to_maximise(seed, noise, change):
    scale, offset = change  # a power of two and a whole number: the arithmetic is exact, so nothing may differ
    values = np.round(broken_training(np.random.default_rng(seed), noise) * 1024) / 1024
    curve = replay(values)
    same = replay(scale * values + scale * offset)
    mirrored = replay(scale * offset - scale * values, metric="accuracy")
    assert (len(same), same.stopped) == (len(mirrored), mirrored.stopped) == (len(curve), curve.stopped)
    assert (same.goal, mirrored.goal) == ("min", "max")
    assert len(replay(-values, goal="max")) == len(curve)
    assert len(replay(values, metric="accuracy", goal="min")) == len(curve)


FLAT = {
    "normal": lambda g, n: g.normal(size=n),
    "correlated": lambda g, n: np.convolve(g.normal(size=n + 2), [1, 1, 1], "valid"),
    "growing": lambda g, n: np.linspace(0.05, 1.0, n) * g.normal(size=n),
    "share of 8": lambda g, n: g.binomial(8, 0.1, n) / 8,
    "right or wrong": lambda g, n: g.binomial(1, 0.1, n) / 1,
    "single precision": lambda g, n: 2.3026 + 2.4e-7 * g.integers(-1, 2, n) * (np.arange(n) > 60),
    "constant": lambda g, n: np.full(n, 0.5),
    "descending": lambda g, n: np.linspace(2.3, 0.3, n) + 0.2 * g.normal(size=n),
    "negative": lambda g, n: -5.0 + 0.1 * g.normal(size=n),
}


@pytest.mark.parametrize("kind", FLAT)
def test_noise_alone_is_no_divergence_in_thousands_of_updates(kind):
    for seed in range(6):
        values = FLAT[kind](np.random.default_rng(seed), LONG.steps)
        assert replay(values).stopped is None
        if kind != "descending":
            assert replay(values, goal="max").stopped is None


@pytest.mark.parametrize("height", [1.0, 1e3, 1e300])
def test_a_spike_is_no_divergence(height):
    values = np.linspace(2.3, 1.5, 300) + 0.01 * np.random.default_rng(0).normal(size=300)
    for first in (0, 60, 200, 298):
        spiked = values.copy()
        spiked[first : first + 2] += height
        assert replay(spiked).stopped is None


def test_a_dict_gives_companions_and_the_loss_is_what_is_judged():
    lost = [{"loss": 1.0 - i / 100 if i < 60 else 9.0, "accuracy": 0.1 + i / 1000} for i in range(100)]
    curve = replay(lost, metric="accuracy")
    assert (curve.metric, curve.goal, curve.stopped) == ("accuracy", "max", "diverged")
    assert (curve.of("loss").goal, len(curve.of("loss"))) == ("min", len(curve))
    assert 60 < len(curve) < 70


@pytest.mark.parametrize("garbage", [None, "much", [1.0, 2.0], {"loss": "much"}, {"loss": None}, 1j])
def test_what_is_no_number_is_refused(garbage):
    with pytest.raises(ValueError, match=r"train_at must return a number or a dict of numbers, got "):
        replay([garbage])


@pytest.mark.parametrize("garbage", [None, "much", {"loss": 1.0}])
def test_a_validation_that_is_no_number_is_refused(garbage):
    with pytest.raises(ValueError, match="validate must return a number, got "):
        cyclr.range_test(lambda lr: 1.0, cyclr.ramp(0.0, 1.0, 50), validate=lambda: garbage)


def test_other_wrong_input_is_refused_before_anything_is_trained():
    def train_at(lr):
        raise AssertionError("must not be called")

    ramp = cyclr.ramp(0.0, 1.0, 50)
    for options, sentence in [
        ({"ramp": cyclr.fixed(0.1)}, r"ramp must come from cyclr.ramp\(start_lr, end_lr, steps\), got Fixed"),
        ({}, r"the default ramp makes several passes and needs reset=...; or give ramp=cyclr.ramp\(...\)"),
        ({"reset": lambda: None, "steps": 19}, "steps must be at least 20, got 19"),
        ({"ramp": ramp, "validate": lambda: 0.5, "validate_every": 0}, "validate_every must be at least 1, got 0"),
        ({"ramp": ramp, "validate": lambda: 0.5, "validate_every": 51}, "at most the ramp's 50 updates, .*; got 51"),
        ({"reset": lambda: None, "steps": 20, "validate_every": 21}, "at most the ramp's 20 updates, .*; got 21"),
        ({"ramp": ramp, "goal": "maximum"}, "unknown goal 'maximum'; choose from min, max"),
        ({"ramp": ramp, "measured": "during"}, "unknown measured 'during'; choose from before, after"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            cyclr.range_test(train_at, **options)
    for options, sentence in [
        ({"train_at": None}, r"train_at must be a function train_at\(lr\), got NoneType"),
        ({"validate": 0.3}, r"validate must be a function validate\(\), got float"),
        ({"progress": True}, r"progress must be a function progress\(done, total, lr, value\), got bool"),
        ({"metric": ["loss"]}, 'metric must be the name of a metric, such as "loss", got list'),
        ({"meta": "digits"}, "meta must be a dict, got str"),
    ]:
        with pytest.raises(TypeError, match=sentence):
            cyclr.range_test(**({"train_at": train_at, "ramp": ramp} | options))
    with pytest.raises(ValueError, match=r"train_at returned \['loss'\], but the metric asked for is 'accuracy'"):
        cyclr.range_test(lambda lr: {"loss": 1.0}, ramp, metric="accuracy")


def test_the_default_ramp_resets_before_each_of_its_passes():
    toy = Quadratic()
    curve = cyclr.range_test(toy.train_at, reset=toy.reset, steps=150)
    scout, *others = toy.passes
    linear = [rates for rates in others if rates[0] == 0.0]
    assert scout[0] == pytest.approx(1e-7, rel=1e-9)
    np.testing.assert_allclose(np.diff(np.log(scout)), np.log(1e8) / 95, rtol=1e-6)
    assert toy.resets == len(others) > len(linear) >= 1
    assert curve.lrs.tolist() == linear[-1][: len(curve)]
    assert curve.values[0] == 1.0  # trained from the start
    assert (curve.ramp["start_lr"], curve.ramp["spacing"], curve.ramp["steps"]) == (0.0, "linear", 150)


def cycles_of(toy):
    """Peak -> rates of each short cycle, in the order in which they were made."""
    return {max(rates): rates for rates in toy.passes[1:] if rates[0] > 0.0}


@pytest.mark.parametrize(("steps", "length"), [(50, 25), (200, 100), (400, 128)])
def test_short_cycles_rise_to_their_peak_and_fall_again_and_their_last_quarter_counts(steps, length):
    toy = Noisy(0, 1.0)
    cycles = cyclr.range_test(toy.train_at, reset=toy.reset, steps=steps).of("loss after a short cycle")
    made = cycles_of(toy)
    assert sorted(cycles.lrs) == cycles.lrs.tolist()
    np.testing.assert_allclose(np.diff(np.log10(cycles.lrs)), 0.25, atol=1e-9)  # no gap: neighbours of neighbours
    for peak, value in zip(cycles.lrs, cycles.values, strict=True):
        schedule = cyclr.triangular(peak / 4, peak, length // 2)
        rates = min(made.values(), key=lambda rates: abs(rates[length // 2] - peak))
        np.testing.assert_allclose(rates, [schedule(step) for step in range(length)])
        again = Noisy(0, 1.0)
        losses = [again.train_at(schedule(step)) for step in range(length)]
        assert value == pytest.approx(np.mean(losses[-(length // 4) :]))
    assert cycles.meta["level"] == pytest.approx(10.0, rel=0.2)  # of 20 weights, before they have learned much


@given(seed=st.integers(0, 100), scale=st.sampled_from([1e-2, 1.0, 1e3]))
@settings(max_examples=15, deadline=None)
def test_short_cycles_go_from_the_best_peak_both_ways_until_it_is_worse(seed, scale):
    toy = Noisy(seed, scale)
    cycles = cyclr.range_test(toy.train_at, reset=toy.reset, steps=100).of("loss after a short cycle")
    limit = cycles.values.min() + 0.06 * (cycles.meta["level"] - cycles.values.min())
    first = next(iter(cycles_of(toy)))
    for end, broke in ((0, False), (-1, cycles.stopped is not None)):
        a_decade_away = abs(np.log10(cycles.lrs[end] / first)) > 0.99
        assert cycles.values[end] > limit or a_decade_away or broke
        assert abs(np.log10(cycles.lrs[end] / first)) < 1.01


def test_a_short_cycle_that_breaks_is_no_point_but_said():
    def train_at(lr):
        state["w"] *= 1 - lr if lr < 0.5 else math.nan if state["cycle"] else 1.0
        state["loss"] = state["w"] ** 2
        return state["loss"]

    state = {"w": 1.0, "cycle": False, "passes": 0}

    def reset():
        state.update(w=1.0, passes=state["passes"] + 1, cycle=state["passes"] >= 1)

    curve = cyclr.range_test(train_at, reset=reset, steps=100)
    cycles = curve.of("loss after a short cycle")
    assert cycles.stopped == "diverged"
    assert 0.5 < cycles.stopped_at < 0.5 * 10**0.26
    assert cycles.lrs.max() < 0.5


def test_training_that_learns_nothing_gets_no_short_cycles():
    noise = np.random.default_rng(0)
    curve = cyclr.range_test(lambda lr: 2.3 + 0.01 * noise.standard_normal(), reset=lambda: None, steps=60)
    assert curve.companions == ()


@pytest.mark.parametrize("scale", [1.0, 1e2, 1e4])
@pytest.mark.parametrize("seed", range(4))
def test_the_default_ramp_finds_its_end_by_itself(seed, scale):
    """The least loss of noisy descent lies well inside the linear pass, wherever it is, and a larger rate is worse."""
    toy = Noisy(seed, scale)
    curve = cyclr.range_test(toy.train_at, reset=toy.reset, steps=200)
    least = curve.lrs[np.argmin(np.convolve(curve.values, np.ones(15) / 15, "same")[7:-7]) + 7]
    assert 0.1 * curve.ramp["end_lr"] < least < 0.9 * curve.ramp["end_lr"]
    assert least < 2.0 / scale < 20 * least  # twice the inverse of the curvature is where it breaks
    assert sum(rates[0] == 0.0 for rates in toy.passes) <= 3


def test_a_linear_pass_that_breaks_before_it_learns_is_made_again_much_lower():
    rates = []

    def train_at(lr):  # the scout is through after 96 updates without a trace
        rates.append(lr)
        return 1.0 if len(rates) <= 96 or lr < 1e-3 else math.nan

    curve = cyclr.range_test(train_at, reset=lambda: None, steps=50)
    assert curve.ramp["end_lr"] < 0.1


def test_the_default_ramp_ends_too_where_training_is_broken_from_the_start():
    resets = []
    curve = cyclr.range_test(lambda lr: math.nan, reset=lambda: resets.append(1))
    assert (len(curve), curve.stopped, curve.stopped_at, len(resets)) == (0, "non-finite", 0.0, 1)


@pytest.mark.parametrize(("every", "at"), [(4, range(3, 40, 4)), (None, range(40)), (40, [39])])
def test_validation_is_the_curve_and_training_its_companions(every, at):
    weights = [0.0]

    def train_at(lr):
        weights[0] += lr
        return {"loss": 1.0 - weights[0], "accuracy": 0.25}

    ramp = cyclr.ramp(0.0, 0.01, 40)
    curve = cyclr.range_test(
        train_at, ramp, metric="accuracy", validate=lambda: weights[0], validate_every=every, measured="before"
    )
    assert (curve.metric, curve.goal, curve.measured) == ("validation accuracy", "max", "after")
    assert (curve.stopped, curve.stopped_at) == (None, None)
    assert curve.steps.tolist() == list(at)
    done = np.cumsum(ramp(np.arange(40)))
    np.testing.assert_allclose(curve.values, done[list(at)], rtol=1e-12)  # after the update that it stands beside
    np.testing.assert_allclose(curve.lrs, ramp(np.arange(40))[list(at)], rtol=0)
    assert {each.metric: (len(each), each.measured) for each in curve.companions} == {
        "loss": (40, "before"),
        "accuracy": (40, "before"),
    }


def test_validation_goes_with_any_training_metric_and_stops_where_it_is_not_finite():
    scores = iter([0.5, 0.6, math.nan])
    curve = cyclr.range_test(
        lambda lr: {"perplexity": 3.0},
        cyclr.ramp(0.0, 1.0, 9),
        metric="accuracy",
        validate=lambda: next(scores),
        validate_every=2,
    )
    assert (curve.values.tolist(), curve.stopped, curve.stopped_at) == ([0.5, 0.6], "non-finite", 5 / 8)
    assert len(curve.of("perplexity")) == 6


def test_progress_is_told_after_every_update():
    told = []
    cyclr.range_test(lambda lr: 2 * lr, cyclr.ramp(0.0, 1.0, 5), progress=lambda *seen: told.append(seen))
    assert told == [(done, 5, (done - 1) / 4, (done - 1) / 2) for done in range(1, 6)]
