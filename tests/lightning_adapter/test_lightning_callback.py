"""RangeTest, the callback: when it runs, and what it keeps."""

import pytest
from small_lightning import QUIET, RAMP, Module, loader_of, trainer_of

import cyclr
from cyclr.lightning import RangeTest

pytestmark = QUIET


def test_the_callback_keeps_the_curve_and_its_bounds():
    callback = RangeTest(steps=40)
    trainer = trainer_of(callback, max_epochs=1)
    trainer.fit(Module(), loader_of())
    assert callback.curve.ramp["steps"] == 40
    assert callback.bounds == cyclr.find_bounds(callback.curve)


def test_the_callback_runs_before_the_step_that_it_is_told_and_not_after_it(tmp_path):
    class At(RangeTest):
        def __init__(self, at):
            super().__init__(
                RAMP, at=at, progress=lambda *_: steps.append(self.trainer.fit_loop.epoch_loop.global_step)
            )

        def on_fit_start(self, trainer, pl_module):
            self.trainer = trainer

    steps = []
    trainer = trainer_of(At(3), max_epochs=2)
    trainer.fit(Module(), loader_of())
    assert steps == list(range(4, 16))  # the test's own updates are counted from there, and forgotten
    trainer.save_checkpoint(tmp_path / "now.ckpt")
    late = RangeTest(RAMP, at=3)
    trainer_of(late, max_epochs=3).fit(Module(), loader_of(), ckpt_path=tmp_path / "now.ckpt")
    with pytest.raises(
        ValueError, match=r"^there is no curve yet: RangeTest runs in trainer.fit, before global step 3"
    ):
        _ = late.curve


def test_the_callback_does_nothing_but_in_a_fit():
    class Validated(Module):
        def validation_step(self, batch, batch_idx):
            return None

    callback, module = RangeTest(RAMP), Module()
    trainer_of(callback).validate(Validated(), loader_of(shuffle=False), verbose=False)
    trainer_of(callback, fast_dev_run=True).fit(module, loader_of())
    with pytest.raises(
        ValueError, match=r"^there is no curve yet: RangeTest runs in trainer.fit, before the first update"
    ):
        _ = callback.bounds
