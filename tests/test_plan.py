"""The plan fits a policy into a budget as the paper's 3.2 advises, and says where it cannot."""

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import cyclr

CYCLIC = ["triangular", "triangular2", "exp_range", "exp_range_amplitude", "welch", "hann", "cosine_restarts"]
ONE_WAY = ["fixed", "decay", "exp", "one_cycle", "linear_to_zero"]


def test_policies_are_these():
    assert sorted(cyclr.POLICIES) == sorted(CYCLIC + ONE_WAY)


@example(policy="hann", per_epoch=10, budget=119)
@example(policy="hann", per_epoch=10, budget=120)
@example(policy="hann", per_epoch=10, budget=159)
@example(policy="hann", per_epoch=10, budget=160)
@given(policy=st.sampled_from(CYCLIC), per_epoch=st.integers(1, 2000), budget=st.integers(6, 500_000))
def test_cyclic_plan_keeps_to_the_papers_advice_or_warns(policy, per_epoch, budget):
    p = cyclr.plan(policy, 0.001, 0.006, steps_per_epoch=per_epoch, total_steps=budget)
    ends = p.schedule.cycle_ends(p.total_steps)
    assert budget - 2 * len(ends) < p.total_steps <= budget
    assert p.total_steps == ends[-1]
    assert len(ends) >= 3
    half = p.schedule.length / 2
    assert half <= 10 * per_epoch
    too_short = half < 2 * per_epoch
    assert [*map(bool, p.warnings)] == [True] * too_short
    assert too_short == (budget < 12 * per_epoch)  # 3 cycles of 2 * 2 epochs
    assert len(ends) >= 4 or budget < 16 * per_epoch


@given(per_epoch=st.integers(1, 9), budget=st.integers(240, 2_000), half=st.integers(1, 120))
def test_a_given_stepsize_is_kept_and_judged(per_epoch, budget, half):
    p = cyclr.plan("triangular", 0.1, 1.0, steps_per_epoch=per_epoch, total_steps=budget, stepsize=half)
    assert p.schedule == cyclr.triangular(0.1, 1.0, half)
    assert p.total_steps == budget - budget % (2 * half)
    expected = ["half a cycle"] * (not 2 * per_epoch <= half <= 10 * per_epoch)
    expected += ["the paper advises at least 3"] * (budget < 6 * half)
    assert len(p.warnings) == len(expected)
    assert all(words in warning for words, warning in zip(expected, p.warnings, strict=True))


def test_the_papers_cifar10_budget_gives_four_cycles_of_12_and_a_half_epochs():
    p = cyclr.plan("triangular", 0.001, 0.006, steps_per_epoch=500, epochs=50)
    assert (p.schedule.length, p.total_steps, p.warnings) == (6250, 25_000, ())
    assert str(p).splitlines() == [
        "triangular: 25,000 updates",
        "  stepsize 3,125 updates = 6.25 epochs, 4 cycles (the paper advises 2 to 10 epochs and 4 cycles or more)",
    ]


def test_plan_says_that_it_stops_early_and_why():
    p = cyclr.plan("hann", 0.1, 1.0, steps_per_epoch=10, total_steps=1003)  # 1003 = 6 cycles * 2 * 83 + 7
    assert "it stops 7 updates early, at the last cycle's end" in p.reasons[-1]


@pytest.mark.parametrize(
    ("policy", "first", "last"),
    [
        ("fixed", math.sqrt(0.1 * 1.6), math.sqrt(0.1 * 1.6)),
        ("decay", 1.6, 0.1),
        ("exp", 1.6, 0.16),
        ("one_cycle", 0.1, 0.0),
        ("linear_to_zero", 1.6, 0.0),
    ],
)
def test_policy_without_cycles_takes_the_whole_budget(policy, first, last):
    p = cyclr.plan(policy, 0.1, 1.6, steps_per_epoch=10, total_steps=997)
    assert (p.total_steps, p.warnings) == (997, ())
    assert (p.schedule(0), p.schedule(997)) == pytest.approx((first, last), rel=1e-9)


@pytest.mark.parametrize("policy", ["exp_range", "exp_range_amplitude"])
def test_declining_policies_end_with_a_tenth_of_the_amplitude(policy):
    p = cyclr.plan(policy, 0.0, 1.0, steps_per_epoch=10, total_steps=800)
    peaks = p.schedule(np.arange(100, 800, 200))
    assert peaks == pytest.approx(0.1 ** (np.arange(100, 800, 200) / 800), rel=1e-9)


@given(updates=st.integers(2, 10**7), per_epoch=st.integers(1, 5000))
def test_epochs_and_updates_are_the_same_budget(updates, per_epoch):
    given = {"policy": "hann" if updates > 5 else "decay", "base_lr": 0.1, "max_lr": 1.0, "steps_per_epoch": per_epoch}
    assert cyclr.plan(**given, epochs=updates / per_epoch) == cyclr.plan(**given, total_steps=updates)


def test_part_of_an_epoch_counts_whole_updates():
    assert 0.29 * 100 < 29  # in floating point
    for epochs, updates in [(0.29, 29), (0.299, 29), (1.5, 150)]:
        assert cyclr.plan("decay", 0.1, 1.0, steps_per_epoch=100, epochs=epochs).total_steps == updates


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"policy": "triangle"}, r"unknown policy 'triangle'; choose from .*did you mean triangular\?"),
        ({"epochs": 5}, "the budget is either epochs or total_steps, got both"),
        ({"epochs": 0}, "the budget is either epochs or total_steps, got both"),
        ({"total_steps": None}, "the budget is either epochs or total_steps, got neither"),
        ({"total_steps": None, "epochs": 0}, "epochs must be finite and above 0, got 0"),
        ({"total_steps": None, "epochs": math.inf}, "epochs must be finite and above 0, got inf"),
        ({"total_steps": 5}, "must hold 3 cycles of at least 2 updates, got 5 updates; train longer"),
        ({"total_steps": 10.5}, "budget in updates must be a whole number"),
        ({"total_steps": 100, "stepsize": 51}, "stepsize must be at most half the budget of 100 updates, got 51"),
        ({"stepsize": 0}, "stepsize must be at least 1, got 0"),
        ({"total_steps": None, "epochs": 1e308}, "budget of 1e[+]308 epochs is not finite in updates"),
        ({"policy": "decay", "stepsize": 7}, "decay has no cycles, so no stepsize; leave it out"),
        ({"steps_per_epoch": 0}, "steps_per_epoch must be at least 1, got 0"),
        ({"steps_per_epoch": 2.5}, "steps_per_epoch must be a whole number"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    given = {"policy": "triangular", "base_lr": 0.1, "max_lr": 1.0, "steps_per_epoch": 10, "total_steps": 1000}
    with pytest.raises(ValueError, match=message):
        cyclr.plan(**(given | arguments))


@pytest.mark.parametrize("policy", cyclr.POLICIES)
def test_wrong_bounds_are_refused_whatever_the_policy(policy):
    for bounds, message in [
        ((1.0, 0.1), r"base_lr=1 and max_lr=0\.1 \(swapped\?\)"),
        ((-1.0, 0.1), "base_lr must be finite and at least 0, got -1"),
        ((0.1, math.nan), "max_lr must be finite and above 0, got nan"),
    ]:
        with pytest.raises(ValueError, match=message):
            cyclr.plan(policy, *bounds, steps_per_epoch=10, total_steps=1000)
