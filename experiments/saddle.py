"""Section 3.1's reason, tried: how many updates it takes to leave a plateau at a fixed rate, a cyclical one, and with
methods that scale the gradient, RMSprop and ESGD.

Two problems. `saddle`: twenty weights, eighteen with curvature 0.1 to 1 and two that fall off on both sides of the
start with curvature -0.01, under gradient noise; a quartic stops the fall. `autoencoder`: a deep one with sigmoids, as
in arXiv 1502.04390, on handwritten digits; it first learns the mean digit and stays there for long. A plateau is left
when half of the fall (saddle), or a tenth of the variance (autoencoder), is reached at an evaluation.

Near a saddle a weight grows by 1 + lr * curvature an update, so after many updates only the mean of the rates counts:
the row to hold `triangular` against is the fixed rate in the middle of its range.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, RMSprop

import cyclr
from cells import Cell, Record, Table
from cyclr.lab import Task
from cyclr.lab.esgd import ESGD
from cyclr.lab.tasks import BUILT_IN

FALL = 0.01  # curvature of the two directions that fall
LEFT = {"saddle": 0.5, "autoencoder": 0.1}
SIZES = (64, 128, 64, 16)


class Surface(nn.Module):
    """A point w on sum c/2 w**2 + FALL/4 w**4 (the quartic where c < 0): its height, tilted by each example's noise."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("curvature", torch.cat((torch.logspace(-1, 0, 18), torch.full((2,), -FALL))))
        self.weights = nn.Parameter(torch.cat((torch.randn(18), 1e-3 * torch.randn(2))))

    def forward(self, noise: Tensor) -> Tensor:
        w = self.weights
        height = (0.5 * self.curvature * w**2 + 0.25 * FALL * (self.curvature < 0) * w**4).sum()
        return height + noise @ w


def fallen(height: Tensor, _: Tensor) -> Tensor:
    """Share of the way down to the two minima, of height -FALL / 4 each."""
    return (-height.mean() / (2 * FALL / 4)).clamp(0.0, 1.0)


def surface(data_dir: str | None = None) -> Task:
    generator = torch.Generator().manual_seed(0)
    noise, nothing = 0.01 * torch.randn(4096, 20, generator=generator), torch.zeros(8, 20)
    return Task(
        name="saddle", model=Surface, optimizer=sgd, loss=lambda height, _: height.mean(), metric=fallen,
        train=(noise, torch.zeros(len(noise))), validation=(nothing, torch.zeros(len(nothing))), batch_size=8,
    )  # fmt: skip


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Of a whole image, its pixels taken as probabilities."""
    return nn.functional.binary_cross_entropy_with_logits(output, target, reduction="sum") / len(output)


def explained(output: Tensor, target: Tensor) -> Tensor:
    """Share of the pixels' variance about each pixel's mean that the reconstruction explains, at least 0."""
    rest = (output.sigmoid() - target).square().sum()
    return (1.0 - rest / (target - target.mean(0)).square().sum()).clamp(min=0.0)


def net() -> nn.Module:
    """Encoder and decoder of SIZES, sigmoids between; weights of variance 2 / (inputs + outputs)."""
    sizes = (*SIZES, *SIZES[-2::-1])
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.Sigmoid()]
        nn.init.xavier_normal_(layers[-2].weight)
        nn.init.zeros_(layers[-2].bias)
    return nn.Sequential(*layers[:-1])


def autoencoder(data_dir: str | None = None) -> Task:
    digits = BUILT_IN["digits"]()
    train, validation, test = (((x + 1.0) / 2.0).flatten(1) for x, _ in (digits.train, digits.validation, digits.test))
    return Task(
        name="autoencoder", model=net, optimizer=momentum, loss=cross_entropy,
        metric=explained, train=(train, train), validation=(validation, validation), test=(test, test), batch_size=50,
    )  # fmt: skip


def sgd(model: nn.Module) -> SGD:
    return SGD(model.parameters(), lr=0.1)


def momentum(model: nn.Module) -> SGD:
    return SGD(model.parameters(), lr=0.1, momentum=0.9)


def variant(make: Callable[..., Task], name: str, optimizer: Callable[[nn.Module], Any]) -> Callable[..., Task]:
    return lambda data_dir: replace(make(), name=name, optimizer=optimizer)


def left_at(record: Record) -> float:
    """Updates after which the plateau was left; the whole run where it was not."""
    config = record["config"]
    share = LEFT[config["task"].partition("-")[0]]
    steps = (point["step"] for point in record["result"]["history"] if (point["validation"] or 0.0) >= share)
    return float(next(steps, config["total_steps"]))


def cells_of(problem: str, low: float, high: float, rmsprop: float, esgd: float, updates: int) -> list[Cell]:
    """Three fixed rates, the cycle between the outer two, and the methods at rates of their own."""
    middle = round((low + high) / 2.0, 6)
    rows = [
        ("", "triangular", cyclr.triangular(low, high, stepsize=200)),
        ("", "fixed, the middle of the range", cyclr.fixed(middle)),
        ("", "fixed, base_lr", cyclr.fixed(low)),
        ("", "fixed, max_lr", cyclr.fixed(high)),
        ("-rmsprop", "RMSprop", cyclr.fixed(rmsprop)),
        ("-esgd", "ESGD", cyclr.fixed(esgd)),
    ]
    return [
        Cell(problem, row, f"{problem}{suffix}", schedule, updates, seeds=5, every=20) for suffix, row, schedule in rows
    ]


TASKS = {
    "saddle": surface,
    "saddle-rmsprop": variant(surface, "saddle-rmsprop", lambda model: RMSprop(model.parameters())),
    "saddle-esgd": variant(surface, "saddle-esgd", lambda model: ESGD(model.parameters())),
    "autoencoder": autoencoder,
    "autoencoder-rmsprop": variant(autoencoder, "autoencoder-rmsprop", lambda model: RMSprop(model.parameters())),
    "autoencoder-esgd": variant(autoencoder, "autoencoder-esgd", lambda model: ESGD(model.parameters(), damping=0.01)),
}
TABLE = Table(
    "saddle",
    "Section 3.1: leaving a plateau",
    "`saddle`: twenty weights, two of which fall off slowly on both sides of the start (curvature -0.01), under "
    "gradient noise; left when half of the fall is made. `autoencoder`: a deep one with sigmoids on handwritten "
    "digits; left when 10 % of the variance is explained; its shape and loss are the first of three tried that SGD "
    "leaves within a run, its range the span of the SGD rates tried. Triangular has stepsize 200. RMSprop's and ESGD's "
    "rates are the better of two, one seed each, but for the autoencoder's RMSprop, which has had one: 0.001. Near a "
    "saddle only the mean of the rates should count (saddle.py says why), so triangular is to be held against the "
    "fixed rate in the middle of its range. ESGD looks at the curvature every 20 updates, so its first 20 stand on "
    "one sample, which by chance is near zero for some weight: of its runs on `saddle` one was thrown to losses of "
    "1e17 and came back, one diverged.",
    TASKS,
    (*cells_of("saddle", 0.1, 1.0, 0.01, 0.1, 5000), *cells_of("autoencoder", 0.03, 0.3, 0.001, 0.1, 4000)),
    value=left_at,
    unit="updates until the plateau is left; a run that never leaves, or diverges, counts with its full length",
    decimals=0,
)
