"""The table of snapshot ensembles on a tiny task: each kind's number is what its members' probabilities say."""

import json

import pytest
import torch

import cyclr
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
    for table in (snapshots.SCALED, snapshots.TABLE):
        budgets = {}
        for cell in table.cells:
            budgets.setdefault(cell.task, set()).add(cell.updates)
            kind, count = snapshots.members_of(cell.name)
            cycles = len(cell.schedule.cycle_ends(cell.updates))
            assert cycles == count
            assert cell.column.rpartition(", ")[2].startswith(kind) or f"M = {count}" in cell.column
            json.dumps(cell.settings(cell.schedule, 0))
        assert all(len(each) == 1 for each in budgets.values())


def test_the_gain_is_over_the_single_model_of_the_same_seed():
    def record(accuracy):
        return {"result": {"models": {"ensemble": accuracy}}}

    single, ensemble = "resnet-cifar-100-single", "resnet-cifar-100-snapshots-m-5"
    runs = {(single, seed): record(0.5 + seed / 10) for seed in range(3)}
    runs |= {(ensemble, seed): record(0.5 + seed / 10 + gain) for seed, gain in enumerate((0.01, 0.02, 0.03))}
    runs[ensemble, 3] = record(0.9)  # without a single model of this seed
    (line,) = [line for line in snapshots.gains(snapshots.SCALED, runs).splitlines() if "M = 5" in line]
    half = 4.302653 / 3**0.5  # Student's t for three values with a standard deviation of 1
    assert line.split(" | ")[2:] == [f"+2.00 ({2 - half:+.2f} to {2 + half:+.2f})", "cannot tell apart |"]
