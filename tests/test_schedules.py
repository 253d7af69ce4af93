"""Schedules against the paper's formulas, and their invariants. What they refuse: test_schedules_errors.py."""

import json
import math
import pickle
from dataclasses import fields
from fractions import Fraction

import jax
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import cyclr
import paper
from cyclr import schedules as kinds
from cyclr.stages import Stages

HUGE = 10**400  # no float holds it
RATES = st.floats(1e-6, 10.0)
BOUNDS = st.tuples(st.just(0.0) | RATES, RATES).map(sorted)
STEPSIZES = st.integers(1, 500)
GAMMAS = st.floats(0.9, 1.0)

# name -> (schedule, the paper's formula), both from base_lr, max_lr, stepsize and gamma
PAPER = {
    "triangular": (lambda a, b, n, g: cyclr.triangular(a, b, n), lambda s, a, b, n, g: paper.triangular(s, a, b, n)),
    "triangular2": (lambda a, b, n, g: cyclr.triangular2(a, b, n), lambda s, a, b, n, g: paper.triangular2(s, a, b, n)),
    "welch": (lambda a, b, n, g: cyclr.welch(a, b, n), lambda s, a, b, n, g: paper.welch(s, a, b, n)),
    "hann": (lambda a, b, n, g: cyclr.hann(a, b, n), lambda s, a, b, n, g: paper.hann(s, a, b, n)),
    "decay": (lambda a, b, n, g: cyclr.decay(a, b, n), lambda s, a, b, n, g: paper.decay(s, a, b, n)),
    "exp_range": (cyclr.exp_range, paper.exp_range),
    "exp_range_amplitude": (cyclr.exp_range_amplitude, paper.exp_range_of_the_ports),
    "exp": (lambda a, b, n, g: cyclr.exp(b, g), lambda s, a, b, n, g: paper.exp(s, b, g)),
    "fixed": (lambda a, b, n, g: cyclr.fixed(b), lambda s, a, b, n, g: b),
}
TABLE_2 = cyclr.stages(
    (cyclr.triangular2(0.001, 0.005, 2_000), 16_000),
    (cyclr.triangular2(0.0001, 0.0005, 1_000), 6_000),
    (cyclr.triangular2(0.00001, 0.00005, 500), 3_000),
)


@st.composite
def cycles(draw):
    low, high = draw(BOUNDS)
    rise = draw(st.integers(0, 40))
    inverted = draw(st.booleans())
    return cyclr.Cycle(
        low,
        high,
        rise,
        draw(st.integers(0 if rise else 1, 40)),
        window=draw(st.sampled_from(["triangular", "welch", "hann"])),
        gamma=draw(st.just(1.0) | GAMMAS | st.just(0.5)),
        gamma_per=draw(st.sampled_from(["step", "cycle"])),
        gamma_scales=draw(st.sampled_from(["amplitude", "bounds"])),
        final_lr=None if inverted else draw(st.none() | st.floats(0.0, high)),
        cycles=draw(st.none() | st.integers(1, 3)),
        inverted=inverted,
    )


SINGLE = st.one_of(
    st.builds(cyclr.fixed, RATES),
    st.builds(cyclr.exp, RATES, GAMMAS),
    st.builds(cyclr.ramp, RATES, RATES, st.integers(2, 100), st.sampled_from(["linear", "log"])),
    cycles(),
)
CHAINS = st.lists(st.tuples(SINGLE, st.integers(1, 60)), min_size=1, max_size=3).map(lambda pairs: cyclr.stages(*pairs))
ANY = SINGLE | CHAINS | st.tuples(CHAINS, SINGLE).map(lambda two: cyclr.stages((two[0], 50), (two[1], 20)))


def near(expected, scale=1.0):
    """A relative tolerance, and beside 0 one that is relative to the largest rate."""
    return pytest.approx(expected, rel=1e-9, abs=1e-12 * scale)


# --- the formulas


@pytest.mark.parametrize("policy", PAPER)
@given(bounds=BOUNDS, stepsize=STEPSIZES, gamma=GAMMAS, position=st.floats(0, 20))
def test_policy_follows_the_paper(policy, bounds, stepsize, gamma, position):
    make, formula = PAPER[policy]
    step = int(position * stepsize)
    expected = float(formula(Fraction(step), *bounds, stepsize, gamma))
    assert make(*bounds, stepsize, gamma)(step) == near(expected, bounds[1])


@pytest.mark.parametrize("window", [cyclr.triangular, cyclr.welch, cyclr.hann])
@given(bounds=BOUNDS, n=STEPSIZES, cycle=st.integers(0, 1000), step=st.integers(0, 1000))
def test_window_peaks_exactly_after_stepsize_and_repeats(window, bounds, n, cycle, step):
    base, top = bounds
    s = window(base, top, n)
    assert (s(0), s(n), s(2 * n)) == (base, top, base)
    assert s(step + 2 * n * cycle) == s(step) == near(s(2 * n * cycle + 2 * n - step % (2 * n)), top)


@given(top=RATES, n=STEPSIZES, step=st.integers(0, 3000))
def test_triangular2_halves_the_amplitude_with_each_cycle(top, n, step):
    s = cyclr.triangular2(0.0, top, n)
    assert s(step + 2 * n) == s(step) / 2
    assert cyclr.triangular2(top, 2 * top, n)(3 * n) == near(1.5 * top)


@given(cycle=cycles(), step=st.integers(0, 400))
def test_rate_stays_between_the_bounds(cycle, step):
    lowest = cycle.base_lr if cycle.final_lr is None else min(cycle.base_lr, cycle.final_lr)
    lowest = lowest if cycle.gamma_scales == "amplitude" else 0.0
    assert lowest * (1 - 1e-12) <= cycle(step) <= cycle.max_lr * (1 + 1e-12)


@given(start=st.just(0.0) | RATES, end=st.just(0.0) | RATES, steps=st.integers(2, 300))
def test_linear_ramp_is_evenly_spaced_and_uses_both_ends(start, end, steps):
    rates = cyclr.ramp(start, end, steps)(np.arange(steps + 5))
    assert (rates[0], *rates[steps - 1 :]) == (start, *[end] * 6)
    np.testing.assert_allclose(np.diff(rates[:steps]), (end - start) / (steps - 1), atol=1e-12 * max(start, end))
    if start <= end:
        expected = [float(paper.range_test(Fraction(i), start, end, steps - 1)) for i in range(steps)]
        np.testing.assert_allclose(rates[:steps], expected, rtol=1e-9, atol=1e-12 * end)


@given(start=RATES, end=RATES, steps=st.integers(2, 300))
def test_log_ramp_has_equal_factors_and_uses_both_ends(start, end, steps):
    rates = cyclr.ramp(start, end, steps, "log")(np.arange(steps + 5))
    assert (rates[0], *rates[steps - 1 :]) == (start, *[end] * 6)
    np.testing.assert_allclose(rates[1:steps] / rates[: steps - 1], (end / start) ** (1 / (steps - 1)), rtol=1e-9)


def test_stages_express_the_papers_table_2():
    steps = np.arange(0, 27_000, 10)
    np.testing.assert_allclose(TABLE_2(steps), [paper.table_2(Fraction(int(step))) for step in steps], rtol=1e-9)
    worked = {0: 0.001, 2_000: 0.005, 6_000: 0.003, 14_000: 0.0015, 15_999: 0.00100025, 16_000: 0.0001, 17_000: 0.0005}
    worked |= {19_000: 0.0003, 21_000: 0.0002, 22_000: 0.00001, 22_500: 0.00005, 24_500: 0.00002, 25_000: 0.00001}
    assert [TABLE_2(step) for step in worked] == pytest.approx(list(worked.values()), rel=1e-9)
    assert TABLE_2.cycle_ends(25_000) == [4_000, 8_000, 12_000, 16_000, 18_000, 20_000, 22_000, 23_000, 24_000, 25_000]


def test_stage_is_not_asked_about_the_steps_before_its_own():
    late = cyclr.stages((cyclr.fixed(0.1), 2_000), (cyclr.exp(0.2, 0.5), 2))
    assert list(late(np.array([0, 2_000, 2_001]))) == [0.1, 0.2, 0.1]  # 0.5**-2000 would overflow


# --- the ports: torch's own schedulers, really stepped


def stepped(make, count):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    scheduler = make(optimizer)
    rates = []
    for _ in range(count):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("mode", "ours"),
    [
        ("triangular", cyclr.triangular(0.001, 0.006, 7)),
        ("triangular2", cyclr.triangular2(0.001, 0.006, 7)),
        ("exp_range", cyclr.exp_range_amplitude(0.001, 0.006, 7, gamma=0.98)),
    ],
)
def test_torch_cyclic_lr_gives_the_same_rates(mode, ours):
    cyclic = torch.optim.lr_scheduler.CyclicLR
    theirs = stepped(lambda o: cyclic(o, 0.001, 0.006, 7, mode=mode, gamma=0.98, cycle_momentum=False), 60)
    np.testing.assert_allclose(ours(np.arange(60)), theirs, rtol=1e-9)


def test_the_papers_exp_range_is_not_the_ports():
    ours, ports = (make(0.001, 0.006, 7, gamma=0.98) for make in (cyclr.exp_range, cyclr.exp_range_amplitude))
    assert (ours(14), ports(14)) == pytest.approx((0.001 * 0.98**14, 0.001), rel=1e-9)


def test_torch_warm_restarts_and_one_cycle_give_the_same_rates():
    restarts = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts
    theirs = stepped(lambda o: restarts(o, T_0=9, eta_min=0.01), 40)
    np.testing.assert_allclose(cyclr.cosine_restarts(0.01, 0.1, 9)(np.arange(40)), theirs, rtol=1e-9)
    once = torch.optim.lr_scheduler.OneCycleLR  # its last rate, at total_steps - 1, is the end that ours reaches after
    theirs = stepped(lambda o: once(o, 0.5, 51, pct_start=16 / 51, cycle_momentum=False, final_div_factor=100), 50)
    ours = cyclr.one_cycle(0.5, 50, rise=15, final_lr=0.5 / 25 / 100)
    np.testing.assert_allclose(ours(np.arange(50)), theirs, rtol=1e-9)
    assert ours(50) == ours(HUGE) == 0.5 / 25 / 100


# --- cycles


@given(schedule=cycles() | CHAINS, step=st.integers(0, 300), more=st.integers(0, 100))
def test_cycle_ends_and_cycle_at_agree(schedule, step, more):
    ends = schedule.cycle_ends(step)
    assert ends == sorted(set(ends)) == [end for end in schedule.cycle_ends(step + more) if end <= step]
    assert schedule.cycle_at(step) <= schedule.cycle_at(step + more)
    stays_in_its_last = isinstance(schedule, cyclr.Cycle) and len(ends) == schedule.cycles
    chain_of_limited = isinstance(schedule, Stages) and any(each.end for each, _ in schedule.stages)
    if not chain_of_limited:
        assert schedule.cycle_at(step) == len(ends) - stays_in_its_last


@given(schedule=ANY)
def test_ends_cycle_is_true_at_the_cycles_ends_and_nowhere_else(schedule):
    assert [updates for updates in range(200) if schedule.ends_cycle(updates)] == schedule.cycle_ends(199)


@pytest.mark.parametrize("policy", ["triangular", "triangular2", "welch", "hann", "exp_range", "exp_range_amplitude"])
@given(bounds=BOUNDS, n=STEPSIZES, gamma=GAMMAS)
def test_rate_is_lowest_where_a_cycle_ends(policy, bounds, n, gamma):
    s = PAPER[policy][0](*bounds, n, gamma)
    ends = s.cycle_ends(7 * n)
    assert ends == [2 * n, 4 * n, 6 * n]
    for start, end in zip([0, *ends], ends, strict=False):
        assert s(end) <= s(np.arange(start, end)).min() * (1 + 1e-12)


def test_cosine_restarts_end_just_before_the_jump_back_to_max_lr():
    s = cyclr.cosine_restarts(0.0, 1.0, 10)
    assert [s(end - 1) < 0.03 and s(end) == 1.0 for end in s.cycle_ends(35)] == [True] * 3


@given(cycle=cycles(), more=st.integers(0, 1000))
def test_rate_rests_after_the_last_cycle(cycle, more):
    if cycle.end is not None:
        assert cycle(cycle.end + more) == cycle(cycle.end) == cycle(HUGE)


@given(bounds=BOUNDS.filter(lambda b: b[1] > 1.01 * b[0]), n=STEPSIZES, step=st.integers(0, 2000))
def test_opposite_momentum_mirrors_the_rate(bounds, n, step):
    base, top = bounds
    for s in (cyclr.triangular(base, top, n), cyclr.hann(base, top, n), cyclr.one_cycle(top, 3 * n, base_lr=base)):
        momentum = s.opposite(0.85, 0.95)
        s = cyclr.Cycle(base, top, s.rise, s.fall, s.window, cycles=s.cycles)  # one_cycle falls further
        height = (s(step) - base) / (top - base)
        assert (momentum(0), momentum(s.rise)) == (0.95, 0.85)
        assert momentum(step) == near(0.95 - 0.1 * height, 100)
    assert [cyclr.triangular2(base, top, n).opposite(0.8, 1.0)(k * n) for k in (1, 2, 3)] == near([0.8, 1.0, 0.9])


# --- one formula for ints, NumPy, torch and JAX


@given(schedule=ANY, steps=st.lists(st.integers(0, 400), max_size=12))
def test_numpy_and_torch_give_the_values_of_ints(schedule, steps):
    expected = near([schedule(step) for step in steps], 1e-3)
    ours = schedule(np.array(steps, dtype=np.int32))
    theirs = schedule(torch.tensor(steps, dtype=torch.int64))
    assert (ours.dtype, theirs.dtype) == (np.float64, torch.float64)
    assert list(ours) == expected
    assert theirs.tolist() == expected


@settings(max_examples=25)
@given(schedule=ANY)
def test_jax_under_jit_gives_the_same_rounded_to_single_precision(schedule):
    steps = np.arange(0, 240, 7)
    got = jax.jit(schedule)(jax.numpy.asarray(steps))
    assert got.dtype == np.float32
    denormal = 1e-37  # which XLA takes for 0
    np.testing.assert_allclose(np.asarray(got), schedule(steps).astype(np.float32), rtol=0, atol=denormal)
    one_by_one = jax.lax.map(lambda step: jax.vmap(schedule)(step[None])[0], jax.numpy.asarray(steps))
    np.testing.assert_array_equal(np.asarray(one_by_one), np.asarray(got))


@given(schedule=ANY, shape=st.sampled_from([(), (0,), (5,), (2, 3), (0, 4)]))
def test_shape_is_kept(schedule, shape):
    steps = np.full(shape, 3, dtype=np.uint8)
    assert isinstance(schedule(steps), np.ndarray)
    assert schedule(steps).shape == tuple(schedule(torch.from_numpy(steps)).shape) == shape
    assert jax.eval_shape(schedule, jax.ShapeDtypeStruct(shape, np.int32)).shape == shape


@given(schedule=ANY)
def test_huge_steps_do_not_overflow(schedule):
    limit = schedule(HUGE - HUGE % 600)
    assert math.isfinite(limit)
    assert limit >= 0.0
    assert np.isfinite(schedule(np.array([2**62, 2**63 - 1]))).all()


def test_amplitude_fades_to_nothing_after_a_thousand_cycles():
    steps = 20 * np.array([1_000, 1_100, 10**9]) + 10
    s = cyclr.triangular2(0.0, 1.0, 10)
    assert (
        [s(int(step)) for step in steps] == list(s(steps)) == s(torch.from_numpy(steps)).tolist() == [0.5**1000, 0, 0]
    )
    assert cyclr.triangular2(0.1, 1.0, 10)(HUGE + 10) == cyclr.exp_range_amplitude(0.1, 1.0, 10, 0.99)(HUGE) == 0.1
    assert cyclr.exp(0.1, 0.99)(HUGE) == cyclr.exp_range(0.1, 1.0, 10, 0.99)(HUGE) == 0.0


# --- values


@given(schedule=ANY, other=ANY)
def test_schedule_is_a_value(schedule, other):
    copies = [
        pickle.loads(pickle.dumps(schedule)),
        cyclr.schedule_from_dict(json.loads(json.dumps(schedule.to_dict()))),
        eval(repr(schedule), vars(kinds) | {"Stages": Stages}),
    ]
    assert copies == [schedule] * 3
    assert len({schedule, *copies}) == 1
    assert (schedule == other) == (schedule.to_dict() == other.to_dict())
    with pytest.raises(AttributeError):
        setattr(schedule, fields(schedule)[0].name, 5)


def test_numpy_numbers_become_plain_ones():
    s = cyclr.stages((cyclr.triangular(np.float64(0.1), np.float64(1), np.int64(5)), np.int64(20)))
    assert json.loads(json.dumps(s.to_dict())) == s.to_dict()
    assert repr(s) == "Stages(stages=((Cycle(base_lr=0.1, max_lr=1.0, rise=5, fall=5), 20),))"


def test_stages_end_where_their_last_schedule_does():
    assert cyclr.stages((cyclr.fixed(0.1), 10), (cyclr.triangular(0.1, 1.0, 5), 20)).end is None
    limited = cyclr.stages((cyclr.fixed(0.1), 10), (cyclr.one_cycle(1.0, 30), 20))
    assert limited.end == 40
    assert limited(30) != limited(40) == limited(41) == limited(1000)
