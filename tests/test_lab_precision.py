"""bf16 on a processor without it: the same products. Nets that Accelerate would split: refused."""

import platform
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import cyclr
from cyclr.lab import find, read_records, train
from cyclr.lab import precision as lab
from cyclr.lab.precision import PRODUCTS, ProductsInSingle, accelerator, computing_in
from tiny_task import make


class Products(TorchDispatchMode):
    """Entered before a training, it sees in what precision products are really computed."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in PRODUCTS:
            self.seen.append((func, args[0].dtype))
        return func(*args, **kwargs or {})


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
def test_a_processor_without_avx_512_computes_products_in_single(
    precision, machine, capability, gpu, expected, monkeypatch
):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: gpu)
    assert isinstance(computing_in(precision), ProductsInSingle) is expected


def with_gradients(f, *inputs):
    """f's output and its gradients, with the output's cosine as what is passed back."""
    leaves = [each.clone().requires_grad_() for each in inputs]
    output = f(*leaves)
    output.backward(output.detach().cos())
    return [output.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize(
    ("f", "shapes"),
    [
        (lambda x, w, b: F.conv2d(x, w, b, padding=2), [(4, 8, 9, 9), (16, 8, 5, 5), (16,)]),
        (lambda x, w, b: F.conv2d(x, w, b, stride=2, groups=4), [(4, 8, 9, 9), (16, 2, 3, 3), (16,)]),
        (F.linear, [(20, 300), (30, 300), (30,)]),
        (torch.matmul, [(20, 300), (300, 30)]),
        (torch.matmul, [(3, 20, 100), (3, 100, 30)]),
        (torch.baddbmm, [(3, 20, 30), (3, 20, 100), (3, 100, 30)]),
    ],
)
def test_products_are_the_exact_ones_rounded_once(f, shapes):
    torch.manual_seed(0)
    inputs = [torch.randn(shape).bfloat16() for shape in shapes]
    with Products() as products, ProductsInSingle():
        found = with_gradients(f, *inputs)
    leaves = [each.double().requires_grad_() for each in inputs]
    output = f(*leaves)
    output.backward(found[0].cos().double())
    assert products.seen
    assert {dtype for _, dtype in products.seen} == {torch.float32}
    for value, exact in zip(found, [output.detach(), *(leaf.grad for leaf in leaves)], strict=True):
        assert value.dtype == torch.bfloat16
        ulp = torch.maximum(exact.abs(), exact.abs().max() * 1e-3) * 2.0**-8  # near zero the sums' own error shows
        assert ((value.double() - exact).abs() <= 1.01 * ulp).all()


def test_a_training_and_a_range_test_in_bf16_compute_their_products_so(tmp_path, monkeypatch):
    task = make(precision="bf16")
    monkeypatch.setattr(lab, "_lacks_bf16", lambda: True)
    for run in (
        lambda: train(task, cyclr.fixed(0.1), 4, tmp_path),
        lambda: find(task, ramp=cyclr.ramp(1e-4, 1.0, 20)),
    ):
        with Products() as products:
            run()
        assert len(products.seen) > 20
        assert {dtype for _, dtype in products.seen} == {torch.float32}
    (record,) = read_records(tmp_path)
    assert record["config"]["precision"] == "bf16"


def test_what_is_not_in_bf16_is_left_alone():
    x = torch.randn(5, 5, dtype=torch.float64)
    with Products() as products, ProductsInSingle():
        product = x @ x
    assert products.seen == [(torch.ops.aten.mm.default, torch.float64)]
    assert torch.equal(product, x @ x)


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
