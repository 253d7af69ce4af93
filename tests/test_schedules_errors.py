"""What schedules refuse: wrong numbers, wrong steps, damaged descriptions; each with a sentence."""

import math

import numpy as np
import pytest
import torch

import cyclr

HUGE = 10**400  # no float holds it


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cyclr.triangular(0.006, 0.001, 5), r"base_lr=0\.006 and max_lr=0\.001 \(swapped\?\)"),
        (lambda: cyclr.decay(0.006, 0.001, 5), r"base_lr=0\.006 and max_lr=0\.001 \(swapped\?\)"),
        (lambda: cyclr.one_cycle(0.1, 10, final_lr=0.5), r"final_lr=0\.5 and max_lr=0\.1 \(swapped\?\)"),
        (lambda: cyclr.triangular(0.1, 1, 0), "stepsize must be at least 1, got 0"),
        (lambda: cyclr.triangular(0.1, 1, 2.5), r"stepsize must be a whole number, at least 1, got 2\.5; round"),
        (lambda: cyclr.triangular(math.nan, 1, 5), "base_lr must be finite and at least 0, got nan"),
        (lambda: cyclr.triangular(0.1, math.inf, 5), "max_lr must be finite and above 0, got inf"),
        (lambda: cyclr.triangular(-0.1, 1, 5), "base_lr must be finite and at least 0, got -0.1"),
        (lambda: cyclr.fixed(HUGE), "lr must be finite and at least 0, got inf"),
        (lambda: cyclr.exp_range(0.1, 1, 5, gamma=1.5), r"gamma must be above 0 and at most 1, got 1\.5"),
        (lambda: cyclr.exp(0.1, 0.0), "gamma must be finite and above 0, got 0"),
        (lambda: cyclr.ramp(0, 1, 10, "log"), "start_lr must be above 0 on a logarithmic ramp"),
        (lambda: cyclr.ramp(0, 1, 1), "steps must be at least 2, got 1"),
        (
            lambda: cyclr.ramp(0, 1, 9, "lin"),
            r"spacing 'lin'; choose from linear, log \(did you mean linear\?\)",
        ),
        (lambda: cyclr.one_cycle(0.1, 10, rise=10), "rise must be below total_steps, got rise=10 and total_steps=10"),
        (lambda: cyclr.Cycle(0.1, 1, 0, 0), "fall must be at least 1, got 0"),
        (lambda: cyclr.Cycle(0.1, 1, 5, 5, inverted=True, final_lr=0.1), "leave final_lr out"),
        (lambda: cyclr.Cycle(0.1, 1, 5, 5, inverted="no"), "inverted must be True or False, got 'no'"),
        (lambda: cyclr.stages(), "stages got no stage"),
        (lambda: cyclr.stages(cyclr.fixed(0.1)), r"a stage is a pair \(schedule, steps\), got Fixed"),
        (lambda: cyclr.stages((cyclr.fixed(0.1), 0)), "a stage's steps must be at least 1, got 0"),
        (lambda: cyclr.triangular(0.1, 1, 5).cycle_ends(-1), "total_steps must be at least 0, got -1"),
        (lambda: cyclr.fixed(0.1).cycle_at(-1), "step must be at least 0, got -1"),
    ],
)
def test_wrong_numbers_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("step", [1.0, np.float64(1), np.array([1.0]), torch.tensor([1.0]), [1, 2], "1", None])
def test_steps_that_are_no_ints_are_refused(step):
    with pytest.raises(TypeError, match=r"a step is an int or an array of ints, got .*counts optimiser updates from 0"):
        cyclr.triangular(0.1, 1.0, 5)(step)


@pytest.mark.parametrize("step", [-1, np.int64(-1), np.array([3, -1])])
def test_negative_steps_are_refused(step):
    with pytest.raises(ValueError, match=r"step must be at least 0.*, got -1"):
        cyclr.triangular(0.1, 1.0, 5)(step)


def test_unsigned_steps_never_wrap_round():
    with pytest.raises(ValueError, match=r"below 2\*\*63, got 18446744073709551615"):
        cyclr.triangular(0.1, 1.0, 5)(np.array([2**64 - 1], dtype=np.uint64))


def test_a_rate_that_is_no_number_is_refused():
    with pytest.raises(TypeError, match="base_lr must be a number, got None"):
        cyclr.triangular(None, 1.0, 5)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "a schedule's description needs a 'kind' .*got {}"),
        ([1], "a schedule's description needs a 'kind'"),
        ({"kind": "cycel"}, r"unknown kind of schedule 'cycel'; choose from .*did you mean cycle\?"),
        ({"kind": ["cycle"]}, "unknown kind of schedule"),
        ({"kind": "fixed"}, "the description of a fixed schedule is incomplete: .*'lr'"),
        ({"kind": "fixed", "lr": None}, "lr must be a number, got None"),
        ({"kind": "fixed", "lr": -1}, "lr must be finite and at least 0, got -1"),
        ({"kind": "fixed", "lr": 0.1, "rl": 1}, r"unknown number of a fixed schedule 'rl'.*did you mean lr\?"),
        (cyclr.hann(0, 1, 5).to_dict() | {"window": "han"}, r"unknown window 'han'.*did you mean hann\?"),
        (cyclr.hann(0, 1, 5).to_dict() | {"rise": 1.5}, "rise must be a whole number"),
        ({"kind": "stages"}, "stages got no stage"),
        ({"kind": "stages", "stages": 3}, r"a stage is a pair \(schedule, steps\), got 3"),
        ({"kind": "stages", "stages": [3]}, r"a stage is a pair \(schedule, steps\), got 3"),
        ({"kind": "stages", "stages": [[{"kind": "fixed", "lr": 0.1}]]}, r"a stage is a pair \(schedule, steps\)"),
        ({"kind": "stages", "stages": [[{"kind": "fixed"}, 5]]}, "fixed schedule is incomplete"),
        ({"kind": "stages", "stages": [], "lr": 1}, "unknown number of a stages schedule 'lr'"),
    ],
)
def test_damaged_description_is_refused(data, message):
    with pytest.raises(ValueError, match=message):
        cyclr.schedule_from_dict(data)
