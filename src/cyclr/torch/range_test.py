"""The LR range test on a PyTorch model: one update at a time, and afterwards everything as it was."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from cyclr import checks
from cyclr.curve import Curve
from cyclr.range_test import Progress
from cyclr.range_test import range_test as run_range_test
from cyclr.schedules import Ramp
from cyclr.torch.scheduler import MULTIPLIER
from cyclr.torch.state import restored

BatchLoss: TypeAlias = Callable[[nn.Module, Any], Tensor | tuple[Tensor, Mapping[str, Any]]]

SKIPS = 20  # updates in a row that a GradScaler may skip before training counts as broken

ONCE = "loader can be read only once (it is an iterator); give the list, loader or dataset behind it"
EMPTY = "loader yielded no batch; is the data set empty, or smaller than a dropped last batch?"


def range_test(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer],
    loss_fn: Callable[[Any, Any], Tensor] | None,
    loader: Iterable[Any],
    *,
    ramp: Ramp | None = None,
    steps: int = 300,
    metric: str = "loss",
    batch_loss: BatchLoss | None = None,
    validate: Callable[[], float] | None = None,
    validate_every: int | None = None,
    accumulation: int = 1,
    scaler: torch.amp.GradScaler | None = None,
    also: Sequence[Any] = (),
    progress: Progress | None = None,
    meta: Mapping[str, Any] | None = None,
) -> Curve:
    """Train briefly while the rate rises, record, and leave everything bit for bit as it was.

    What is covered, and verified with a checksum (`curve.meta["state_checksum"]`), is listed at `restored`: it holds
    after a normal end, an exception, Ctrl-C and NaN. The copy of the state lies in CPU memory.

    Args:
        model: trained as it is, in the train/eval mode that it is in.
        optimizer: one or several. Every group gets the ramp's rate, times its "lr_multiplier" if it has one, as
            under `ScheduleLR`.
        loss_fn: `loss_fn(model(x), y)`, a scalar, for batches `(x, y)`.
        loader: anything that can be iterated again and again; it starts over when it is exhausted.
        ramp: the rates, by default found without numbers from you: see `cyclr.range_test`.
        steps: real updates in the default ramp's linear pass; a short cycle has half of them, at most 128.
        metric: "loss", or "accuracy" (share of `model(x).argmax(-1)` equal to y), measured on each update's own
            batch before the update. With "accuracy", and with `validate`, both are recorded.
        batch_loss: for any other batch structure: `batch_loss(model, batch)` returns the scalar loss, or the loss
            and a dict of metrics. Autocast goes in here. Then loss_fn may be None.
        validate: returns the accuracy on a fixed validation subset; measured every `validate_every` updates, in eval
            mode and without gradients. The curve is then about it, as in the paper.
        accumulation: batches in one update; a point is a real update and its value the mean over its batches.
        scaler: a GradScaler; updates that it skips are made again and are no points.
        also: whatever else must be restored: generators of the data pipeline, averages of weights, schedulers.
        progress, meta: as in `cyclr.range_test`.

    Raises:
        ValueError: a frozen model, an optimiser without the model's parameters, an empty loader or one that can be
            read only once, a loss that isn't one number.
        RestoreError: something that isn't covered was changed.

    Example:
        >>> import torch
        >>> from cyclr.torch import range_test
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Linear(4, 2)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> x, y = torch.randn(64, 4), torch.randint(2, (64,))
        >>> curve = range_test(net, optimizer, torch.nn.functional.cross_entropy, [(x, y)], steps=50)
        >>> curve.metric, curve.steps[0]
        ('loss', np.int64(0))

    Reference: Smith, arXiv 1506.01186, 3.3.
    """
    optimizers: list[Any] = list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]
    _check_trainable(model, optimizers)
    checks.whole("accumulation", accumulation, least=1)
    if loss_fn is None and batch_loss is None:
        raise ValueError("give loss_fn for batches (x, y), or batch_loss(model, batch) for any other batch")
    if isinstance(loader, Iterator):
        raise ValueError(ONCE)
    with_accuracy = metric == "accuracy" or validate is not None
    mean_loss = batch_loss or _loss_of_pairs(loss_fn, with_accuracy)  # type: ignore[arg-type]
    covered = [model, *optimizers, loader, *([scaler] if scaler is not None else []), *also]
    update = _Update(model, optimizers, mean_loss, loader, accumulation, scaler)
    with restored(*covered) as snapshot, closing(update):

        def reset() -> None:
            snapshot.restore()
            update.start_over()

        return run_range_test(
            update,
            ramp,
            steps=steps,
            reset=reset,
            metric=metric if validate is None else "accuracy",
            validate=None if validate is None else _evaluating(model, validate),
            validate_every=validate_every,
            progress=progress,
            meta={**(meta or {}), "state_checksum": snapshot.checksum},
        )


class _Update:
    """One real update at a given rate, however many batches and attempts it takes; returns its metrics."""

    def __init__(
        self,
        model: nn.Module,
        optimizers: list[Optimizer],
        mean_loss: BatchLoss,
        loader: Iterable[Any],
        accumulation: int,
        scaler: torch.amp.GradScaler | None,
    ) -> None:
        self.model, self.optimizers, self.mean_loss = model, optimizers, mean_loss
        self.loader, self.accumulation, self.scaler = loader, accumulation, scaler
        self.groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        self.device = next(model.parameters()).device
        self.batches = _batches(loader)

    def start_over(self) -> None:
        """Read the data from the start again."""
        self.close()
        self.batches = _batches(self.loader)

    def close(self) -> None:
        """Let the loader's workers go."""
        self.batches.close()

    def __call__(self, lr: float) -> dict[str, float]:
        for group in self.groups:
            rate = lr * group.get(MULTIPLIER, 1.0)
            # Not in place: groups may share one tensor, and each has a multiplier of its own.
            group["lr"] = torch.full_like(group["lr"], rate) if torch.is_tensor(group["lr"]) else rate
        for _ in range(SKIPS):
            metrics = self._accumulate()
            if any(math.isnan(value) for value in metrics.values()) or self._apply():
                return metrics
        return dict.fromkeys(metrics, float("nan"))  # the scaler finds no scale at which gradients are finite

    def _accumulate(self) -> dict[str, float]:
        seen: list[dict[str, Any]] = []
        for part in range(self.accumulation):
            batch = _to(next(self.batches), self.device)
            if part == 0:  # as late as can be, as in a loop by hand: memory that was just freed is used again at once
                for optimizer in self.optimizers:
                    optimizer.zero_grad(set_to_none=True)
            result = self.mean_loss(self.model, batch)
            loss, metrics = result if isinstance(result, tuple) else (result, {})
            _check_loss(loss)
            share = loss / self.accumulation if self.accumulation > 1 else loss
            (share if self.scaler is None else self.scaler.scale(share)).backward()  # type: ignore[no-untyped-call]
            seen.append({"loss": loss.detach(), **metrics})
        return {name: sum(float(each[name]) for each in seen) / len(seen) for name in seen[0]}

    def _apply(self) -> bool:
        """Make the update; False if the scaler skipped it because gradients overflowed."""
        if self.scaler is None:
            for optimizer in self.optimizers:
                optimizer.step()
            return True
        before = self.scaler.get_scale()
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        return self.scaler.get_scale() >= before


def _loss_of_pairs(loss_fn: Callable[[Any, Any], Tensor], with_accuracy: bool) -> BatchLoss:
    """The loss and, if wanted, the accuracy where the output and the target are those of a classifier."""

    def batch_loss(model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Any]]:
        if not isinstance(batch, list | tuple) or len(batch) != 2:
            raise ValueError(
                f"a batch must be a pair (x, y), got {type(batch).__name__}; "
                "for any other structure give batch_loss=lambda model, batch: ..."
            )
        x, y = batch
        output = model(x)
        loss = loss_fn(output, y)
        if not with_accuracy:
            return loss, {}
        classes = torch.is_tensor(output) and torch.is_tensor(y) and output.shape[:-1] == y.shape
        if not classes or y.is_floating_point():
            return loss, {}
        return loss, {"accuracy": (output.detach().argmax(-1) == y).float().mean()}

    return batch_loss


def _batches(loader: Iterable[Any]) -> Generator[Any]:
    """Batches without end. The first one is taken only when it is needed, inside the restoration."""
    if isinstance(loader, DataLoader):  # its own running workers stay untouched
        loader = copy.copy(loader)
        loader.__dict__["_iterator"] = None
    passes = 0
    while True:
        empty = True
        for batch in loader:
            empty = False
            yield batch
        if empty:
            raise ValueError(ONCE if passes else EMPTY)
        passes += 1


def _to(batch: Any, device: torch.device) -> Any:
    """The batch on the model's device, whatever its structure."""
    if torch.is_tensor(batch):
        return batch if batch.device == device else batch.to(device, non_blocking=True)
    if type(batch) in (tuple, list):
        return type(batch)([_to(each, device) for each in batch])
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*[_to(each, device) for each in batch])
    if isinstance(batch, Mapping):
        return {key: _to(each, device) for key, each in batch.items()}
    return batch


def _evaluating(model: nn.Module, validate: Callable[[], float]) -> Callable[[], float]:
    """`validate` in eval mode and without gradients; then every module is back in its own mode."""

    def measured() -> float:
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            with torch.no_grad():
                return float(validate())
        finally:
            for module, mode in modes:
                module.training = mode

    return measured


def _check_trainable(model: nn.Module, optimizers: list[Any]) -> None:
    if any(is_lazy(parameter) for parameter in model.parameters()):
        raise ValueError("the model has lazy parameters without a shape yet; run one batch through it first")
    free = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    if not free:
        raise ValueError("every parameter of the model is frozen; set requires_grad on what is to be trained")
    if not optimizers:
        raise ValueError("optimizer is an empty list; give at least one torch optimiser")
    for optimizer in optimizers:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be a torch optimiser or a list of them, got {type(optimizer).__name__}")
        if isinstance(optimizer, torch.optim.LBFGS):
            raise ValueError(
                "LBFGS makes several steps of its own choice in one update; a range test needs one rate each"
            )
        if not any(id(p) in free for group in optimizer.param_groups for p in group["params"]):
            raise ValueError("optimizer holds no trainable parameter of this model; build it from model.parameters()")


def _check_loss(loss: Any) -> None:
    if not torch.is_tensor(loss) or loss.numel() != 1:
        got = f"a tensor of shape {tuple(loss.shape)}" if torch.is_tensor(loss) else f"{type(loss).__name__} {loss!r}"
        raise ValueError(f"the loss must be one number, got {got}; take its mean")
    if not loss.requires_grad:
        raise ValueError("the loss does not depend on any trainable parameter; is it detached, or the model frozen?")
