"""After a range test of Lightning nothing was touched, however it ended."""

from multiprocessing import active_children

import pytest
import pytorch_lightning as pl
import torch
from small_lightning import (
    ENDS,
    QUIET,
    RAMP,
    SCHEDULE,
    Module,
    Pair,
    Silent,
    Watching,
    everything,
    loader_of,
    probed,
    text,
    trainer_of,
    wrong,
)
from torch import nn

from cyclr.lightning import RangeTest, range_test

pytestmark = QUIET


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("warm", [0, 1], ids=["before a fit", "after one"])
def test_a_fit_afterwards_is_bit_for_bit_that_of_a_run_without_a_range_test(warm, end):
    weights = []
    for test in (True, False):
        torch.manual_seed(1)
        module, loader = Module(SCHEDULE), loader_of()
        trainer = trainer_of(max_epochs=2 + warm)
        if warm:
            trainer.fit_loop.max_epochs = 1
            trainer.fit(module, loader)
            trainer.fit_loop.max_epochs = 3
        if test:
            before = everything(trainer, module, loader)
            probed(trainer, module, loader, end)
            assert everything(trainer, module, loader) == before
        trainer.fit(module, loader)
        weights.append(everything(trainer, module, loader).partition("'_accelerator_connector'")[0])
    assert weights[0].split("<")[0] == weights[1].split("<")[0]
    assert module.losses


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("kind", [Module, Pair])
def test_inside_a_fit_it_changes_no_bit_of_that(kind, end):
    """In the middle of an epoch and of an accumulation's gradients, and at several times in one fit."""

    class Trouble(RangeTest):
        """The batch in which the test runs sees the test's trouble, and nobody else does."""

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if self._due and kind is Module and ENDS[end] is not None:
                pl_module.trouble = wrong(ENDS[end], 5)
            try:
                super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
            except (OSError, KeyboardInterrupt) as error:
                caught.append(type(error))
            finally:
                pl_module.trouble = None

    caught, weights = [], []
    for callbacks in ([Trouble(RAMP), Trouble(RAMP, at=3), Trouble(RAMP, at=6)], []):
        torch.manual_seed(1)
        module, loader = kind(SCHEDULE), loader_of()
        accumulation = {"accumulate_grad_batches": 2} if kind is Module else {}
        trainer = trainer_of(*callbacks, max_epochs=4, **accumulation)
        trainer.fit(module, loader)
        plain = [getattr(module, name, 0) for name in ("losses", "batches")]
        weights.append(text([module.state_dict(), plain, trainer.global_step]))
        weights[-1] += text([optimizer.state_dict() for optimizer in trainer.optimizers])
        if not caught and callbacks:
            assert all(len(each.curve.lrs) == (2 if end == "nan" and kind is Module else 12) for each in callbacks)
    assert weights[0] == weights[1]
    assert len(caught) == (3 if kind is Module and end in ("exception", "ctrl-c") else 0)


def test_nobody_is_called_or_told_and_no_file_is_written(tmp_path):
    class Hooks(Module):
        def configure_callbacks(self):
            return [Watching()]

        def training_step(self, batch, batch_idx):
            self.logger.experiment.log_metrics({"by hand": 1.0}, 0)
            return super().training_step(batch, batch_idx)

        def on_train_epoch_end(self):
            raise AssertionError("plots what it has trained")

        on_train_end = on_fit_end = on_validation_start = on_train_epoch_end

    watching, logger, module = Watching(), Silent(tmp_path / "logs"), Hooks()
    trainer = pl.Trainer(
        accelerator="cpu",
        callbacks=[watching, pl.callbacks.ModelCheckpoint(tmp_path / "checkpoints", every_n_train_steps=1)],
        logger=logger,
        default_root_dir=tmp_path,
        log_every_n_steps=5,
        profiler="simple",
        enable_progress_bar=False,
    )
    callbacks, loop, profiled = trainer.callbacks, trainer.fit_loop, trainer.profiler.recorded_durations.copy()
    watching.seen.clear()
    range_test(trainer, module, loader_of(), ramp=RAMP)
    assert watching.seen == []
    assert logger.told == ()
    assert list(tmp_path.rglob("*")) == []
    assert trainer.callbacks is callbacks
    assert (trainer.fit_loop, trainer.logger, trainer.profiler.recorded_durations) == (loop, logger, profiled)
    assert trainer.lightning_module is None


def test_what_a_module_prepares_at_the_start_of_an_epoch_is_there():
    class Prepared(Module):
        def setup(self, stage):
            self.net[0].weight.data.zero_()
            self.batches += 100
            self.extra = nn.Linear(1, 1)

        def on_fit_start(self):
            self.fitting = True

        def on_train_start(self):
            self.training_too = self.fitting

        def on_train_epoch_start(self):
            self.here = [self.training_too, self.current_epoch]

        def training_step(self, batch, batch_idx):
            seen.append((self.here[1], batch_idx, self.global_step))
            return super().training_step(batch, batch_idx)

    seen, module = [], Prepared()
    before = text([module.state_dict(), module.batches])
    range_test(trainer_of(), module, loader_of(), ramp=RAMP)
    assert seen == [(step // 4, step % 4, step) for step in range(12)]
    assert text([module.state_dict(), module.batches]) == before
    assert not hasattr(module, "here")


def test_the_workers_of_a_running_fit_are_left_alone():
    loader = loader_of(num_workers=1, persistent_workers=True)
    callback, module, seen = RangeTest(RAMP, at=2), Module(), []
    module.on_train_batch_end = lambda *_: seen.append((loader._iterator, loader._iterator._workers[0].is_alive()))
    trainer_of(callback).fit(module, loader)
    assert len(callback.curve.lrs) == 12
    assert seen == [(seen[0][0], True)] * (4 + 12)
    running, workers = iter(loader), set()
    range_test(trainer_of(), Module(), loader, steps=20, progress=lambda *_: workers.add(len(active_children())))
    assert workers == {2}  # the one of before, and one of this pass
    module.trouble = wrong(OSError("disk full"), 5)
    with pytest.raises(OSError, match="disk full") as _kept:  # with the frames in which it arose
        range_test(trainer_of(), module, loader, ramp=RAMP)
    assert len(active_children()) == 1
    assert loader._iterator is running
    assert len(list(running)) == 4
