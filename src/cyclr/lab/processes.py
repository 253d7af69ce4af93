"""Several processes at one run (torchrun, accelerate launch): all share every batch, the first decides and writes."""

from __future__ import annotations

import atexit
import gc
import os
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed.nn.functional  # before there is a group, which its functions would hold for ever
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

Result = TypeVar("Result")


def rank() -> int:
    """This process, counted from 0."""
    return int(_state().process_index)


def count() -> int:
    """Processes at this run; asked for the first time, they find each other."""
    return int(_state().num_processes)


def device() -> torch.device:
    """Where this process computes."""
    return torch.device(_state().device)


def on_first(function: Callable[[], Result]) -> Result:
    """What `function` returns, or raises, in the first process; the others wait for it and get the same.

    So all go the same way, whatever each of them would have seen, and only one writes.
    """
    if count() == 1:
        return function()
    told: list[Any] = [None, None]
    if rank() == 0:
        try:
            told[0] = function()
        except Exception as error:
            told[1] = error
    result, trouble = broadcast_object_list(told)
    if trouble is not None:
        raise trouble
    return result  # type: ignore[no-any-return]


def total(value: float) -> float:
    """The sum of every process's value, the same in all."""
    if count() == 1:
        return value
    summed = torch.tensor(value, dtype=torch.float64, device=_device())
    torch.distributed.all_reduce(summed)
    return float(summed)


def gathered(value: Any) -> list[Any]:
    """Every process's value, in their order."""
    if count() == 1:
        return [value]
    values = [None] * count()
    torch.distributed.all_gather_object(values, value)
    return values


def share_buffers(model: nn.Module) -> None:
    """Give all processes the first one's buffers: its running averages are the run's, as DDP has it too."""
    if count() > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, 0)


@cache
def _state() -> PartialState:
    """Accelerate's view of the processes; made once, before any Accelerator."""
    if not torch.distributed.is_initialized():
        atexit.register(_leave)
    # Accelerate takes no notice of torchrun on a machine without accelerators, unless it is told that this is one.
    cpu = "LOCAL_RANK" in os.environ and not torch.accelerator.is_available()
    if (restart := os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) != "0":
        # torchrun keeps its store over a restart, and with it the addresses of the processes that have died.
        store, rank, count = next(rendezvous("env://"))
        store = PrefixStore(f"restart {restart}", store)
        backend = None if torch.accelerator.is_available() else "gloo"
        torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=count)
    return PartialState(cpu=cpu)


def _leave() -> None:
    """End the group's threads: one that still holds tensors at the process's very end aborts it."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        gc.collect()  # what is left of DDP holds the group


def _device() -> torch.device:
    return _state().device if torch.distributed.get_backend() == "nccl" else torch.device("cpu")
