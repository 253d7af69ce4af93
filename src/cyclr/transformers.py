"""The Hugging Face Transformers adapter: `range_test` on a Trainer, `RangeTest` and `AtCycleEnds` in its train().

Schedules need no adapter: `Trainer(..., optimizers=(optimizer, ScheduleLR(optimizer, schedule)))`, with
`cyclr.torch.ScheduleLR`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from math import isnan
from typing import Any

from cyclr import checks, frameworks

frameworks.check("transformers")

from transformers import Trainer, TrainerCallback, TrainerControl
from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback
from transformers.trainer_utils import TrainerMemoryTracker

from cyclr.batches import EMPTY
from cyclr.bounds import Bounds, find_bounds
from cyclr.curve import Curve
from cyclr.range_test import Progress
from cyclr.range_test import range_test as run_range_test
from cyclr.schedules import Ramp
from cyclr.torch.checksum import generators, parts_of
from cyclr.torch.cycle_ends import CycleEnds
from cyclr.torch.processes import check_same, everywhere, group_of, listening, mean
from cyclr.torch.range_test import SKIPS, check_trainable
from cyclr.torch.scheduler import innermost, set_rate, unheard
from cyclr.torch.state import attributes_kept, restored

__all__ = ["AtCycleEnds", "RangeTest", "range_test"]


def range_test(
    trainer: Trainer,
    *,
    ramp: Ramp | None = None,
    steps: int = 300,
    metric: str = "loss",
    progress: Progress | None = None,
    meta: Mapping[str, Any] | None = None,
) -> Curve:
    """Train briefly while the rate rises, record, and leave everything bit for bit as it was.

    The trainer prepares itself as by `trainer.train()` and its own `training_step` makes the updates: its data, loss,
    optimiser, precision, gradient accumulation and clipping. Callbacks are not called, nothing is logged or saved. It
    works before a training and after one; then it goes on from the optimiser's state. Inside one use `RangeTest`.

    Args:
        trainer: not in its train(). With several processes call it in all of them, as `trainer.train()`.
        ramp: the rates, by default found without numbers from you: see `cyclr.range_test`. Every group of the
            optimiser gets them, times its "lr_multiplier" if it has one; the trainer's scheduler stands still.
        steps: real updates in the default ramp's linear pass; a short cycle has half of them, at most 128.
        metric: "loss", that of each update's own batches before the update; it is all that a Trainer tells of one.
        progress, meta: as in `cyclr.range_test`.

    Raises:
        TypeError: no Trainer.
        ValueError: a trainer in its train(), without train_dataset, or with DeepSpeed, FSDP or another engine that
            changes the model for good.
        RestoreError: something that isn't covered was changed. Covered is what `cyclr.torch.restored` says, and which
            objects the attributes of the trainer, its arguments, accelerator and scheduler are.

    Example:
        >>> import cyclr, tempfile, torch
        >>> from transformers import Trainer, TrainingArguments
        >>> from cyclr.transformers import range_test
        >>> class Line(torch.nn.Linear):
        ...     def forward(self, x):
        ...         return {"loss": super().forward(x).square().mean()}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     args = TrainingArguments(folder, use_cpu=True, report_to="none")
        ...     trainer = Trainer(Line(4, 1), args, train_dataset=[{"x": torch.ones(4)}] * 64)
        ...     curve = range_test(trainer, ramp=cyclr.ramp(0, 0.01, 20))
        >>> len(curve.lrs), bool(curve.values[-1] < curve.values[0])
        (20, True)

    Reference: Smith, arXiv 1506.01186, 3.3.
    """
    _check_ready(trainer)
    if trainer.is_in_train:
        raise ValueError(
            "the trainer is in its train(); there add cyclr.transformers.RangeTest(trainer) to its callbacks "
            "(if an error or Ctrl-C has ended that train(), set trainer.is_in_train = False)"
        )
    test = _TestAndLeave(trainer, ramp=ramp, steps=steps, metric=metric, progress=progress, meta=meta)
    model, optimizer, scaler = trainer.model, innermost(trainer.optimizer), trainer.accelerator.scaler
    with restored(*(each for each in (model, optimizer, scaler) if each is not None)), _aside(trainer):
        trainer.callback_handler = CallbackHandler(  # type: ignore[no-untyped-call]
            [DefaultFlowCallback(), test], model, trainer.processing_class, trainer.optimizer, trainer.lr_scheduler
        )
        trainer.control = TrainerControl()
        trainer._memory_tracker = TrainerMemoryTracker(skip_memory_metrics=True)  # type: ignore[no-untyped-call]
        try:
            trainer.train()
        except _Left:
            return test.curve
        finally:
            del model  # what wraps it goes before it is put back
    raise ValueError(f"{type(trainer).__name__}.train() began no training, so there was nothing to test")


class RangeTest(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Makes an LR range test at the start of a training, and leaves the training bit for bit as it was.

    Callbacks are not told whose they are, so it takes the trainer: `trainer.add_callback(RangeTest(trainer))`.

    Args:
        trainer: whose model and optimiser it tests, after a checkpoint was loaded if there is one.
        ramp, steps, metric, progress, meta: as in `cyclr.transformers.range_test`.

    Attributes:
        curve: the last test's curve.
        bounds: what `cyclr.find_bounds` reads off it.

    Raises:
        ValueError: `curve` or `bounds` before a test; what `range_test` raises.

    Example:
        >>> import cyclr, tempfile, torch
        >>> from transformers import Trainer, TrainingArguments
        >>> from cyclr.transformers import RangeTest
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     args = TrainingArguments(folder, use_cpu=True, report_to="none")
        ...     trainer = Trainer(torch.nn.Linear(4, 1), args, train_dataset=[{"x": torch.ones(4)}] * 64)
        >>> test = RangeTest(trainer, ramp=cyclr.ramp(0, 0.02, 4000))
        >>> trainer.add_callback(test)
        >>> test.curve
        Traceback (most recent call last):
        ValueError: there is no curve yet: RangeTest runs when trainer.train() begins, and in nothing else

    Reference: Smith, arXiv 1506.01186, 3.3.
    """

    def __init__(
        self,
        trainer: Trainer,
        *,
        ramp: Ramp | None = None,
        steps: int = 300,
        metric: str = "loss",
        progress: Progress | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        _check_ready(trainer)
        checks.choice("metric", metric, ["loss"])
        self._trainer = trainer
        self._curve: Curve | None = None
        self._asked = _Asked(ramp, steps, metric, progress, dict(meta or {}))

    @property
    def curve(self) -> Curve:
        """The last test's curve."""
        if self._curve is None:
            raise ValueError("there is no curve yet: RangeTest runs when trainer.train() begins, and in nothing else")
        return self._curve

    @property
    def bounds(self) -> Bounds:
        """What `cyclr.find_bounds` reads off the last test's curve."""
        return find_bounds(self.curve)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state is not self._trainer.state:
            raise ValueError("this RangeTest was made for another trainer; add RangeTest(trainer) to trainer itself")
        with _aside(self._trainer):
            self._curve = _tested(self._trainer, self._asked)


class AtCycleEnds(CycleEnds, TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Does something at the end of each cycle: takes a snapshot, evaluates, stops.

    Args:
        actions: each is called as `action(step, model)`, after the update that completes a cycle and before the
            Trainer saves; a `cyclr.torch.Snapshots` is one. With several processes in each of them.
        schedule: whose cycles; by default that of the Trainer's ScheduleLR.
        stop: called in the same way, last; True ends the training there, in all processes if it is True in one.

    Raises:
        TypeError: an action that cannot be called.
        ValueError: in a training without a ScheduleLR, if no schedule was given; a schedule without cycles.

    Example:
        >>> import cyclr
        >>> from cyclr.torch import Snapshots
        >>> from cyclr.transformers import AtCycleEnds
        >>> schedule = cyclr.triangular(0.00001, 0.00006, stepsize=200)
        >>> callback = AtCycleEnds(Snapshots("snapshots", schedule), stop=lambda step, model: step >= 2000)

    Reference: the paper, 3.2: it is best to stop at the end of a cycle.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.begin([kwargs.get("lr_scheduler")], state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.reached([kwargs.get("lr_scheduler")], state.global_step, kwargs["model"]):
            control.should_training_stop = True


@dataclass(frozen=True)
class _Asked:
    """What a user asks a range test for."""

    ramp: Ramp | None
    steps: int
    metric: str
    progress: Progress | None
    meta: dict[str, Any]


class _Left(Exception):
    """The training was left where its first epoch would have begun."""


class _TestAndLeave(RangeTest):
    """Makes the test and ends the training."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        raise _Left


def _tested(trainer: Any, asked: _Asked) -> Curve:
    """The test on a trainer that is about to train."""
    model, optimizer = trainer.model_wrapped, innermost(trainer.optimizer)
    check_trainable(model, [optimizer])
    loader = trainer.get_train_dataloader()
    parts = [each for each in parts_of(loader) if hasattr(each, "__dict__")]
    scaler, group = trainer.accelerator.scaler, group_of(model)
    covered = [model, optimizer, *([scaler] if scaler is not None else []), *generators(loader)]
    with listening(group), attributes_kept(*parts), unheard([optimizer]):
        check_same({"ramp": asked.ramp, "steps": asked.steps, "metric": asked.metric}, group)
        with restored(*covered) as saved:
            update = _Update(trainer, model, loader, group)

            def reset() -> None:
                saved.restore()
                update.start_over()

            return run_range_test(
                update,
                asked.ramp,
                steps=asked.steps,
                reset=reset,
                metric=asked.metric,
                progress=asked.progress,
                meta={**asked.meta, "state_checksum": saved.checksum},
            )


class _Update:
    """One real update at a given rate, made by the trainer's own training_step; returns its loss."""

    def __init__(self, trainer: Any, model: Any, loader: Any, group: Any) -> None:
        self.trainer, self.model, self.loader, self.group = trainer, model, loader, group
        self.accelerator, self.accumulation = trainer.accelerator, trainer.args.gradient_accumulation_steps
        self.start_over()

    def start_over(self) -> None:
        """Read the data from the start again."""
        self.epoch = -1
        self.batches: Iterator[Any] = iter(())

    def __call__(self, lr: float) -> dict[str, float]:
        set_rate(self.trainer.optimizer.param_groups, lr)
        for _ in range(SKIPS):
            metrics = mean({"loss": self._accumulate()}, self.group)
            if isnan(metrics["loss"]) or self._apply():
                return metrics
        return {"loss": float("nan")}  # the scaler finds no scale at which gradients are finite

    def _accumulate(self) -> float:
        """The gradients of an update; its loss."""
        batches, items = self._next()
        self.model.zero_grad()
        self.trainer.current_gradient_accumulation_steps = len(batches)
        total = 0.0
        for rest, inputs in zip(reversed(range(len(batches))), batches, strict=True):
            self.accelerator.gradient_state._set_sync_gradients(rest == 0)
            with self.accelerator.no_sync(self.model) if rest else nullcontext():
                total += self.trainer.training_step(self.model, inputs, items)
        return float(total)

    def _next(self) -> tuple[list[Any], Any]:
        """The batches of an update, and how many items they have; as the trainer, the last of an epoch has the rest."""
        for _ in range(2):
            found = self.trainer.get_batch_samples(self.batches, self.accumulation, self.trainer.args.device)
            if found[0]:
                return found  # type: ignore[no-any-return]
            self.epoch += 1
            for part in parts_of(self.loader):
                if hasattr(part, "set_epoch"):
                    part.set_epoch(self.epoch)
            self.batches = iter(self.loader)
        raise ValueError(EMPTY.format("train_dataset"))

    def _apply(self) -> bool:
        """Make the update; False if the scaler skipped it, in any process, because gradients overflowed."""
        norm = self.trainer.args.max_grad_norm
        if norm is not None and norm > 0:
            self.accelerator.clip_grad_norm_(self.model.parameters(), norm)
        self.trainer.optimizer.step()
        return everywhere(not self.trainer.optimizer.step_was_skipped, self.group)


@contextmanager
def _aside(trainer: Any) -> Iterator[None]:
    """Afterwards the trainer, and what it works with, have the attributes that they had."""
    accelerator, model = trainer.accelerator, trainer.model
    things = [trainer, trainer.args, accelerator, accelerator.gradient_state, trainer.optimizer, trainer.lr_scheduler]
    things += [getattr(model, name, None) for name in ("config", "generation_config")]
    with attributes_kept(*(each for each in things if each is not None)):
        for name, value in list(vars(accelerator).items()):
            if isinstance(value, list):  # of what it has prepared
                vars(accelerator)[name] = copy.copy(value)
        yield


def _check_ready(trainer: Any) -> None:
    if not isinstance(trainer, Trainer):
        raise TypeError(f"trainer must be a transformers.Trainer, got {type(trainer).__name__}")
    if trainer.train_dataset is None and type(trainer).get_train_dataloader is Trainer.get_train_dataloader:
        raise ValueError("the trainer has no train_dataset, but a range test trains; Trainer(..., train_dataset=...)")
    if hasattr(trainer.train_dataset, "__len__") and len(trainer.train_dataset) == 0:  # type: ignore[arg-type]
        raise ValueError(EMPTY.format("train_dataset"))
    engine = str(trainer.accelerator.distributed_type.value)
    if engine not in ("NO", "MULTI_CPU", "MULTI_GPU"):
        raise ValueError(
            f"the trainer trains with {engine}, which changes the model for good, and a range test could not put it "
            "back; make it on one process or under DDP (torchrun), and use its bounds here"
        )
