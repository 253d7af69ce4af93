"""Snapshots: weights at cycles' ends that no kill, no edit and no other net can spoil; the ensemble they make."""

import json
import os
import signal
import subprocess
import sys
import time
import weakref

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader

import cyclr
from cyclr.torch import Ensemble, SnapshotError, Snapshots
from cyclr.torch.snapshots import _checksum, weights

CYCLES = cyclr.triangular(0.01, 0.1, stepsize=5)


def net(seed=0, width=4):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 2))


def taken(folder, count=3, **settings):
    """Snapshots of `count` different nets."""
    snapshots = Snapshots(folder, CYCLES, **settings)
    nets = [net(seed) for seed in range(count)]
    for number, each in enumerate(nets, start=1):
        assert snapshots(10 * number, each, metric=[0.5, 0.9, 0.7, 0.6][number - 1])
    return snapshots, nets


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


@pytest.mark.parametrize(
    "schedule",
    [
        CYCLES,
        cyclr.one_cycle(0.1, 20),
        cyclr.cosine_restarts(0.0, 0.1, 7),
        cyclr.stages((cyclr.fixed(0.1), 5), (CYCLES, 20), (cyclr.fixed(0.01), 9)),
    ],
)
def test_they_are_taken_at_every_cycles_end_and_nowhere_else(schedule, tmp_path):
    snapshots = Snapshots(tmp_path, schedule)
    assert [step for step in range(41) if snapshots(step, net())] == schedule.cycle_ends(40)
    assert [member.step for member in snapshots.members] == schedule.cycle_ends(40)
    assert [step for step in range(41) if schedule.ends_cycle(step)] == schedule.cycle_ends(40)


def test_a_member_holds_the_weights_and_buffers_of_its_moment(tmp_path):
    snapshots, nets = taken(tmp_path)
    for member, each in zip(snapshots.members, nets, strict=True):
        kept = load_file(tmp_path / member.file)
        assert kept.keys() == each.state_dict().keys()
        assert all(torch.equal(kept[name], tensor) for name, tensor in each.state_dict().items())


@pytest.mark.parametrize(("by", "steps"), [("last", [20, 30, 40]), ("best", [20, 30, 40]), ("best", [20, 40, 50])])
def test_the_last_or_the_best_stay(by, steps, tmp_path):
    metrics = {10: 0.1, 20: 0.9, 30: 0.5, 40: 0.6, 50: 0.8}
    snapshots = Snapshots(tmp_path, CYCLES, keep=3, by=by)
    for step in [step for step in metrics if step <= max(steps)]:
        snapshots(step, net(step), metric=metrics[step])
    assert [member.step for member in snapshots.members] == steps
    assert len(list(tmp_path.iterdir())) == 4  # three members and the manifest


@pytest.mark.parametrize("keep", [None, 3])
def test_a_run_that_begins_again_earlier_keeps_the_later_ones_until_they_are_taken_anew(keep, tmp_path):
    _, nets = taken(tmp_path, keep=keep)
    again = Snapshots(tmp_path, CYCLES, keep=keep)
    for number, each in enumerate(nets, start=1):
        again(10 * number, each, metric=0.5)
        assert [member.step for member in Snapshots(tmp_path, CYCLES).members] == [10, 20, 30]
        assert all((tmp_path / member.file).exists() for member in again.members)
    again(40, net(9), metric=0.5)
    assert [member.step for member in again.members] == ([10, 20, 30, 40] if keep is None else [20, 30, 40])


def test_another_run_in_the_same_folder_takes_the_place_of_the_first(tmp_path):
    _, nets = taken(tmp_path)
    again = Snapshots(tmp_path, CYCLES)
    again(20, net(7))
    assert [member.step for member in again.members] == [10, 20]
    assert torch.equal(load_file(tmp_path / again.members[0].file)["0.weight"], nets[0][0].weight)
    assert torch.equal(load_file(tmp_path / again.members[1].file)["0.weight"], net(7)[0].weight)


def test_a_metric_that_is_no_number_is_the_worst(tmp_path):
    snapshots = Snapshots(tmp_path, CYCLES, keep=2, by="best")
    for step, metric in ((10, float("nan")), (20, 0.1), (30, float("nan")), (40, 0.2), (50, 0.15)):
        snapshots(step, net(step), metric=metric)
    assert [member.step for member in snapshots.members] == [40, 50]


def test_a_missing_package_is_told_before_the_first_cycle(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match="snapshots are safetensors files: pip install safetensors"):
        Snapshots(tmp_path, CYCLES)


def test_shared_parameters_and_views_of_one_storage_are_kept(tmp_path):
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    both = torch.randn(2, 3)
    tied.register_buffer("first", both[0])
    tied.register_buffer("second", both[1])
    snapshots = Snapshots(tmp_path, CYCLES)
    snapshots(10, tied)
    kept = load_file(tmp_path / snapshots.members[0].file)
    assert torch.equal(kept["second"], both[1])
    x = torch.randn(5, 3)
    want = tied(x).softmax(-1)
    assert torch.equal(Ensemble(tmp_path, tied).probabilities([x]), want)


def test_probabilities_are_averaged_and_the_model_stays_as_it_was(tmp_path):
    _, nets = taken(tmp_path)
    model, x = net(9).train(), torch.randn(11, 3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    with torch.no_grad():
        want = torch.stack([each.eval()(x).softmax(-1) for each in nets]).mean(0)
    for batches in ([x], x.split(4), torch.utils.data.DataLoader(x, batch_size=4), lambda: x.split(2)):
        torch.testing.assert_close(Ensemble(tmp_path, model).probabilities(batches), want)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    assert [module.training for module in model.modules()] == modes


def test_of_the_members_the_last_or_the_best_take_part(tmp_path):
    taken(tmp_path)  # metrics 0.5, 0.9, 0.7
    steps = {
        name: [member.step for member in Ensemble(tmp_path, net(), **chosen).members]
        for name, chosen in {"all": {}, "last": {"last": 2}, "best": {"best": 1}, "two best": {"best": 2}}.items()
    }
    assert steps == {"all": [10, 20, 30], "last": [20, 30], "best": [20], "two best": [20, 30]}


def test_the_average_has_the_mean_weights_and_statistics_of_its_own(tmp_path):
    _, nets = taken(tmp_path)
    data = torch.randn(64, 3)
    model = net(9)
    average = Ensemble(tmp_path, model).average([(batch, None) for batch in data.split(16)])
    want = torch.stack([each[0].weight for each in nets]).mean(0)
    torch.testing.assert_close(average[0].weight, want)
    hidden = average[0](data)
    torch.testing.assert_close(average[1].running_mean, hidden.mean(0))
    assert not average.training
    assert torch.equal(model[0].weight, net(9)[0].weight)
    with pytest.raises(ValueError, match=r"BatchNorm layers.*average\(training_data\)"):
        Ensemble(tmp_path, model).average()


def test_memory_is_one_model_and_one_member(tmp_path):
    """Members are read one after the other: at no time are two of them alive."""
    taken(tmp_path)
    ensemble = Ensemble(tmp_path, net())
    alive, most = [], 0
    read = ensemble._tensors

    def watched(member):
        nonlocal most
        alive[:] = [each for each in alive if each() is not None]
        most = max(most, len(alive))
        tensors = read(member)
        alive.append(weakref.ref(tensors["0.weight"]))
        return tensors

    ensemble._tensors = watched
    ensemble.probabilities([torch.randn(5, 3)])
    assert most == 0


KILLED = """
import sys, torch, cyclr
from cyclr.torch import Snapshots
net = torch.nn.Linear(1000, 2000)
snapshots = Snapshots(sys.argv[1], cyclr.triangular(0.1, 1.0, stepsize=1))
step = snapshots.members[-1].step if snapshots.members else 0
print("ready", flush=True)
while True:
    step += 2
    torch.nn.init.constant_(net.weight, float(step))
    snapshots(step, net)
"""


def test_a_kill_in_mid_write_loses_no_older_member_and_the_run_goes_on(tmp_path):
    rng, last = np.random.default_rng(0), 0
    for _ in range(6):
        run = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE)
        run.stdout.readline()
        time.sleep(float(rng.uniform(0.1, 0.5)))
        os.kill(run.pid, signal.SIGKILL)
        run.communicate()
        members = Snapshots(tmp_path, cyclr.triangular(0.1, 1.0, stepsize=1)).members
        assert [member.step for member in members] == list(range(2, len(members) * 2 + 1, 2))
        assert len(members) >= last
        last = len(members)
        for member in members[-3:]:
            weight = load_file(tmp_path / member.file)["weight"]
            assert torch.equal(weight, torch.full_like(weight, float(member.step)))
    assert last > 6
    snapshots = Snapshots(tmp_path, cyclr.triangular(0.1, 1.0, stepsize=1))
    snapshots(2 * last + 2, nn.Linear(1000, 2000))
    assert len(list(tmp_path.iterdir())) == last + 2  # what the kills left half written is gone


def test_a_member_that_cannot_be_written_leaves_the_others(tmp_path, monkeypatch):
    snapshots, _ = taken(tmp_path)
    monkeypatch.setattr(
        "cyclr.torch.snapshots.write_atomically", lambda *_: (_ for _ in ()).throw(OSError(28, "no space left"))
    )
    with pytest.raises(OSError, match="no space left"):
        snapshots(40, net())
    monkeypatch.undo()
    assert [member.step for member in Ensemble(tmp_path, net()).members] == [10, 20, 30]
    assert len(list(tmp_path.iterdir())) == 4


def _edit(folder):
    content = manifest(folder)
    content["members"][1]["step"] = 25
    (folder / "manifest.json").write_text(json.dumps(content))


def _rename_a_key(folder):
    content = manifest(folder)
    content["members"][0]["score"] = content["members"][0].pop("metric")
    content["checksum"] = _checksum({name: each for name, each in content.items() if name != "checksum"})
    (folder / "manifest.json").write_text(json.dumps(content))


def _swap(folder):
    first, second = (folder / each["file"] for each in manifest(folder)["members"][:2])
    first.write_bytes(second.read_bytes())


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (_edit, "was edited, its checksum is another"),
        (lambda folder: (folder / "manifest.json").write_text("{"), r"manifest.json is damaged"),
        (lambda folder: (folder / "manifest.json").write_text("{}"), "no manifest of this version"),
        (_rename_a_key, "no manifest of this version"),
        (lambda folder: (folder / "manifest.json").unlink(), r"holds no manifest.json"),
        (_swap, "is damaged or another one; put the original back"),
        (lambda folder: (folder / manifest(folder)["members"][0]["file"]).unlink(), r"step-00000010.*is missing"),
        (lambda folder: (folder / manifest(folder)["members"][0]["file"]).write_bytes(b"x"), "is damaged or another"),
    ],
)
def test_what_was_changed_in_the_folder_is_told_and_nothing_is_deleted(damage, sentence, tmp_path):
    taken(tmp_path)
    damage(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(SnapshotError, match=sentence):
        Ensemble(tmp_path, net()).probabilities([torch.randn(2, 3)])
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_wrong_input_is_refused_with_a_sentence(tmp_path):
    taken(tmp_path, task="birds")
    for settings, sentence in (
        ({"task": "cats"}, "holds snapshots of another task"),
        ({"task": "birds", "at": [10]}, "holds snapshots of another schedule"),
    ):
        with pytest.raises(SnapshotError, match=sentence):
            Snapshots(tmp_path, **{"at": CYCLES, **settings})
    with pytest.raises(SnapshotError, match=r"another net than Sequential"):
        Snapshots(tmp_path, CYCLES, task="birds")(40, net(width=5))
    with pytest.raises(SnapshotError, match=r"0\.weight has shape \(4, 3\).*there and shape \(5, 3\).*here"):
        Ensemble(tmp_path, net(width=5))
    with pytest.raises(SnapshotError, match=r"4\.weight is in this net only"):
        Ensemble(tmp_path, nn.Sequential(*net(), nn.Linear(2, 2)))
    with pytest.raises(SnapshotError, match="holds snapshots of birds, not of cats"):
        Ensemble(tmp_path, net(), task="cats")
    assert len(Ensemble(tmp_path, net(), task="birds").members) == 3
    with pytest.raises(ValueError, match="last must be at most 3, the snapshots that there are, got 4"):
        Ensemble(tmp_path, net(), last=4)
    with pytest.raises(ValueError, match="last must be at least 1, got 0"):
        Ensemble(tmp_path, net(), last=0)
    with pytest.raises(ValueError, match="not of both"):
        Ensemble(tmp_path, net(), last=1, best=1)
    shuffled = DataLoader(torch.randn(4, 3), 2, shuffle=True)
    with pytest.raises(ValueError, match=r"the DataLoader shuffles, so that .* give one with shuffle=False"):
        Ensemble(tmp_path, net()).probabilities(shuffled)
    with pytest.raises(ValueError, match="the DataLoader shuffles"):
        Ensemble(tmp_path, net()).probabilities(DataLoader(torch.randn(4, 3), batch_sampler=shuffled.batch_sampler))
    with pytest.raises(ValueError, match="is an iterator"):
        Ensemble(tmp_path, net()).probabilities(iter([torch.randn(2, 3)]))
    with pytest.raises(ValueError, match="no batch"):
        Ensemble(tmp_path, net()).probabilities([])
    with pytest.raises(ValueError, match=r"has no cycles; give at="):
        Snapshots(tmp_path / "other", cyclr.fixed(0.1))
    with pytest.raises(ValueError, match='by="best" needs a metric'):
        Snapshots(tmp_path / "other", CYCLES, by="best")(10, net())
    for at, kind, sentence in (
        ([1.5], ValueError, "at must be a whole number, at least 1, got 1.5"),
        ([-5], ValueError, "at must be at least 1, got -5"),
        ([], ValueError, "names no number of updates"),
        ("abc", TypeError, r"at must be a schedule or the numbers of updates, such as \[1000, 2000\], got 'abc'"),
        (100, TypeError, "at must be a schedule or the numbers of updates"),
    ):
        with pytest.raises(kind, match=sentence):
            Snapshots(tmp_path / "other", at)
    assert Snapshots(tmp_path / "numbers", np.array([5, 10]))(10, net())
    empty = tmp_path / "empty"
    Snapshots(empty, CYCLES)._write_manifest([])
    with pytest.raises(SnapshotError, match="holds no snapshots yet"):
        Ensemble(empty, net())
    assert not (tmp_path / "other").exists()
    assert [member.step for member in Ensemble(tmp_path, net()).members] == [10, 20, 30]


@pytest.mark.parametrize("shape", [(2, 1), (2,)])
def test_one_score_an_example_is_no_classifiers_output(shape, tmp_path):
    taken(tmp_path)
    ensemble, x = Ensemble(tmp_path, net()), [torch.randn(2, 3)]

    def predict(model, batch):
        return model(batch)[:, :1].reshape(shape)

    with pytest.raises(ValueError, match=r"output has shape \(2,.*give probability=torch\.sigmoid"):
        ensemble.probabilities(x, predict=predict)
    assert ensemble.probabilities(x, predict=predict, probability=torch.sigmoid).shape == shape


def test_what_wraps_a_net_is_not_in_the_names(tmp_path):
    plain = net()
    assert weights(torch.compile(plain)).keys() == weights(plain).keys()


def test_another_run_in_the_folder_keeps_its_own_members_and_an_older_run_loses_them_step_by_step(tmp_path):
    Snapshots(tmp_path, CYCLES, keep=2)
    first = Snapshots(tmp_path, CYCLES, keep=2)
    for step in (10, 20, 30, 40):
        first(step, net(step))
    other = Snapshots(tmp_path, CYCLES, keep=2)
    assert other(10, net(1))
    assert other(20, net(2))
    assert [member.step for member in other.members] == [10, 20, 30, 40]
    assert other(30, net(3))
    assert [member.step for member in other.members] == [20, 30]
    kept = [load_file(tmp_path / member.file)["0.weight"] for member in other.members]
    assert all(torch.equal(weight, net(seed)[0].weight) for weight, seed in zip(kept, (2, 3), strict=True))


def test_the_best_of_a_run_that_goes_on_differently_is_its_own(tmp_path):
    older = Snapshots(tmp_path, CYCLES, keep=1, by="best")
    older(30, net(3), 0.9)
    newer = Snapshots(tmp_path, CYCLES, keep=1, by="best")
    newer(20, net(20), 0.8)
    newer(30, net(30), 0.7)
    assert [(member.step, member.metric) for member in newer.members] == [(20, 0.8)]


def test_metrics_that_are_no_numbers_do_not_end_a_training_but_choose_nothing(tmp_path):
    snapshots = Snapshots(tmp_path, CYCLES, keep=1, by="best")
    for step in (10, 20, 30):
        assert snapshots(step, net(step), float("nan"))
    assert [member.step for member in snapshots.members] == [30]
    with pytest.raises(SnapshotError, match="no metric to choose by"):
        Ensemble(tmp_path, net(), best=1)


def test_statistics_are_not_measured_on_nothing(tmp_path):
    taken(tmp_path)
    with pytest.raises(ValueError, match="gave no batch; BatchNorm's statistics need data"):
        Ensemble(tmp_path, net()).average([])


def test_a_listed_file_that_is_gone_is_told_before_anything_is_taken_or_predicted(tmp_path):
    taken(tmp_path)
    (tmp_path / manifest(tmp_path)["members"][0]["file"]).unlink()
    before = sorted(tmp_path.iterdir())
    for use in (lambda: Snapshots(tmp_path, CYCLES, keep=3), lambda: Ensemble(tmp_path, net())):
        with pytest.raises(SnapshotError, match=r"step-00000010.* is missing; put it back, or choose other members"):
            use()
    assert sorted(tmp_path.iterdir()) == before
    assert len(Ensemble(tmp_path, net(), last=2).members) == 2


def test_an_average_takes_batches_of_any_kind(tmp_path):
    taken(tmp_path)
    rows = torch.randn(40, 3)
    plainly = Ensemble(tmp_path, net()).average(list(rows.split(20)))
    by_name = Ensemble(tmp_path, net()).average(
        [{"rows": each} for each in rows.split(20)], predict=lambda model, batch: model(batch["rows"])
    )
    for name, tensor in plainly.state_dict().items():
        assert torch.equal(tensor, by_name.state_dict()[name])
