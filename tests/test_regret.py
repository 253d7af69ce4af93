"""The regret study's own reading: which rates were right, and a share that is fitted without the task it is for."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

import cyclr
from cyclr.lab.records import append_record, new_record

FOLDER = Path(__file__).parent.parent / "benchmarks" / "regret"


@pytest.fixture
def study(monkeypatch):
    """The study's scripts as modules, and nobody else's of the same names."""
    monkeypatch.syspath_prepend(str(FOLDER))
    names = [path.stem for path in FOLDER.glob("*.py")]
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    import rule

    import records

    yield records, rule
    for name in names:
        sys.modules.pop(name, None)


def test_the_right_rates_are_those_next_to_the_best_within_half_a_point(study):
    _, rule = study
    low, high = rule.right_rates({0.001: 80.0, 0.01: 90.0, 0.1: 89.0, 1.0: 10.0, 10.0: 90.0 - 0.1})
    assert low == pytest.approx(-2 - 0.05, abs=0.02)  # half a point of the 10 that a decade costs
    assert high == pytest.approx(-2 + 0.5, abs=0.02)  # half of the way to the rate that costs a point; not the island


def curve_at(rate, seed=0):
    """A range test whose plateau lies around a rate."""
    x = np.linspace(-2, 2, 300)
    values = 1 + np.minimum(x**2, 1.0) + 0.01 * np.random.default_rng(seed).standard_normal(300)
    return cyclr.Curve(
        "loss", np.arange(300), rate * 10**x, values, measured="after", stopped="diverged", stopped_at=rate
    )


def test_a_share_is_the_one_with_the_least_mean_regret_over_the_other_tasks(study):
    _, rule = study
    grid = lambda best: {best * 10**d: 90.0 - 10 * abs(d) for d in (-1.0, -0.5, 0.0, 0.5, 1.0)}  # noqa: E731
    curves = {name: [json.dumps(curve_at(1.0, seed).to_dict())] for seed, name in enumerate("abc")}
    grids = {"a": grid(0.5), "b": grid(0.5), "c": grid(0.01)}
    assert rule.share_from(curves, grids, "one_cycle", without="c") == pytest.approx(0.5, rel=0.1)
    assert rule.share_from(curves, grids, "one_cycle", without=None) == pytest.approx(0.5, rel=0.1)
    assert rule.share_from(curves, {"c": grids["c"]}, "one_cycle", without="c") is None
    bounds = rule.advised(curves["c"][0], "one_cycle", 0.5)
    assert bounds.max_lr == pytest.approx(0.5, rel=0.1)


def record(metric=90.0, **config):
    return new_record({"task": "t", "policy": "fixed", "seed": 0, "updates": 8, **config}, {"metric": metric})


def test_the_grid_has_only_its_own_rates_and_the_best_has_all_seeds(study, tmp_path):
    records, _ = study
    for lr, seeds, metric in ((0.1, 3, 90.0), (1.0, 1, 95.0), (0.12, 3, 90.0)):
        for seed in range(seeds):
            append_record(tmp_path, record(metric, max_lr=lr, base_lr=None, seed=seed, fingerprint="f"))
    found = records.Records(tmp_path)
    assert set(found.grid("t", "fixed")) == {0.1, 1.0}
    assert found.best("t", "fixed") == (0.1, 90.0)
    assert found.best("t", "triangular") is None


def test_records_of_two_versions_of_a_task_are_not_mixed(study, tmp_path):
    records, _ = study
    for fingerprint in "fg":
        append_record(tmp_path, record(max_lr=0.1, base_lr=None, fingerprint=fingerprint))
    with pytest.raises(ValueError, match="2 versions of task t; move the old records away"):
        records.Records(tmp_path)


def test_regret_is_interpolated_between_the_rates_of_the_grid(study):
    _, rule = study
    grid = {0.1: 80.0, 0.001: 60.0, 0.01: 90.0}
    assert rule.regret(grid, -2.0) == 0.0
    assert rule.regret(grid, -1.5) == pytest.approx(5.0)
    assert rule.regret(grid, -2.5) == pytest.approx(15.0)


def test_an_intervals_factor_holds_nine_of_ten_cases(study):
    _, rule = study
    misses = [0.01 * k for k in range(10)]
    assert sum(miss <= np.log10(rule.spread_from(misses)) + 1e-9 for miss in misses) == 10
    assert rule.spread_from([0.0] * 19 + [1.0]) == 1.0


@pytest.fixture
def a_study(study, tmp_path):
    """Records of two tasks: a grid with its best at 0.1, advice that is right for one and wrong for the other."""
    records, _ = study

    def keep(**config):
        append_record(tmp_path, new_record({"updates": 400, "fingerprint": "f", **config.pop("config")}, config))

    for task, top in (("digits-mlp-sgd", 90.0), ("digits-cnn-adam", 80.0)):
        for policy in ("fixed", "triangular", "triangular2", "one_cycle", "linear_to_zero"):
            for lr, lost in ((0.01, 10.0), (0.1, 0.0), (1.0, 30.0)):
                for seed in records.SEEDS:
                    cell = {"task": task, "policy": policy, "max_lr": lr, "base_lr": None, "seed": seed}
                    keep(config=cell, metric=top - lost)
        for seed in records.SEEDS:
            sweep = {"task": task, "seed": seed, "sweep": 100}
            said = {"lr": 0.1 if task == "digits-mlp-sgd" else 1.0, "updates": 97}
            missing = {"lr": None, "updates": 97}
            advice = {
                "fastai valley": said,
                "fastai slide": missing,
                "fastai steep": missing,
                "fastai minimum": missing,
            }
            keep(config={**sweep, "policy": "fastai"}, advice=advice)
            keep(config={**sweep, "policy": "cyclr", "sweep": 300}, curve=curve_at(0.3, seed).to_dict(), updates=500)
            cell = {"task": task, "policy": "one_cycle", "max_lr": 0.13, "base_lr": None, "seed": seed}
            keep(config={**cell, "adviser": "cyclr"}, metric=top - 1.0 - seed)
    keep(config={"task": "digits-mlp-sgd", "policy": "DoG", "seed": 0}, error="ValueError: it broke")
    import tables

    return tables, tables.Findings(records.Records(tmp_path)), tmp_path


def cells(text, start):
    """The cells of the first line that starts so."""
    return next(line for line in text.splitlines() if line.startswith(start)).strip("| ").split(" | ")


def test_the_table_of_advisers_says_what_was_trained(a_study):
    tables, study, _ = a_study
    text = tables.advisers_text(study)
    assert cells(text, "| **cyclr** | one_cycle")[2:6] == ["2", "2.00", "2.00", "2.0 (digits-mlp-sgd)"]
    assert cells(text, "| **cyclr** | triangular |")[2:4] == ["0", "not yet"]
    valley = cells(text, "| fastai valley")
    assert valley[2:] == ["2", "15.00", "15.00", "30.0 (digits-cnn-adam)", "1.0, 1.0", "1.0, 1.0", "97", "0"]
    assert cells(text, "| fastai slide")[-1] == "6"  # gave no advice, six times
    ramp = cells(text, "| cyclr, ramp alone* | one_cycle")
    assert ramp[2] == "2"
    assert float(ramp[3]) < 2.0


def test_the_other_tables_are_made_of_the_same_records(a_study):
    tables, study, _ = a_study
    assert cells(tables.fixed_text(study), "| one_cycle")[1:] == ["2", "-2.00", "-2.0 (digits-mlp-sgd)", "0 of 2"]
    assert "cost 2.2 to 2.2 trainings" in tables.fixed_text(study)  # 500 updates before 400
    assert "fastai valley: digits-mlp-sgd (0.0 against 2.0)" in tables.ahead(study)
    assert "fastai slide: on no task" in tables.ahead(study)
    assert cells(tables.methods_text(study), "| cyclr's bounds, one_cycle")[1:4] == ["2", "6", "2.00"]
    assert "Failed, 1 times: digits-mlp-sgd: ValueError: it broke" in tables.grid_text(study)
    assert "90.0 at 0.1" in tables.grid_text(study)
    rates = cells(tables.rates_text(study, "digits-cnn"), "| digits-cnn-adam | one_cycle")
    assert rates[2] == "0.13, 0.13, 0.13"
    assert rates[4:] == ["80.0 at 0.1", "2.0"]


def test_a_page_that_is_not_what_the_records_say_is_found(a_study, monkeypatch, capsys):
    tables, _, folder = a_study
    pages = {"README": folder / "README.md", "TRUST": folder / "trust.md", "FRONT": folder / "front.md"}
    for name, page in pages.items():
        page.write_text("before\n<!-- grid -->\n<!-- /grid -->\nafter\n")
        monkeypatch.setattr(tables, name, page)
    monkeypatch.setattr(tables, "HERE", folder)
    monkeypatch.setattr(sys, "argv", ["tables.py", "--records", str(folder)])
    tables.main()
    assert "90.0 at 0.1" in pages["TRUST"].read_text()
    assert (folder / "regret.png").exists()
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--check"])
    tables.main()
    pages["TRUST"].write_text(pages["TRUST"].read_text().replace("90.0 at 0.1", "99.0 at 0.1"))
    with pytest.raises(
        SystemExit, match=r"trust.md is not what the records say; run python benchmarks/regret/tables.py"
    ):
        tables.main()
    monkeypatch.setattr(sys, "argv", ["tables.py", "--records", str(folder), "--only", "mine"])
    with pytest.raises(SystemExit, match="there are no records of task mine; there are some of digits-mlp-sgd"):
        tables.main()


OWN = """
import torch
from cyclr.lab import Task

def data(count):
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(count))
    return x, (x.sum(1) > 0).long()

def task(loss=torch.nn.functional.cross_entropy, name="mine"):
    build = lambda: torch.nn.Linear(4, 2)
    optimizer = lambda net: torch.optim.SGD(net.parameters(), lr=0.1)
    return Task(name, build, optimizer, loss, data(200), data(100), batch_size=8)

def broken():
    return task(lambda output, target: 1 / 0, "broken")
"""


def run_study(monkeypatch, *arguments):
    """As from the command line: a task of one's own is one of the study's only for this call."""
    import study as queue

    monkeypatch.setattr(sys, "argv", ["study.py", *map(str, arguments)])
    known = dict(queue.CASES)
    try:
        queue.main()
    finally:
        for name in queue.CASES.keys() - known:
            del queue.CASES[name]


def test_a_task_of_ones_own_is_studied_once(study, tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(OWN)
    own = ("--task", tmp_path / "own.py", "--updates", 80, "--out", tmp_path)
    for part in ("grid", "curves", "judge"):
        run_study(monkeypatch, part, *own)
    import tables

    lines = (tmp_path / "records.jsonl").read_text()
    found = tables.Findings(study[0].Records(tmp_path), "mine")
    assert all(found.records.best("mine", policy) for policy in tables.POLICIES)
    assert set(found.records.inside["mine", "one_cycle"]) == {0, 1, 2}
    assert -5.0 < float(cells(tables.tasks_text(found), "| mine")[3]) < 5.0  # it is learned at nearly any rate
    run_study(monkeypatch, "judge", *own)  # nothing is trained again
    assert (tmp_path / "records.jsonl").read_text() == lines


def test_machines_that_share_the_records_share_their_locks_which_git_does_not_see(study, tmp_path, monkeypatch):
    from study import claimed

    records = tmp_path / "records"
    subprocess.run(["git", "init", "-q", str(records)], check=True)
    with claimed(records, "a") as ours:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # another machine has its own
        with claimed(records, "a") as theirs, claimed(records, "b") as other:
            assert (ours, theirs, other) == (True, False, True)
    with claimed(records, "a") as given_back:
        assert given_back
    seen = subprocess.run(["git", "-C", records, "status", "--short"], capture_output=True, text=True, check=True)
    assert seen.stdout == ""


def test_a_place_where_no_cluster_is_is_told_in_a_sentence(study, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    with pytest.raises(SystemExit, match=r"no Ray cluster answers at 127.0.0.1:9"):
        run_study(monkeypatch, "grid", "--on", "ray:127.0.0.1:9", "--out", tmp_path)


def test_a_task_that_raises_leaves_a_hole_and_the_study_goes_on(study, tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(OWN)
    own = ("--task", f"{tmp_path / 'own.py'}:broken", "--updates", 80, "--out", tmp_path)
    run_study(monkeypatch, "curves", *own)
    run_study(monkeypatch, "judge", *own)
    import tables

    found = tables.Findings(study[0].Records(tmp_path), "broken")
    assert "Failed, 3 times: broken: ZeroDivisionError: division by zero" in tables.grid_text(found)
    assert set(cells(tables.tasks_text(found), "| broken")[1:]) == {"none"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--only", "nothing"), "unknown task 'nothing'; choose from digits-mlp-sgd"),
        (("--task", "own.py"), "--updates must be a whole number, at least 80, got None$"),
        (("--task", "own.py", "--updates", "8"), "--updates must be at least 80, got 8"),
        (("--task", "nowhere.py", "--updates", "80"), "nowhere.py"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_trained(study, tmp_path, monkeypatch, arguments, sentence):
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=sentence):
        run_study(monkeypatch, "grid", *arguments, "--out", tmp_path)
    assert not (tmp_path / "records.jsonl").exists()
