"""Methods that promise to need no learning rate, at the settings their authors advise, and plain defaults beside them.

pip install prodigyopt dadaptation schedulefree dog-optimizer transformers
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from peers import package, start_at
from torch import nn
from torch.optim import SGD, Adam, Optimizer

import cyclr
from cyclr.lab import Task
from cyclr.lab.data import Batches

if TYPE_CHECKING:
    from training import Companion

# GreedyLR starts from these: torch's own defaults, and 0.1 for SGD, the rate that most examples begin with.
USUAL = {"SGD": 0.1, "Adam": 1e-3, "AdamW": 1e-3, "RMSprop": 1e-2, "Adagrad": 1e-2}


@dataclass(frozen=True)
class Method:
    """A way to train without choosing a rate.

    Args:
        schedule: from the number of updates, what multiplies or is the rate; None leaves it to the optimiser.
        optimizer: builds it for a net; None means the task's own.
        companion: `companion(task, model, optimizer, updates)`, made before the first update, is told of each update
            and says at the end which net is judged.
        advice: what the settings follow.
    """

    schedule: Callable[[int], cyclr.Schedule | None]
    optimizer: Callable[[nn.Module], Optimizer] | None
    companion: Callable[[Task, nn.Module, Optimizer, int], Companion] | None
    advice: str


def at(lr: float) -> Callable[[int], cyclr.Schedule]:
    return lambda updates: cyclr.fixed(lr)


def cosine(updates: int) -> cyclr.Schedule:
    """From 1, which these methods multiply with their own estimate, to 0 along half a cosine."""
    return cyclr.cosine_restarts(0.0, 1.0, updates)


def warmed_up(lr: float) -> Callable[[int], cyclr.Schedule]:
    """What Schedule-Free's warmup_steps does, over a twentieth of the run: update k has (k + 1) / warmup of lr."""

    def schedule(updates: int) -> cyclr.Schedule:
        warmup = max(updates // 20, 2)
        return cyclr.stages((cyclr.ramp(lr / warmup, lr, warmup), warmup), (cyclr.fixed(lr), updates))

    return schedule


def own(updates: int) -> None:
    """The optimiser or its companion sets the rate."""


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [each for each in model.parameters() if each.requires_grad]


def has_batch_norm(model: nn.Module) -> bool:
    return any(isinstance(each, nn.modules.batchnorm._BatchNorm) for each in model.modules())


def sgd(model: nn.Module) -> Optimizer:
    return SGD(trained(model), momentum=0.9)


def adam(model: nn.Module) -> Optimizer:
    return Adam(trained(model))


def prodigy(model: nn.Module) -> Optimizer:
    return package("prodigyopt", "prodigyopt").Prodigy(trained(model))


def d_adapt_adam(model: nn.Module) -> Optimizer:
    return package("dadaptation", "dadaptation").DAdaptAdam(trained(model))


def d_adapt_sgd(model: nn.Module) -> Optimizer:
    return package("dadaptation", "dadaptation").DAdaptSGD(trained(model), momentum=0.9)


def schedule_free_adamw(model: nn.Module) -> Optimizer:
    return package("schedulefree", "schedulefree").AdamWScheduleFree(trained(model))


def schedule_free_sgd(model: nn.Module) -> Optimizer:
    return package("schedulefree", "schedulefree").SGDScheduleFree(trained(model))


def dog(model: nn.Module) -> Optimizer:
    reps_rel = 1e-4 if has_batch_norm(model) else 1e-6
    optimizer = package("dog", "dog-optimizer").DoG(trained(model), reps_rel=reps_rel)
    # DoG reads the gradient of every weight, also of those that the loss does not depend on.
    optimizer.register_step_pre_hook(_fill_gradients)
    return optimizer


def _fill_gradients(optimizer: Optimizer, *_: Any) -> None:
    for group in optimizer.param_groups:
        for each in group["params"]:
            if each.grad is None:
                each.grad = torch.zeros_like(each)


class PolynomialAverage:
    """DoG's companion: its package's PolynomialDecayAverager, whose averaged net is judged."""

    def __init__(self, task: Task, model: nn.Module, optimizer: Optimizer, updates: int) -> None:
        self.averager = package("dog", "dog-optimizer").PolynomialDecayAverager(model)

    def after(self, loss: float) -> None:
        self.averager.step()

    def at_end(self) -> nn.Module:
        return self.averager.averaged_model


class FreshStatistics:
    """Schedule-Free's companion: at the end, batch normalisation's means and variances at the averaged weights."""

    batches = 50

    def __init__(self, task: Task, model: nn.Module, optimizer: Optimizer, updates: int) -> None:
        self.task, self.model = task, model

    def after(self, loss: float) -> None:
        """Nothing: the optimiser averages by itself."""

    @torch.no_grad()
    def at_end(self) -> nn.Module:
        if has_batch_norm(self.model):
            self.model.train()
            for x, _ in itertools.islice(Batches(self.task.train, self.task.batch_size), self.batches):
                self.model(x)
        return self.model


class GreedyEvaluated:
    """GreedyLR as the Trainer of Transformers drives it: a step with the validation loss after each evaluation."""

    evaluations = 20

    def __init__(self, task: Task, model: nn.Module, optimizer: Optimizer, updates: int) -> None:
        self.task, self.model, self.done = task, model, 0
        self.every = max(updates // self.evaluations, 1)
        start_at(optimizer, USUAL[type(optimizer).__name__])
        self.scheduler = greedy_lr(optimizer, patience=2, factor=0.9, min_lr=1e-7)

    def after(self, loss: float) -> None:
        self.done += 1
        if self.done % self.every == 0:
            self.scheduler.step(validation_loss(self.task, self.model))

    def at_end(self) -> nn.Module:
        return self.model


def greedy_lr(optimizer: Optimizer, **settings: Any) -> Any:
    return package("transformers.optimization", "transformers").GreedyLR(optimizer, **settings)


@torch.no_grad()
def validation_loss(task: Task, model: nn.Module, examples: int = 500) -> float:
    """The loss on as many validation examples as GreedyLR's README takes; then each module is in the mode it was in."""
    assert isinstance(task.validation, tuple)
    x, y = (each[:examples] for each in task.validation)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    loss = float(task.loss(model(x), y))
    for module, training in modes:
        module.training = training
    return loss


METHODS: dict[str, Method] = {
    "Prodigy": Method(
        cosine, prodigy, None,
        "README: lr=1 for all networks; no scheduler or cosine annealing over the whole run (here: cosine)",
    ),
    "D-Adaptation Adam": Method(
        cosine, d_adapt_adam, None,
        "README: lr=1, and the scheduler one would normally use (here: cosine, as for Prodigy)",
    ),
    "D-Adaptation SGD": Method(
        cosine, d_adapt_sgd, None,
        "README: lr=1, a drop-in replacement (here: for SGD with momentum 0.9), the usual scheduler (here: cosine)",
    ),
    "Schedule-Free AdamW": Method(
        warmed_up(0.0025), schedule_free_adamw, FreshStatistics,
        "default lr=0.0025; README: no scheduler, warm-up recommended (no length given; here: 5 % of the run), "
        "statistics of batch normalisation afresh from 50 batches before an evaluation",
    ),
    "Schedule-Free SGD": Method(
        warmed_up(1.0), schedule_free_sgd, FreshStatistics,
        "default lr=1.0, ten times the usual 0.1; README: 10 to 50 times the classical rate; the rest as for AdamW",
    ),
    "DoG": Method(
        own, dog, PolynomialAverage,
        "README: must be combined with iterate averaging, the averager's defaults; reps_rel 1e-6, with batch "
        "normalisation 1e-4",
    ),
    "GreedyLR": Method(
        own, None, GreedyEvaluated,
        "README of its example: patience 2, factor 0.9, min_lr 1e-7, 500 examples evaluated each 5 % of the run; "
        "from the usual rate of the task's own optimiser",
    ),
    "SGD 0.1": Method(at(0.1), sgd, None, "the rate most examples begin with, momentum 0.9, fixed"),
    "Adam 1e-3": Method(at(1e-3), adam, None, "torch's default, fixed"),
    "Adam 3e-4": Method(at(3e-4), adam, None, "the folklore's rate for Adam, fixed"),
}  # fmt: skip
