"""Mixed precision: Accelerate set up for it, and bf16 on processors that lack it."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from cyclr import checks
from cyclr.lab.captured import ONE_AT_A_TIME
from cyclr.lab.processes import count

SPLITTING = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
_aten = torch.ops.aten
PRODUCTS = {
    *(_aten.convolution.default, _aten.convolution_backward.default),
    *(_aten.mm.default, _aten.addmm.default, _aten.bmm.default, _aten.baddbmm.default),
}


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


def shares_precision(precision: str) -> bool:
    """Whether runs in this precision can go beside those under way in other threads: a process has one."""
    with ONE_AT_A_TIME:
        if not AcceleratorState._shared_state:
            accelerator(precision)
        return bool(AcceleratorState().mixed_precision == precision)


def computing_in(precision: str) -> contextlib.AbstractContextManager[object]:
    """What a training or a range test runs in: on a processor without bf16, its products are computed another way."""
    if precision != "bf16" or not _lacks_bf16():
        return contextlib.nullcontext()
    return ProductsInSingle()  # type: ignore[no-untyped-call]


def _lacks_bf16() -> bool:
    """Whether this is a PC's processor without AVX-512, for which torch imitates bf16 number by number."""
    on_pc = platform.machine().lower() in ("x86_64", "amd64") and not torch.accelerator.is_available()
    return on_pc and torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2")


class ProductsInSingle(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Convolutions and matrix products of bf16 numbers, computed in single precision and then rounded to bf16.

    That is what processors with bf16 do: a product of two such numbers is exact in single precision, and the sums are
    in it; only their order differs. It takes about as long as single precision, torch's imitation ten times as long.
    """

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func not in PRODUCTS or args[0].dtype != torch.bfloat16:
            return func(*args, **kwargs or {})
        result = func(*tree_map_only(Tensor, Tensor.float, args), **kwargs or {})
        return tree_map_only(Tensor, Tensor.bfloat16, result)
