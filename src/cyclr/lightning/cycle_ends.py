"""A callback for the ends of cycles in a Lightning fit."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import Callback, LightningModule

from cyclr.lightning.checks import check_schedulers
from cyclr.torch.cycle_ends import CycleEnds


class AtCycleEnds(CycleEnds, Callback):
    """Does something at the end of each cycle: takes a snapshot, evaluates, stops.

    Args:
        actions: each is called as `action(step, module)`, after the update that completes a cycle and before
            checkpoints are written; a `cyclr.torch.Snapshots` is one. Under DDP in every process.
        schedule: whose cycles; by default that of the fit's ScheduleLR.
        stop: called in the same way, last; True ends the fit there, in all processes if it is True in one.

    A fit that goes on from a checkpoint does not repeat what was done before it.

    Raises:
        TypeError: an action that cannot be called.
        ValueError: in a fit without a ScheduleLR, if no schedule was given; in one whose ScheduleLR Lightning would
            step once an epoch, or whose schedule has no cycles.

    Example:
        >>> import cyclr
        >>> from cyclr.lightning import AtCycleEnds
        >>> from cyclr.torch import Snapshots
        >>> schedule = cyclr.triangular(0.001, 0.006, stepsize=2000)
        >>> callback = AtCycleEnds(Snapshots("snapshots", schedule), stop=lambda step, module: step >= 20_000)

    Reference: the paper, 3.2: it is best to stop at the end of a cycle.
    """

    def on_fit_start(self, trainer: Any, pl_module: LightningModule) -> None:
        check_schedulers(trainer)

    def on_train_start(self, trainer: Any, pl_module: LightningModule) -> None:
        self.begin(_schedulers(trainer), trainer.global_step)

    def on_train_batch_end(
        self, trainer: Any, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.reached(_schedulers(trainer), trainer.global_step, pl_module):
            trainer.should_stop = True


def _schedulers(trainer: Any) -> list[Any]:
    return [config.scheduler for config in trainer.lr_scheduler_configs]
