"""One update of a range test, made by the trainer's own training loop."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities.combined_loader import CombinedLoader
from torch.optim import Optimizer

from cyclr.batches import EMPTY
from cyclr.lightning.aside import loop_like
from cyclr.torch.processes import Group, everywhere, mean
from cyclr.torch.range_test import SKIPS
from cyclr.torch.scheduler import set_rate

IDLE = 1000  # batches without a step of any optimiser, after which manual optimisation counts as never making one


class Update(Callback):
    """One real update at a given rate, however many batches it takes: the callback that sees what they return.

    Every optimiser has the rate when it makes its step, whatever the module sets before.
    """

    def __init__(self, trainer: Trainer, loaders: CombinedLoader, metric: str, group: Group) -> None:
        self.trainer, self.loaders, self.metric, self.group = trainer, loaders, metric, group
        self.automatic = trainer.lightning_module.automatic_optimization
        self.scaler = getattr(trainer.precision_plugin, "scaler", None)
        self.start = self.loop = trainer.fit_loop
        self.lr, self.stepped = 0.0, False
        self.seen: list[dict[str, float]] = []

    def start_over(self) -> None:
        """Go back to where the fit is, and to the start of the data."""
        self.close()
        self.trainer.fit_loop = self.loop = loop_like(self.start, self.loaders)
        self.loop.setup_data()
        if self.loop._data_fetcher is None:  # limit_train_batches is 0
            raise ValueError(EMPTY.format("data"))
        for optimizer in self.trainer.optimizers:
            optimizer.register_step_pre_hook(self._before_step)
        self._start_epoch()

    def close(self) -> None:
        """Let the loaders' workers go."""
        if self.loop is not self.start:
            self.loop.teardown()

    def __call__(self, lr: float) -> dict[str, float]:
        self.lr, self.seen = lr, []
        for _ in range(SKIPS if self.automatic else IDLE):
            if self.automatic:
                self.seen = []
            for optimizer in self.trainer.optimizers:
                set_rate(optimizer.param_groups, self.lr)
            made = self._train()
            if made or self.automatic:
                metrics = mean(self._means(), self.group)
                if made or any(math.isnan(value) for value in metrics.values()):
                    return metrics
        if self.scaler is not None:
            return dict.fromkeys(metrics, float("nan"))  # it finds no scale at which gradients are finite
        raise ValueError(
            "training_step and optimizer_step left every optimiser without a step; a range test needs some"
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        returned: Mapping[str, Any] = outputs or {}
        if self.automatic and "loss" not in returned:
            raise ValueError("training_step returned None, but a range test needs the loss of every batch")
        known = {**trainer.callback_metrics, **returned}
        if self.metric not in known:
            given = ", ".join(sorted(known)) or "nothing"
            raise ValueError(
                f"training_step gave {given}, but the metric asked for is {self.metric!r}; return it in a dict or "
                "log it with on_step=True, or name another: range_test(..., metric=...)"
            )
        values = {name: float(known[name]) for name in dict.fromkeys(("loss", self.metric)) if name in known}
        if self.automatic:
            values["loss"] *= trainer.accumulate_grad_batches  # by which Lightning has divided it
        self.seen.append(values)

    def _train(self) -> bool:
        """Batches up to an update, or one where only the module knows; whether the update was made."""
        self.stepped, before = False, self._scale()
        self._advance()
        while self.automatic and self.loop._should_accumulate():
            self._advance()
        return self.stepped and (self.scaler is None or everywhere(self._scale() >= before, self.group))

    def _advance(self) -> None:
        """One batch: hooks of the module, training_step, backward, and where it is time clipping and the step."""
        fetcher: Any = self.loop._data_fetcher
        try:
            self.loop.epoch_loop.advance(fetcher)
        except StopIteration:
            self._end_epoch()
            iter(fetcher)
            self._start_epoch()
            try:
                self.loop.epoch_loop.advance(fetcher)
            except StopIteration:
                raise ValueError(EMPTY.format("data")) from None

    def _start_epoch(self) -> None:
        self.loop.on_advance_start()
        self.loop.epoch_loop.reset()

    def _end_epoch(self) -> None:
        """No hook of the module: at the end of an epoch it might save or plot what it has trained."""
        self.loop.epoch_progress.increment_processed()
        self.loop.epoch_progress.increment_completed()
        self.trainer._logger_connector.reset_results()

    def _before_step(self, optimizer: Optimizer, *_: Any) -> None:
        self.stepped = True
        set_rate(optimizer.param_groups, self.lr)

    def _means(self) -> dict[str, float]:
        return {name: sum(each[name] for each in self.seen) / len(self.seen) for name in self.seen[0]}

    def _scale(self) -> float:
        return 0.0 if self.scaler is None else float(self.scaler.get_scale())
