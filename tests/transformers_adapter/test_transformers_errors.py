"""Wrong input to the Transformers adapter: one sentence each."""

import subprocess
import sys

import pytest
import torch
from small_transformers import RAMP, gpt2, trainer_of
from torch import nn
from transformers import (
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from cyclr.transformers import RangeTest, range_test


def test_wrong_places_and_setups_are_told_in_one_sentence(tmp_path):
    with pytest.raises(TypeError, match=r"trainer must be a transformers\.Trainer, got int"):
        range_test(3)
    with pytest.raises(ValueError, match=r"the trainer has no train_dataset, but a range test trains"):
        range_test(Trainer(gpt2(), TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")))
    trainer = trainer_of(tmp_path)
    with pytest.raises(ValueError, match="unknown metric 'accuracy'; choose from loss"):
        range_test(trainer, metric="accuracy")
    with pytest.raises(ValueError, match="there is no curve yet"):
        _ = RangeTest(trainer).bounds
    with pytest.raises(ValueError, match="train_dataset yielded no batch; is the data set empty"):
        range_test(trainer_of(tmp_path, data=[]), ramp=RAMP)

    class Nested(TrainerCallback):
        def on_step_begin(self, *_, **__):
            range_test(trainer, ramp=RAMP)

    trainer.add_callback(Nested())
    with pytest.raises(ValueError, match=r"in its train\(\); there add cyclr\.transformers\.RangeTest\(trainer\)"):
        trainer.train()


def test_a_callback_of_another_trainer_and_a_frozen_model_are_errors(tmp_path):
    trainer, other = trainer_of(tmp_path), trainer_of(tmp_path)
    trainer.add_callback(RangeTest(other, ramp=RAMP))
    with pytest.raises(ValueError, match="made for another trainer"):
        trainer.train()
    for parameter in other.model.parameters():
        parameter.requires_grad_(False)
    other.optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    with pytest.raises(ValueError, match="every parameter of the model is frozen"):
        range_test(other, ramp=RAMP)


@pytest.mark.parametrize("engine", ["DEEPSPEED", "FSDP", "MEGATRON_LM", "XLA"])
def test_an_engine_that_changes_the_model_for_good_is_an_error(tmp_path, monkeypatch, engine):
    trainer = trainer_of(tmp_path)
    monkeypatch.setattr(type(trainer.accelerator), "distributed_type", accelerate_type(engine))
    with pytest.raises(ValueError, match=f"trains with {engine}, which changes the model for good"):
        range_test(trainer, ramp=RAMP)
    with pytest.raises(ValueError, match=f"trains with {engine}"):
        RangeTest(trainer)


def accelerate_type(name):
    from accelerate import DistributedType

    return DistributedType(name)


@pytest.mark.parametrize(
    ("version", "sentence"),
    [
        (None, "cyclr.transformers needs Transformers: pip install 'cyclr[transformers]'"),
        ("4.40.1", "needs Transformers 5.0 or later, found 4.40.1: pip install --upgrade 'cyclr[transformers]'"),
    ],
)
def test_transformers_missing_or_too_old_says_what_to_install(version, sentence):
    fake = "None" if version is None else f"type(sys)('transformers', ''); fake.__version__ = {version!r}"
    code = f"import sys; fake = {fake}; sys.modules['transformers'] = fake; import cyclr.transformers"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ImportError: cyclr.transformers needs")
    assert sentence in done.stderr.splitlines()[-1]
