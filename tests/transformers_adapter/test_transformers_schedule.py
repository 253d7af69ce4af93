"""The Trainer under a schedule: every update has its rate, a resumed training's too."""

import pytest
import torch
from small_transformers import SCHEDULE, gpt2, same, scheduled, trainer_of, weights

import cyclr
from cyclr.torch import ScheduleLR


@pytest.mark.parametrize("accumulation", [1, 3])
def test_every_update_has_the_schedules_rate(tmp_path, accumulation):
    model = gpt2()
    optimizers, rates = scheduled(model)
    trainer = trainer_of(tmp_path, model, optimizers=optimizers, gradient_accumulation_steps=accumulation, max_steps=20)
    trainer.train()
    assert rates == [SCHEDULE(step) for step in range(20)]


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_checkpoint_in_mid_cycle_goes_on_to_the_same_bits(tmp_path, accumulation):
    def run(stop, **options):
        model = gpt2()
        optimizers, rates = scheduled(model)
        common = {"gradient_accumulation_steps": accumulation, "save_strategy": "steps", "save_steps": 7}
        trainer = trainer_of(tmp_path, model, optimizers=optimizers, max_steps=stop, **common)
        trainer.train(**options)
        return rates, weights(trainer)

    whole, wanted = run(15)
    torch.manual_seed(5)
    resumed, reached = run(15, resume_from_checkpoint=str(tmp_path / "checkpoint-7"))
    assert resumed == whole[7:] == [SCHEDULE(step) for step in range(7, 15)]
    assert same(reached, wanted)


def test_a_momentum_schedule_and_multipliers_reach_the_optimiser(tmp_path):
    model = gpt2()
    head, body = list(model.lm_head.parameters()), list(model.transformer.h.parameters())
    optimizer = torch.optim.SGD([{"params": head}, {"params": body, "lr_multiplier": 0.1}], lr=0.1, momentum=0.9)
    seen = []
    optimizer.register_step_pre_hook(
        lambda *_: seen.append([(group["lr"], group["momentum"]) for group in optimizer.param_groups])
    )
    momentum = cyclr.triangular(0.85, 0.95, stepsize=4)
    trainer_of(tmp_path, model, optimizers=(optimizer, ScheduleLR(optimizer, SCHEDULE, momentum=momentum))).train()
    expected = [[(SCHEDULE(s), momentum(s)), (SCHEDULE(s) * 0.1, momentum(s))] for s in range(10)]
    assert seen == expected
