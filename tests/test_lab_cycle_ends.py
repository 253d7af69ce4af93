"""What the lab does at a cycle's end: snapshots that survive a kill, stopping there, what snapshots are worth."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import cyclr
from cyclr import reason_to_stop
from cyclr.lab import assess, train
from cyclr.lab.ensembling import _average
from cyclr.torch import Ensemble, SnapshotError, Snapshots
from tiny_task import make, points, task

TASK = Path(__file__).with_name("tiny_task.py")
SCHEDULE = cyclr.triangular(0.02, 0.2, stepsize=20)


def snapshots_in(folder):
    """The weights of each member, by step."""
    (path,) = (folder / "snapshots").iterdir()
    return {member.step: load_file(path / member.file) for member in Ensemble(path, task().model()).members}


class Crash(Exception):
    pass


def crash_at(step):
    def progress(done, *_):
        if done >= step:
            raise Crash

    return progress


def cyclr_command(*words):
    return subprocess.run([sys.executable, "-m", "cyclr", *map(str, words)], capture_output=True, text=True)


@pytest.mark.parametrize("crashes", [(45,), (80, 130), (150,)])
def test_snapshots_of_a_run_that_was_cut_off_are_those_of_a_whole_one(crashes, tmp_path):
    whole = train(task(), SCHEDULE, 170, tmp_path / "whole", snapshots=3)
    for step in crashes:
        with pytest.raises(Crash):
            train(task(), SCHEDULE, 170, tmp_path / "cut", snapshots=3, checkpoint_seconds=0, progress=crash_at(step))
    again = train(task(), SCHEDULE, 170, tmp_path / "cut", snapshots=3, checkpoint_seconds=0)
    assert again["result"]["history"] == whole["result"]["history"]
    wanted, found = snapshots_in(tmp_path / "whole"), snapshots_in(tmp_path / "cut")
    assert list(found) == list(wanted) == [80, 120, 160]
    for step, tensors in wanted.items():
        assert all(torch.equal(found[step][name], tensor) for name, tensor in tensors.items())


def test_the_best_by_validation_stay_also_where_a_run_goes_on(tmp_path):
    falling = make(metric=lambda output, target: (output.argmax(-1) != target).float().mean())
    settings = dict(snapshots=2, snapshots_by="best", checkpoint_seconds=0)
    with pytest.raises(Crash):
        train(falling, SCHEDULE, 170, tmp_path, **settings, progress=crash_at(130))
    record = train(falling, SCHEDULE, 170, tmp_path, **settings)
    history = {each["step"]: each["validation"] for each in record["result"]["history"]}
    wanted = sorted(sorted((40, 80, 120, 160), key=lambda step: (history[step], step))[-2:])
    assert list(snapshots_in(tmp_path)) == wanted != [120, 160]


@pytest.mark.parametrize("evaluate_at", [None, [50, 170]])
def test_an_action_of_the_callers_sees_each_cycles_end_and_again_what_the_checkpoint_does_not_know(
    evaluate_at, tmp_path
):
    seen = []

    def at_cycle_end(step, net):
        seen.append((step, net[0].weight.detach().clone()))

    settings = dict(snapshots=9, evaluate_at=evaluate_at, at_cycle_end=at_cycle_end, checkpoint_seconds=0)
    with pytest.raises(Crash):
        train(task(), SCHEDULE, 170, tmp_path, **settings, progress=crash_at(90))
    record = train(task(), SCHEDULE, 170, tmp_path, **settings)
    assert [step for step, _ in seen] == [40, 80, 120, 120, 160]  # cut off at 120, before its checkpoint
    kept = snapshots_in(tmp_path)
    assert all(torch.equal(weight, kept[step]["0.weight"]) for step, weight in seen)
    points = [each["step"] for each in record["result"]["history"]]
    assert points == sorted({40, 80, 120, 160, 170, *(evaluate_at or ())})


def test_an_action_at_cycles_ends_needs_cycles(tmp_path):
    with pytest.raises(ValueError, match="the schedule completes no cycle within total_steps; train longer"):
        train(task(), SCHEDULE, 30, tmp_path, at_cycle_end=lambda step, net: None)


def test_a_killed_run_keeps_its_snapshots_until_it_has_taken_them_again(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    words = [
        "train", TASK, "--base-lr", 0.02, "--max-lr", 0.2, "--steps", 960, "--stepsize", 20, "--snapshots", 3,
        "--checkpoint-seconds", 1000, "--json",
    ]  # fmt: skip
    for killed in (True, True, False):
        process = subprocess.Popen(
            [sys.executable, "-m", "cyclr", *map(str, words), "--out", cut], stdout=subprocess.DEVNULL
        )
        while killed and process.poll() is None and not later_than(cut, 200):
            time.sleep(0.001)
        if killed:
            process.kill()
        process.wait()
        assert len(snapshots_in(cut)) == 3
    cyclr_command(*words, "--out", whole)
    wanted, found = snapshots_in(whole), snapshots_in(cut)
    assert list(found) == list(wanted) == [880, 920, 960]
    for step, tensors in wanted.items():
        assert all(torch.equal(found[step][name], tensor) for name, tensor in tensors.items())


def later_than(folder, step):
    """Whether a run has taken snapshots past that step."""
    manifests = list(folder.glob("snapshots/*/manifest.json"))
    return bool(manifests) and any(each["step"] > step for each in json.loads(manifests[0].read_text())["members"])


def test_sorted_data_gives_the_average_the_statistics_of_shuffled_data(tmp_path):
    """Batches of one class each, as a folder of images has them, would tell BatchNorm other variances."""
    x, y = points()
    x = x + 3.0 * y[:, None]
    by_class = torch.argsort(y, stable=True)

    def built(order):
        def net():
            return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))

        rows = order[: len(order) // 20 * 20]
        return make(model=net, train=(x[rows], y[rows]), validation=None, test=(x, y))

    train(built(torch.arange(len(y))), SCHEDULE, 80, tmp_path, snapshots=2)
    (path,) = (tmp_path / "snapshots").iterdir()
    ensemble, statistics = Ensemble(path, built(by_class).model()), []
    for order in (torch.arange(len(y)), by_class):
        task = built(order)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("cyclr.lab.ensembling.BATCH", 50)
            patch.setattr(
                "cyclr.lab.ensembling.evaluate", lambda task, model, *_: statistics.append(model[1].running_var)
            )
            _average(task, ensemble, (40, 80), torch.device("cpu"), x[:50], 1.0)
    torch.testing.assert_close(statistics[1], statistics[0], rtol=0.15, atol=0)


def test_a_member_is_the_model_that_was_evaluated_at_its_step(tmp_path):
    record = train(task(), SCHEDULE, 120, tmp_path, snapshots=9)
    (path,) = (tmp_path / "snapshots").iterdir()
    members = Ensemble(path, task().model()).members
    history = {point["step"]: point["validation"] for point in record["result"]["history"]}
    assert {member.step: member.metric for member in members} == history
    found = assess(task(), tmp_path)
    singles = {each.steps[0]: each.validation for each in found if each.kind == "member"}
    assert singles == pytest.approx(history)
    assert found[2].test == pytest.approx(record["result"]["test"])


def test_an_ensemble_is_assessed_by_the_mean_of_its_members_probabilities(tmp_path):
    train(task(), SCHEDULE, 160, tmp_path, snapshots=9)
    x, y = task().test
    probabilities = []
    for tensors in snapshots_in(tmp_path).values():
        model = task().model().eval()
        model.load_state_dict(tensors)
        with torch.no_grad():
            probabilities.append(model(x).softmax(-1))
    found = assess(task(), tmp_path)
    costs = {each.steps[0]: each.cost for each in found if each.kind == "member"}
    assert costs[160] == 1.0
    assert [each.steps for each in found if each.kind == "ensemble"] == [(120, 160), (80, 120, 160), (40, 80, 120, 160)]
    for each in found:
        if each.kind == "ensemble":
            mean = torch.stack(probabilities[-len(each.steps) :]).mean(0)
            assert each.test == pytest.approx(float((mean.argmax(-1) == y).float().mean()))
            assert each.cost == pytest.approx(sum(costs[step] for step in each.steps))
    assert found[-1].kind == "average"


def test_costs_are_measured_for_each_net_the_average_too(tmp_path, monkeypatch):
    train(task(), SCHEDULE, 120, tmp_path, snapshots=3)
    seen = []

    def seconds(model, x):
        assert not torch.is_grad_enabled()
        assert not model.training
        seen.append(next(model.parameters()).detach().clone())
        return (1.0, 2.0, 4.0, 8.0)[len(seen) - 1]  # three members, then the average

    monkeypatch.setattr("cyclr.lab.ensembling._seconds", seconds)
    assert [each.cost for each in assess(task(), tmp_path)] == [0.25, 0.5, 1.0, 1.5, 1.75, 2.0]
    assert torch.allclose(seen[-1], torch.stack(seen[:3]).mean(0))


def test_the_test_set_chooses_no_member(tmp_path):
    judged_on_test = make(validation=None)
    train(judged_on_test, SCHEDULE, 80, tmp_path, snapshots=2)
    with pytest.raises(SnapshotError, match="these snapshots have no metric to choose by; choose the last ones"):
        assess(judged_on_test, tmp_path, best=1)


def test_snapshots_of_ones_own_loop_are_assessed_as_the_given_tasks(tmp_path):
    model, _ = task().build(seed=0)
    Snapshots(tmp_path, SCHEDULE)(40, model)
    assert assess(task(), tmp_path)[0].steps == (40,)
    asked = cyclr_command("ensemble", tmp_path)
    assert asked.returncode == 2
    assert "holds snapshots of no named task, which is not built in; give --task file.py[:function]" in asked.stderr
    assert cyclr_command("ensemble", tmp_path, "--task", TASK, "--json").returncode == 0


@pytest.mark.parametrize("snapshots", [[30, 500], []])
def test_snapshots_that_would_not_be_taken_are_refused(snapshots, tmp_path):
    with pytest.raises(ValueError, match=r"snapshots must be numbers of updates from 1 to 60, got \["):
        train(task(), SCHEDULE, 60, tmp_path, snapshots=snapshots)


def test_what_does_not_go_together_is_told_before_any_range_test(tmp_path):
    for words, sentence in (
        (["--policy", "fixed=0.1", "--snapshots", 3], "completes no cycle within total_steps"),
        (["--patience", 0], "patience must be at least 1"),
    ):
        asked = cyclr_command("train", TASK, *words, "--steps", 100, "--out", tmp_path)
        assert (asked.returncode, sentence in asked.stderr) == (2, True), asked.stderr
        assert not (tmp_path / "curve.json").exists()


def test_without_snapshots_or_stopping_a_run_is_called_as_before(tmp_path):
    record = train(task(), SCHEDULE, 40, tmp_path)
    assert not {"snapshots", "stop", "seconds", "patience"} & record["config"].keys()
    assert not {"stopped", "scores"} & record["result"].keys()
    assert not (tmp_path / "snapshots").exists()


def test_snapshots_are_taken_where_they_are_asked_for_without_any_cycles(tmp_path):
    record = train(task(), cyclr.fixed(0.05), 100, tmp_path, snapshots=[30, 70, 100])
    assert list(snapshots_in(tmp_path)) == [30, 70, 100]
    assert {30, 70, 100} <= {point["step"] for point in record["result"]["history"]}


# Stopping


def test_it_stops_at_the_last_cycles_end_within_the_budget(tmp_path):
    record = train(task(), SCHEDULE, 139, tmp_path, stop="cycle_end")
    assert (record["result"]["steps"], record["result"]["stopped"]) == (120, None)


def test_it_stops_where_the_metric_has_not_improved_for_some_cycles(tmp_path):
    values = iter([0.5, 0.7, 0.6, 0.7, 0.8, 0.9])

    def metric(output, target):  # of the validation data, whose 80 examples are one batch, the next value
        return torch.tensor(next(values) if len(target) == 80 else 0.0)

    built = make(metric=metric, test=tuple(each[:40] for each in points()))
    record = train(built, SCHEDULE, 400, tmp_path, stop="cycle_end", patience=2)
    assert record["result"]["steps"] == 160
    assert record["result"]["stopped"] == "no better metric for 2 cycles"


@pytest.fixture
def clock(monkeypatch):
    """The training's clock, which moves by a second with each batch of `slow`."""
    now = [0.0]
    monkeypatch.setattr("cyclr.lab.run.time.perf_counter", lambda: now[0])
    return now


def slow(clock):
    def loss(output, target):
        clock[0] += 1.0
        return torch.nn.functional.cross_entropy(output, target)

    return make(loss=loss)


def test_it_begins_no_cycle_that_would_end_after_the_time_is_up(tmp_path, clock):
    record = train(slow(clock), SCHEDULE, 400, tmp_path, stop="cycle_end", seconds=100.0)
    assert record["result"]["steps"] == 80
    assert record["result"]["stopped"] == "another cycle would take it past 100 seconds"


def test_the_time_before_a_run_was_cut_off_counts(tmp_path, clock):
    settings = {"stop": "cycle_end", "seconds": 170.0, "checkpoint_seconds": 0}
    with pytest.raises(Crash):
        train(slow(clock), SCHEDULE, 400, tmp_path, **settings, progress=crash_at(90))
    clock[0] = 0.0
    record = train(slow(clock), SCHEDULE, 400, tmp_path, **settings)
    assert record["result"]["steps"] == 160


@pytest.mark.parametrize(
    ("ends", "limits", "reason"),
    [
        ([], {"seconds": 1.0}, None),
        ([(10, 0.5)], {"seconds": 20}, None),
        ([(10, 0.5)], {"seconds": 19.9}, "another cycle would take it past 19.9 seconds"),
        ([(10, 0.5)], {"seconds": 5}, "another cycle would take it past 5 seconds"),
        ([(10, 0.5), (30, 0.6)], {"seconds": 50}, None),
        ([(10, 0.5), (20, 0.5)], {"patience": 1}, "no better metric for 1 cycle"),
        ([(10, 0.5), (20, 0.6)], {"patience": 1}, None),
        ([(10, 0.5), (20, 0.4)], {}, None),
    ],
)
def test_the_reason_to_stop(ends, limits, reason):
    assert reason_to_stop(ends, **limits) == reason


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"seconds": 5.0}, 'give stop="cycle_end" with them'),
        ({"stop": "cycle"}, "unknown stop 'cycle'; choose from budget, cycle_end"),
        ({"stop": "cycle_end", "patience": 0}, "patience must be at least 1, got 0"),
        ({"stop": "cycle_end", "seconds": 0.0}, "seconds must be finite and above 0, got 0"),
        ({"snapshots": 0}, "snapshots must be at least 1, got 0"),
        ({"snapshots": 2, "snapshots_by": "first"}, "unknown snapshots_by 'first'; choose from last, best"),
        ({"snapshots": [40], "snapshots_by": "best"}, "give snapshots=N, the number that stays"),
        ({"snapshots": 2, "total_steps": 39}, "completes no cycle within total_steps"),
        ({"stop": "cycle_end", "total_steps": 39}, "completes no cycle within total_steps"),
    ],
)
def test_wrong_settings_are_refused_and_nothing_is_written(settings, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        train(task(), SCHEDULE, **{"total_steps": 200, "out": tmp_path, **settings})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"stop": "cycle_end", "patience": 2}, "patience needs validation data, and task tiny has none"),
        ({"snapshots": 2, "snapshots_by": "best"}, "the best snapshots need validation data, and task tiny has none"),
    ],
)
def test_the_test_data_decide_nothing_on_the_way(settings, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        train(make(validation=None), SCHEDULE, 200, tmp_path, **settings)


# The command


def test_the_command_takes_snapshots_and_says_what_they_are_worth(tmp_path):
    out = tmp_path / "out"
    options = ["--base-lr", 0.02, "--max-lr", 0.2, "--steps", 160, "--out", out]
    done = cyclr_command("train", TASK, *options, "--snapshots", 3, "--patience", 50)
    assert done.returncode == 0, done.stderr
    shown = cyclr_command("ensemble", out, "--task", TASK)
    assert shown.returncode == 0, shown.stderr
    assert "ensemble of 3, from update" in shown.stdout
    models = json.loads(cyclr_command("ensemble", out, "--task", TASK, "--last", 2, "--json").stdout)["models"]
    wanted = assess(task(), out, last=2)
    assert [(each["kind"], each["test"]) for each in models] == [(each.kind, each.test) for each in wanted]
    (manifest,) = out.rglob("manifest.json")
    for words, sentence in (
        (["ensemble", out], "holds snapshots of tiny, which is not built in; give --task file.py"),
        (["ensemble", out, "--task", "digits"], r"holds snapshots of tiny"),
        (["ensemble", tmp_path], "holds no snapshots; make some with cyclr train TASK --snapshots"),
        (["ensemble", out, "--task", TASK, "--last", 9], "last must be at most 3"),
    ):
        told = cyclr_command(*words)
        assert (told.returncode, told.stdout) == (2, "")
        assert sentence in told.stderr
        assert told.stderr.count("\n") == 1
    manifest.write_text(manifest.read_text().replace('"step": ', '"step": 1'))
    told = cyclr_command("ensemble", out, "--task", TASK)
    assert (told.returncode, told.stdout) == (2, "")
    assert "manifest.json was edited, its checksum is another" in told.stderr


def test_snapshots_of_another_task_are_told(tmp_path):
    train(task(), SCHEDULE, 80, tmp_path, snapshots=2)
    with pytest.raises(SnapshotError, match=r"holds snapshots of tiny .*, not of tiny"):
        assess(make(batch_size=10), tmp_path)


def test_a_finished_run_whose_snapshots_are_gone_says_so(tmp_path):
    schedule = cyclr.triangular(0.01, 0.1, 5)
    record = train(make(), schedule, 20, tmp_path, snapshots=2)
    assert train(make(), schedule, 20, tmp_path, snapshots=2) == record
    shutil.rmtree(tmp_path / "snapshots")
    with pytest.raises(SnapshotError, match=r"its snapshots are gone .* or choose another folder"):
        train(make(), schedule, 20, tmp_path, snapshots=2)
