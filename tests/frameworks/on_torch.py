"""Plain PyTorch."""

import numpy as np
import torch
from contract import CLASSES, FEATURES, HIDDEN, batch, weights

from cyclr.torch import ScheduleLR
from cyclr.torch import range_test as run_range_test

RATES = np.float64


def network():
    start = {name: torch.tensor(value) for name, value in weights().items()}
    net = torch.nn.Sequential(torch.nn.Linear(FEATURES, HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, CLASSES))
    with torch.no_grad():
        for parameter, value in zip(
            net.parameters(), (start["w1"].T, start["b1"], start["w2"].T, start["b2"]), strict=True
        ):
            parameter.copy_(value)
    return net


def tensors(pair):
    return tuple(torch.from_numpy(each) for each in pair)


def bits(net):
    return b"".join(value.detach().numpy().tobytes() for value in net.state_dict().values())


def everything(net, optimizer):
    """Weights, gradients, optimiser and random generator, as bytes."""
    gradients = [None if p.grad is None else p.grad.tolist() for p in net.parameters()]
    return bits(net) + repr((gradients, optimizer.state_dict(), torch.get_rng_state().tolist())).encode()


class Tensors:
    """The contract's batches as tensors."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return map(tensors, self.batches)


def update(net, optimizer, pair):
    x, y = tensors(pair)
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(net(x), y).backward()
    optimizer.step()


def train(schedule, start, stop, folder):
    folder.mkdir(exist_ok=True)
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scheduler = ScheduleLR(optimizer, schedule)
    if start:
        saved = torch.load(folder / "state.pt")
        for each in (net, optimizer, scheduler):
            each.load_state_dict(saved[type(each).__name__])
    rates = []
    optimizer.register_step_pre_hook(lambda *_: rates.append(optimizer.param_groups[0]["lr"]))
    for step in range(start, stop):
        update(net, optimizer, batch(step))
        scheduler.step()
    torch.save({type(each).__name__: each.state_dict() for each in (net, optimizer, scheduler)}, folder / "state.pt")
    return rates, bits(net)


def range_test(batches, ramp):
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    update(net, optimizer, batch(0))
    before = everything(net, optimizer)
    try:
        result = run_range_test(net, optimizer, torch.nn.functional.cross_entropy, Tensors(batches), ramp=ramp)
    except Exception as error:
        result = error
    return result, before, everything(net, optimizer)
