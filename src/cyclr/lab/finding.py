"""The LR range test of a task, once or with several seeds, and the bounds read off the curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cyclr import checks
from cyclr.bounds import Bounds, find_bounds
from cyclr.curve import Curve, Goal
from cyclr.lab.captured import ONE_AT_A_TIME
from cyclr.lab.data import Batches, held_out, mixed, size_of
from cyclr.lab.evaluation import evaluate
from cyclr.lab.precision import accelerator, computing_in
from cyclr.lab.processes import count, rank
from cyclr.lab.task import Task, TaskError
from cyclr.lab.training import try_out
from cyclr.range_test import Progress
from cyclr.schedules import Ramp
from cyclr.torch import range_test

EPOCHS = 8  # of the linear pass, as in the paper's Figure 3 ...
LEAST_STEPS, MOST_STEPS = 300, 4000  # ... within these
VALIDATION = 2000  # examples of the fixed validation subset


def find(
    task: Task,
    *,
    seeds: Sequence[int] = (0,),
    steps: int | None = None,
    ramp: Ramp | None = None,
    policy: str = "triangular",
    metric: str = "loss",
    precision: str | None = None,
    accumulation: int = 1,
    progress: Progress | None = None,
) -> tuple[list[Curve], Bounds]:
    """Run the task's range test with each seed and read the bounds off all curves together.

    Each curve is the paper's: the task's metric on a fixed validation subset, up to 2,000 examples of its validation
    data, or held out from its training data; the test set is not touched. Its companions are the training loss and
    accuracy of every update and, without `ramp`, the loss after short cycles.

    Args:
        task: what to train.
        seeds: one range test each: initial weights and batches.
        steps: updates in the linear pass; 8 epochs by default, at least 300 and at most 4,000. Before it come 96 to
            look for its end, after it up to 9 short cycles of half as many updates each, at most 128; if the end was
            wrong, the linear pass is run again, up to four times in all.
        ramp: the rates, instead of the default that finds its own end; there are no short cycles then.
        policy: the policy that the bounds are for.
        metric: what the ramp is read from: "loss" (of every update, so the best resolved), "accuracy" or
            "validation accuracy". Where there are short cycles, max_lr comes from their loss in any case.
        precision: "no", "bf16" or "fp16"; the task's own by default.
        accumulation: batches in one update, as the training will have.
        progress: as in `cyclr.range_test`.
    """
    if not seeds:
        raise ValueError("find needs at least one seed")
    if steps is None:
        steps = min(max(EPOCHS * task.updates_per_epoch(accumulation), LEAST_STEPS), MOST_STEPS)
    checks.whole("steps", steps, least=20)
    precision = precision or task.precision
    with computing_in(precision):
        try_out(task, precision)
        curves = [_curve(task, seed, steps, ramp, precision, accumulation, progress) for seed in seeds]
    return curves, find_bounds(curves, policy=policy, metric=metric)


def _curve(
    task: Task,
    seed: int,
    steps: int,
    ramp: Ramp | None,
    precision: str,
    accumulation: int,
    progress: Progress | None,
) -> Curve:
    with ONE_AT_A_TIME:  # Accelerate's precision is the process's
        machine = accelerator(precision)
        model, optimizer = task.build(seed)
        if rank():
            torch.manual_seed(mixed(seed, rank()))  # dropout differs among processes
        prepared = machine.prepare(model)
    if task.validation is None:
        examples = min(VALIDATION, size_of(task.train) // 10)
        if not examples:
            raise TaskError(
                f"task {task.name} has {size_of(task.train)} training examples, too few to hold a tenth of them out; "
                "give validation data"
            )
        train, subset = held_out(task.train, examples)
    else:
        train = task.train
        _, subset = held_out(task.validation, min(VALIDATION, size_of(task.validation)))

    def batch_loss(net: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Any]]:
        x, y = batch
        output = net(x)
        return task.loss(output, y), {"accuracy": task.metric(output.detach(), y)}

    curve = range_test(
        prepared,
        optimizer,
        None,
        Batches(train, task.batch_size, seed, task.augment, machine.device, task.workers, rank(), count()),
        ramp=ramp,
        steps=steps,
        batch_loss=batch_loss,
        validate=lambda: evaluate(task, model, subset, machine.device),
        accumulation=accumulation,
        scaler=machine.scaler,
        progress=progress,
        meta={
            "task": task.name,
            "seed": seed,
            "batch_size": task.batch_size,
            "steps_per_epoch": task.steps_per_epoch,
            "precision": precision,
            "torch": torch.__version__,
        },
    )
    # Training that broke at once measured nothing; its curves are there, without points.
    named = {each.metric for each in (curve, *curve.companions)}
    none = np.zeros(0)
    empty = replace(curve, steps=none.astype(np.int64), lrs=none, values=none, measured="before", companions=())
    goals: dict[str, Goal] = {"loss": "min", "accuracy": "max"}
    unseen = [replace(empty, metric=name, goal=goal) for name, goal in goals.items() if name not in named]
    return replace(curve, companions=(*curve.companions, *unseen))
