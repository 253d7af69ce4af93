"""What DDP and FSDP2 keep beside tensors, put back by this process alone: another one may be gone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

Undo: TypeAlias = Callable[[], object]

REDUCER = ("reducer", "logger", "_has_rebuilt_buckets")  # attributes of DDP that change with the order of its buckets
FSDP = "torch.distributed.fsdp._fully_shard"


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor that is sharded over several (a DTensor); any other tensor as it is."""
    if not hasattr(tensor, "to_local"):
        return tensor
    with torch.no_grad():
        return tensor.to_local()  # type: ignore[no-any-return]


def sharded_like(tensor: Tensor) -> Callable[[Tensor], Tensor]:
    """A function that makes of a local part a tensor that is sharded as `tensor` is, which it does not hold."""
    if not hasattr(tensor, "to_local"):
        return lambda part: part
    kind: Any = type(tensor)
    mesh, placements = tensor.device_mesh, tensor.placements  # type: ignore[attr-defined]
    shape, stride = tensor.shape, tensor.stride()
    return lambda part: kind.from_local(part, mesh, placements, run_check=False, shape=shape, stride=stride)


def reshard(module: nn.Module) -> None:
    """Let FSDP2 modules hold their shards again, which are what the optimiser has, and not the gathered parameters."""
    for each in _sharded(module):
        each.reshard()


def fsdp_states(module: nn.Module) -> list[Any]:
    """The objects in which FSDP2 keeps the state of its modules."""
    found: dict[int, Any] = {}
    waiting: list[Any] = [each._get_fsdp_state() for each in _sharded(module)]
    while waiting:
        thing = waiting.pop()
        if isinstance(thing, list | tuple):
            waiting += thing
        elif _is_state(thing) and id(thing) not in found:
            found[id(thing)] = thing
            waiting += vars(thing).values()
    return list(found.values())


def check_reduced(things: list[Any]) -> None:
    """ValueError if FSDP2's states hold gradients not reduced over the processes yet: they are no one's shard."""
    for each in things:
        parameter = vars(each).get("_unsharded_param")
        waiting = (vars(each).get(name) for name in ("unsharded_accumulated_grad", "_partial_reduce_output"))
        if (parameter is not None and parameter.grad is not None) or any(sum_ is not None for sum_ in waiting):
            raise ValueError(
                "the FSDP2 module holds gradients of a backward without gradient sync, which cannot be kept; "
                "finish the accumulation first (a backward after set_requires_gradient_sync(True))"
            )


def free_gathered(things: list[Any]) -> None:
    """Drop what a forward or backward that did not end left in FSDP2's states: gathered parameters, gradients."""
    for each in things:
        if hasattr(each, "free_unsharded_param"):
            each.free_unsharded_param()
            if hasattr(each, "_unsharded_param"):
                each._unsharded_param.grad = None


def keep_reducers(module: nn.Module) -> list[Undo]:
    """How to let each DDP module add up gradients as if nothing had come in between, no sum being half made.

    After its first backward DDP puts the gradients into other buckets, which is another order of summation for three
    processes or more. So one that has made no backward yet gets a reducer like its own, as if it had been unpickled.
    """
    found = [each for each in module.modules() if isinstance(each, DistributedDataParallel)]
    return [_keep_reducer(each) for each in found if hasattr(each, "reducer")]


def _keep_reducer(ddp: DistributedDataParallel) -> Undo:
    unused = not _has_reduced(ddp)

    def undo() -> None:
        if unused and not _has_hook(ddp):
            ddp.reducer._remove_autograd_hooks()
            vars(ddp).update(reducer=None, logger=None)  # one's buckets go before the next one's come
            ddp.__setstate__(dict(vars(ddp)))  # type: ignore[no-untyped-call]
            ddp._has_rebuilt_buckets = False
        elif not _has_ended(ddp):
            ddp.reducer._reset_state()

    return undo


def _has_hook(ddp: Any) -> bool:
    """Whether gradients are reduced in a way of their own, which only the reducer knows."""
    return "comm_hook" in ddp.logger._get_ddp_logging_data().strs_map


def _has_reduced(ddp: Any) -> bool:
    static = getattr(ddp, "_static_graph_delay_allreduce_enqueued", False)  # whose first backward leaves no statistics
    return static or any(ddp.reducer.get_backward_stats())


def _has_ended(ddp: DistributedDataParallel) -> bool:
    """Whether the last backward was not cut off by an exception."""
    with suppress(RuntimeError):
        ddp.reducer._check_reducer_finalized()
        return True
    return False


def _is_state(thing: Any) -> bool:
    return (
        type(thing).__module__.startswith(FSDP)
        and hasattr(thing, "__dict__")
        and not isinstance(thing, Enum | nn.Module)
    )


def _sharded(module: nn.Module) -> list[Any]:
    return [each for each in module.modules() if hasattr(each, "_get_fsdp_state")]
