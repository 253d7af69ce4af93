"""What is made of the records: only of those that fit, and each table as it says."""

import dataclasses
import json
import math
import re
from pathlib import Path

import pytest

import claims
import cyclr
import figures
import paper
import rebuild
import tiny_queue
from cells import Cell, Found, Summary
from cyclr.lab.records import append_record, new_record
from table1 import TABLE as TABLE1
from table3 import TABLE as TABLE3
from tables import TABLES

ROOT = Path(__file__).parent.parent


def record_of(cell, seed=0, test=0.5, history=(), **changes):
    settings = cell.settings(cell.schedule, seed)
    config = {
        **settings, "fingerprint": "0123", "precision": "no", "batch_size": 20, "accumulation": 1,
        "steps_per_epoch": 12, "cycle_ends": cell.schedule.cycle_ends(cell.updates), **changes,
    }  # fmt: skip
    result = {"status": "done", "steps": cell.updates, "validation": None, "test": test, "updates_per_second": 100.0}
    return new_record(config, {**result, "history": list(history)})


def broken(record, test=0.1):
    """As a run leaves it that diverged: NaN counts as the first class, so what is measured is chance."""
    return {**record, "result": {**record["result"], "status": "diverged", "steps": 50, "test": test}}


# Refused


def written(tmp_path, *records):
    for record in records:
        append_record(tmp_path / "tiny", record)
    return tmp_path


def test_records_that_fit_are_read_by_cell_and_seed(tmp_path):
    table = tiny_queue.table()
    records = [record_of(cell, seed) for cell in table.cells for seed in (0, 1)]
    runs = table.runs(written(tmp_path, *records))
    assert set(runs) == {(cell.name, seed) for cell in table.cells for seed in (0, 1)}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"policy": "lowest-all"}, "no cell of tiny"),
        ({"schedule": cyclr.fixed(0.1).to_dict()}, "made with another schedule"),
        ({"total_steps": 601}, "made with another total_steps"),
        ({"task": "other"}, "made with another task"),
        ({"evaluate_at": [600]}, "made with another evaluate_at"),
        ({"fingerprint": "4567"}, "different fingerprint"),
        ({"precision": "bf16"}, "different precision"),
        ({"batch_size": 40}, "different batch_size"),
        ({"seed": 0}, "two records of low-all with seed 0"),
    ],
)
def test_a_record_of_something_else_is_refused_with_a_sentence(tmp_path, changes, sentence):
    low = tiny_queue.table().cells[0]
    folder = written(tmp_path, record_of(low, 0), record_of(low, **{"seed": 1, **changes}))
    with pytest.raises(ValueError, match=re.escape(sentence)):
        tiny_queue.table().runs(folder)


def test_half_a_line_and_another_version_are_refused(tmp_path, monkeypatch):
    table = tiny_queue.table()
    path = written(tmp_path, record_of(table.cells[0])) / "tiny" / "records.jsonl"
    whole = path.read_text()
    path.write_text(whole + whole[:100])
    assert len(table.runs(tmp_path)) == 1  # the queue goes on and takes it away; a page is not made
    monkeypatch.setattr(rebuild, "HERE", tmp_path)
    with pytest.raises(ValueError, match="half written"):
        rebuild.refuse_unfinished(table)
    path.write_text(whole.replace('"version": 1', '"version": 2'))
    with pytest.raises(ValueError, match="no record of version 1"):
        table.runs(tmp_path)


def test_a_record_whose_bounds_have_changed_or_gone_is_refused(tmp_path):
    cell = Cell("found", "all", "tiny", Found("tiny", lambda base, top: cyclr.triangular(base, top, 30)), 120)
    path = tmp_path / "tiny" / "bounds-triangular.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"status": "ok", "base_lr": 0.0100004, "max_lr": 0.1}))
    known = dataclasses.replace(cell, schedule=cyclr.triangular(0.01, 0.1, 30))
    table = tiny_queue.table(cells=(cell,))
    assert table.runs(written(tmp_path, record_of(known)))
    path.write_text(json.dumps({"status": "ok", "base_lr": 0.02, "max_lr": 0.1}))
    with pytest.raises(ValueError, match="made with another schedule"):
        table.runs(tmp_path)
    path.write_text(json.dumps({"status": "flat", "base_lr": None, "max_lr": None}))
    with pytest.raises(ValueError, match=r"no bounds \(flat\)"):
        table.runs(tmp_path)
    assert rebuild.why_not(cell, tmp_path) == "the range test had no bounds to read"
    path.unlink()
    assert rebuild.why_not(cell, tmp_path) == "not run yet"
    with pytest.raises(ValueError, match="are gone"):
        table.runs(tmp_path)


def test_two_cells_cannot_have_one_name():
    low = tiny_queue.table().cells[0]
    with pytest.raises(ValueError, match="two cells of one name"):
        tiny_queue.table(cells=(low, dataclasses.replace(low, updates=5)))


# The tables


def test_cells_json_has_every_cell_with_every_part():
    objects = json.loads((ROOT / "experiments/cells.json").read_text())
    places = {(table.name, cell.row, cell.column) for table in TABLES.values() for cell in table.cells}
    more = [each for each in objects if (each["table"], each["row"], each["column"]) not in places]
    assert len(objects) - len(more) == len(places)
    assert all((each["table"], each["row"], each["column"].rpartition(": ")[0]) in places for each in more)
    for each in objects:
        assert list(each) == [
            "table", "row", "column", "paper", "mean", "sd", "n", "updates", "scaled", "command",
        ]  # fmt: skip
        assert (each["mean"] is None) == (each["n"] == 0)
        assert each["command"].startswith(f"python experiments/run.py {each['table']} ")


def test_a_cell_is_the_mean_of_its_own_runs_in_percent():
    table = tiny_queue.table()
    low, high, _ = table.cells
    runs = {(low.name, seed): record_of(low, seed, test) for seed, test in enumerate((0.5, 0.6, 0.7))}
    runs[high.name, 0] = record_of(high, 0, 0.9)
    made = rebuild.objects_of(table, runs)
    assert [(each["mean"], each["sd"], each["n"]) for each in made] == [
        (pytest.approx(60.0), pytest.approx(10.0), 3), (pytest.approx(90.0), None, 1), (None, None, 0),
    ]  # fmt: skip
    text = rebuild.text_of(table, runs)
    assert "| low | all |  | 60.00 | 10.00 | 3 | 600 | 0.0017 |" in text
    assert "| higher | all |  | not run yet |  | 0 | 600 |  |" in text
    assert "<!-- tiny: 4 records -->" in text


@pytest.mark.parametrize(
    ("values", "summary", "text"),
    [
        ((), (None, None, 0), ""),
        ((math.nan, None), (None, None, 0), ""),
        ((70.0, math.nan), (70.0, None, 1), "70.00 (n = 1)"),
        ((70.0, None, 72.0, math.inf), (71.0, pytest.approx(2**0.5), 2), "71.00 (sd 1.41, n = 2)"),
    ],
)
def test_a_mean_is_that_of_the_runs_that_have_a_number(values, summary, text):
    found = Summary.of(values)
    assert (found.mean, found.sd, found.n) == summary
    assert str(found) == text


def test_a_diverged_run_is_counted_and_is_in_no_mean():
    table = tiny_queue.table()
    low, high, higher = table.cells
    runs = {(low.name, seed): record_of(low, seed, test) for seed, test in enumerate((0.5, 0.6))}
    runs[low.name, 2] = broken(record_of(low, 2))
    runs[high.name, 0] = broken(record_of(high, 0), test=None)
    runs[higher.name, 0] = record_of(higher, 0, None)  # done, and without a number
    objects = rebuild.objects_of(table, runs)
    assert [(each["mean"], each["n"]) for each in objects] == [(pytest.approx(55.0), 2), (None, 0), (None, 0)]
    json.dumps(objects, allow_nan=False)
    text = rebuild.text_of(table, runs)
    assert "| low (1 diverged) | all |  | 55.00 | 7.07 | 2 | 600 |" in text
    assert "| high (1 diverged) | all |  | no number |  | 0 | 600 |" in text
    assert "| higher (1 diverged) | all |  | no number |  | 0 | 600 |" in text


def test_all_pages_are_made_where_a_run_of_any_table_diverged(monkeypatch):
    table = tiny_queue.table()
    low = table.cells[0]
    runs = {"tiny": {(low.name, 0): broken(record_of(low, 0)), (low.name, 1): record_of(low, 1, 0.5)}}
    monkeypatch.setattr(rebuild, "TABLES", {"tiny": table, "table1": TABLE1})
    made = rebuild.pages({**runs, "table1": claim_runs((0.81, 0.82), (0.83, None))})
    objects = json.loads(made[ROOT / "experiments/cells.json"], parse_constant=pytest.fail)
    assert [(each["mean"], each["n"]) for each in objects if each["row"] == "low"] == [(pytest.approx(50.0), 1)]
    monkeypatch.setattr(rebuild, "objects_of", lambda table, runs: [{"mean": math.nan}])
    with pytest.raises(ValueError, match="not JSON compliant"):
        rebuild.pages({**runs, "table1": {}})


def test_what_a_tables_records_hold_beside_its_cells_follows_them():
    def more(table, runs):
        return [(dataclasses.replace(cell, column=f"{cell.column}: half"), [1.0, math.nan]) for cell in table.cells[:1]]

    *cells, last = rebuild.objects_of(tiny_queue.table(more=more), {})
    assert [each["column"] for each in cells] == ["all"] * 3
    assert (last["row"], last["column"], last["mean"], last["sd"], last["n"]) == ("low", "all: half", 1.0, None, 1)


def test_the_page_shows_each_figure_that_is_drawn_and_no_other(tmp_path, monkeypatch):
    table = tiny_queue.table()
    runs = {(cell.name, 0): record_of(cell, 0, 0.9, [{"step": 300, "test": 0.8}]) for cell in table.cells[:1]}
    shown = {"one": ("tiny", ("low",)), "two": ("tiny", ("high",)), "three": ("another", ("low",))}
    monkeypatch.setattr(figures, "AGAINST_UPDATES", shown)
    figures.draw({"tiny": table}, {"tiny": runs}, tmp_path)
    assert [path.name for path in tmp_path.rglob("*.png")] == ["one.png"]
    assert re.findall(r"!\[.*\]\((.*)\)", rebuild.text_of(table, runs)) == ["tiny/one.png"]


def test_the_check_looks_at_the_records_that_the_page_was_made_of():
    runs = {("low", seed): {} for seed in range(5)}
    assert list(rebuild.first_records("a <!-- tiny: 2 records --> b", "tiny", runs)) == [("low", 0), ("low", 1)]
    assert rebuild.first_records("nothing", "tiny", runs) == runs


# The paper's settings, transcribed naively


def rates(cell, steps):
    return [cell.schedule(step) for step in steps]


def cell_named(table, name):
    return next(cell for cell in table.cells if cell.name == name)


def halved(base, top, half, step):
    return paper.triangular2(step, base, top, half)


def three_stages(step):
    if step < 16_000:
        return halved(0.001, 0.005, 2000, step)
    if step < 22_000:
        return halved(0.0001, 0.0005, 1000, step - 16_000)
    return halved(0.00001, 0.00005, 500, step - 22_000)


NAIVE = {
    "fixed-70-000": (81.4, 70_000, lambda t: 0.001 if t < 60_000 else 0.0001 if t < 65_000 else 0.00001),
    "triangular2-three-stages-25-000": (81.4, 25_000, three_stages),
    "decay-25-000": (78.5, 25_000, lambda t: max(0.007 - 0.006 * t / 4000, 0.001)),
    "exp-70-000": (79.1, 70_000, lambda t: 0.001 * 0.99994**t),
    "exp-range-42-000": (82.2, 42_000, lambda t: paper.triangular(t, 0.001, 0.006, 2000) * 0.99994**t),
}


@pytest.mark.parametrize("name", NAIVE)
def test_table_1_is_the_papers(name):
    number, updates, formula = NAIVE[name]
    cell = cell_named(TABLE1, name)
    assert (cell.paper, cell.updates, cell.task) == (number, updates, "cifar10-caffe")
    steps = range(0, updates, 137)
    assert rates(cell, steps) == pytest.approx([formula(step) for step in steps], rel=1e-9)


def test_no_other_row_of_table_1_claims_a_number_of_the_papers():
    assert {cell.name for cell in TABLE1.cells if cell.paper is not None} == set(NAIVE)


def test_every_run_of_table_1_ends_where_its_rate_is_low():
    for cell in TABLE1.cells:
        schedule = cell.schedule_in(ROOT / "experiments")
        ends = schedule.cycle_ends(cell.updates)
        if cell.updates != 42_000 and len(ends) > 1:  # the paper's own number, amid a cycle
            assert ends[-1] == cell.updates, cell.name


def test_a_cycle_that_falls_to_zero_does():
    cell = cell_named(TABLE1, "triangular-falling-to-zero-25-000")
    assert rates(cell, (0, 2000, 4000, 18_000, 25_000)) == pytest.approx([0.001, 0.006, 0.001, 0.006, 0.0])
    assert cell.schedule(24_000) == pytest.approx(0.006 / 7)


def test_table_3_is_the_papers():
    numbers = {(cell.row, cell.column): cell.paper for cell in TABLE3.cells if cell.paper is not None}
    short, long, fixed = "triangular, 25,000", "triangular, 70,000", "fixed, 70,000"
    assert numbers == {
        ("Nesterov", fixed): 82.1, ("Nesterov", short): 81.3,
        ("Adam", fixed): 81.4, ("Adam", short): 79.8, ("Adam", long): 81.1,
        ("RMSprop", fixed): 75.2, ("RMSprop", short): 72.8, ("RMSprop", long): 75.1,
        ("AdaGrad", fixed): 74.6, ("AdaGrad", short): 76.0,
        ("AdaDelta", fixed): 67.3, ("AdaDelta", short): 67.3,
    }  # fmt: skip
    bounds = {"Nesterov": (0.001, 0.006), "Adam": (0.0005, 0.002), "RMSprop": (0.0001, 0.0003),
              "AdaGrad": (0.003, 0.035), "AdaDelta": (0.01, 0.1)}  # fmt: skip
    for cell in TABLE3.cells:
        if cell.column in (short, long):
            assert (cell.schedule.base_lr, cell.schedule.max_lr) == bounds[cell.row]
        elif cell.column == fixed:
            assert cell.schedule(0) == bounds[cell.row][0]


# The claim


def claim_runs(fixed, short, ends_at=None):
    """Runs of Table 1: fixed and the three stages, an accuracy a seed each."""
    slow, fast = cell_named(TABLE1, "fixed-70-000"), cell_named(TABLE1, "triangular2-three-stages-25-000")
    runs = {(slow.name, seed): record_of(slow, seed, value) for seed, value in enumerate(fixed)}
    for seed, value in enumerate(short):
        history = [{"step": 3000, "test": 0.99}, {"step": 4000, "test": ends_at}, {"step": 25_000, "test": value}]
        runs[fast.name, seed] = record_of(fast, seed, value, history)
    return {key: broken(each) if each["result"]["test"] is None else each for key, each in runs.items()}


@pytest.mark.parametrize(
    ("short", "answer"),
    [
        ((0.83, 0.84, 0.85), "+2.00 (+2.00 to +2.00) | yes"),
        ((0.79, 0.80, 0.81), "-2.00 (-2.00 to -2.00) | no"),
        ((0.83, 0.80, 0.83), "(-4.30 to +4.30) | cannot tell apart"),
        ((0.83,), "+2.00 (1 seed) | cannot tell from 1"),
        ((0.83, 0.85), "+2.50 (2 seeds) | cannot tell from 2"),
        ((0.81, 0.82, 0.83), "+0.00 (+0.00 to +0.00) | cannot tell apart"),
    ],
)
def test_the_claim_is_judged_by_the_interval_of_paired_differences(short, answer):
    fixed = (0.81, 0.82, 0.83)
    if answer.startswith("("):
        fixed = (0.82, 0.82, 0.82)
    assert answer in claims.text(TABLE1, claim_runs(fixed, short))


def test_fixeds_accuracy_counts_as_reached_at_a_cycles_end_only():
    fast = cell_named(TABLE1, "triangular2-three-stages-25-000")
    assert claims.reached(fast, claim_runs((0.81,), (0.80,), ends_at=0.7)) == ([], 1)
    assert claims.reached(fast, claim_runs((0.81,), (0.82,), ends_at=0.7)) == ([25_000], 1)
    assert claims.reached(fast, claim_runs((0.81,), (0.80,), ends_at=0.81)) == ([4000], 1)


@pytest.mark.parametrize(
    ("fixed", "short", "difference", "reached"),
    [
        ((0.81, 0.82, 0.83), (0.83, None, 0.85), "| 2 | +2.00 (2 seeds) |", "2 of 3"),
        ((0.81, None, 0.83), (0.83, 0.84, 0.85), "| 2 | +2.00 (2 seeds) |", "2 of 2"),
        ((0.81, None), (None, 0.84), "| 0 | no pair of runs with a number |", "0 of 1"),
    ],
)
def test_a_pair_with_a_diverged_run_is_left_out_of_the_claim(fixed, short, difference, reached):
    lines = claims.text(TABLE1, claim_runs(fixed, short)).splitlines()
    (line,) = [line for line in lines if line.startswith("| triangular2 (three stages) | 25,000")]
    assert difference in line
    assert f"| {reached} |" in line


def test_the_first_page_shows_rows_only_when_there_is_something_to_compare():
    assert claims.front(TABLE1, claim_runs((0.81,), ())) == ""
    shown = claims.front(TABLE1, claim_runs((0.81, 0.82), (0.80, 0.82)))
    assert "| fixed | 70,000 | 81.4 | 81.50 | 0.71 | 2 |" in shown
    assert "| triangular2 (three stages) | 25,000 | 81.4 | 81.00 | 1.41 | 2 |" in shown
    shown = claims.front(TABLE1, claim_runs((0.81, 0.82), (None, 0.82)))
    assert "| triangular2 (three stages) | 25,000 | 81.4 | 82.00 |  | 1 |" in shown


def test_the_hours_of_cpus_and_of_gpus_are_told_apart():
    slow, fast = (record_of(cell_named(TABLE1, "fixed-70-000"), seed) for seed in range(2))
    slow["hardware"]["gpu"], fast["hardware"]["gpu"] = None, "one"
    slow["result"]["updates_per_second"] = 10.0
    assert rebuild.hours_by_device([slow]) == ["1.9"]
    assert rebuild.hours_by_device([fast, slow]) == ["1.9", "GPU 0.19"]


def test_a_pair_of_cells_is_held_against_each_other_seed_by_seed():
    pair = ("triangular2-three-stages-25-000", "fixed-70-000")
    lines = claims.differ(TABLE1, claim_runs((0.81, 0.82), (0.80, 0.83)), [pair]).splitlines()
    assert lines[2:3] == ["| triangular2 (three stages), 25,000 | fixed, 70,000 | 2 | +0.00 (2 seeds) |"]
    assert claims.differ(TABLE1, claim_runs((0.81,), ()), [pair]) == ""


def test_figures_are_drawn_from_what_there_is(tmp_path):
    runs = {name: {} for name in TABLES}
    figures.draw(TABLES, runs, tmp_path)
    assert not list(tmp_path.iterdir())
    runs["table1"] = claim_runs((0.81, 0.82), (0.80,), ends_at=0.7)
    figures.draw(TABLES, runs, tmp_path)
    (picture,) = tmp_path.rglob("*.png")
    assert picture == tmp_path / "table1/figure1.png"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_runs_that_are_to_be_repeated_are_counted_until_they_are(tmp_path, monkeypatch):
    cell = tiny_queue.table().cells[0]
    runs = {(cell.name, seed): {**record_of(cell, seed), "run": f"run{seed}", "finished": "now"} for seed in (0, 1)}
    listed = tmp_path / "to_repeat.json"
    monkeypatch.setattr(claims, "TO_REPEAT", listed)
    for content, words in (({"run1": "now"}, "1 of these runs"), ({"run1": "before"}, ""), ({"run7": "now"}, "")):
        listed.write_text(json.dumps(content))
        assert claims.to_repeat(runs)[:15] == words
