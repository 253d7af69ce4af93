"""Accelerate: its own loop, with ScheduleLR prepared like any scheduler."""

import numpy as np
import torch
from accelerate import Accelerator
from contract import BATCH, X, Y, batch
from on_torch import Tensors, bits, everything, network, update

from cyclr.torch import ScheduleLR
from cyclr.torch import range_test as run_range_test

RATES = np.float64


def train(schedule, start, stop, folder):
    accelerator = Accelerator(cpu=True)
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    rates = []
    optimizer.register_step_pre_hook(lambda *_: rates.append(optimizer.param_groups[0]["lr"]))
    examples = [(torch.as_tensor(x), torch.as_tensor(y)) for x, y in zip(X, Y, strict=True)]
    prepared = accelerator.prepare(
        net, optimizer, torch.utils.data.DataLoader(examples, BATCH), ScheduleLR(optimizer, schedule)
    )
    model, optimizer, loader, scheduler = prepared
    if start:
        accelerator.load_state(folder)
    step = start
    rest = accelerator.skip_first_batches(loader, start % len(loader))
    while step < stop:
        for x, y in rest:
            if step == stop:
                break
            with accelerator.accumulate(model):
                accelerator.backward(torch.nn.functional.cross_entropy(model(x), y))
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            step += 1
        rest = loader
    accelerator.save_state(folder)
    return rates, bits(net)


def range_test(batches, ramp):
    accelerator = Accelerator(cpu=True)
    net = network()
    inner = torch.optim.SGD(net.parameters(), lr=0.1)
    model, optimizer = accelerator.prepare(net, inner)
    update(model, optimizer, batch(0))
    before = everything(net, inner)
    try:
        result = run_range_test(model, optimizer, torch.nn.functional.cross_entropy, Tensors(batches), ramp=ramp)
    except Exception as error:
        result = error
    return result, before, everything(net, inner)
