"""The range test of a task: what it reads, and what it does not touch."""

import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

import cyclr
from cyclr.lab import TaskError, find
from cyclr.results import write_found
from tiny_task import make, points

RAMP = cyclr.ramp(0.0, 1.0, 40)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


class Untouchable(Dataset):
    """Examples that nobody may look at."""

    def __len__(self):
        return 80

    def __getitem__(self, index):
        raise AssertionError("the test set was touched")


def test_each_seed_has_a_curve_of_validation_accuracy_with_loss_and_accuracy_of_every_update():
    curves, bounds = find(make(test=Untouchable()), seeds=(0, 1), ramp=RAMP)
    assert [curve.meta["seed"] for curve in curves] == [0, 1]
    for curve in curves:
        assert (curve.metric, curve.measured) == ("validation accuracy", "after")
        for name, goal in (("loss", "min"), ("accuracy", "max")):
            assert curve.of(name).steps.tolist() == list(range(len(curve.of(name))))
            assert (curve.of(name).goal, curve.of(name).measured) == (goal, "before")
    assert curves[0].of("loss") != curves[1].of("loss")
    assert bounds == cyclr.find_bounds(curves, metric="loss")


def test_without_a_ramp_short_cycles_are_tried_out_and_decide_on_max_lr():
    (curve,), bounds = find(make(), steps=60)
    cycles = curve.of("loss after a short cycle")
    assert set(cycles.steps.tolist()) == {30}
    assert bounds == cyclr.find_bounds(curve, metric="loss")
    assert cycles.lrs.min() <= bounds.max_lr <= cycles.lrs.max()
    assert bounds.max_lr != cyclr.find_bounds(curve.of("loss")).max_lr


def test_a_dataset_gives_the_same_curve_as_tensors_and_holds_its_validation_out():
    x, y = points()
    seen = []

    def remember(output, target):
        seen.append(len(target))
        return (output.argmax(-1) == target).float().mean()

    parts = {"validation": None, "test": Untouchable(), "metric": remember}
    (tensors,), _ = find(make(train=(x, y), **parts), ramp=RAMP)
    (dataset,), _ = find(make(train=TensorDataset(x, y), **parts), ramp=RAMP)
    assert dataset.values.tolist() == tensors.values.tolist()
    assert dataset.of("loss").values.tolist() == tensors.of("loss").values.tolist()
    assert set(seen) == {20, 40}  # batches, and a tenth of the training data


def test_the_metric_asked_for_is_the_one_that_is_read():
    for metric in ("accuracy", "validation accuracy"):
        (curve,), bounds = find(make(), ramp=RAMP, metric=metric)
        assert bounds == cyclr.find_bounds(curve, metric=metric)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"seeds": ()}, "at least one seed"),
        ({"steps": 0}, "steps must be at least 20, got 0"),
        ({"precision": "half"}, "unknown precision 'half'"),
    ],
)
def test_settings_out_of_range_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        find(make(), **settings)


def test_too_few_examples_to_hold_some_out_are_told():
    x, y = points()
    with pytest.raises(TaskError, match="give validation data"):
        find(make(train=(x[:9], y[:9]), batch_size=3, validation=None))
    with pytest.raises(ValueError, match="do not fill one batch"):
        find(make(train=(x[:20], y[:20]), validation=None))


def test_a_find_that_is_killed_leaves_no_older_bounds_beside_its_curves(tmp_path, monkeypatch):
    curves, bounds = find(make(), ramp=RAMP)
    write_found(make(), tmp_path, curves, bounds, "triangular", "loss", 1)
    before = {path.name for path in tmp_path.iterdir()}

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("cyclr.pictures.draw_range_test", killed)
    with pytest.raises(KeyboardInterrupt):
        write_found(make(), tmp_path, curves, bounds, "triangular", "loss", 1)
    assert before - {path.name for path in tmp_path.iterdir()} == {"bounds.json"}
