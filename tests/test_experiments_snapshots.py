"""The table of snapshot ensembles on a tiny task: each kind's number is what its members' probabilities say."""

import json
import math

import pytest
import torch

import cyclr
import rebuild
import snapshots
from cyclr.torch import Ensemble
from tiny_task import make


def members_in(folder):
    model = make().model()
    return [
        (member.step, ensemble._tensors(member))
        for path in sorted((folder / "weights" / "runs" / "snapshots").iterdir())
        for ensemble in [Ensemble(path, model)]
        for member in ensemble.members
    ]


def accuracy_of(members):
    task = make()
    x, y = task.test
    found = []
    for tensors in members:
        model = task.model().eval()
        model.load_state_dict(tensors)
        with torch.no_grad():
            found.append(model(x).softmax(-1))
    return float((torch.stack(found).mean(0).argmax(-1) == y).float().mean())


def trained(name, cycles, folder):
    schedule = cyclr.cosine_restarts(0.0, 0.2, 60 // cycles)
    return snapshots.train_and_assess(
        make(validation=None), schedule, 60, folder, policy=name, seed=2, evaluate_at=[30, 60]
    )


@pytest.mark.parametrize(
    ("name", "cycles", "count"),
    [
        ("resnet-cifar-100-single", 1, None),
        ("resnet-cifar-100-snapshots-m-3", 3, 3),
        ("resnet-cifar-100-true-ensemble-m-3", 3, 3),
    ],
)
def test_a_cells_number_is_its_members_mean(name, cycles, count, tmp_path):
    record = trained(name, cycles, tmp_path)
    members = members_in(tmp_path)
    found = record["result"]["models"]
    if count is None:
        by_step = dict(members)
        assert sorted(by_step) == [12, 20, 24, 36, 40, 48, 60]
        assert found["ensemble"] == pytest.approx(accuracy_of([by_step[60]])) == pytest.approx(record["result"]["test"])
        assert found["without cycles, 3"] == pytest.approx(accuracy_of([by_step[20], by_step[40], by_step[60]]))
    else:
        assert len(members) == count
        assert found["ensemble"] == pytest.approx(accuracy_of([each for _, each in members]))
    assert snapshots.value(record) == pytest.approx(100 * found["ensemble"])
    assert record["config"]["total_steps"] == 60
    assert trained(name, cycles, tmp_path) == record  # made once
    assert len((tmp_path / "records.jsonl").read_text().splitlines()) == 1


def test_a_true_ensembles_members_differ_and_have_a_share_of_the_budget(tmp_path):
    trained("resnet-cifar-100-true-ensemble-m-3", 3, tmp_path)
    members = members_in(tmp_path)
    assert [step for step, _ in members] == [20, 20, 20]
    assert len({each["0.weight"].sum().item() for _, each in members}) == 3


def test_all_cells_of_a_net_have_one_budget_and_say_their_kind():
    for table in (snapshots.SCALED, snapshots.SHORT, snapshots.TABLE):
        budgets = {}
        for cell in table.cells:
            budgets.setdefault(cell.task, set()).add(cell.updates)
            kind, count = snapshots.members_of(cell.name)
            cycles = len(cell.schedule.cycle_ends(cell.updates))
            assert cycles == count
            assert cell.column.rpartition(", ")[2].startswith(kind) or f"M = {count}" in cell.column
            json.dumps(cell.settings(cell.schedule, 0))
        assert all(len(each) == 1 for each in budgets.values())


def test_the_few_images_are_the_same_tenth_each_time():
    few = [snapshots.few(lambda data_dir: make(train=(torch.arange(50_000), torch.zeros(50_000))))(None) for _ in "ab"]
    drawn = [task.train[0] for task in few]
    assert drawn[0].equal(drawn[1])
    assert len(drawn[0]) == len(drawn[0].unique()) == snapshots.FEW


@pytest.mark.parametrize(
    ("name", "cycles", "sound", "updates"),
    [
        ("resnet-cifar-100-single", 1, 0, 30),
        ("resnet-cifar-100-snapshots-m-3", 3, 0, 30),  # after the first of its snapshots
        ("resnet-cifar-100-true-ensemble-m-3", 3, 1, 10),  # in the second of its trainings
    ],
)
def test_where_a_training_diverged_there_is_no_ensemble_of_the_rest(
    name, cycles, sound, updates, tmp_path, monkeypatch
):
    real, made = snapshots.train, []

    def train(task, *args, **how):
        made.append(task)
        broken = make(validation=None, loss=breaks_after(updates))
        return real(task if len(made) <= sound else broken, *args, **how)

    monkeypatch.setattr(snapshots, "train", train)
    record = trained(name, cycles, tmp_path)
    assert record["result"]["status"] == "diverged"
    assert record["result"]["models"] == {"ensemble": None}
    assert math.isnan(snapshots.value(record))


def breaks_after(calls):
    """A loss that is NaN after so many batches."""
    seen = []

    def loss(output, target):
        seen.append(1)
        return torch.nn.functional.cross_entropy(output, target) * (math.nan if len(seen) > calls else 1.0)

    return loss


SINGLE, ENSEMBLE = "resnet-cifar-100-single", "resnet-cifar-100-snapshots-m-5"


def assessed(ensemble, **models):
    result = {"status": "done" if ensemble else "diverged", "steps": 9360, "updates_per_second": 9.0, "history": []}
    names = {name.replace("_", " "): value for name, value in models.items()}
    return {"result": {**result, "models": {"ensemble": ensemble, **names}}, "hardware": {"gpu": None}}


def test_the_gain_is_over_the_single_model_of_the_same_seed():
    runs = {(SINGLE, seed): assessed(0.5 + seed / 10) for seed in range(3)}
    runs |= {(ENSEMBLE, seed): assessed(0.5 + seed / 10 + gain) for seed, gain in enumerate((0.01, 0.02, 0.03))}
    runs[ENSEMBLE, 3] = assessed(0.9)  # without a single model of this seed
    half = 4.302653 / 3**0.5  # Student's t for three values with a standard deviation of 1
    said = ["3", f"+2.00 ({2 - half:+.2f} to {2 + half:+.2f})", "cannot tell apart |"]
    assert gain_of("M = 5", runs) == said
    runs[SINGLE, 3], runs[SINGLE, 4], runs[ENSEMBLE, 4] = assessed(None), assessed(0.5), assessed(None)
    assert gain_of("M = 5", runs) == said


def gain_of(column, runs):
    (line,) = [line for line in snapshots.gains(snapshots.SCALED, runs).splitlines() if column in line]
    return line.split(" | ")[2:]


def test_what_else_the_snapshots_say_has_a_mean_of_the_runs_that_did_not_diverge():
    runs = {
        (ENSEMBLE, 0): assessed(None),
        (ENSEMBLE, 1): assessed(0.7, last_member=0.6, average=0.5, last_2=0.65),
        (ENSEMBLE, 2): assessed(0.7, last_member=0.62, average=0.5, last_2=0.65),
        (SINGLE, 1): assessed(0.66, without_cycles=0.6),
    }
    text = snapshots.remarks(snapshots.SCALED, runs)
    gained, others = text.split("\n\n")
    assert "+4.00 (1 seed)" in gained
    assert others.splitlines()[2:] == [
        "| ResNet | CIFAR-100, single: without cycles | 60.00 |  | 1 |",
        "| ResNet | CIFAR-100, snapshots, M = 5: last member | 61.00 | 1.41 | 2 |",
        "| ResNet | CIFAR-100, snapshots, M = 5: average | 50.00 | 0.00 | 2 |",
        "| ResNet | CIFAR-100, snapshots, M = 5: last 2 | 65.00 | 0.00 | 2 |",
    ]
    assert snapshots.remarks(snapshots.SCALED, {}) == ""
    broken = {(ENSEMBLE, 0): assessed(None), (SINGLE, 0): assessed(None)}
    assert snapshots.remarks(snapshots.SCALED, broken) == ""
    cell = next(cell for cell in snapshots.SCALED.cells if cell.name == ENSEMBLE)
    assert rebuild.line_of(snapshots.SCALED, cell, runs).startswith("| ResNet (scaled) (1 diverged) |")


def test_the_sub_models_are_objects_of_their_own():
    runs = {(ENSEMBLE, seed): assessed(0.7, average=value) for seed, value in enumerate((0.5, 0.6))}
    objects = rebuild.objects_of(snapshots.SCALED, runs)
    assert len(objects) == len(snapshots.SCALED.cells) + 1
    assert objects[-1] == {
        "table": "snapshots-scaled", "row": "ResNet", "column": "CIFAR-100, snapshots, M = 5: average", "paper": None,
        "mean": 55.0, "sd": pytest.approx(7.0711), "n": 2, "updates": 15600, "scaled": True,
        "command": "python experiments/run.py snapshots-scaled --data-dir DIR",
    }  # fmt: skip
    (own,) = [each for each in objects if each["row"] == "ResNet" and each["column"] == "CIFAR-100, snapshots, M = 5"]
    assert (own["paper"], own["mean"]) == (75.81, 70.0)
