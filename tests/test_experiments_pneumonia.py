"""The fine-tuning's page: does CLR need half of the fixed rate's updates, seed by seed, and what that leaves out."""

import dataclasses
import math

import pytest

import cyclr
import pneumonia
import rebuild
from cells import Found
from pneumonia import EVERY, ROWS, TABLE, UPDATES

CYCLIC = "layer-by-layer-triangular2-found-range"
LAYERED, WHOLE = "layer-by-layer-fixed-", "whole-net-one-rate-fixed-"


def record(scores, test=0.8):
    """A run with these validation scores, one each EVERY updates; it diverged if one of them is None."""
    history = [
        {"step": EVERY * count, "validation": 0.9, f"validation {pneumonia.SCORE}": score}
        for count, score in enumerate(scores, start=1)
    ]
    diverged = None in scores
    measured = {pneumonia.SCORE: None if diverged else test, "AUC": None if diverged else 0.9}
    result = {"status": "diverged" if diverged else "done", "steps": UPDATES, "updates_per_second": 4.0}
    return {"result": {**result, "history": history, "scores": measured}, "hardware": {"gpu": None}}


def runs_of(**seeds):
    """Runs by cell and seed; a cell's name is that of a rate: `layered_0.01`, `whole_0.01`, or `cyclic`."""
    begin = {"layered": LAYERED, "whole": WHOLE}
    names = {name: begin[name.split("_")[0]] + name.split("_")[1] if "_" in name else CYCLIC for name in seeds}
    found = {(names[name], seed): each for name, records in seeds.items() for seed, each in enumerate(records)}
    assert {name for name, _ in found} <= {cell.name for cell in TABLE.cells}
    return found


def row(text, beginning):
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {beginning} |")]
    return [each.strip() for each in line.split("|")[1:-1]]


SLOW = [0.6, 0.7, 0.75, 0.8, 0.79]  # its best after four evaluations
EARLY, LATE, NEVER = [0.6, 0.8, 0.9, 0.7], [0.6, 0.7, 0.8, 0.9], [0.7] * 5


def claimed(cyclic, fixed):
    runs = runs_of(**{"cyclic": [record(each) for each in cyclic], "layered_0.01": [record(each) for each in fixed]})
    return row(pneumonia.claim(TABLE, runs), "layer by layer")[3:]


@pytest.mark.parametrize(
    ("cyclic", "answer"),
    [
        ([EARLY] * 3, ["3 of 3", "3 of 3", "0.50", "yes"]),
        ([EARLY] * 2, ["2 of 2", "2 of 2", "0.50", "cannot tell from 2"]),
        ([EARLY, EARLY, LATE], ["3 of 3", "2 of 3", "0.50", "not in every run"]),
        ([EARLY, EARLY, LATE, NEVER], ["3 of 4", "2 of 4", "0.62", "not in every run"]),
        ([EARLY, LATE, LATE], ["3 of 3", "1 of 3", "0.75", "no"]),
        ([EARLY, NEVER, NEVER], ["1 of 3", "1 of 3", "never", "no"]),
        ([EARLY, EARLY, [0.6, None]], ["2 of 3", "2 of 3", "0.50", "not in every run"]),
    ],
)
def test_the_claim_is_answered_seed_by_seed_and_a_run_that_never_gets_there_fails_it(cyclic, answer):
    assert claimed(cyclic, [SLOW] * len(cyclic)) == answer


def test_each_seed_has_its_own_target_and_only_pairs_count():
    other = [0.5, 0.55, 0.56, 0.57, 0.58, 0.59]  # its best, 0.59, comes after six evaluations, and EARLY has it at once
    assert claimed([EARLY] * 3, [other, SLOW, SLOW])[2] == "0.50"
    assert claimed([EARLY], [other]) == ["1 of 1", "1 of 1", "0.17", "cannot tell from 1"]
    assert claimed([EARLY] * 4, [SLOW] * 3)[0] == "3 of 3"
    assert claimed([EARLY] * 3, [[None], SLOW, SLOW])[0] == "2 of 2"  # no score to reach


def test_the_best_fixed_rate_has_the_best_mean_of_the_best_scores_among_those_with_the_most_seeds():
    runs = runs_of(
        **{
            "cyclic": [record(EARLY)] * 2,
            "layered_0.01": [record([0.6, 0.1]), record([0.9, 0.1])],
            "layered_0.03": [record([0.8, 0.1])] * 2,  # its end is bad, its best is not
            "layered_0.1": [record([0.95]), record([None])],  # one seed with a score
            "whole_0.003": [record([0.7])] * 2,
            "whole_0.01": [record([0.85])] * 2,
            "whole_0.03": [record([0.7])] * 2,
        }
    )
    text = pneumonia.claim(TABLE, runs)
    assert row(text, "layer by layer")[1:3] == ["0.03 (layer by layer)", "no, within 0.01, 0.03, 0.1"]
    assert row(text, "all")[1:3] == ["0.01 (whole net, one rate)", "no, within 0.003, 0.01, 0.03"]
    assert row(text, "all")[5] == "3.00"  # EARLY has 0.85 after three evaluations


def test_a_best_rate_at_the_edge_of_what_was_tried_is_told():
    both = runs_of(**{"layered_0.01": [record(SLOW)], "layered_0.03": [record(LATE)], "whole_0.03": [record(SLOW)]})
    assert row(pneumonia.claim(TABLE, both), "all")[2] == "yes, the largest of 0.01, 0.03"
    only = pneumonia.claim(TABLE, runs_of(**{"layered_0.03": [record(SLOW)]}))
    answer = ["yes, the smallest and largest of 0.03", "0 of 0", "0 of 0", "", "cannot tell from 0"]
    assert row(only, "all")[2:] == answer


def test_every_row_has_its_auc_and_its_updates_and_a_diverged_run_is_in_no_mean():
    runs = runs_of(**{"cyclic": [record(EARLY), record([0.6, None])], "layered_0.01": [record(SLOW)] * 2})
    text = pneumonia.remarks(TABLE, runs)
    others = text.split("\n\n")[3]
    assert row(others, "layer by layer | triangular2, found range")[2:] == ["90.00 (n = 1)", f"{2 * EVERY} (1 of 2)"]
    assert row(others, "layer by layer | fixed, 0.01")[2:] == ["90.00 (sd 0.00, n = 2)", f"{4 * EVERY} (2 of 2)"]
    cyclic = next(cell for cell in TABLE.cells if cell.name == CYCLIC)
    page = rebuild.line_of(TABLE, cyclic, runs)
    assert page.startswith("| layer by layer (1 diverged) | triangular2, found range |  | 80.00 |  | 1 |")
    assert math.isnan(TABLE.value(runs[CYCLIC, 1]))


def test_without_records_or_fixed_rates_nothing_is_claimed():
    assert pneumonia.remarks(TABLE, {}) == ""
    runs = runs_of(cyclic=[record(EARLY)])
    assert pneumonia.claim(TABLE, runs) == pneumonia.others(TABLE, runs) == ""


def test_the_page_says_what_choosing_a_rate_took(tmp_path):
    fixed = sum(cell.column.startswith("fixed") and cell.row == ROWS["depth"] for cell in TABLE.cells)
    without = pneumonia.chosen_by(TABLE, tmp_path)
    assert f"layer by layer {fixed} x {UPDATES} = {fixed * UPDATES:,} updates" in without
    assert "range tests" not in without
    ramp = cyclr.Curve(metric="validation accuracy", steps=[3, 7], lrs=[0.1, 0.2], values=[0.5, 0.6], goal="max")
    loss = dataclasses.replace(ramp, metric="loss", steps=range(300), lrs=[0.1] * 300, values=[1.0] * 300)
    cycles = dataclasses.replace(ramp, metric="loss after a short cycle", steps=[128, 128])
    folder = tmp_path / next(cell.schedule.folder for cell in TABLE.cells if isinstance(cell.schedule, Found))
    folder.mkdir(parents=True)
    dataclasses.replace(ramp, companions=(loss, cycles)).save(folder / "curve.json")
    assert "layer by layer 556 updates, which their curves hold" in pneumonia.chosen_by(TABLE, tmp_path)
    assert "comes on top" in TABLE.note
