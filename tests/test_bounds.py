"""Bounds read off curves whose bounds are known, and the curves that have none."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cyclr


def a_curve(lrs, values, *, stopped=None, goal="min", measured="after"):
    spacing = {"spacing": "log"} if lrs[0] > 0 else {"spacing": "linear"}
    return cyclr.Curve(
        "accuracy" if goal == "max" else "loss",
        np.arange(len(lrs)),
        lrs,
        values,
        goal=goal,
        measured=measured,
        stopped=stopped,
        stopped_at=float(lrs[-1]) if stopped else None,
        ramp=spacing,
    )


def learning(lrs, *, start, best, fall, noise=0.0, seed=0):
    """A loss that goes from 2.3 down to 1.0 around the rate `start` and rises again beyond `fall`."""
    x = np.log10(np.maximum(lrs, 1e-12))
    down = 1.3 / (1 + np.exp(-(x - np.log10(start)) * 6 / np.log10(best / start)))
    up = 2.0 * np.clip((x - np.log10(fall)) / 0.3, 0, None) ** 2
    return 2.3 - down + up + noise * np.random.default_rng(seed).standard_normal(len(lrs))


LOG = np.geomspace(1e-5, 1.0, 400)
LINEAR = np.linspace(0.0, 0.2, 2000)


@pytest.mark.parametrize("lrs", [LOG, LINEAR], ids=["log", "linear"])
def test_both_bounds_are_read_within_a_factor_of_two(lrs):
    bounds = cyclr.find_bounds(a_curve(lrs, learning(lrs, start=1.5e-3, best=3e-2, fall=2e-1, noise=0.05)))
    assert bounds.status == "ok"
    assert 0.75e-3 < bounds.base_lr < 3e-3
    assert 7e-3 < bounds.max_lr < 3e-2  # 0.4 of the middle of a plateau from 5e-3 to 3e-1
    assert bounds.interval[0] < bounds.max_lr < bounds.interval[1]
    assert bounds.base_interval[0] < bounds.base_lr < bounds.base_interval[1]


def test_the_rule_of_thumb_serves_where_learning_starts_too_near_the_top():
    bounds = cyclr.find_bounds(a_curve(LOG, learning(LOG, start=1e-2, best=1.2e-2, fall=2e-2, noise=0.01)))
    assert bounds.status == "ok"
    assert bounds.base_lr == pytest.approx(bounds.max_lr / 4)
    assert bounds.base_interval is None
    assert "rule of thumb" in bounds.reason


@settings(max_examples=20)
@given(offset=st.floats(-1e3, 1e3), scale=st.floats(1e-2, 1e2))
def test_bounds_do_not_depend_on_offset_and_scale_of_the_loss(offset, scale):
    values = learning(LOG, start=1e-3, best=1e-2, fall=6e-2, noise=0.05)
    plain = cyclr.find_bounds(a_curve(LOG, values))
    moved = cyclr.find_bounds(a_curve(LOG, scale * values + offset))
    assert moved.max_lr == pytest.approx(plain.max_lr, rel=1e-4)
    assert moved.base_lr == pytest.approx(plain.base_lr, rel=1e-4)


def test_an_accuracy_gives_the_bounds_of_its_mirror_image():
    values = learning(LOG, start=1e-3, best=1e-2, fall=6e-2, noise=0.05)
    loss, accuracy = a_curve(LOG, values), a_curve(LOG, -values, goal="max")
    assert cyclr.find_bounds(accuracy).max_lr == cyclr.find_bounds(loss).max_lr


def test_bounds_move_with_the_curve_along_the_rates():
    """Smoothing in log rate does not lag: a curve at a hundredth of the rates has a hundredth of the bounds."""
    values = learning(LOG, start=1e-3, best=1e-2, fall=6e-2, noise=0.05)
    here, there = cyclr.find_bounds(a_curve(LOG, values)), cyclr.find_bounds(a_curve(LOG / 100, values))
    assert there.max_lr == pytest.approx(here.max_lr / 100, rel=1e-6)
    assert there.base_lr == pytest.approx(here.base_lr / 100, rel=1e-6)


def test_the_smoother_does_not_lag():
    """A step at a known rate is still half way up at that rate after smoothing, whichever way one goes."""
    values = 2.0 - 1.0 / (1 + (3e-3 / LOG) ** 4) + 0.5 * np.clip(np.log10(LOG / 0.1), 0, None)
    base = cyclr.find_bounds(a_curve(LOG, values)).base_lr
    exact = 3e-3 * (0.3 / 0.7) ** 0.25  # where 30 % of the progress is made
    assert base == pytest.approx(exact, rel=0.1)  # a running mean over 50 points would be off by a factor of 3


def test_values_seen_before_an_update_belong_to_the_update_before():
    values = learning(LOG, start=1e-3, best=1e-2, fall=6e-2)
    after = a_curve(LOG[:-1], values[:-1])
    before = a_curve(LOG, np.concatenate([[2.3], values[:-1]]), measured="before")
    assert cyclr.find_bounds(before).max_lr == pytest.approx(cyclr.find_bounds(after).max_lr, rel=1e-6)


def test_a_policy_that_declines_to_zero_gets_a_higher_peak():
    curve = a_curve(LOG, learning(LOG, start=1e-3, best=1e-2, fall=6e-2, noise=0.02))
    assert cyclr.find_bounds(curve, policy="one_cycle").max_lr > cyclr.find_bounds(curve, policy="triangular").max_lr


def with_cycles(curve, peaks, values, level=2.3, goal="min"):
    """A range test with short cycles."""
    cycles = cyclr.Curve(
        f"{curve.metric} after a short cycle", [64] * len(peaks), peaks, values, goal, "after", meta={"level": level}
    )
    return dataclasses.replace(curve, companions=(cycles,))


PEAKS = 0.004 * 10 ** np.arange(-0.5, 0.76, 0.25)
CYCLES = 1.0 + 0.8 * np.log10(PEAKS / 0.004) ** 2


@pytest.mark.parametrize(("policy", "share"), [("triangular", 0.8), ("one_cycle", 1.05), ("triangular2", 1.15)])
def test_short_cycles_decide_on_max_lr_and_the_ramp_on_base_lr(policy, share):
    ramp = a_curve(LOG, learning(LOG, start=3e-4, best=3e-2, fall=2e-1, noise=0.05))
    alone, bounds = (cyclr.find_bounds(each, policy=policy) for each in (ramp, with_cycles(ramp, PEAKS, CYCLES)))
    assert bounds.max_lr == pytest.approx(share * 0.004, rel=0.02)
    assert bounds.base_lr == alone.base_lr
    assert bounds.base_interval == alone.base_interval
    assert bounds.interval[0] < bounds.max_lr < bounds.interval[1]


def test_the_interval_is_as_wide_as_the_study_says_or_as_the_noise_if_that_is_more():
    ramp = a_curve(LOG, learning(LOG, start=3e-4, best=3e-2, fall=2e-1))
    for curve, factor in ((ramp, 2.2), (with_cycles(ramp, PEAKS, CYCLES), 1.8)):
        bounds = cyclr.find_bounds(curve)
        assert bounds.interval == pytest.approx((bounds.max_lr / factor, bounds.max_lr * factor))
    apart = [with_cycles(ramp, PEAKS * shift, CYCLES) for shift in (0.4, 1.0, 2.5)]  # three seeds that disagree
    bounds = cyclr.find_bounds(apart)
    assert bounds.interval[0] < bounds.max_lr / 2
    assert bounds.interval[1] > bounds.max_lr * 2


def test_short_cycles_suffice_where_the_ramp_says_nothing():
    flat = a_curve(LOG, learning(LOG, start=1e-3, best=1e-2, fall=1e3))
    assert cyclr.find_bounds(flat).status == "never broke"
    bounds = cyclr.find_bounds(with_cycles(flat, PEAKS, CYCLES), policy="one_cycle")
    assert bounds.status == "ok"
    assert bounds.base_lr == pytest.approx(bounds.max_lr / 4) == pytest.approx(1.05 * 0.001, rel=0.02)


def test_short_cycles_of_an_accuracy_are_mirrored_and_their_offset_does_not_matter():
    ramp = a_curve(LOG, learning(LOG, start=3e-4, best=3e-2, fall=2e-1))
    mirrored = a_curve(LOG, 100 - ramp.values, goal="max")
    expected = cyclr.find_bounds(with_cycles(ramp, PEAKS, CYCLES)).max_lr
    assert cyclr.find_bounds(with_cycles(mirrored, PEAKS, 100 - CYCLES, 97.7, "max")).max_lr == pytest.approx(expected)


def test_the_metric_that_is_asked_for_is_read():
    accuracy = a_curve(LOG, -learning(LOG, start=3e-4, best=3e-2, fall=2e-1), goal="max")
    loss = a_curve(LOG, learning(LOG, start=3e-3, best=3e-2, fall=2e-1))
    both = dataclasses.replace(accuracy, companions=(loss,))
    assert cyclr.find_bounds(both).base_lr < 1e-3 < cyclr.find_bounds(both, metric="loss").base_lr
    with pytest.raises(ValueError, match="did not measure 'error'; it has accuracy, loss"):
        cyclr.find_bounds(both, metric="error")


def test_reading_is_repeatable_and_several_curves_are_read_together():
    curves = [a_curve(LOG, learning(LOG, start=1e-3, best=s, fall=6e-2, noise=0.05)) for s in (8e-3, 1e-2, 1.3e-2)]
    together = cyclr.find_bounds(curves)
    singles = [cyclr.find_bounds(curve).max_lr for curve in curves]
    assert together == cyclr.find_bounds(curves)
    assert 0.9 * min(singles) <= together.max_lr <= 1.1 * max(singles)
    assert "3 curves" in together.reason


def test_a_minority_of_unreadable_curves_is_told_and_left_out():
    good = a_curve(LOG, learning(LOG, start=1e-3, best=1e-2, fall=6e-2, noise=0.05))
    flat = a_curve(LOG, 2.3 + 0.01 * np.random.default_rng(1).standard_normal(400))
    bounds = cyclr.find_bounds([good, flat, good])
    assert bounds.status == "ok"
    assert "2 curves, 1 more: flat" in bounds.reason
    assert cyclr.find_bounds([good, flat]).status == "flat"


NOISE = np.random.default_rng(1).standard_normal(400)
UNREADABLE = {
    "flat": a_curve(LOG, 2.3 + 0.01 * NOISE),
    "too short": a_curve(LOG[:8], np.linspace(2.3, 1.0, 8)),
    "broken from the start": a_curve(LOG, 2.3 + np.linspace(0, 3, 400) ** 2 + 0.01 * NOISE, stopped="diverged"),
    "never broke": a_curve(LOG, 2.3 - 1.3 / (1 + (1e-2 / LOG)) + 0.01 * NOISE),
}


@pytest.mark.parametrize("status", UNREADABLE)
def test_where_nothing_can_be_read_there_is_a_reason_and_no_number(status):
    bounds = cyclr.find_bounds(UNREADABLE[status])
    assert bounds.status == status
    assert (bounds.base_lr, bounds.max_lr, bounds.interval, bounds.base_interval) == (None,) * 4
    assert len(bounds.reason) > 30


def test_constant_values_are_flat_not_a_division_by_zero():
    assert cyclr.find_bounds(a_curve(LOG, np.full(400, 2.3))).status == "flat"


def test_a_curve_that_broke_after_few_points_broke_from_the_start():
    bounds = cyclr.find_bounds(a_curve(LOG[:3], [2.3, 2.4, 9.0], stopped="non-finite"))
    assert bounds.status == "broken from the start"
    assert "start lower" in bounds.reason


def test_an_interval_wider_than_ten_is_no_answer():
    noisy = [
        a_curve(LOG, learning(LOG, start=s, best=4 * s, fall=8 * s, noise=0.05), stopped="diverged")
        for s in (1e-4, 1e-2)
    ]
    bounds = cyclr.find_bounds(noisy)
    assert bounds.status == "too noisy"
    assert bounds.max_lr is None


def test_wrong_input_is_refused():
    curve = UNREADABLE["flat"]
    with pytest.raises(ValueError, match="give a curve or several"):
        cyclr.find_bounds([])
    with pytest.raises(ValueError, match=r"one metric can be read together.*accuracy.*loss"):
        cyclr.find_bounds([curve, a_curve(LOG, -curve.values, goal="max")])
    with pytest.raises(ValueError, match=r"did you mean triangular\?"):
        cyclr.find_bounds(curve, policy="triangle")


def test_pure_noise_gives_no_number():
    """Over many flat curves of noise an answer is an accident, so it must be rare."""
    found = sum(
        cyclr.find_bounds(a_curve(LOG, np.random.default_rng(seed).standard_normal(400))).status == "ok"
        for seed in range(40)
    )
    assert found <= 2


def test_the_interval_covers_the_reading_without_noise():
    """Over noisy copies of one curve, 90 % intervals hold what the noiseless curve says about nine times in ten."""
    exact = cyclr.find_bounds(a_curve(LINEAR, learning(LINEAR, start=1e-3, best=1e-2, fall=6e-2))).max_lr
    held = 0
    for seed in range(40):
        noisy = a_curve(LINEAR, learning(LINEAR, start=1e-3, best=1e-2, fall=6e-2, noise=0.1, seed=seed))
        low, high = cyclr.find_bounds(noisy).interval
        held += low <= exact <= high
    assert held >= 30


def shrinking_too_fast(start, end, steps):
    """w**2 under gradient descent at rates above 1: the loss grows from the first update on."""
    w = [1.0]

    def train_at(lr):
        loss = w[0] ** 2
        w[0] -= lr * 2 * w[0]
        return loss

    return cyclr.range_test(train_at, cyclr.ramp(start, end, steps))


@pytest.mark.parametrize(
    "curve",
    [
        *(shrinking_too_fast(*ramp) for ramp in ((1.05, 1.2, 40), (1.5, 3.0, 60), (1.01, 1.05, 100), (1.2, 1.5, 60))),
        a_curve(
            np.linspace(0.0, 1.0, 300),
            np.linspace(2.0, 8.0, 300) + 0.05 * np.random.default_rng(2).standard_normal(300),
        ),
    ],
)
def test_where_training_only_got_worse_there_is_no_number(curve):
    bounds = cyclr.find_bounds(curve)
    assert (bounds.status, bounds.max_lr) == ("broken from the start", None)
    assert "start lower" in bounds.reason


def test_a_loss_that_explodes_at_the_end_is_no_gain_in_front_of_it():
    lrs = np.linspace(0.0, 0.2, 35)
    values = np.r_[2 + 0.05 * NOISE[:30], 9, 30, 500, 1e5, 1e10]
    bounds = cyclr.find_bounds(a_curve(lrs, values, stopped="diverged"))
    assert bounds.status == "broken from the start"


@pytest.mark.parametrize("tail", [(10.0, 1e3, 1e5), (1e10, 1e20, 1e30)])
def test_how_far_a_loss_flew_moves_no_bound(tail):
    values = learning(LOG, start=1e-3, best=1e-2, fall=6e-2, noise=0.05)
    near, far = (
        cyclr.find_bounds(a_curve(LOG, np.r_[values[:-3], ends], stopped="diverged"))
        for ends in ((4.0, 5.0, 6.0), tail)
    )
    assert far.max_lr == pytest.approx(near.max_lr, rel=0.02)
    assert far.base_lr == pytest.approx(near.base_lr, rel=0.02)
