"""Lightning trains under a schedule: every update has its rate, a resumed one too."""

import pytest
import torch
from pytorch_lightning.plugins import MixedPrecision
from small_lightning import QUIET, SCHEDULE, Module, Pair, Rates, loader_of, text, trainer_of

pytestmark = QUIET


def fitted(module, loader, **options):
    rates = Rates()
    trainer_of(rates, **options).fit(module, loader)
    return rates.seen


@pytest.mark.parametrize("accumulation", [1, 3])
def test_every_update_has_the_schedules_rate(accumulation):
    (seen,) = fitted(Module(SCHEDULE), loader_of(), max_steps=30, accumulate_grad_batches=accumulation)
    assert seen == [[SCHEDULE(step)] for step in range(30)]


@pytest.mark.parametrize("scale", [1024.0, 2.0**30])  # the latter skips the very first updates
def test_updates_that_the_scaler_skips_are_not_counted(scale):
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_factor=2.0**12, growth_interval=4)
    module, rates = Module(SCHEDULE), Rates()
    trainer_of(rates, plugins=MixedPrecision("16-mixed", "cpu", scaler), max_steps=40).fit(module, loader_of())
    (seen,) = rates.seen
    assert 5 < len(seen) < 40
    assert seen == [[SCHEDULE(step)] for step in range(len(seen))]


def test_several_optimisers_follow_their_schedules_and_resume_in_mid_cycle_to_the_same_bits(tmp_path):
    def run(stop, ckpt_path=None):
        torch.manual_seed(1)
        rates, module = Rates(), Pair()
        trainer = trainer_of(rates, max_epochs=stop)
        trainer.fit(module, loader_of(shuffle=False), ckpt_path=ckpt_path)
        return trainer, module, rates.seen

    _, whole, rates = run(6)
    assert rates == [[[SCHEDULE(step)] for step in range(24)]] * 2
    trainer, *_ = run(3)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    _, resumed, rates = run(6, tmp_path / "half.ckpt")
    assert rates == [[[SCHEDULE(step)] for step in range(12, 24)]] * 2
    assert text(resumed.state_dict()) == text(whole.state_dict())
