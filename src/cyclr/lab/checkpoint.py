"""Checkpoints: everything a run needs to go on to the same bits, in one safetensors file that is whole or isn't there.

Tensors are stored as tensors, all else as JSON in the file's header; nothing is pickled.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer

from cyclr.files import write_atomically
from cyclr.lab.processes import gathered, on_first, rank

FORMAT = "cyclr-checkpoint-1"
MACHINES = ("capturable", "foreach", "fused")  # how an optimiser computes here; a run may go on on another machine


class CheckpointError(ValueError):
    """A checkpoint that is damaged or belongs to something else; the file is left where it is."""


def save_checkpoint(
    path: Path, config: Mapping[str, Any], progress: Mapping[str, Any], model: nn.Module, optimizer: Optimizer
) -> None:
    """Write the state of a run: model, optimiser, random number generators and `progress` (plain numbers).

    Of several processes all call this; the first one writes, with everyone's random number generators.
    """
    generators = gathered(_rng())
    on_first(lambda: _write(path, config, progress, model, optimizer, generators))


def _write(
    path: Path,
    config: Mapping[str, Any],
    progress: Mapping[str, Any],
    model: nn.Module,
    optimizer: Optimizer,
    generators: Sequence[tuple[dict[str, Any], dict[str, Tensor]]],
) -> None:
    tensors = {f"model.{name}": tensor.detach() for name, tensor in _named_tensors(model)}
    state = optimizer.state_dict()
    slots: dict[str, dict[str, Any]] = {}
    for index, values in state["state"].items():
        for name, value in values.items():
            if torch.is_tensor(value):
                tensors[f"optimizer.{index}.{name}"] = value.detach()
            else:
                slots.setdefault(str(index), {})[name] = value
    header = {
        "config": config,
        "progress": progress,
        "optimizer": {"slots": slots, "param_groups": state["param_groups"]},
    }
    for process, (numbers, states) in enumerate(generators):
        header[_of("rng", process)] = numbers
        tensors |= {f"{_of('rng', process)}.{name}": state for name, state in states.items()}
    plain = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    metadata = {"format": FORMAT, "header": json.dumps(header, default=_number)}
    write_atomically(path, save(plain, metadata))  # save_file has a temporary file of its own, which a kill leaves


def load_checkpoint(path: Path, config: Mapping[str, Any], model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Put a run's state back and return its `progress`.

    Raises:
        CheckpointError: the file is damaged, or is of another task or configuration.
    """
    if not path.exists():
        raise CheckpointError(
            f"process {rank()} sees no {path}, which the first one wrote; let --out be a folder that all nodes share"
        )
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            names = file.keys()  # not a mapping: it has no other way to name its tensors
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged ({error}); remove it to start this run again") from None
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no checkpoint of this version of cyclr; remove it to start this run again")
    header = json.loads(metadata["header"])
    wanted = json.loads(json.dumps(config))
    if header["config"] != wanted:
        changed = [key for key in wanted if header["config"].get(key) != wanted[key]]
        raise CheckpointError(
            f"checkpoint {path} belongs to another run, it differs in {', '.join(changed) or 'its settings'}; "
            "choose another --out, or remove it"
        )
    _fill_model(path, model, tensors)
    state: dict[str, Any] = {"state": {}, "param_groups": header["optimizer"]["param_groups"]}
    for index, values in header["optimizer"]["slots"].items():
        state["state"][int(index)] = dict(values)
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, slot = name.split(".", 2)
            state["state"].setdefault(int(index), {})[slot] = tensor
    rates = [{name: each for name, each in group.items() if torch.is_tensor(each)} for group in optimizer.param_groups]
    ways = [{name: group[name] for name in MACHINES if name in group} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, held, way in zip(optimizer.param_groups, rates, ways, strict=True):
        # A rate that is a tensor stays that tensor.
        group.update(way | {name: tensor.fill_(group[name]) for name, tensor in held.items()})
    prefix = _of("rng", rank())
    if prefix in header:  # else the run began with fewer processes
        _set_rng(header[prefix], {name.removeprefix(f"{prefix}."): each for name, each in tensors.items()})
    return dict(header["progress"])


def _number(value: Any) -> Any:
    """A tensor of one number, as an optimiser may keep its rate, for the header."""
    if torch.is_tensor(value) and value.numel() == 1:
        return value.item()
    raise CheckpointError(f"the optimiser keeps a {type(value).__name__}, which a checkpoint cannot hold; use another")


def _cuda_devices() -> int:
    return torch.cuda.device_count() if torch.cuda.is_initialized() else 0  # type: ignore[no-untyped-call]


def _named_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers; what is shared comes once."""
    return [*model.named_parameters(), *model.named_buffers()]


def _fill_model(path: Path, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in _named_tensors(model):
        kept = tensors.get(f"model.{name}")
        if kept is None or kept.shape != tensor.shape:
            got = "nothing" if kept is None else f"shape {tuple(kept.shape)}"
            raise CheckpointError(
                f"checkpoint {path} has {got} for {name} of shape {tuple(tensor.shape)}: it is of another net"
            )
        with torch.no_grad():
            tensor.copy_(kept)


def _of(name: str, process: int) -> str:
    """The first process's things have the plain name."""
    return f"{name}-{process}" if process else name


def _rng() -> tuple[dict[str, Any], dict[str, Tensor]]:
    """This process's random number generators: numbers, and tensors by name."""
    _, keys, *position = np.random.get_state(legacy=True)
    states = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(np.array(keys, dtype=np.int64))}
    states |= {f"cuda.{index}": torch.cuda.get_rng_state(index) for index in range(_cuda_devices())}
    return {"python": random.getstate(), "numpy": position}, states


def _set_rng(numbers: Mapping[str, Any], states: Mapping[str, Tensor]) -> None:
    version, python, gauss = numbers["python"]
    random.setstate((version, tuple(python), gauss))
    np.random.set_state(("MT19937", states["numpy"].numpy().astype(np.uint32), *numbers["numpy"]))
    torch.set_rng_state(states["torch"])
    for index in range(_cuda_devices()):
        if f"cuda.{index}" in states:  # none if the run began without this device
            torch.cuda.set_rng_state(states[f"cuda.{index}"], index)
