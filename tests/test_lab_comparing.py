"""The comparison: table and verdict on records made by hand, and a comparison that goes on where it stopped."""

import math
import re

import numpy as np
import pytest
from scipy import stats

from cyclr.lab import compare, read_records, table, verdict
from cyclr.lab.comparing import interval
from tiny_task import make

BUDGET = {"policies": ("fixed", "triangular", "fixed=0.3"), "seeds": (0, 1), "total_steps": 24}


def record(policy, seed, test, status="done", validation=None):
    config = {"policy": policy, "seed": seed, "total_steps": 100}
    return {"config": config, "result": {"status": status, "test": test, "validation": validation}}


def records(**values):
    return [record(policy, seed, value) for policy, runs in values.items() for seed, value in enumerate(runs)]


@pytest.mark.parametrize(
    ("fixed", "cyclic", "words"),
    [
        ([0.80, 0.81, 0.79], [0.90, 0.92, 0.89], "triangular won: triangular 0.9033 against fixed 0.8000, n = 3"),
        ([0.90, 0.92, 0.89], [0.80, 0.81, 0.79], "fixed won: triangular 0.8000 against fixed 0.9033, n = 3"),
        ([0.80, 0.90, 0.85], [0.84, 0.86, 0.88], "cannot tell: .* more seeds would narrow it"),
        ([0.80], [0.99], "cannot tell: .* n = 1; one seed says nothing"),
    ],
)
def test_verdict_says_which_won_or_that_it_cannot_be_told(fixed, cyclic, words):
    assert re.match(words, verdict(table(records(fixed=fixed, triangular=cyclic))))


def test_table_has_means_spread_paired_differences_and_divergence():
    several = [*records(fixed=[0.5, 0.6, 0.7], hann=[0.7, 0.9, 0.8]), record("exp", 0, 0.1, "diverged")]
    hann, fixed, exp = table(several[::-1])  # in any order of records
    assert (hann.policy, fixed.policy, exp.policy) == ("hann", "fixed", "exp")
    assert hann.values == (0.7, 0.9, 0.8)
    assert (hann.mean, hann.sd) == pytest.approx((0.8, 0.1))
    assert hann.difference == pytest.approx(interval([0.2, 0.3, 0.1]))
    assert (fixed.difference, exp.difference, exp.diverged, hann.diverged) == (None, None, 1, 0)
    assert math.isnan(exp.sd)


def test_what_is_judged_is_the_test_data_then_the_validation_data():
    (row,) = table([record("fixed", 0, 0.3, validation=0.9), record("fixed", 1, None, validation=0.8)])
    assert row.values == (0.3, 0.8)


def test_of_several_fixed_rates_the_best_is_the_one_to_beat():
    several = [*records(fixed=[0.5, 0.5], triangular=[0.6, 0.61]), *records(**{"fixed=0.1": [0.7, 0.71]})]
    rows = {row.policy: row for row in table(several)}
    assert rows["fixed=0.1"].difference is None
    assert rows["triangular"].difference == pytest.approx((-0.1, -0.1))
    assert verdict(table(several)).startswith("fixed=0.1 won: triangular 0.6050 against fixed=0.1 0.7050")


def test_a_run_that_diverged_is_counted_and_in_no_mean():
    several = [*records(fixed=[0.5, 0.6, 0.7], hann=[0.7, 0.9]), record("hann", 2, 0.1, "diverged")]
    fixed, hann = table(several)
    assert (hann.values, hann.mean, hann.diverged, hann.pairs) == ((0.7, 0.9), pytest.approx(0.8), 1, 2)
    assert hann.difference == pytest.approx(interval([0.2, 0.3]))
    assert fixed.policy == "fixed"  # what diverges now and then is no advice, however good the rest
    lost = [*records(fixed=[0.5, 0.6]), *(record("hann", seed, 0.1, "diverged") for seed in (0, 1))]
    rows = table(lost)
    assert rows[1].cells() == ["hann", "", "", "0", "100", "", "2"]
    assert verdict(rows) == "cannot tell: no run of hann ended with a number; lower its rates"


def test_a_run_without_a_number_comes_last_and_decides_nothing():
    rows = table([*records(fixed=[0.5, 0.6]), record("hann", 0, None, "diverged"), record("hann", 1, 0.9)])
    assert [row.policy for row in rows] == ["fixed", "hann"]
    assert verdict(rows).startswith("cannot tell")


def test_without_a_fixed_rate_nothing_is_compared():
    assert verdict(table(records(hann=[0.5], welch=[0.6]))).startswith("welch has the best mean, 0.6000; there is no")


@pytest.mark.parametrize("n", [2, 3, 5, 16, 17, 30, 200])
def test_interval_is_students(n):
    differences = np.random.default_rng(n).normal(0.01, 0.02, n)
    t = stats.t.interval(0.95, n - 1, loc=differences.mean(), scale=stats.sem(differences))
    assert interval(list(differences)) == pytest.approx(t, rel=1e-3)
    assert interval([0.5]) is None


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    titles, moves = [], []

    def progress(title):
        titles.append(title)
        return lambda done, total, lr, value: moves.append((title, done, total, lr))

    return folder, compare(make(), 0.05, 0.2, folder, progress=progress, **BUDGET), titles, moves


def test_every_policy_runs_with_every_seed_and_tells_how_far_it_is(made):
    _, results, titles, moves = made
    assert titles == [f"{policy}, seed {seed}" for seed in (0, 1) for policy in BUDGET["policies"]]
    assert [f"{each['config']['policy']}, seed {each['config']['seed']}" for each in results] == titles
    ends = {title: (done, total) for title, done, total, _ in moves}
    assert ends == {title: (each["config"]["total_steps"],) * 2 for title, each in zip(titles, results, strict=True)}
    rates = {each["config"]["policy"]: each["config"]["schedule"] for each in results}
    assert rates["fixed=0.3"]["lr"] == 0.3
    assert rates["fixed"]["lr"] == pytest.approx(0.1)  # the geometric middle
    assert (rates["triangular"]["base_lr"], rates["triangular"]["max_lr"]) == (0.05, 0.2)


def test_all_are_looked_at_in_the_middle_and_at_the_end_of_the_cycles(made):
    for each in made[1]:
        assert [point["step"] for point in each["result"]["history"]] == [4, 8, 12, 16, 20, 24]


def test_comparison_goes_on_where_it_stopped(made):
    folder, results, _, _ = made
    file = folder / "records.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:2] + lines[3:]))
    redone = []
    again = compare(make(), 0.05, 0.2, folder, progress=lambda title: lambda *at: redone.append(title), **BUDGET)
    assert set(redone) == {"fixed=0.3, seed 0"}
    assert len(read_records(folder)) == 6
    assert [each["result"]["test"] for each in again] == [each["result"]["test"] for each in results]
    assert again[0] == results[0]


@pytest.mark.parametrize(
    ("policy", "words"),
    [("triangular=0.1", "only fixed takes a rate"), ("fixed=fast", "needs a number"), ("fixed=-1", "at least 0")],
)
def test_only_fixed_takes_a_rate_and_a_real_one(tmp_path, policy, words):
    with pytest.raises(ValueError, match=words):
        compare(make(), 0.05, 0.2, tmp_path, policies=("fixed", policy), total_steps=24)
    assert not list(tmp_path.iterdir())
