"""A trainer taken aside: it trains as in its fit, but nobody is called or told, and afterwards it is as it was."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning_fabric.utilities.optimizer import _optimizers_to_device
from pytorch_lightning import LightningDataModule, LightningModule
from pytorch_lightning.loggers.logger import DummyLogger
from pytorch_lightning.loops.fit_loop import _FitLoop
from pytorch_lightning.loops.progress import _BaseProgress
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop
from pytorch_lightning.loops.utilities import _parse_loop_limits
from pytorch_lightning.profilers import PassThroughProfiler
from pytorch_lightning.trainer import call
from pytorch_lightning.trainer.connectors.data_connector import (
    _DataHookSelector,
    _DataLoaderSource,
    _request_dataloader,
)
from pytorch_lightning.trainer.connectors.logger_connector.logger_connector import _LoggerConnector
from pytorch_lightning.trainer.states import RunningStage, TrainerFn, TrainerState, TrainerStatus
from pytorch_lightning.utilities.combined_loader import CombinedLoader
from pytorch_lightning.utilities.compile import _maybe_unwrap_optimized

from cyclr.batches import ONCE
from cyclr.torch.checksum import generators
from cyclr.torch.state import attributes_kept, restored


@contextmanager
def taken_aside(trainer: Any) -> Iterator[None]:
    """The trainer in training, without its callbacks, loggers and profiler."""
    with attributes_kept(trainer, trainer.strategy, trainer.precision_plugin):
        trainer.callbacks = []
        trainer.loggers = [DummyLogger() for _ in trainer.loggers]  # takes calls of the module's own, and drops them
        trainer.log_every_n_steps = 0
        trainer.profiler = PassThroughProfiler()
        trainer._logger_connector = _LoggerConnector(trainer)
        trainer.state = TrainerState(TrainerStatus.RUNNING, TrainerFn.FITTING, RunningStage.TRAINING)
        trainer.should_stop = False
        yield


@contextmanager
def connected(trainer: Any, model: Any, data: Any) -> Iterator[CombinedLoader]:
    """The trainer as `trainer.fit(model, data)` makes it, up to the first batch; yields the loaders.

    A model that this trainer has fitted before keeps its optimisers, with their state.
    """
    strategy, module = trainer.strategy, _maybe_unwrap_optimized(model)
    datamodule = data if isinstance(data, LightningDataModule) else None
    device = module.device
    optimizers = strategy.optimizers if strategy.lightning_module is module else []
    configs = strategy.lr_scheduler_configs
    strategy.connect(module)
    module.trainer = trainer
    trainer.datamodule = datamodule
    if datamodule is not None:
        datamodule.trainer = trainer
    trainer._data_connector = copy.copy(trainer._data_connector)
    trainer._data_connector._datahook_selector = _DataHookSelector(module, datamodule)
    try:
        strategy.setup_environment()
        trainer._data_connector.prepare_data()
        call._call_setup_hook(trainer)
        call._call_configure_model(trainer)
        loaders = _loaders(module if data is None else data)
        with restored(*(each for loader in loaders.flattened for each in generators(loader))):
            trainer.fit_loop = loop_like(trainer.fit_loop, loaders)
            strategy.setup(trainer)
            if _belong_to(optimizers, module):
                strategy.optimizers, strategy.lr_scheduler_configs = optimizers, configs
                _optimizers_to_device(optimizers, strategy.root_device)
            for hook in ("on_fit_start", "on_train_start"):
                call._call_lightning_module_hook(trainer, hook)
            call._call_strategy_hook(trainer, "on_train_start")
            trainer.fit_loop.teardown()  # of the workers that estimating the updates may have started
            yield loaders
    finally:
        strategy.teardown()
        module.to(device)
    call._call_teardown_hook(trainer)


def loop_like(loop: _FitLoop, loaders: CombinedLoader) -> _FitLoop:
    """A fit loop that has come as far as this one, and reads the loaders from their start."""
    trainer = loop.trainer
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the fit will say what it thinks of its limits
        limits = _parse_loop_limits(loop.min_steps, loop.max_steps, loop.min_epochs, loop.max_epochs, trainer)
    new = _FitLoop(trainer, *limits)
    new.epoch_loop = _TrainingEpochLoop(trainer, loop.min_steps, loop.max_steps)
    new._data_source = _DataLoaderSource(_own(loaders), "train_dataloader")
    new.epoch_loop._batches_that_stepped = loop.epoch_loop._batches_that_stepped
    for mine, theirs in zip(_parts(new), _parts(loop), strict=True):
        progress = {name: value for name, value in vars(theirs).items() if isinstance(value, _BaseProgress)}
        vars(mine).update(copy.deepcopy(progress))
    return new


def _parts(loop: _FitLoop) -> list[Any]:
    return [loop, loop.epoch_loop, loop.epoch_loop.automatic_optimization, loop.epoch_loop.manual_optimization]


def _loaders(source: Any) -> CombinedLoader:
    """The training loaders of a module, a data module, or those that were given."""
    given = _request_dataloader(_DataLoaderSource(source, "train_dataloader"))
    loaders = given if isinstance(given, CombinedLoader) else CombinedLoader(given, "max_size_cycle")
    if any(isinstance(each, Iterator) for each in loaders.flattened):
        raise ValueError(ONCE.format("data"))
    return loaders


def _own(loaders: CombinedLoader) -> CombinedLoader:
    """The same loaders, but iterating them leaves the iterators and workers of a running fit alone."""
    loaders, flattened = copy.copy(loaders), [copy.copy(each) for each in loaders.flattened]
    loaders._iterator = None
    for each in flattened:
        if "_iterator" in getattr(each, "__dict__", ()):
            each._iterator = None
    loaders.flattened = flattened
    return loaders


def _belong_to(optimizers: list[Any], module: LightningModule) -> bool:
    parameters = {id(parameter) for parameter in module.parameters()}
    own = [id(p) in parameters for each in optimizers for group in each.param_groups for p in group["params"]]
    return bool(own) and all(own)


class PlainTensors:
    """Tensors that a module's parts keep in plain attributes, as metrics do: what `restored` would not see."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Each one by its name."""
        return {
            f"{path}.{name}": value
            for path, each in self._module.named_modules()
            for name, value in vars(each).items()
            if torch.is_tensor(value)
        }

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Nothing: they were written in place, and the module's own restoration has put them back."""
