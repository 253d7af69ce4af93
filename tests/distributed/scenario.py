"""What the scenarios share: the net, its training in one process of several, and what is written down of it.

A scenario is what the processes of test_torch_distributed.py do; it returns what each saw, the tests say what is right.
"""

import hashlib
import random
import time

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import cyclr
from cyclr.torch import range_test

RAMP = cyclr.ramp(0.0, 0.5, 15)
SHORT = cyclr.ramp(0.0, 0.5, 4)
SCENARIOS = {}


def scenario(*sizes, timeout=30):
    """Run by so many processes, which wait so many seconds for each other."""

    def register(function):
        function.sizes, function.timeout = sizes, timeout
        SCENARIOS[function.__name__] = function
        return function

    return register


class Net(nn.Module):
    """Shapes that no number of processes divides, a bias with fewer entries than processes, dropout."""

    def __init__(self, norm=False):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 13), nn.Linear(13, 7), nn.Linear(7, 3)
        self.norm, self.drop = nn.BatchNorm1d(13) if norm else nn.Identity(), nn.Dropout(0.2)
        self.fails = None

    def forward(self, x):
        x = torch.relu(self.norm(self.a(x)))
        x = Failing.apply(x, self.fails)
        return self.c(torch.relu(self.b(self.drop(x))))


class Failing(torch.autograd.Function):
    """Raises in the middle of the forward or backward pass, if asked to."""

    @staticmethod
    def forward(ctx, x, fails):
        ctx.fails = fails
        if fails == "forward":
            raise OSError("forward failed")
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        if ctx.fails == "backward":
            raise OSError("backward failed")
        return gradient, None


def build(kind, *, adam=False, norm=False, **options):
    """The same net in all processes, spread in one of three ways, and its optimiser."""
    torch.manual_seed(0)
    net = Net(norm)
    if kind == "ddp":
        net = DistributedDataParallel(net, **options)
    if kind == "fsdp":
        fully_shard(net.b, **options)
        fully_shard(net, **options)
    torch.manual_seed(dist.get_rank())
    optimizer = torch.optim.AdamW(net.parameters(), 0.01) if adam else torch.optim.SGD(net.parameters(), 0.1, 0.9)
    return net, optimizer


def batches(rank, count=10, size=12):
    generator = torch.Generator().manual_seed(100 + rank)
    x = torch.randn(count, size, 8, generator=generator)
    y = (x[..., :3] + 0.5 * torch.randn(count, size, 3, generator=generator)).argmax(-1)
    return list(zip(x, y, strict=True))


def train(net, optimizer, data):
    for x, y in data:
        optimizer.zero_grad()
        cross_entropy(net(x), y).backward()
        optimizer.step()
    return account(net, optimizer)


def raw(value):
    """This process's part of nested values, as text."""
    if torch.is_tensor(value):
        sharded = hasattr(value, "to_local")
        own = value.detach().to_local() if sharded else value.detach()
        return f"{sharded}{tuple(value.shape)}{tuple(own.shape)}{own.dtype}{own.numpy().tobytes()}"
    if isinstance(value, dict):
        return str({key: raw(each) for key, each in value.items() if key != "params"})
    return str([raw(each) for each in value]) if isinstance(value, list | tuple) else str(value)


def account(net, optimizer):
    """All that training changes in this process, as a digest that owes nothing to the code under test."""
    everything = [
        dict(net.named_parameters()),
        dict(net.named_buffers()),
        {name: parameter.grad for name, parameter in net.named_parameters()},
        [optimizer.state.get(p, {}) for group in optimizer.param_groups for p in group["params"]],
        [sorted(str(item) for item in group.items() if item[0] != "params") for group in optimizer.param_groups],
        [(each.training, len(each._forward_hooks), len(each._state_dict_pre_hooks)) for each in net.modules()],
        [torch.get_rng_state(), random.getstate(), str(np.random.get_state())],
    ]
    return hashlib.sha256(raw(everything).encode()).hexdigest()


def points(curve):
    """A curve and its companions, to the bit."""
    own = {
        "metric": curve.metric,
        "lrs": [lr.hex() for lr in curve.lrs.tolist()],
        "values": [value.hex() for value in curve.values.tolist()],
        "stopped": curve.stopped,
        "stopped_at": curve.stopped_at,
    }
    return [own, *(points(each)[0] for each in curve.companions)]


def attempt(net, optimizer, data, loss_fn=cross_entropy, **options):
    """A range test; its curve or its error, and the state before and after."""
    before, started = account(net, optimizer), time.monotonic()
    seen = {"before": before}
    try:
        curve = range_test(net, optimizer, loss_fn, data, **options)
        seen |= {"curve": points(curve), "values": curve.values.tolist()}
    except Exception as error:
        cause = error.__cause__
        seen |= {"error": type(error).__name__, "message": str(error), "notes": getattr(error, "__notes__", [])}
        seen |= {"cause": None if cause is None else type(cause).__name__}
    return seen | {"after": account(net, optimizer), "seconds": time.monotonic() - started}


class Recorded:
    """A loss function that writes down what it returned."""

    def __init__(self):
        self.losses = []

    def __call__(self, output, y):
        loss = cross_entropy(output, y)
        self.losses.append(loss.item())
        return loss
