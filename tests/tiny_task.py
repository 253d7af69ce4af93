"""A task that trains in a second: two classes of points, told apart by a plane, and a net with dropout."""

import torch
from torch import nn

from cyclr.lab import Task


def points(count=400):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 6, generator=generator)
    noise = 0.3 * torch.randn(count, generator=generator)
    return x, (x.sum(1) + noise > 0).long()


def net():
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def make(**changes):
    x, y = points()
    parts = dict(
        name="tiny",
        model=net,
        optimizer=sgd,
        loss=nn.functional.cross_entropy,
        train=(x[:240], y[:240]),
        validation=(x[240:320], y[240:320]),
        test=(x[320:], y[320:]),
        batch_size=20,
    )
    return Task(**{**parts, **changes})


def task():
    return make()


def balance(output, target):
    """Mean recall: no mean over batches, and nothing that a part of the data would tell."""
    right = output.argmax(-1) == target
    return sum(right[target == label].float().mean().item() for label in (0, 1)) / 2


def scored():
    return make(scores={"balance": balance, "examples": lambda output, target: len(target)})


def adamw():
    return make(optimizer=lambda model: torch.optim.AdamW(model.parameters(), lr=0.1))
