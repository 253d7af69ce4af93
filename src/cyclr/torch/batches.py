"""Batches of any loader, again and again, on the model's device."""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterable, Mapping, MutableMapping
from typing import Any

import torch
from torch.utils.data import DataLoader

from cyclr import batches

ONCE, EMPTY = (text.format("loader") for text in (batches.ONCE, batches.EMPTY))


def batches_of(loader: Iterable[Any]) -> Generator[Any]:
    """Batches without end. The first one is taken only when it is needed, inside the restoration."""
    if isinstance(loader, DataLoader):  # its own running workers stay untouched
        loader = copy.copy(loader)
        loader.__dict__["_iterator"] = None
    return batches.endless(loader, "loader")


def on_device(batch: Any, device: torch.device) -> Any:
    """The batch on the model's device, whatever its structure."""
    if torch.is_tensor(batch):
        return batch if batch.device == device else batch.to(device, non_blocking=True)
    if type(batch) in (tuple, list):
        return type(batch)([on_device(each, device) for each in batch])
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*[on_device(each, device) for each in batch])
    if isinstance(batch, MutableMapping):  # of its own kind, such as a tokenizer's BatchEncoding
        moved = copy.copy(batch)
        moved.update({key: on_device(each, device) for key, each in batch.items()})
        return moved
    if isinstance(batch, Mapping):
        return {key: on_device(each, device) for key, each in batch.items()}
    return batch
