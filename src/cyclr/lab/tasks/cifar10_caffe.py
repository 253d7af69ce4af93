"""cifar10-caffe: the paper's own net and recipe (Caffe's cifar10_full) on real CIFAR-10."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from sysconfig import get_paths
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.optim import SGD, Optimizer

from cyclr.lab.images import load_images
from cyclr.lab.task import Task

Stage: TypeAlias = Callable[[Tensor, Any], Tensor]


def cifar10_caffe(data_dir: str | None = None) -> Task:
    """Caffe's CIFAR-10 net: raw pixels minus the mean image, no augmentation, batches of 100, SGD with momentum.

    The data comes from `data_dir`, from the folder that CYCLR_DATA names, or from the Hugging Face hub.

    Reference: Smith, arXiv 1506.01186, 4.1; Caffe, examples/cifar10/cifar10_full_train_test.prototxt.
    """
    (x, y), (test_x, test_y) = load_images("cifar10", data_dir)
    mean = x.float().mean(0)
    return Task(
        name="cifar10-caffe",
        model=CaffeNet,
        optimizer=caffe_sgd,
        loss=nn.functional.cross_entropy,
        train=(_centred(x, mean), y),
        test=(_centred(test_x, mean), test_y),
        batch_size=100,
        precision="bf16",
        capturable=True,
    )


def _centred(x: Tensor, mean: Tensor) -> Tensor:
    return (x.float() - mean).contiguous(memory_format=torch.channels_last)


class CaffeNet(nn.Module):
    """Three 5x5 convolutions with pools that round up and normalisation within channels, then one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 5, padding=2)
        self.conv2 = nn.Conv2d(32, 32, 5, padding=2)
        self.conv3 = nn.Conv2d(32, 64, 5, padding=2)
        self.linear = nn.Linear(64 * 4 * 4, 10)
        self.max_pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.mean_pool = nn.AvgPool2d(3, 2, ceil_mode=True)
        for layer, std in ((self.conv1, 1e-4), (self.conv2, 1e-2), (self.conv3, 1e-2), (self.linear, 1e-2)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """Images of shape (batch, 3, 32, 32), raw pixels minus the mean image, to scores of shape (batch, 10)."""
        if self.training and x.is_cuda and _can_compile():
            return self.by_stages(x, _compiled_stages())
        x = normalised(self.max_pool(self.conv1(x)).relu())
        x = normalised(self.mean_pool(self.conv2(x).relu()))
        x = self.mean_pool(self.conv3(x).relu())
        return self.linear(x.flatten(1))  # type: ignore[no-any-return]

    def by_stages(self, x: Tensor, stages: Sequence[Stage]) -> Tensor:
        """The same, with all that stands between two convolutions as one function of the first's output and bias."""
        for layer, stage in zip((self.conv1, self.conv2, self.conv3), stages, strict=True):
            x = stage(nn.functional.conv2d(x, layer.weight, padding=2), layer.bias)
        return self.linear(x.flatten(1))  # type: ignore[no-any-return]


def _first_stage(x: Tensor, bias: Tensor) -> Tensor:
    pooled = nn.functional.max_pool2d(x, 3, 2, ceil_mode=True)  # the bias may come later: it moves the maximum with it
    return _formula(_with_bias(pooled, bias).relu())


def _second_stage(x: Tensor, bias: Tensor) -> Tensor:
    return _formula(_third_stage(x, bias))


def _third_stage(x: Tensor, bias: Tensor) -> Tensor:
    # Nothing is padded here, so nothing changes; but without this word the compiled gradient is wrong at the far edges
    # (github.com/pytorch/pytorch/issues/198119, torch 2.14).
    return nn.functional.avg_pool2d(_with_bias(x, bias).relu(), 3, 2, ceil_mode=True, count_include_pad=False)


def _with_bias(x: Tensor, bias: Tensor) -> Tensor:
    return x + bias.to(x.dtype)[:, None, None]


STAGES: tuple[Stage, ...] = (_first_stage, _second_stage, _third_stage)


@functools.cache
def _can_compile() -> bool:
    """Whether there is what torch's compiler needs: Triton, a C compiler, Python's headers, and no old GPU."""
    has_compiler = any(map(shutil.which, ("cc", "gcc", "clang"))) and Path(get_paths()["include"], "Python.h").exists()
    return has_compiler and find_spec("triton") is not None and torch.cuda.get_device_capability() >= (7, 0)


@functools.cache
def _compiled_stages() -> list[Stage]:
    """Each stage as one or two kernels; its single steps take most of the net's time on a GPU."""
    return [torch.compile(stage, dynamic=False) for stage in STAGES]


def normalised(x: Tensor) -> Tensor:
    """Caffe's local response normalisation within channels: size 3, alpha 5e-5, beta 0.75.

    x * (1 + alpha * mean over the 3 x 3 window of x**2) ** -0.75; what lies outside the image counts as 0.
    """
    return _Normalised.apply(x)  # type: ignore[no-any-return]


_ALPHA, _BETA = 5e-5, 0.75


def _formula(x: Tensor) -> Tensor:
    """`normalised`, left to autograd and to the compiler."""
    root = (nn.functional.avg_pool2d(x * x, 3, 1, 1) * _ALPHA + 1.0).rsqrt()
    return (x * root * root.sqrt()).to(x.dtype)


class _Normalised(torch.autograd.Function):
    """With its gradient by hand, since autograd's takes half of the whole net's time; and with roots, not powers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        scale = nn.functional.avg_pool2d(x * x, 3, 1, 1).mul_(_ALPHA).add_(1.0)
        root = scale.rsqrt_()
        factor = root * root.sqrt()  # scale ** -_BETA
        ctx.save_for_backward(x, root, factor)
        return x * factor

    @staticmethod
    @once_differentiable  # a second derivative would leave out what root and factor owe to x
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        x, root, factor = ctx.saved_tensors
        result: Tensor = gradient * factor
        # The mean over a window is its own adjoint.
        inner = nn.functional.avg_pool2d((result * x).mul_(root).mul_(root), 3, 1, 1)
        return result.sub_(inner.mul_(x), alpha=2.0 * _ALPHA * _BETA)


def caffe_sgd(model: nn.Module) -> Optimizer:
    """Momentum 0.9; biases at twice the rate; weight decay 0.004, on the last layer 250 times it, on its bias none."""
    net: Any = model
    convolutions = [net.conv1, net.conv2, net.conv3]
    groups = [
        {"params": [layer.weight for layer in convolutions], "weight_decay": 0.004},
        {"params": [layer.bias for layer in convolutions], "weight_decay": 0.004, "lr_multiplier": 2.0},
        {"params": [net.linear.weight], "weight_decay": 1.0},
        {"params": [net.linear.bias], "weight_decay": 0.0, "lr_multiplier": 2.0},
    ]
    return SGD(groups, lr=0.001, momentum=0.9)
