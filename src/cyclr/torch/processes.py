"""Several processes at one range test: all see the mean over them, so all go the same way and end together."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import nn

Group: TypeAlias = Any  # a torch.distributed.ProcessGroup; None where this process is alone

WIDTH = 16  # numbers that a process tells of an update; as many always, since gloo aborts where lengths differ
SILENCE = re.compile(r"gloo|nccl|timed out|timeout|connection (closed|reset|refused)|broken pipe", re.IGNORECASE)


class ProcessError(RuntimeError):
    """Another process stopped answering; what came of the call to it is chained."""


def group_of(model: nn.Module) -> Group:
    """The processes that share the training of `model`: DDP's own group, by default all; None if there is just one."""
    if not (dist.is_available() and dist.is_initialized()):
        return None
    own = getattr(model, "process_group", None)
    group = own if isinstance(own, dist.ProcessGroup) else dist.group.WORLD
    return group if dist.get_world_size(group) > 1 else None


def mean(values: Mapping[str, float], group: Group) -> dict[str, float]:
    """Each value's mean over the processes, the same bits in all: each adds up all values in the same order."""
    if group is None:
        return dict(values)
    own = {name: float(value) for name, value in values.items()}
    if len(own) >= WIDTH:
        raise ValueError(f"several processes can share at most {WIDTH - 1} metrics of an update, got {len(own)}")
    names = float(zlib.crc32(repr(list(own)).encode()))
    rows = _gathered([names, *own.values()], group)
    if any(row[0] != names for row in rows):
        raise ValueError(f"the processes must measure the same metrics in an update, but not all have {list(own)}")
    return {name: sum(row[column] for row in rows) / len(rows) for column, name in enumerate(own, 1)}


def everywhere(condition: bool, group: Group) -> bool:
    """Whether this holds in all processes."""
    return condition if group is None else all(row[0] for row in _gathered([float(condition)], group))


def check_same(arguments: Mapping[str, Any], group: Group) -> None:
    """ValueError, in all processes, if they were not called with the same arguments."""
    if group is None:
        return
    told: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(told, {name: repr(value) for name, value in arguments.items()}, group=group)
    for process, others in enumerate(told):
        for name, value in told[0].items():
            if others[name] != value:
                raise ValueError(
                    f"the processes must call range_test with the same arguments, but {name} is {value} in process 0 "
                    f"and {others[name]} in process {process}"
                )


@contextmanager
def listening(group: Group) -> Iterator[None]:
    """Say clearly that another process is gone, whichever call noticed it."""
    try:
        yield
    except RuntimeError as error:
        if group is None or not is_silence(error):
            raise
        raise ProcessError(
            "another process of this range test stopped answering: it raised an error, died, or did not call "
            "range_test, which every process must; look at its own output. Here everything is as it was before"
        ) from error


def is_silence(error: RuntimeError) -> bool:
    """Whether a call to other processes raised this. Gloo has no error of its own, just texts."""
    return isinstance(error, dist.DistError) or (type(error) is RuntimeError and bool(SILENCE.search(str(error))))


def _gathered(numbers: list[float], group: Group) -> list[list[float]]:
    """The numbers of every process, in their order; filled up to WIDTH."""
    on_cpu = dist.get_backend(group) in ("gloo", "mpi") or not torch.accelerator.is_available()
    device = "cpu" if on_cpu else torch.accelerator.current_accelerator()
    own = torch.tensor(numbers + [0.0] * (WIDTH - len(numbers)), dtype=torch.float64, device=device)
    rows = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(rows, own, group=group)
    return torch.stack(rows).tolist()
