"""At a cycle's end, once: snapshots of the net that was trained until then, and an end of the fit if wanted."""

import copy

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from small_lightning import QUIET, SCHEDULE, Module, X, loader_of, trainer_of

import cyclr
from cyclr.lightning import AtCycleEnds
from cyclr.torch import Ensemble, Snapshots

pytestmark = QUIET
LENGTH = SCHEDULE.length


class Weights(pl.Callback):
    """The weights after each update, by its number."""

    def __init__(self):
        self.after = {}

    def on_train_batch_end(self, trainer, pl_module, *_):
        # Batches that are accumulated after an update move BatchNorm's statistics; the snapshot is from before.
        self.after.setdefault(trainer.global_step, copy.deepcopy(pl_module.state_dict()))


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_snapshot_is_the_net_after_the_update_that_completes_the_cycle(tmp_path, accumulation):
    torch.manual_seed(0)
    module, weights, called = Module(SCHEDULE), Weights(), []
    snapshots = Snapshots(tmp_path, SCHEDULE)
    ends = AtCycleEnds(snapshots, lambda step, net: called.append((step, net is module)))
    trainer = trainer_of(weights, ends, max_epochs=20, accumulate_grad_batches=accumulation)
    trainer.fit(module, loader_of())
    wanted = SCHEDULE.cycle_ends(trainer.global_step)
    assert len(wanted) > 1
    assert called == [(step, True) for step in wanted]
    for member, tensors in zip(snapshots.members, map(dict, each_member(tmp_path, module)), strict=True):
        assert all(torch.equal(tensors[name], weights.after[member.step][name]) for name in tensors)
    with torch.no_grad():
        assert Ensemble(tmp_path, module.eval(), last=1).probabilities([X], predict=lambda m, x: module.net(x)).shape


def each_member(folder, module):
    ensemble = Ensemble(folder, module)
    return [ensemble._tensors(member) for member in ensemble.members]


def test_stop_ends_the_fit_at_the_cycles_end():
    trainer = trainer_of(AtCycleEnds(stop=lambda step, module: step >= 2 * LENGTH), max_epochs=50)
    trainer.fit(Module(SCHEDULE), loader_of())
    assert trainer.global_step == 2 * LENGTH


def test_a_fit_that_goes_on_repeats_no_end(tmp_path):
    schedule = cyclr.triangular(0.01, 0.2, stepsize=4)  # a cycle is two epochs

    def fit(steps, path=None):
        called = []
        ends = AtCycleEnds(lambda step, module: called.append(step))
        saving = ModelCheckpoint(tmp_path, filename="at", every_n_train_steps=8, save_top_k=-1)
        quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
        trainer = pl.Trainer(accelerator="cpu", callbacks=[ends, saving], max_epochs=-1, max_steps=steps, **quiet)
        trainer.fit(Module(schedule), loader_of(), ckpt_path=path)
        return called

    assert fit(8) == [8]
    assert fit(17, str(tmp_path / "at.ckpt")) == [16]


def test_without_a_scheduler_it_asks_for_the_schedule():
    with pytest.raises(ValueError, match=r"no cyclr\.torch\.ScheduleLR .*AtCycleEnds\(schedule=\.\.\.\)"):
        trainer_of(AtCycleEnds(), max_epochs=1).fit(Module(), loader_of())
    called = []
    ends = AtCycleEnds(lambda step, module: called.append(step), schedule=cyclr.triangular(0.1, 0.2, stepsize=1))
    trainer_of(ends, max_epochs=1).fit(Module(), loader_of())
    assert called == [2, 4]


def test_what_cannot_be_called_is_refused():
    with pytest.raises(TypeError, match=r"an action is called with \(step, model\), got str"):
        AtCycleEnds("snapshots")
    with pytest.raises(TypeError, match="schedule must be a schedule"):
        AtCycleEnds(schedule=5)


def test_a_callback_serves_a_second_fit_and_two_of_them_one_fit(tmp_path):
    schedule = cyclr.one_cycle(0.05, 8)
    called, others = [], []
    ends = [
        AtCycleEnds(lambda step, module: called.append(step)),
        AtCycleEnds(lambda step, module: others.append(step)),
    ]
    for _ in range(2):
        saving = ModelCheckpoint(tmp_path, filename="two", every_n_train_steps=8)
        quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
        trainer = pl.Trainer(accelerator="cpu", callbacks=[*ends, saving], max_epochs=-1, max_steps=8, **quiet)
        trainer.fit(Module(schedule), loader_of())
    assert called == others == [8, 8]


def test_a_schedule_without_cycles_is_refused():
    trainer = trainer_of(AtCycleEnds(print), max_epochs=1)
    with pytest.raises(ValueError, match=r"but Fixed\(lr=0.1\) has no cycles; choose another schedule"):
        trainer.fit(Module(cyclr.fixed(0.1)), loader_of())
