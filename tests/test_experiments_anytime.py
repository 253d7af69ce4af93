"""The anytime table: what a run with cycles had after each of them, beside the trainings for each budget."""

import math

import pytest
import torch

import anytime
from cyclr.lab.evaluation import measure
from tiny_task import make


def record(name, choosing, judging=None, status="done"):
    """A run's record: shares of right answers after so many updates, on the two halves."""
    cell = next(cell for cell in anytime.CELLS if cell.name.startswith(name))
    judging = choosing if judging is None else judging
    history = [
        {"step": step, "validation": 0.0, "validation choosing": choosing[step], "validation judging": judging[step]}
        for step in choosing
    ]
    result = {"status": status, "history": history}
    return cell.name, {"config": {"total_steps": cell.updates}, "result": result}


def at(values):
    return dict(zip(anytime.BUDGETS, values, strict=False))


def rows(runs):
    text = anytime.remarks(anytime.TABLE, runs)
    cells = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("|")]
    return {first.strip(): [each.strip() for each in others] for first, *others in cells}


def test_one_half_chooses_the_best_cycles_end_and_the_other_judges_it():
    middles = {step - 2000: 0.99 for step in anytime.BUDGETS}  # not at a cycle's end: no model to keep
    choosing = {**middles, **at((0.6, 0.7, 0.65, 0.72, 0.71))}
    judging = {**middles, **at((0.5, 0.55, 0.9, 0.52, 0.95))}  # its own best is another
    name, cyclic = record("one-run-triangular", choosing, judging)
    separate, anneal = record("a-run-for-this-budget-linear-to-zero-8", {1000: 0.1, 8000: 0.7}, {1000: 0.1, 8000: 0.75})
    found = rows({(name, 0): cyclic, (separate, 0): anneal})
    assert found["triangular"] == [f"{value} (n = 1)" for value in ("50.00", "55.00", "55.00", "52.00", "52.00")]
    assert found["linear to zero, a training each"] == ["", "75.00 (n = 1)", "", "", ""]
    assert anytime.TABLE.value(cyclic) == pytest.approx(95.0)
    assert anytime.remarks(anytime.TABLE, {}) == ""


def test_means_have_their_spread_and_how_many_runs_they_are_of():
    runs = {}
    for seed, value in enumerate((0.5, 0.6, 0.7)):
        name, runs[name, seed] = record("one-run-cosine", at([value] * 5))
    assert rows(runs)["cosine restarts"] == ["60.00 (sd 10.00, n = 3)"] * 5


def test_the_longest_anneal_is_looked_at_on_its_way():
    name, anneal = record("a-run-for-this-budget-linear-to-zero-20", at((0.9,) * 5), at((0.5, 0.6, 0.7, 0.8, 0.85)))
    values = ("50.00", "60.00", "70.00", "80.00", "85.00")
    assert rows({(name, 0): anneal})["the longest of these, on its way"] == [f"{value} (n = 1)" for value in values]


def test_a_run_that_diverged_keeps_the_models_that_it_had_and_has_no_number_at_its_end():
    name, broken = record("one-run-triangular", {**at((0.5, 0.6)), 9350: None}, status="diverged")
    assert math.isnan(anytime.TABLE.value(broken))
    assert rows({(name, 0): broken})["triangular"] == ["50.00 (n = 1)"] + ["60.00 (n = 1)"] * 4
    name, unseen = record("one-run-triangular", {4000: None, 8000: 0.6})
    assert rows({(name, 0): unseen})["triangular"][:2] == ["", "60.00 (n = 1)"]
    name, early = record("one-run-triangular", {4000: None}, status="diverged")
    separate, anneal = record("a-run-for-this-budget-linear-to-zero-8", {250: None}, status="diverged")
    found = rows({(name, 0): early, (separate, 0): anneal})
    assert found["triangular"] == found["linear to zero, a training each"] == [""] * 5


def test_the_halves_share_no_image_and_are_all():
    task = make(scores=anytime.SCORES)
    model, _ = task.build(seed=0)
    x, y = task.validation
    right = model.eval()(x).argmax(-1) == y
    found = measure(task, model, task.validation, torch.device("cpu"))
    assert found["choosing"] == pytest.approx(right[:40].float().mean().item())
    assert found["judging"] == pytest.approx(right[40:].float().mean().item())
    assert found["choosing"] != found["judging"]


def test_what_is_held_out_is_in_a_random_order_and_the_test_set_is_not_looked_at(monkeypatch):
    data = (torch.arange(50_000.0).reshape(-1, 1), torch.arange(50_000) % 10)
    monkeypatch.setattr(anytime, "base", lambda data_dir: make(train=data, validation=None, test=data))
    task = anytime.task(None)
    x, y = task.validation
    assert (len(x), task.test, set(task.scores)) == (5000, None, {"choosing", "judging"})
    assert not set(x.flatten().tolist()) & set(task.train[0].flatten().tolist())
    assert x[:2500].mean() == pytest.approx(25_000, rel=0.05)
    assert x[2500:].mean() == pytest.approx(25_000, rel=0.05)
    assert y[:2500].bincount().min() > 200


def test_every_cycle_ends_with_a_budget():
    for cell in anytime.CELLS:
        if cell.row == "one run":
            assert tuple(cell.schedule.cycle_ends(cell.updates)) == anytime.BUDGETS
        else:
            assert cell.schedule(cell.updates) == 0.0
