"""Wrong input to the Lightning adapter: one sentence each."""

import os
from unittest import mock

import pytest
import pytorch_lightning as pl
import torch
from small_lightning import QUIET, RAMP, SCHEDULE, Module, Pair, loader_of, trainer_of
from torch import nn
from torch.nn.functional import cross_entropy

from cyclr.lightning import AtCycleEnds, RangeTest, range_test
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


class TheOthers:
    """What `import lightning.pytorch` calls Trainer; that package is not installed here."""


TheOthers.__module__, TheOthers.__name__ = "lightning.pytorch.trainer", "Trainer"


class Idle(Pair):
    def training_step(self, batch, batch_idx):
        return cross_entropy(self.one(batch[0]), batch[1])


BAD = {
    "trainer": (
        lambda: range_test(Module(), Module(), loader_of()),
        TypeError,
        "trainer must be a pytorch_lightning.Tr",
    ),
    "model": (
        lambda: range_test(trainer_of(), nn.Linear(1, 1), []),
        TypeError,
        r"model must be a pytorch_lightning\.LightningModule, got torch\.nn\.modules\.linear\.Linear$",
    ),
    "trainer of the other package": (
        lambda: range_test(TheOthers(), Module(), loader_of()),
        TypeError,
        r"trainer must be a pytorch_lightning\.Trainer, got lightning\.pytorch\.trainer\.Trainer "
        r"\(import both from pytorch_lightning\)$",
    ),
    "fit of the other package": (
        lambda: RangeTest().setup(TheOthers(), Module(), "fit"),
        TypeError,
        r"trainer must be a pytorch_lightning\.Trainer, got lightning\.pytorch\.trainer\.Trainer",
    ),
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
    "epoch at cycles' ends": (
        lambda: trainer_of(AtCycleEnds()).fit(Epochwise(), loader_of()),
        ValueError,
        "Lightning would step the ScheduleLR every 1 epoch",
    ),
    "epoch at the ends of a given schedule": (
        lambda: trainer_of(AtCycleEnds(schedule=SCHEDULE)).fit(Epochwise(), loader_of()),
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


SHARDED = ["FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy"]


@pytest.mark.parametrize("name", SHARDED)
@pytest.mark.parametrize("call", ["from outside", "in a fit"])
def test_a_strategy_that_splits_the_model_is_refused_by_name(name, call):
    """Two of them want a GPU or DeepSpeed to be made at all, so the trainer gets one that isn't."""
    trainer, callback, module = trainer_of(), RangeTest(RAMP), Module()
    kind = getattr(pl.strategies, name)
    trainer._accelerator_connector.strategy = kind.__new__(kind)
    sentence = rf"^the trainer's {name} splits the model between processes, .* under DDP, and use its bounds here$"
    with pytest.raises(ValueError, match=sentence):
        range_test(trainer, module, loader_of()) if call == "from outside" else callback.setup(trainer, module, "fit")


def test_a_fit_that_splits_the_model_ends_before_it_does(monkeypatch):
    strategy = pl.strategies.ModelParallelStrategy(process_group_backend="gloo")
    monkeypatch.setattr(Module, "configure_model", lambda self: pytest.fail("the model is being split"))
    with mock.patch.dict(os.environ):  # Lightning writes the group's address there
        try:
            with pytest.raises(ValueError, match="the trainer's ModelParallelStrategy splits the model"):
                trainer_of(RangeTest(RAMP), strategy=strategy).fit(Module(), loader_of())
        finally:
            torch.distributed.destroy_process_group()


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
