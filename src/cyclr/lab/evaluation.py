"""How good a model is on a data source: the task's metric and its scores, over all processes."""

from __future__ import annotations

import math

import torch
from torch import nn

from cyclr.lab.data import Source, chosen, in_order, size_of
from cyclr.lab.processes import count, gathered, rank, share_buffers, total
from cyclr.lab.task import Task

BATCH = 500  # examples at once
METRIC = "metric"


def evaluate(task: Task, model: nn.Module, source: Source, device: torch.device) -> float:
    """The task's metric over a whole data source, in eval mode; every process measures its share of the examples."""
    return measure(task, model, source, device)[METRIC]


def measure(task: Task, model: nn.Module, source: Source, device: torch.device) -> dict[str, float]:
    """The task's metric under the name METRIC, as `evaluate` gives it, and its scores."""
    share_buffers(model)
    share = source if count() == 1 else chosen(source, torch.arange(rank(), size_of(source), count()))
    was_training = model.training
    model.eval()
    measured, seen = 0.0, []
    try:
        with torch.no_grad():
            for x, y in in_order(share, BATCH, device, task.workers) if size_of(share) else ():
                output = model(x)
                measured += float(task.metric(output, y)) * len(y)
                if task.scores:
                    seen.append((output.cpu(), y.cpu()))
    finally:
        model.train(was_training)
    scores = {}
    if task.scores:
        outputs, targets = zip(*(pair for each in gathered(seen) for pair in each), strict=True)
        output, target = torch.cat(outputs), torch.cat(targets)
        known = bool(output.isfinite().all())  # a net that diverged has no scores; some raise an error at NaN
        scores = {name: float(score(output, target)) if known else math.nan for name, score in task.scores.items()}
    return {METRIC: total(measured) / size_of(source), **scores}
