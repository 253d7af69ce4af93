"""Mixed precision: Accelerate set up for it, and whether this machine computes in it or only imitates it."""

from __future__ import annotations

import platform

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from cyclr import checks
from cyclr.lab.processes import count

SPLITTING = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


def accelerator(precision: str, accumulation: int = 1) -> Accelerator:
    """Accelerate's view of this machine: device and mixed precision ("no", "bf16" or "fp16").

    Raises:
        ValueError: Accelerate is configured to split nets over processes; checkpoints hold the first one's net.
    """
    checks.choice("precision", precision, ("no", "bf16", "fp16"))
    count()  # the processes of this run have found each other before anything else is set up
    # A process has one precision for all Accelerators; tasks of a session may differ in it.
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state()
    machine = Accelerator(mixed_precision=precision, gradient_accumulation_steps=accumulation)
    if machine.distributed_type in SPLITTING:
        raise ValueError(
            f"Accelerate is configured for {machine.distributed_type.value}, which splits a net over processes, but "
            "each process of a run has the whole net; choose plain multi-GPU in accelerate config, or use torchrun"
        )
    return machine


def imitated(precision: str) -> bool:
    """Whether bf16 would be imitated here: by a PC's processor without AVX-512, about ten times as slow as "no"."""
    on_pc = platform.machine().lower() in ("x86_64", "amd64") and not torch.accelerator.is_available()
    return precision == "bf16" and on_pc and torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2")
