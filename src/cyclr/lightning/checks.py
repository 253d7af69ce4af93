"""What the Lightning adapter asks of a trainer and a module, one sentence each."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from pytorch_lightning.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from pytorch_lightning.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from pytorch_lightning.trainer.states import TrainerStatus
from pytorch_lightning.utilities.model_helpers import is_overridden

from cyclr.torch.scheduler import ScheduleLR


def check_trainer(trainer: Any) -> None:
    """That it is one, and keeps the whole model in each process."""
    _check_kind("trainer", trainer, Trainer)
    if isinstance(trainer.strategy, FSDPStrategy | DeepSpeedStrategy | ModelParallelStrategy):
        raise ValueError(
            f"the trainer's {type(trainer.strategy).__name__} splits the model between processes, and a range test "
            "could not put it back; make it on one process or under DDP, and use its bounds here"
        )


def check_ready(trainer: Any, module: Any, data: Any) -> None:
    """That a range test can be made from outside a fit."""
    check_trainer(trainer)
    _check_kind("model", module, LightningModule)
    if trainer.state.status == TrainerStatus.RUNNING:
        raise ValueError("the trainer is running; inside a fit give it the callback cyclr.lightning.RangeTest instead")
    for name in ("training_step", "configure_optimizers"):
        if not is_overridden(name, module):
            raise ValueError(f"{type(module).__name__} has no {name}, but a range test trains the model; define it")
    source = module if data is None else data
    if isinstance(source, LightningModule | LightningDataModule) and not is_overridden("train_dataloader", source):
        raise ValueError(f"{type(source).__name__} has no train_dataloader; define it, or give range_test the data")
    if trainer.fast_dev_run:
        raise ValueError(
            "a trainer with fast_dev_run reads a batch or a few, too little for a range test; leave it out"
        )
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        raise ValueError(
            f"the strategy {type(trainer.strategy).__name__} would train in new processes that keep what they find; "
            'use strategy="ddp", or start the script with torchrun'
        )


def check_schedulers(trainer: Any) -> None:
    """That Lightning steps a ScheduleLR in every update; its own default is once an epoch."""
    if not trainer.lightning_module.automatic_optimization:
        return
    for config in trainer.lr_scheduler_configs:
        if isinstance(config.scheduler, ScheduleLR) and (config.interval, config.frequency) != ("step", 1):
            raise ValueError(
                f"Lightning would step the ScheduleLR every {config.frequency} {config.interval}, but it counts "
                'updates; return {"scheduler": ScheduleLR(...), "interval": "step"} from configure_optimizers'
            )


def _check_kind(name: str, given: Any, kind: type) -> None:
    if not isinstance(given, kind):
        got = type(given)
        other = " (import both from pytorch_lightning)" if got.__module__.startswith("lightning.") else ""
        raise TypeError(
            f"{name} must be a pytorch_lightning.{kind.__name__}, got {got.__module__}.{got.__name__}{other}"
        )
