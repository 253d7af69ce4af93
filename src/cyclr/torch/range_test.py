"""The LR range test on a PyTorch model: one update at a time, and afterwards everything as it was."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, nullcontext
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from cyclr import checks
from cyclr.curve import Curve
from cyclr.range_test import Progress
from cyclr.range_test import range_test as run_range_test
from cyclr.schedules import Ramp
from cyclr.torch.batches import batches_of, on_device
from cyclr.torch.parallel import reshard
from cyclr.torch.processes import Group, check_same, everywhere, group_of, listening, mean
from cyclr.torch.scheduler import MULTIPLIER, innermost, set_rate, unheard
from cyclr.torch.state import restored

BatchLoss: TypeAlias = Callable[[nn.Module, Any], Tensor | tuple[Tensor, Mapping[str, Any]]]

SKIPS = 20  # updates in a row that a GradScaler may skip before training counts as broken


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
    accumulation: int | None = None,
    scaler: torch.amp.GradScaler | None = None,
    clip: Callable[[], object] | None = None,
    group: str | int | None = None,
    also: Sequence[Any] = (),
    progress: Progress | None = None,
    meta: Mapping[str, Any] | None = None,
) -> Curve:
    """Train briefly while the rate rises, record, and leave everything bit for bit as it was.

    What is covered, and verified with a checksum (`curve.meta["state_checksum"]`), is listed at `restored`: it holds
    after a normal end, an exception, Ctrl-C and NaN. The copy of the state lies in CPU memory.

    Where several processes train one model (DDP, FSDP2), call it in all of them, each with its share of the data. Every
    value is then the mean over the processes, so all decide alike and get the same curve, to the bit. They are the ones
    of DDP's own process group, or else all. When one raises an error or is lost, the others raise ProcessError, at the
    latest after the group's timeout (`init_process_group(timeout=...)`), with their state restored.

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
        accumulation: batches in one update, by default 1, or as many as Accelerate accumulates where it has prepared
            the optimiser; a point is a real update and its value the mean over its batches. DDP reduces gradients once
            in an update (`no_sync`), FSDP2 once in a batch.
        scaler: a GradScaler, by default that of an optimiser that Accelerate has prepared, if it has one; updates that
            it skips are made again and are no points.
        clip: called when the gradients of an update are complete (and unscaled), before the optimisers' step. A
            training that clips bears larger rates, so its range test should clip too:
            `clip=lambda: torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)`.
        group: raise the rate of this parameter group alone, known by its "name" (see `groups_by_depth`) or, without
            one, by its number; the others stand still. Its multiplier stays, so that a schedule with the bounds that
            are read moves it as the test did. By default all rise in proportion.
        also: whatever else must be restored: generators of the data pipeline, averages of weights, schedulers.
        progress, meta: as in `cyclr.range_test`.

    Raises:
        ValueError: a frozen model, an optimiser without the model's parameters, an empty loader or one that can be
            read only once, a loss that isn't one number, processes that were called with different arguments.
        ProcessError: another process stopped answering.
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
    given: list[Any] = list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]
    optimizers = [innermost(each) for each in given]
    prepared = given[0] if given else None  # by Accelerate, perhaps
    if accumulation is None:
        accumulation = getattr(getattr(prepared, "gradient_state", None), "num_steps", 1)
    if scaler is None:
        scaler = getattr(prepared, "scaler", None)
    reshard(model)
    check_trainable(model, optimizers)
    checks.whole("accumulation", accumulation, least=1)
    if loss_fn is None and batch_loss is None:
        raise ValueError("give loss_fn for batches (x, y), or batch_loss(model, batch) for any other batch")
    if batch_loss is None:
        checks.choice("metric without batch_loss", metric, ("loss", "accuracy"))
    with_accuracy = metric == "accuracy" or validate is not None
    mean_loss = batch_loss or _loss_of_pairs(loss_fn, with_accuracy)  # type: ignore[arg-type]
    covered = [model, *optimizers, loader, *([scaler] if scaler is not None else []), *also]
    processes = group_of(model)
    update = _Update(model, optimizers, mean_loss, loader, accumulation, scaler, clip, processes)
    names = [each.get("name", index) for index, each in enumerate(_groups(optimizers))]
    _check_group(group, names, _groups(optimizers))
    asked = {
        "ramp": ramp if isinstance(ramp, Ramp) else None,
        "steps": steps,
        "metric": metric,
        "validate_every": validate_every,
        "accumulation": accumulation,
        "validate is None": validate is None,
        "scaler is None": scaler is None,
        "group": group,
    }
    of_group = {} if group is None else {"group": group}

    def hold_others() -> None:  # taken back with all else
        for name, each in zip(names, _groups(optimizers), strict=True):
            if group not in (None, name):
                each[MULTIPLIER] = 0.0

    with listening(processes):
        check_same(asked, processes)
        with unheard(optimizers), restored(*covered) as saved, closing(update):

            def reset() -> None:
                saved.restore()
                update.start_over()
                hold_others()

            hold_others()
            return run_range_test(
                update,
                ramp,
                steps=steps,
                reset=reset,
                metric=metric if validate is None else "accuracy",
                validate=None if validate is None else evaluating(model, validate, processes),
                validate_every=validate_every,
                progress=progress,
                meta={**(meta or {}), **of_group, "state_checksum": saved.checksum},
            )


def _groups(optimizers: Sequence[Optimizer]) -> list[dict[str, Any]]:
    return [group for optimizer in optimizers for group in optimizer.param_groups]


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
        clip: Callable[[], object] | None,
        group: Group,
    ) -> None:
        self.model, self.optimizers, self.mean_loss, self.group = model, optimizers, mean_loss, group
        self.loader, self.accumulation, self.scaler, self.clip = loader, accumulation, scaler, clip
        self.groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        self.device = next(model.parameters()).device
        self.no_sync = getattr(model, "no_sync", nullcontext)  # DDP reduces gradients once per update
        self.batches = batches_of(loader)

    def start_over(self) -> None:
        """Read the data from the start again."""
        self.close()
        self.batches = batches_of(self.loader)

    def close(self) -> None:
        """Let the loader's workers go."""
        self.batches.close()

    def __call__(self, lr: float) -> dict[str, float]:
        set_rate(self.groups, lr)
        for _ in range(SKIPS):
            metrics = mean(self._accumulate(), self.group)
            if any(math.isnan(value) for value in metrics.values()) or self._apply():
                return metrics
        return dict.fromkeys(metrics, float("nan"))  # the scaler finds no scale at which gradients are finite

    def _accumulate(self) -> dict[str, float]:
        seen: list[dict[str, Any]] = []
        for part in range(self.accumulation):
            batch = on_device(next(self.batches), self.device)
            if part == 0:  # as late as can be, as in a loop by hand: memory that was just freed is used again at once
                for optimizer in self.optimizers:
                    optimizer.zero_grad(set_to_none=True)
            with nullcontext() if part == self.accumulation - 1 else self.no_sync():
                result = self.mean_loss(self.model, batch)
                loss, metrics = result if isinstance(result, tuple) else (result, {})
                _check_loss(loss)
                share = loss / self.accumulation if self.accumulation > 1 else loss
                (share if self.scaler is None else self.scaler.scale(share)).backward()  # type: ignore[no-untyped-call]
            seen.append({"loss": loss.detach(), **metrics})
        return {name: sum(float(each[name]) for each in seen) / len(seen) for name in seen[0]}

    def _apply(self) -> bool:
        """Make the update; False if the scaler skipped it, in any process, because gradients overflowed."""
        if self.clip is not None:
            if self.scaler is not None:
                for optimizer in self.optimizers:
                    self.scaler.unscale_(optimizer)
            self.clip()
        if self.scaler is None:
            for optimizer in self.optimizers:
                optimizer.step()
            return True
        before = self.scaler.get_scale()
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        return everywhere(self.scaler.get_scale() >= before, self.group)


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


def evaluating(model: nn.Module, validate: Callable[[], float], group: Group) -> Callable[[], float]:
    """`validate` in eval mode and without gradients; then every module is back in its own mode."""

    def measured() -> float:
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            with torch.no_grad():
                return mean({"validation": float(validate())}, group)["validation"]
        finally:
            for module, mode in modes:
                module.training = mode

    return measured


def check_trainable(model: nn.Module, optimizers: list[Any]) -> None:
    """Whether there is something to train, by optimisers whose every update has a rate."""
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


def _check_group(group: str | int | None, names: Sequence[str | int], groups: Sequence[dict[str, Any]]) -> None:
    """Whether there is such a group, and something to train in it."""
    if group is None:
        return
    if group not in names:
        raise ValueError(f"group must be one of {', '.join(map(repr, dict.fromkeys(names)))}, got {group!r}")
    members = [each for name, one in zip(names, groups, strict=True) if name == group for each in one["params"]]
    if not any(parameter.requires_grad for parameter in members):
        raise ValueError(f"group {group!r} is frozen, so its rate changes nothing; set requires_grad on its parameters")


def _check_loss(loss: Any) -> None:
    if not torch.is_tensor(loss) or loss.numel() != 1:
        got = f"a tensor of shape {tuple(loss.shape)}" if torch.is_tensor(loss) else f"{type(loss).__name__} {loss!r}"
        raise ValueError(f"the loss must be one number, got {got}; take its mean")
    if not loss.requires_grad:
        raise ValueError("the loss does not depend on any trainable parameter; is it detached, or the model frozen?")
