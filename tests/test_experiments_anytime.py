"""The anytime table: what a run with cycles had after each of them, beside the trainings for each budget."""

import anytime


def record(name, values):
    cell = next(cell for cell in anytime.CELLS if cell.name.startswith(name))
    history = [{"step": step, "validation": value} for step, value in values.items()]
    return cell.name, {"config": {"total_steps": cell.updates}, "result": {"history": history}}


def test_a_run_keeps_its_best_and_is_held_against_the_training_of_that_budget():
    ends = dict(zip(anytime.BUDGETS, (0.6, 0.7, 0.65, 0.72, 0.71), strict=True))
    middles = {step - 2000: 0.99 for step in anytime.BUDGETS}  # not at a cycle's end: no model to keep
    name, cyclic = record("one-run-triangular", {**middles, **ends})
    separate, anneal = record("a-run-for-this-budget-linear-to-zero-8", {1000: 0.1, 8000: 0.75})
    text = anytime.remarks(anytime.TABLE, {(name, 0): cyclic, (separate, 0): anneal})
    cells = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("|")]
    rows = {first.strip(): [each.strip() for each in others] for first, *others in cells}
    assert rows["triangular"] == ["60.00", "70.00", "70.00", "72.00", "72.00"]
    assert rows["linear to zero, a training each"] == ["", "75.00", "", "", ""]
    assert anytime.remarks(anytime.TABLE, {}) == ""


def test_every_cycle_ends_with_a_budget():
    for cell in anytime.CELLS:
        if cell.row == "one run":
            assert tuple(cell.schedule.cycle_ends(cell.updates)) == anytime.BUDGETS
        else:
            assert cell.schedule(cell.updates) == 0.0
