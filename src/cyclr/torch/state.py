"""Leaving no trace: a copy of everything that training changes, its restoration, and a checksum that proves it."""

from __future__ import annotations

import copy
import functools
import random
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from cyclr.torch.checksum import accelerators, checksum, generators, has_state, parts_of, rng_state, tensors
from cyclr.torch.parallel import (
    REDUCER,
    Undo,
    check_reduced,
    free_gathered,
    fsdp_states,
    keep_reducers,
    local,
    reshard,
    sharded_like,
)

# Accelerate's sampler counts the epochs it was read, and makes its generator when it is read first.
COUNTED = ("epoch", "generator", "synchronized_generator")


class RestoreError(RuntimeError):
    """The state after a restoration is not the state before it; something that was not covered changed it."""


@contextmanager
def attributes_kept(*things: Any) -> Iterator[None]:
    """Afterwards every attribute of these is the object that it was."""
    kept = [(vars(thing), dict(vars(thing))) for thing in things]
    try:
        yield
    finally:
        for now, before in kept:
            for name in now.keys() - before.keys():
                del now[name]
            now.update(before)


@contextmanager
def restored(*objects: Any, verify: bool = True) -> Iterator[SavedState]:
    """Whatever happens inside, afterwards everything is bit for bit as it was: after an exception and Ctrl-C too.

    Args:
        objects: what to restore: modules (parameters, buffers, `.grad`, train/eval mode of every submodule, hooks,
            and which object each attribute is), optimisers (state, every group's numbers, hooks, a patched `step`),
            DataLoaders (their own generators), torch.Generator, random.Random, numpy.random.Generator, GradScalers,
            and anything else with `state_dict` and `load_state_dict` (a scheduler, an average of weights).
        verify: compare checksums before and after.

    The random number generators of Python, NumPy, torch and CUDA are always restored. The copy lies in
    CPU memory: no accelerator memory, and on the CPU one copy of the state. Not covered: what happens inside the
    objects that a module keeps in plain attributes (but lists, dicts and sets hold what they held), the generators of
    running loader workers, and files.

    Under DDP and FSDP2 each process restores its own part, shards included, and calls no other: one may be gone. The
    checksum is of that part. Even a forward or backward that was cut off leaves a model that can train, to the same
    bits; except that a DDP module with a communication hook and three processes or more may add up its very first
    gradients in another order. Such a hook's own state is not covered.

    Yields:
        The saved state, whose `checksum` (SHA-256, hexadecimal) can be printed and whose `restore()` goes back early.

    Raises:
        RestoreError: the checksum afterwards is another; if an exception ends it, this is a note on that.
        ValueError: an FSDP2 module holds gradients that are not reduced over the processes yet.

    Example:
        >>> import torch
        >>> from cyclr.torch import restored
        >>> net = torch.nn.Linear(2, 1)
        >>> before = net.weight.clone()
        >>> with restored(net):
        ...     _ = net.weight.data.zero_()
        >>> torch.equal(before, net.weight)
        True
    """
    saved = SavedState(objects)
    try:
        yield saved
    except BaseException as error:
        saved.restore()
        if verify and (trouble := saved.trouble()):
            error.add_note(f"RestoreError: {trouble}")  # which must not hide it
        raise
    saved.restore()
    if verify and (trouble := saved.trouble()):
        raise RestoreError(trouble)


class SavedState:
    """What `restored` keeps: call `restore()` as often as you like, print `checksum`."""

    def __init__(self, objects: Iterable[Any]) -> None:
        self._objects = list(objects)
        self._accelerators = accelerators()  # one that is first used later has no state to go back to
        self._undos = [_keep_rng(self._accelerators), *(_keeper(each)(each) for each in self._objects)]
        self.checksum = self.current_checksum()

    def restore(self) -> None:
        """Put everything back, even where one thing fails; random number generators last: the rest might use them."""
        with ExitStack() as stack:
            for undo in self._undos:
                stack.callback(undo)

    def trouble(self) -> str | None:
        """What is wrong if the state now is not the one that was kept."""
        now = self.current_checksum()
        if now == self.checksum:
            return None
        return (
            f"the state before had checksum {self.checksum[:12]}, now it is {now[:12]}: "
            "a load_state_dict did not bring back what its state_dict gave, or something else was changed"
        )

    def current_checksum(self) -> str:
        """SHA-256 of the state as it is now: parameters, buffers, gradients, optimisers, generators, the rest."""
        return checksum(self._objects, self._accelerators)


def _keeper(thing: Any) -> Callable[[Any], Undo]:
    """How this kind of object is copied and put back."""
    if isinstance(thing, nn.Module):
        return _keep_module
    if isinstance(thing, Optimizer):
        return _keep_optimizer
    if isinstance(thing, torch.Generator):
        return _keep_generator
    if isinstance(thing, random.Random):
        return lambda r: _later(r.setstate, r.getstate())
    if isinstance(thing, np.random.Generator):
        return lambda r: _later(lambda state: setattr(r.bit_generator, "state", state), r.bit_generator.state)
    if isinstance(thing, torch.amp.GradScaler):  # its state_dict leaves out what was unscaled since the last update
        return lambda scaler: _keep(vars(scaler))
    if has_state(thing) and hasattr(thing, "load_state_dict"):
        return _keep_stateful
    if generators(thing) or isinstance(thing, Iterable):
        return _keep_loader
    raise TypeError(
        f"cannot restore a {type(thing).__name__}: give modules, optimisers, loaders, generators, "
        "or objects with state_dict and load_state_dict"
    )


def _later(function: Callable[[Any], object], state: Any) -> Undo:
    return lambda: function(state)


def _keep(value: Any) -> Callable[[], Any]:
    """A function that returns `value` with the content it has now: the same object, where it can be written into."""
    if torch.is_tensor(value):
        kept = _copy(value)
        return lambda: _write(value, kept)
    if isinstance(value, dict):
        items = {key: _keep(each) for key, each in value.items()}
        return lambda: _refill(value, {key: back() for key, back in items.items()})
    if type(value) in (list, tuple):
        parts = [_keep(each) for each in value]
        return lambda: _rewrite(value, [back() for back in parts])
    copied = copy.deepcopy(value)
    return lambda: copy.deepcopy(copied)


def _copy(tensor: Tensor) -> Tensor:
    """This process's part of it, in CPU memory."""
    return local(tensor).detach().to("cpu", copy=True)


def _write(tensor: Tensor, kept: Tensor) -> Tensor:
    if tensor.is_sparse:
        return kept.to(tensor.device, copy=True)
    own = local(tensor)
    expanded = any(stride == 0 and size > 1 for stride, size in zip(own.stride(), own.shape, strict=True))
    if expanded or own.shape != kept.shape or own.dtype != kept.dtype:
        own.data = kept.to(own.device, copy=True)
    else:
        own.detach().copy_(kept)
    return tensor


def _refill(mapping: dict[Any, Any], items: dict[Any, Any]) -> dict[Any, Any]:
    if len(mapping) != len(items) or any(mapping.get(key, items) is not each for key, each in items.items()):
        mapping.clear()
        mapping.update(items)
    return mapping


def _rewrite(value: Any, parts: list[Any]) -> Any:
    if isinstance(value, tuple):
        return tuple(parts)
    value[:] = parts
    return value


def _keep_attributes(thing: Any) -> Undo:
    """Which object each attribute is, and which ones its dicts, lists and sets hold: hooks, parameters, submodules."""
    others = REDUCER if isinstance(thing, DistributedDataParallel) else ()
    kept = {name: value for name, value in vars(thing).items() if name not in others}
    dicts = [(value, dict(value)) for value in kept.values() if isinstance(value, dict)]
    lists = [(value, list(value)) for value in kept.values() if isinstance(value, (list, set))]

    def undo() -> None:
        _refill(vars(thing), {**kept, **{name: vars(thing)[name] for name in others if name in vars(thing)}})
        for mapping, items in dicts:
            _refill(mapping, items)
        for holder, members in lists:
            if len(holder) != len(members) or any(now is not each for now, each in zip(holder, members, strict=True)):
                holder.clear()
                (holder.update if isinstance(holder, set) else holder.extend)(members)

    return undo


def _keep_module(module: nn.Module) -> Undo:
    reshard(module)
    sharded = fsdp_states(module)
    check_reduced(sharded)
    attributes = [_keep_attributes(each) for each in (*sharded, *module.modules())]
    reducers = keep_reducers(module)
    kept = [(tensor, tensor.requires_grad, _keep(tensor), _keep_gradient(tensor)) for tensor in tensors(module)]

    def undo() -> None:
        free_gathered(sharded)
        for restore in (*attributes, *reducers):
            restore()
        for tensor, requires_grad, content, gradient in kept:
            content()
            if tensor.is_leaf:
                tensor.requires_grad_(requires_grad)
                tensor.grad = gradient()

    return undo


def _keep_gradient(tensor: Tensor) -> Callable[[], Tensor | None]:
    """A function that returns the gradient with the bits it has now.

    The gradient itself is not held: training puts a new one in its place, and both would take memory. Where somebody
    else holds it, it stays the same object.
    """
    if not tensor.is_leaf or tensor.grad is None:
        return lambda: None
    kept, original, sharded = _copy(tensor.grad), weakref.ref(tensor.grad), sharded_like(tensor.grad)

    def back() -> Tensor:
        gradient = original()
        return sharded(kept.to(tensor.device, copy=True)) if gradient is None else _write(gradient, kept)

    return back


def _keep_optimizer(optimizer: Optimizer) -> Undo:
    attributes = _keep_attributes(optimizer)
    state = _keep(optimizer.state)
    groups = [
        (each, dict.fromkeys(each), each["params"], list(each["params"]), _keep(_numbers(each)))
        for each in optimizer.param_groups
    ]

    def undo() -> None:
        attributes()
        state()
        optimizer.param_groups[:] = [group for group, *_ in groups]
        for group, order, params, members, numbers in groups:
            params[:] = members
            _refill(group, {**order, "params": params, **numbers()})  # "params" is last after a load_state_dict

    return undo


def _numbers(group: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}


def _keep_generator(generator: torch.Generator) -> Undo:
    return _later(generator.set_state, generator.get_state())


def _keep_stateful(thing: Any) -> Undo:
    state = _keep(thing.state_dict())
    return lambda: thing.load_state_dict(state())


def _keep_loader(loader: Any) -> Undo:
    undos = [_keep_generator(generator) for generator in generators(loader)]
    for part in parts_of(loader):
        own = getattr(part, "__dict__", {})
        undos.append(functools.partial(own.update, {name: own[name] for name in COUNTED if name in own}))
    if (accelerate := getattr(loader, "gradient_state", None)) is not None:  # knows which loader is being read
        read = list(accelerate.dataloader_references)
        undos.append(lambda: setattr(accelerate, "dataloader_references", read))
    return lambda: [undo() for undo in undos]


def _keep_rng(devices: list[Any]) -> Undo:
    python, numpy, cpu, *others = rng_state(devices)

    def undo() -> None:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        for accelerator, states in zip(devices, others, strict=True):
            accelerator.set_rng_state_all(states)

    return undo
