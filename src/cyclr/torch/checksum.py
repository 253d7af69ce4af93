"""The checksum over everything that `restored` covers."""

from __future__ import annotations

import hashlib
import random
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cyclr.torch.parallel import local


def checksum(objects: Iterable[Any], devices: Iterable[Any]) -> str:
    """SHA-256 over the random number generators (those of `devices` too) and of `objects` as they are now."""
    digest = hashlib.sha256()
    python, *others = rng_state(devices)
    _hash(digest, [repr(python), *others])  # as one text: its 625 numbers one by one would take most of the time
    for each in objects:
        _hash(digest, _state_of(each))
    return digest.hexdigest()


def accelerators() -> list[Any]:
    """The accelerator modules in use that have a random state of their own."""
    return [torch.cuda] if torch.cuda.is_available() and torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]


def rng_state(devices: Iterable[Any]) -> list[Any]:
    """Python's, NumPy's and torch's global random states, then those of each accelerator module in `devices`."""
    states = [random.getstate(), np.random.get_state(), torch.get_rng_state()]
    return states + [accelerator.get_rng_state_all() for accelerator in devices]


def parts_of(loader: Any) -> list[Any]:
    """A loader and the samplers inside it, whatever Accelerate has put around them."""
    found: dict[int, Any] = {}
    waiting = [loader]
    while waiting:
        part = waiting.pop()
        if part is not None and id(part) not in found:
            found[id(part)] = part
            waiting += [getattr(part, name, None) for name in ("base_dataloader", "batch_sampler", "sampler")]
    return list(found.values())


def generators(loader: Any) -> list[torch.Generator]:
    """The generators that a loader and its samplers own."""
    names = ("generator", "synchronized_generator")  # the second is Accelerate's
    owned = [getattr(part, name, None) for part in parts_of(loader) for name in names]
    return list({id(each): each for each in owned if isinstance(each, torch.Generator)}.values())


def tensors(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers, those that are not saved included; what is shared comes once."""
    return [*module.parameters(), *module.buffers()]


def has_state(thing: Any) -> bool:
    """Whether it can be asked for its state. Accelerate's loaders have the methods, but not always a state."""
    return hasattr(thing, "state_dict") and getattr(thing, "use_stateful_dataloader", True)


def hooks(thing: Any) -> list[str]:
    """Names of the attributes in which torch keeps hooks."""
    return [name for name, value in thing.__dict__.items() if "hook" in name and isinstance(value, dict)]


def _state_of(thing: Any) -> Any:
    """What the checksum covers."""
    if isinstance(thing, nn.Module):
        return [
            [(tensor, tensor.requires_grad, tensor.grad if tensor.is_leaf else None) for tensor in tensors(thing)],
            repr([(each.training, [len(each.__dict__[name]) for name in hooks(each)]) for each in thing.modules()]),
        ]
    if isinstance(thing, Optimizer):
        groups = [{**group, "params": len(group["params"])} for group in thing.param_groups]
        owned = [thing.state.get(p, {}) for group in thing.param_groups for p in group["params"]]
        return [groups, owned, [len(thing.__dict__[name]) for name in hooks(thing)], "step" in thing.__dict__]
    if isinstance(thing, torch.Generator):
        return thing.get_state()
    if isinstance(thing, random.Random):
        return thing.getstate()
    if isinstance(thing, np.random.Generator):
        return thing.bit_generator.state
    if has_state(thing):
        return thing.state_dict()
    return [generator.get_state() for generator in generators(thing)]


def _hash(digest: Any, value: Any) -> None:
    """Feed a nested value to a digest: tensors by the CRC-32 of their bytes, the rest by its text; all with lengths."""
    if torch.is_tensor(value):
        value = local(value.to_dense() if value.is_sparse else value)
        flat = value.detach().cpu().contiguous().reshape(-1)
        _put(digest, f"{value.dtype}{tuple(value.shape)}".encode())
        content = flat.view(torch.uint8).numpy().data if flat.numel() else b""
        _put(digest, zlib.crc32(content).to_bytes(4))  # several times as fast, and any change of a few bits shows
    elif isinstance(value, np.ndarray):
        _put(digest, f"{value.dtype}{value.shape}".encode())
        _put(digest, value.tobytes())
    elif isinstance(value, dict):
        _hash(digest, list(value.items()))
    elif isinstance(value, list | tuple):
        _put(digest, f"[{len(value)}]".encode())
        for each in value:
            _hash(digest, each)
    else:
        text = repr(value)  # an address in it would say nothing about the content
        _put(digest, (type(value).__qualname__ if f"at {id(value):#x}" in text else text).encode())


def _put(digest: Any, content: Any) -> None:
    digest.update(len(content).to_bytes(8))
    digest.update(content)
