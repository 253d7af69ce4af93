"""A range test of the Trainer sees what a training under the ramp would log."""

import numpy as np
import pytest
import torch
from small_transformers import BATCH, RAMP, Plain, bert, gpt2, sentences, state_of, text_rows, trainer_of
from transformers import (
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import cyclr
from cyclr.transformers import RangeTest, range_test


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(("model", "data"), [(gpt2, text_rows), (bert, sentences), (Plain, sentences)])
def test_the_curve_is_what_a_training_under_the_ramp_logs(tmp_path, model, data, accumulation):
    """Its own loss, data, clipping and accumulation: even the updates with fewer batches at the end of an epoch."""

    class Losses(TrainerCallback):
        def __init__(self):
            self.seen = []

        def on_log(self, args, state, control, logs=None, **_):
            if "loss" in logs:
                self.seen.append(logs["loss"])

    common = {"max_steps": 12, "max_grad_norm": 0.05, "gradient_accumulation_steps": accumulation, "seed": 3}
    curve = range_test(trainer_of(tmp_path, model(), data=data(), optim="sgd", **common), ramp=RAMP)
    trained, losses = model(), Losses()
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 10 * RAMP(min(step, 11)))
    options = {**common, "logging_strategy": "steps", "logging_steps": 1}
    trainer = trainer_of(tmp_path, trained, data=data(), optimizers=(optimizer, scheduler), **options)
    trainer.add_callback(losses)
    trainer.train()
    assert curve.metric == "loss"
    assert curve.lrs.tolist() == [RAMP(step) for step in range(12)]
    np.testing.assert_allclose(curve.values, losses.seen, rtol=1e-5)


def test_the_default_ramp_finds_a_range_in_which_a_classifier_learns(tmp_path):
    trainer = trainer_of(tmp_path, bert(), data=sentences())
    curve = range_test(trainer, steps=60)
    bounds = cyclr.find_bounds(curve)
    assert bounds.status == "ok"
    assert 1e-5 < bounds.base_lr < bounds.max_lr < 1.0
    assert curve.meta["state_checksum"]


def test_inside_a_training_it_sees_what_it_sees_from_outside(tmp_path):
    outside = range_test(trainer_of(tmp_path), ramp=RAMP)
    trainer = trainer_of(tmp_path)
    test = RangeTest(trainer, ramp=RAMP, meta={"by": "callback"})
    trainer.add_callback(test)
    trainer.train()
    np.testing.assert_array_equal(test.curve.values, outside.values)
    assert test.curve.meta["by"] == "callback"


def test_gradients_are_clipped_as_in_the_training(tmp_path):
    free, clipped = (
        range_test(trainer_of(tmp_path, optim="sgd", max_grad_norm=norm), ramp=cyclr.ramp(0.0, 2.0, 12)).values
        for norm in (0.0, 1e-6)
    )
    assert abs(clipped[-1] - clipped[0]) < 0.3 < abs(free[-1] - free[0])


def test_a_model_in_bfloat16_autocast_is_left_alone_too(tmp_path):
    single = range_test(trainer_of(tmp_path / "single"), ramp=RAMP)
    trainer = trainer_of(tmp_path, bf16=True)
    before = state_of(trainer)
    curve = range_test(trainer, ramp=RAMP)
    assert state_of(trainer) == before
    assert not np.array_equal(curve.values, single.values)
    np.testing.assert_allclose(curve.values, single.values, rtol=0.02)


def test_updates_that_a_scaler_skips_are_made_again_and_its_scale_is_put_back(tmp_path):
    def tested(scale, backoff=0.5):
        trainer = trainer_of(tmp_path, optim="sgd", max_grad_norm=0.0)
        scaler = trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale, backoff_factor=backoff)
        curve = range_test(trainer, ramp=RAMP)
        assert scaler.get_scale() == scale
        return curve

    skipped, whole = tested(2.0**126), tested(2.0**10)
    assert skipped.lrs.tolist() == whole.lrs.tolist() == [RAMP(step) for step in range(12)]
    assert not np.array_equal(skipped.values, whole.values)  # its first updates come some batches later
    assert tested(2.0**127, backoff=0.99).stopped == "non-finite"


def test_a_trainer_with_model_init_is_tested_on_the_model_that_it_would_train(tmp_path):
    options = {"use_cpu": True, "report_to": "none", "max_steps": 5, "per_device_train_batch_size": BATCH}
    args = TrainingArguments(str(tmp_path), **options)
    trainer = Trainer(args=args, model_init=lambda: gpt2(seed=torch.seed()), train_dataset=text_rows())
    before = state_of(trainer)
    range_test(trainer, ramp=RAMP)
    assert state_of(trainer) == before
