"""bf16 on a processor that only imitates it: known beforehand, and told. Nets that Accelerate would split: refused."""

import platform
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from cyclr.lab import precision as lab
from cyclr.lab.precision import accelerator, imitated
from test_cli import TASK, command


@pytest.mark.parametrize(
    ("precision", "machine", "capability", "gpu", "expected"),
    [
        ("bf16", "x86_64", "AVX2", False, True),
        ("bf16", "AMD64", "DEFAULT", False, True),
        ("bf16", "x86_64", "AVX512", False, False),
        ("bf16", "x86_64", "AVX2", True, False),
        ("bf16", "aarch64", "DEFAULT", False, False),
        ("no", "x86_64", "AVX2", False, False),
        ("fp16", "x86_64", "AVX2", False, False),
    ],
)
def test_a_processor_without_avx_512_imitates_bf16(precision, machine, capability, gpu, expected, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: gpu)
    assert imitated(precision) is expected


@pytest.mark.skipif(platform.machine() != "x86_64" or torch.accelerator.is_available(), reason="speaks of PCs' CPUs")
def test_the_command_says_what_is_faster(tmp_path):
    told = {}
    for precision in ("bf16", "no"):
        arguments = ["find", TASK, "--end-lr", 3, "--steps", 20, "--out", tmp_path, "--precision", precision]
        told[precision] = command(*arguments, ATEN_CPU_CAPABILITY="avx2").stderr
    assert "this processor only imitates bf16" in told["bf16"]
    assert "--precision no" in told["bf16"]
    assert told["no"] == ""


def test_a_net_that_accelerate_would_split_is_refused(monkeypatch):
    accelerator("no")
    AcceleratorState._reset_state()
    with monkeypatch.context() as patch:
        patch.setitem(PartialState._shared_state, "distributed_type", DistributedType.MULTI_GPU)  # as on two GPUs
        patch.setenv("ACCELERATE_USE_FSDP", "true")
        with pytest.raises(ValueError, match=r"configured for FSDP, which splits a net .* choose plain multi-GPU"):
            accelerator("no")
    AcceleratorState._reset_state()
    assert accelerator("no").distributed_type == DistributedType.NO


@pytest.mark.parametrize("kind", DistributedType)
def test_data_parallel_kinds_are_taken_and_others_are_not(kind, monkeypatch):
    monkeypatch.setattr(lab, "Accelerator", lambda **_settings: SimpleNamespace(distributed_type=kind))
    if kind.value in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        with pytest.raises(ValueError, match=f"configured for {kind.value}, "):
            accelerator("no")
    else:
        assert accelerator("no").distributed_type == kind
