"""Mixed precision: Accelerate set up for it, and whether this machine computes in it or only imitates it."""

from __future__ import annotations

import platform

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from cyclr import checks
from cyclr.lab.processes import count


def accelerator(precision: str, accumulation: int = 1) -> Accelerator:
    """Accelerate's view of this machine: device and mixed precision ("no", "bf16" or "fp16")."""
    checks.choice("precision", precision, ("no", "bf16", "fp16"))
    count()  # the processes of this run have found each other before anything else is set up
    # A process has one precision for all Accelerators; tasks of a session may differ in it.
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state()
    return Accelerator(mixed_precision=precision, gradient_accumulation_steps=accumulation)


def imitated(precision: str) -> bool:
    """Whether bf16 would be imitated here: by a PC's processor without AVX-512, about ten times as slow as "no"."""
    on_pc = platform.machine().lower() in ("x86_64", "amd64") and not torch.accelerator.is_available()
    return precision == "bf16" and on_pc and torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2")
