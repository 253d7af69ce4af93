"""Wrong input to the Lightning adapter: one sentence each."""

import subprocess
import sys

import pytest
import pytorch_lightning as pl
import torch
from small_lightning import QUIET, RAMP, SCHEDULE, Module, Pair, loader_of, trainer_of
from torch import nn
from torch.nn.functional import cross_entropy

from cyclr.lightning import RangeTest, range_test
from cyclr.torch import ScheduleLR

pytestmark = QUIET


class Bare(pl.LightningModule):
    pass


class Stepless(Module):
    training_step = pl.LightningModule.training_step


class Optimizerless(Module):
    configure_optimizers = pl.LightningModule.configure_optimizers


class Nothing(Module):
    def configure_optimizers(self):
        return None


class Skipping(Module):
    def training_step(self, batch, batch_idx):
        return None


class Epochwise(Module):
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return [optimizer], [ScheduleLR(optimizer, SCHEDULE)]


class Idle(Pair):
    def training_step(self, batch, batch_idx):
        return cross_entropy(self.one(batch[0]), batch[1])


BAD = {
    "trainer": (
        lambda: range_test(Module(), Module(), loader_of()),
        TypeError,
        "trainer must be a pytorch_lightning.Tr",
    ),
    "model": (lambda: range_test(trainer_of(), nn.Linear(1, 1), []), TypeError, "model must be a .* got Linear"),
    "no step": (lambda: range_test(trainer_of(), Stepless(), loader_of()), ValueError, "Stepless has no training_step"),
    "no optimizer": (
        lambda: range_test(trainer_of(), Optimizerless(), loader_of()),
        ValueError,
        "Optimizerless has no configure_optimizers, but a range test trains the model",
    ),
    "no data": (lambda: range_test(trainer_of(), Module()), ValueError, "Module has no train_dataloader; define it"),
    "iterator": (
        lambda: range_test(trainer_of(), Module(), iter(loader_of())),
        ValueError,
        r"data can be read only once",
    ),
    "empty": (
        lambda: range_test(trainer_of(), Module(), loader_of(batch_size=50, drop_last=True), ramp=RAMP),
        ValueError,
        "data yielded no batch",
    ),
    "limit": (
        lambda: range_test(trainer_of(limit_train_batches=0), Module(), loader_of()),
        ValueError,
        "data yielded no batch",
    ),
    "ramp": (lambda: range_test(trainer_of(), Module(), loader_of(), ramp=3), ValueError, "ramp must come from"),
    "loss": (lambda: range_test(trainer_of(), Skipping(), loader_of()), ValueError, "training_step returned None"),
    "manual loss": (
        lambda: range_test(trainer_of(), Pair(answer="nothing"), loader_of()),
        ValueError,
        "training_step gave nothing, but the metric asked for is 'loss'",
    ),
    "metric": (
        lambda: range_test(trainer_of(), Pair(), loader_of(), metric="f1"),
        ValueError,
        "training_step gave loss, second, but the metric asked for is 'f1'",
    ),
    "idle": (
        lambda: range_test(trainer_of(), Idle(), loader_of()),
        ValueError,
        "training_step and optimizer_step left every optimiser without a step",
    ),
    "fast_dev_run": (
        lambda: range_test(trainer_of(fast_dev_run=True), Module(), loader_of()),
        ValueError,
        "a trainer with fast_dev_run reads",
    ),
    "spawn": (
        lambda: range_test(trainer_of(strategy="ddp_spawn", devices=2), Module(), loader_of()),
        ValueError,
        "the strategy DDPStrategy would train in new processes",
    ),
    "epoch": (
        lambda: range_test(trainer_of(), Epochwise(), loader_of()),
        ValueError,
        'Lightning would step the ScheduleLR every 1 epoch, but it counts updates; return {"scheduler"',
    ),
    "epoch in a fit": (
        lambda: trainer_of(RangeTest(at=1000)).fit(Epochwise(), loader_of()),
        ValueError,
        "Lightning would step the ScheduleLR every 1 epoch",
    ),
    "at": (lambda: RangeTest(at=-1), ValueError, "at must be at least 0, got -1"),
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_input_gets_one_sentence(case):
    call, error, sentence = BAD[case]
    with pytest.raises(error, match=f"^{sentence}") as seen:
        call()
    assert "\n" not in str(seen.value)


def test_a_module_without_an_optimiser_says_so():
    with pytest.raises(ValueError, match=r"^optimizer holds no trainable parameter of this model"):
        range_test(trainer_of(), Nothing(), loader_of())


def test_inside_a_fit_a_running_trainer_is_pointed_to_the_callback():
    class Within(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            range_test(trainer, pl_module, loader_of())

    with pytest.raises(
        ValueError, match=r"^the trainer is running; inside a fit give it the callback cyclr.lightning.Ran"
    ):
        trainer_of(Within()).fit(Module(), loader_of())


@pytest.mark.parametrize(
    ("version", "sentence"),
    [
        (None, "cyclr.lightning needs PyTorch Lightning: pip install 'cyclr[lightning]'"),
        ("1.9.5", "needs PyTorch Lightning 2.4 or later, found 1.9.5: pip install --upgrade 'cyclr[lightning]'"),
    ],
)
def test_lightning_that_is_missing_or_too_old_is_told_with_the_command(version, sentence):
    fake = "None" if version is None else f"types.SimpleNamespace(__version__={version!r})"
    code = f"import sys, types; sys.modules['pytorch_lightning'] = {fake}; import cyclr.lightning"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].startswith("ImportError: ")
    assert sentence in done.stderr.splitlines()[-1]
