"""Updates as a CUDA graph, captured once and replayed: a small net does not wait for Python between its kernels."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adadelta, Adam, Adamax, AdamW, Optimizer, RAdam, RMSprop

# What concerns a whole process, seeding, building and capturing, is done by one of its threads at a time.
ONE_AT_A_TIME = threading.RLock()
OPTIMIZERS = (SGD, Adadelta, Adam, Adamax, AdamW, RAdam, RMSprop)  # a new state is zeros, the rate may be a tensor


def can_be_captured(optimizer: Optimizer) -> bool:
    """Whether a CUDA graph can hold this optimiser's update, with a rate that changes."""
    return isinstance(optimizer, OPTIMIZERS) and not any(group.get("dampening") for group in optimizer.param_groups)


class CapturedUpdates:
    """Up to `most` updates at a time, each a replay of the same graph.

    Batches and rates lie in buffers on the device. An update reads its own row of them, and moves on to the next.
    Where there is no CUDA, it is computed instead of replayed: the same, with rates in single precision.

    Args:
        model, optimizer: what is trained. The optimiser's groups keep their rates, which are not used here.
        backward: computes the loss of a batch (x, y), and from it the gradients; returns the loss.
        example: a batch, for its shapes.
        most: rows of the buffers.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        backward: Callable[[Tensor, Tensor], Tensor],
        example: tuple[Tensor, Tensor],
        most: int,
    ) -> None:
        self._optimizer, self._backward = optimizer, backward
        x, y = example
        self._x, self._y = (each.new_empty((most, *each.shape)) for each in (x, y))
        self._rates = torch.zeros(most, len(optimizer.param_groups), device=x.device)
        self._losses = torch.zeros(most, device=x.device)
        self._row = torch.zeros(1, dtype=torch.int64, device=x.device)
        for rows, each in ((self._x, x), (self._y, y)):
            rows.copy_(each)
        with ONE_AT_A_TIME, _rates_kept(optimizer):
            self._graph = self._captured(model) if x.is_cuda else None

    def __call__(self, batches: Sequence[tuple[Tensor, Tensor]], rates: Sequence[Sequence[float]]) -> float:
        """Train on these batches, each with its groups' rates; their mean loss."""
        count = len(batches)
        for rows, each in zip((self._x, self._y), zip(*batches, strict=True), strict=True):
            torch.stack(each, out=rows[:count])
        self._rates[:count] = torch.tensor(rates)
        self._row.zero_()
        with _rates_kept(self._optimizer):
            for _ in range(count):
                self._one() if self._graph is None else self._graph.replay()
        return float(self._losses[:count].mean())

    def _one(self) -> None:
        x, y, rates = (rows.index_select(0, self._row)[0] for rows in (self._x, self._y, self._rates))
        self._optimizer.zero_grad()
        loss = self._backward(x, y)
        for group, rate in zip(self._optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self._optimizer.step()
        self._losses.index_copy_(0, self._row, loss.detach().float().view(1))
        self._row += 1

    def _captured(self, model: nn.Module) -> torch.cuda.CUDAGraph:
        """The graph; what the updates before it did, which torch asks for, is undone."""
        _on_the_device(self._optimizer)
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        if stream == torch.cuda.default_stream():  # which cannot be captured
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        # Any other stream stays: torch has 32 and gives them out again, so a new one may be another run's.
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), torch.random.fork_rng(devices=[self._x.device]):
            with _undone(model, self._optimizer):
                for _ in range(3):
                    self._row.zero_()
                    self._one()
            self._optimizer.zero_grad()  # the graph's gradients are memory of its own
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                self._one()
        torch.cuda.current_stream().wait_stream(stream)
        return graph


@contextmanager
def _rates_kept(optimizer: Optimizer) -> Iterator[None]:
    kept = [group["lr"] for group in optimizer.param_groups]
    try:
        yield
    finally:
        for group, rate in zip(optimizer.param_groups, kept, strict=True):
            group["lr"] = rate


def _on_the_device(optimizer: Optimizer) -> None:
    """Have the optimiser read its rate there and count there, its state in the memory format of its weights."""
    for group in optimizer.param_groups:
        group.update({name: True for name in ("capturable", "fused") if name in group})
        group["foreach"] = None  # or it would be preferred, and ask for the rate's value
    for parameter, state in optimizer.state.items():
        for name, each in state.items():
            if torch.is_tensor(each):  # a checkpoint's is contiguous, and what it counts may be on the CPU
                like = torch.empty_like(parameter) if each.shape == parameter.shape else parameter.new_empty(each.shape)
                state[name] = like.to(each.dtype).copy_(each)


@contextmanager
def _undone(model: nn.Module, optimizer: Optimizer) -> Iterator[None]:
    """Afterwards all is as before, in the same memory; what an optimiser that was new has made is zero."""
    tensors: list[Tensor] = [each.data for each in (*model.parameters(), *model.buffers())]
    tensors += _state(optimizer)
    kept = [each.clone() for each in tensors]
    new = not optimizer.state
    yield
    for each, before in zip(tensors, kept, strict=True):
        each.copy_(before)
    for each in _state(optimizer) if new else ():
        each.zero_()


def _state(optimizer: Optimizer) -> list[Any]:
    return [each for state in optimizer.state.values() for each in state.values() if torch.is_tensor(each)]
