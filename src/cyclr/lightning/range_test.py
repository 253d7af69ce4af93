"""The LR range test on a Lightning trainer: from outside a fit, and by a callback inside one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from pytorch_lightning.utilities.combined_loader import CombinedLoader

from cyclr import checks
from cyclr.bounds import Bounds, find_bounds
from cyclr.curve import Curve, Goal
from cyclr.lightning.aside import PlainTensors, connected, taken_aside
from cyclr.lightning.checks import check_ready, check_schedulers, check_trainer
from cyclr.lightning.update import Update
from cyclr.range_test import Progress
from cyclr.range_test import range_test as run_range_test
from cyclr.schedules import Ramp
from cyclr.torch.checksum import generators, parts_of
from cyclr.torch.processes import check_same, group_of, listening
from cyclr.torch.range_test import check_trainable, evaluating
from cyclr.torch.scheduler import unheard
from cyclr.torch.state import attributes_kept, restored

NEVER: Any = "in no range test"  # an interval of schedulers beside Lightning's "step" and "epoch"


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What a user asks a range test for."""

    ramp: Ramp | None = None
    steps: int = 300
    metric: str = "loss"
    goal: Goal | None = None
    validate: Callable[[], float] | None = None
    validate_every: int | None = None
    also: Sequence[Any] = ()
    progress: Progress | None = None
    meta: Mapping[str, Any] | None = field(default=None)


def range_test(
    trainer: Trainer,
    model: Any,
    data: Any = None,
    *,
    ramp: Ramp | None = None,
    steps: int = 300,
    metric: str = "loss",
    goal: Goal | None = None,
    validate: Callable[[], float] | None = None,
    validate_every: int | None = None,
    also: Sequence[Any] = (),
    progress: Progress | None = None,
    meta: Mapping[str, Any] | None = None,
) -> Curve:
    """Train briefly while the rate rises, record, and leave everything bit for bit as it was.

    Lightning's own loop makes the updates: with the module's `training_step` and its hooks, the trainer's strategy,
    precision, accumulation and gradient clipping, automatic or manual optimisation. Callbacks, loggers, checkpoints and
    the profiler are not called, and the module's hooks at the end of an epoch or a fit aren't either. It works before
    a fit and after one; then it goes on from the optimisers' states. Inside a fit use `RangeTest`.

    Args:
        trainer: not running. Under a strategy with several processes call it in all of them, as `trainer.fit`.
        model: the LightningModule. The module's and the data module's `prepare_data`, `setup`, `configure_model` and
            `configure_optimizers` are called as by `trainer.fit`.
        data: what `trainer.fit` takes: one or several loaders, or a LightningDataModule; by default the model's own
            `train_dataloader`.
        ramp: the rates, by default found without numbers from you: see `cyclr.range_test`. Every group of every
            optimiser gets them in each step, times its "lr_multiplier" if it has one; schedulers stand still.
        steps: real updates in the default ramp's linear pass; a short cycle has half of them, at most 128.
        metric: "loss", or what else `training_step` returns in a dict or logs in each step; measured on each update's
            own batches before the update. Under manual optimisation the loss is found in the same way.
        goal: "min" or "max"; by default "max" for a metric with "accuracy" in its name.
        validate: returns the accuracy on a fixed validation subset; measured every `validate_every` updates, in eval
            mode and without gradients. The curve is then about it, as in the paper.
        also: whatever else must be restored: generators of the data pipeline, averages of weights.
        progress, meta: as in `cyclr.range_test`.

    Raises:
        ValueError: a trainer that is running or in `fast_dev_run`, a strategy that splits the model between processes
            (FSDP, DeepSpeed, ModelParallel), no data, a `training_step` without a loss, a ScheduleLR that Lightning
            would step once an epoch.
        TypeError: no trainer or no LightningModule.
        RestoreError: something that isn't covered was changed. Covered is what `cyclr.torch.restored` says, with the
            tensors in the module's plain attributes (metrics), the trainer, its strategy and its loops.

    Example:
        >>> import warnings, cyclr, torch, pytorch_lightning as pl
        >>> from cyclr.lightning import range_test
        >>> warnings.simplefilter("ignore")  # Lightning's advice
        >>> class Line(pl.LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layer = torch.nn.Linear(4, 1)
        ...     def training_step(self, batch):
        ...         return self.layer(batch).square().mean()
        ...     def configure_optimizers(self):
        ...         return torch.optim.SGD(self.parameters(), lr=0.1)
        >>> trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
        >>> loader = torch.utils.data.DataLoader(torch.ones(8, 4), batch_size=8)
        >>> curve = range_test(trainer, Line(), loader, ramp=cyclr.ramp(0, 0.01, 20))
        >>> len(curve.lrs), bool(curve.values[-1] < curve.values[0])
        (20, True)

    Reference: Smith, arXiv 1506.01186, 3.3.
    """
    asked = _Asked(
        ramp=ramp,
        steps=steps,
        metric=metric,
        goal=goal,
        validate=validate,
        validate_every=validate_every,
        also=also,
        progress=progress,
        meta=meta,
    )
    check_ready(trainer, getattr(model, "_orig_mod", model), data)
    run = partial(_from_outside, trainer, model, data, asked)
    launcher = trainer.strategy.launcher
    return run() if launcher is None else launcher.launch(run, trainer=trainer)


class RangeTest(Callback):
    """Makes an LR range test inside a fit, just before an update, and leaves the fit bit for bit as it was.

    Args:
        ramp: the rates, by default found without numbers from you.
        at: the global step before which it runs; by default before the first update of each fit. (With several
            optimisers Lightning counts the steps of each.)
        steps, metric, goal, validate, validate_every, also, progress, meta: as in `cyclr.lightning.range_test`.

    Attributes:
        curve: the last test's curve.
        bounds: what `cyclr.find_bounds` reads off it.

    Under `fast_dev_run` it does nothing. What is not covered, and what a test calls, is listed at `range_test`.

    Raises:
        ValueError: `curve` or `bounds` before a test; in a fit with a ScheduleLR that Lightning would step once an
            epoch, or with a strategy that splits the model between processes.

    Example:
        >>> import cyclr
        >>> from cyclr.lightning import RangeTest
        >>> RangeTest(cyclr.ramp(0, 0.02, 4000), at=1000).curve
        Traceback (most recent call last):
        ValueError: there is no curve yet: RangeTest runs in trainer.fit, before global step 1000, and in nothing else

    Reference: Smith, arXiv 1506.01186, 3.3.
    """

    def __init__(
        self,
        ramp: Ramp | None = None,
        *,
        at: int | None = None,
        steps: int = 300,
        metric: str = "loss",
        goal: Goal | None = None,
        validate: Callable[[], float] | None = None,
        validate_every: int | None = None,
        also: Sequence[Any] = (),
        progress: Progress | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        self._at = None if at is None else checks.whole("at", at, least=0)
        self._asked = _Asked(
            ramp=ramp,
            steps=steps,
            metric=metric,
            goal=goal,
            validate=validate,
            validate_every=validate_every,
            also=also,
            progress=progress,
            meta=meta,
        )
        self._due = False
        self._curve: Curve | None = None

    @property
    def curve(self) -> Curve:
        """The last test's curve."""
        if self._curve is None:
            when = "the first update" if self._at is None else f"global step {self._at}"
            raise ValueError(
                f"there is no curve yet: RangeTest runs in trainer.fit, before {when}, and in nothing else"
            )
        return self._curve

    @property
    def bounds(self) -> Bounds:
        """What `cyclr.find_bounds` reads off the last test's curve."""
        return find_bounds(self.curve)

    def setup(self, trainer: Any, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            check_trainer(trainer)

    def on_fit_start(self, trainer: Any, pl_module: LightningModule) -> None:
        check_schedulers(trainer)

    def on_train_start(self, trainer: Any, pl_module: LightningModule) -> None:
        resumed_later = self._at is not None and trainer.global_step > self._at
        self._due = not (trainer.fast_dev_run or resumed_later)

    def on_train_batch_start(self, trainer: Any, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._due and trainer.global_step >= (self._at or 0):
            self._due = False
            loaders = trainer.fit_loop._combined_loader
            with taken_aside(trainer):
                self._curve = _tested(trainer, loaders, self._asked)


def _from_outside(trainer: Any, model: Any, data: Any, asked: _Asked) -> Curve:
    module = getattr(model, "_orig_mod", model)  # of torch.compile
    things = [data] if isinstance(data, LightningDataModule) else []
    with (
        taken_aside(trainer),
        attributes_kept(*things),
        restored(module, PlainTensors(module)),
        connected(trainer, model, data) as loaders,
    ):
        return _tested(trainer, loaders, asked)


def _tested(trainer: Any, loaders: CombinedLoader, asked: _Asked) -> Curve:
    """The test on a trainer that has been taken aside and is about to train."""
    strategy, module, metric = trainer.strategy, trainer.lightning_module, asked.metric
    check_trainable(module, strategy.optimizers)
    check_schedulers(trainer)
    schedulers = [config.scheduler for config in strategy.lr_scheduler_configs]
    strategy.lr_scheduler_configs = [replace(config, interval=NEVER) for config in strategy.lr_scheduler_configs]
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    covered = [strategy.model, PlainTensors(module), *strategy.optimizers, *schedulers]
    covered += [generator for loader in loaders.flattened for generator in generators(loader)]
    group = group_of(strategy.model)
    update = Update(trainer, loaders, metric, group)
    trainer.callbacks = [update]
    same = {"ramp": asked.ramp, "steps": asked.steps, "metric": metric, "validate_every": asked.validate_every}
    with listening(group), attributes_kept(*schedulers, *_samplers(loaders)), unheard(strategy.optimizers):
        check_same({**same, "validate is None": asked.validate is None}, group)
        with restored(*covered, *([scaler] if scaler is not None else []), *asked.also) as saved, closing(update):

            def reset() -> None:
                saved.restore()
                update.start_over()

            update.start_over()
            return run_range_test(
                update,
                asked.ramp,
                steps=asked.steps,
                reset=reset,
                metric=metric if asked.validate is None else "accuracy",
                goal=asked.goal,
                validate=None if asked.validate is None else evaluating(module, asked.validate, group),
                validate_every=asked.validate_every,
                progress=asked.progress,
                meta={**(asked.meta or {}), "state_checksum": saved.checksum},
            )


def _samplers(loaders: CombinedLoader) -> list[Any]:
    """Those that are told of each epoch."""
    parts = [part for loader in loaders.flattened for part in parts_of(loader) if part is not loader]
    return [each for each in parts if hasattr(each, "set_epoch")]
