"""What a run's snapshots are worth: each member, the ensemble of the last m, and the average of their weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from cyclr.lab.data import Batches, Source, in_order, size_of
from cyclr.lab.evaluation import BATCH, evaluate
from cyclr.lab.processes import device
from cyclr.lab.task import Task
from cyclr.torch.ensemble import Ensemble
from cyclr.torch.snapshots import MANIFEST, SnapshotError

Model: TypeAlias = Callable[[Tensor], Tensor]
TIMED = 0.5  # seconds of passes through each net, at least three


@dataclass(frozen=True)
class Assessed:
    """One model: a member, an ensemble of some, or the average of all.

    Attributes:
        kind: "member", "ensemble" or "average".
        steps: updates after which its snapshots were taken.
        validation, test: the task's metric; None where the task has no such data.
        cost: seconds that it needs to predict a batch, relative to the last member; of each net the least of some
            passes.
    """

    kind: str
    steps: tuple[int, ...]
    validation: float | None
    test: float | None
    cost: float

    @property
    def score(self) -> float:
        """The metric on the test data, or on the validation data without any."""
        return float(self.test if self.test is not None else self.validation)  # type: ignore[arg-type]


def assess(task: Task, folder: Path | str, *, last: int | None = None, best: int | None = None) -> list[Assessed]:
    """Measure members, ensembles of the last m (m = 2, 3, ...) and the average of the weights (SWA) of a run.

    For nets whose outputs are scores of classes. A metric sees the logarithm of the mean probabilities, whose softmax
    is these probabilities.

    Args:
        task: what the run trained.
        folder: of the snapshots, or of the run. Snapshots from a loop of your own that name no task are taken as its.
        last, best: only so many of the members.

    Returns:
        The members in the order of their steps, then the ensembles from 2 members to all, then the average.

    Raises:
        SnapshotError: no snapshots, or of another task; damaged or missing files.
    """
    folder, place = find_snapshots(Path(folder)), device()
    model, _ = task.build(seed=0)
    ensemble = Ensemble(folder, model.to(place), last=last, best=best, task=snapshots_name(task))
    steps = tuple(member.step for member in ensemble.members)
    seen = {name: _predicted(task, ensemble, source, place) for name, source in _sources(task).items()}
    *_, source = _sources(task).values()  # the test data, if there are such
    batch = next(in_order(source, BATCH, place, task.workers))
    seconds = _seconds_each(ensemble, batch)

    def measured(name: str, chosen: Sequence[int]) -> float | None:
        if name not in seen:
            return None
        probabilities, target = seen[name]
        mean = torch.stack([probabilities[index] for index in chosen]).mean(0)
        return float(task.metric(mean.clamp_min(torch.finfo(mean.dtype).tiny).log(), target))

    found = []
    singles = [(index,) for index in range(len(steps))]
    groups = [tuple(range(len(steps) - count, len(steps))) for count in range(2, len(steps) + 1)]
    for kind, chosen in [*(("member", each) for each in singles), *(("ensemble", each) for each in groups)]:
        found.append(
            Assessed(
                kind,
                tuple(steps[index] for index in chosen),
                measured("validation", chosen),
                measured("test", chosen),
                sum(seconds[index] for index in chosen) / seconds[-1],
            )
        )
    return [*found, _average(task, ensemble, steps, place, batch[0], seconds[-1])]


def find_snapshots(folder: Path) -> Path:
    """The folder with the manifest: this one, or that of its only run.

    Raises:
        SnapshotError: there is none, or several runs have one.
    """
    if (folder / MANIFEST).exists():
        return folder
    runs = sorted(path.parent for path in folder.glob(f"snapshots/*/{MANIFEST}"))
    if len(runs) > 1:
        names = ", ".join(str(run) for run in runs)
        raise SnapshotError(f"{folder} holds the snapshots of several runs, choose one of {names}")
    if not runs:
        raise SnapshotError(f"{folder} holds no snapshots; make some with cyclr train TASK --snapshots 4")
    return runs[0]


def snapshots_name(task: Task) -> str:
    """How a manifest calls a task: its name, and the checksum that tells it from others of that name."""
    return f"{task.name} {task.fingerprint()}"


def _sources(task: Task) -> dict[str, Source]:
    sources = {"validation": task.validation, "test": task.test}
    return {name: source for name, source in sources.items() if source is not None}


def _predicted(task: Task, ensemble: Ensemble, source: Source, place: torch.device) -> tuple[list[Tensor], Tensor]:
    """Each member's probabilities, on the CPU, and the target."""
    target = torch.cat([y.cpu() for _, y in in_order(source, BATCH, workers=task.workers)])
    return list(ensemble.each(lambda: in_order(source, BATCH, place, task.workers))), target


def _seconds_each(ensemble: Ensemble, batch: tuple[Tensor, Tensor]) -> list[float]:
    """What the batch takes each member."""
    found: list[float] = []

    def timed(model: Model, batch: tuple[Tensor, Tensor]) -> Tensor:
        found.append(_seconds(model, batch[0]))
        return model(batch[0])

    for _ in ensemble.each(lambda: [batch], predict=timed):
        pass
    return found


def _seconds(model: Model, x: Tensor) -> float:
    """What the output for a batch takes: the least of some passes, which other programs have disturbed least."""
    taken: list[float] = []
    while len(taken) < 3 or sum(taken) < TIMED:
        began = time.perf_counter()
        model(x).cpu()  # waits for a GPU
        taken.append(time.perf_counter() - began)
    return min(taken)


def _average(
    task: Task, ensemble: Ensemble, steps: tuple[int, ...], place: torch.device, x: Tensor, member_seconds: float
) -> Assessed:
    # Shuffled: batches of one class each, as a folder of images has them, would give BatchNorm other statistics.
    size = min(BATCH, size_of(task.train))
    model = ensemble.average(Batches(task.train, size, device=place, workers=task.workers))
    values = {name: evaluate(task, model, source, place) for name, source in _sources(task).items()}
    with torch.no_grad():
        cost = _seconds(model, x) / member_seconds
    return Assessed("average", steps, values.get("validation"), values.get("test"), cost)
