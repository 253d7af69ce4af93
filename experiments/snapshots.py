"""Snapshot ensembles as in arXiv 1704.00109: what M snapshots of one training are worth, at the same budget of updates.

All rows have one budget: a single model under one cosine, snapshots at the ends of M cosine cycles, and a true
ensemble of M trainings of an M-th of the budget each. The number is the ensemble's accuracy; the table below it has the
last member, the ensembles of the last m, the average of the weights (SWA), and of the single model's run the ensemble
of M snapshots without cycles. The settings: the original's, for a GPU; a scaled one with the original's epochs on a
tenth of the images; and two with cycles that are too short.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import cyclr
from cells import Cell, Record, Runs, Summary, Table, percent
from claims import answer, differences, said
from cyclr.lab import Task, assess, train
from cyclr.lab.data import held_out, in_order
from cyclr.lab.processes import device
from cyclr.lab.records import append_record, find_record, new_record
from cyclr.lab.residual import DenseNet, ResNet
from cyclr.torch import Ensemble
from table4 import DATA, IMAGES, Net, task_of

MEMBERS = (3, 5)
SEED = 1000  # apart: the seeds of a true ensemble's trainings

NETS = {
    "ResNet": (
        Net(lambda classes: ResNet(110, classes), lambda classes: ResNet(8, classes), 64, 200, (0, 0), 0.2, {}),
        {
            "CIFAR-10": {"single": 94.48, "snapshots, M = 5": 94.68},
            "CIFAR-100": {"single": 71.98, "snapshots, M = 5": 75.81},
        },
    ),
    "DenseNet": (
        Net(
            lambda classes: DenseNet(40, classes, growth=12), lambda classes: DenseNet(10, classes, growth=12),
            64, 300, (0, 0), 0.2, {},
        ),
        {"CIFAR-10": {"single": 94.76}, "CIFAR-100": {"single": 75.58}},  # its snapshots have M = 6
    ),
}  # fmt: skip
FEW, SCALED_EPOCHS = 5000, 200
OTHER_SINGLE = "The original's single model has a rate that drops in steps, ours one cosine."
KINDS = ("single", "snapshots", "true ensemble")


def members_of(name: str) -> tuple[str, int]:
    """A cell's kind and its M, from its name."""
    kind = next(kind for kind in KINDS if kind.replace(" ", "-") in name)
    return kind, 1 if kind == "single" else int(name.rpartition("-")[2])


def train_and_assess(
    task: Task,
    schedule: Any,
    updates: int,
    out: Path,
    *,
    policy: str,
    seed: int,
    evaluate_at: Sequence[int],
    **how: Any,
) -> Record:
    """Train what a cell says, with its snapshots, and leave one record of the ensemble."""
    kind, members = members_of(policy)
    runs = Path(out) / "weights" / "runs"  # each with its own record and snapshots, which are not committed
    if kind == "true ensemble":
        seeds = [SEED * (seed + 1) + number for number in range(members)]
        trained = [
            train(task, schedule, updates // members, runs, policy=policy, seed=each, snapshots=1, **how)
            for each in seeds
        ]
    else:
        at = sorted({updates * k // m for m in MEMBERS for k in range(1, m + 1)}) if kind == "single" else members
        trained = [
            train(task, schedule, updates, runs, policy=policy, seed=seed, evaluate_at=evaluate_at, snapshots=at, **how)
        ]
    config = {**trained[0]["config"], "total_steps": updates, "seed": seed, "evaluate_at": list(evaluate_at)}
    if (record := find_record(Path(out), config)) is None:
        found = [(each, runs / "snapshots" / each["run"]) for each in trained]
        record = new_record(config, result_of(task, kind, found))
        append_record(Path(out), record)
    return record


def result_of(task: Task, kind: str, trained: Sequence[tuple[Record, Path]]) -> dict[str, Any]:
    """One result of all trainings. If one of them diverged, the cell's run did: fewer members were another ensemble."""
    results = [record["result"] for record, _ in trained]
    lost = any(each["status"] == "diverged" for each in results)
    return {
        **results[0],
        "status": "diverged" if lost else "done",
        "steps": sum(each["steps"] for each in results),
        "models": {"ensemble": math.nan} if lost else models(task, kind, [folder for _, folder in trained]),
    }


def models(task: Task, kind: str, folders: Sequence[Path]) -> dict[str, float]:
    """Accuracies on the test data, by name; "ensemble" is the cell's own number."""
    if kind == "true ensemble":
        return {"ensemble": true_ensemble(task, folders)}
    if kind == "single":
        return without_cycles(task, folders[0])
    found = assess(task, folders[0])
    named = {f"last {len(each.steps)}": each.score for each in found if each.kind == "ensemble"}
    member = [each.score for each in found if each.kind == "member"][-1]
    return {"ensemble": [*named.values()][-1], "last member": member, "average": found[-1].score, **named}


def probabilities(task: Task, folder: Path) -> list[torch.Tensor]:
    model, _ = task.build(seed=0)
    ensemble = Ensemble(folder, model.to(device()))
    return list(ensemble.each(lambda: in_order(task.test, 500, device())))  # type: ignore[arg-type]


def accuracy(task: Task, members: Sequence[torch.Tensor]) -> float:
    target = torch.cat([y for _, y in in_order(task.test, 500)])  # type: ignore[arg-type]
    return float((torch.stack(list(members)).mean(0).argmax(-1) == target).float().mean())


def true_ensemble(task: Task, folders: Sequence[Path]) -> float:
    return accuracy(task, [probabilities(task, folder)[-1] for folder in folders])


def without_cycles(task: Task, folder: Path) -> dict[str, float]:
    """The single model, and ensembles of evenly spaced snapshots on its way."""
    model, _ = task.build(seed=0)
    steps = [member.step for member in Ensemble(folder, model).members]
    by_step = dict(zip(steps, probabilities(task, folder), strict=True))
    last = steps[-1]
    return {
        "ensemble": accuracy(task, [by_step[last]]),
        **{f"without cycles, {m}": accuracy(task, [by_step[last * k // m] for k in range(1, m + 1)]) for m in MEMBERS},
    }


def value(record: Record) -> float:
    return percent(record["result"]["models"]["ensemble"])


def remarks(table: Table, runs: Runs) -> str:
    """What an ensemble gains over the single model of its budget, and what else the runs' snapshots say."""
    return "\n\n".join(part for part in (gains(table, runs), others(table, runs)) if part)


def gains(table: Table, runs: Runs) -> str:
    """Seed by seed, with a 95 % interval; n pairs of runs, of which neither diverged."""
    lines = ["| row | column | n | gain over the single model, points (95 %) | better? |", "|---|---|---|---|---|"]
    singles = {cell.task: cell.name for cell in table.cells if members_of(cell.name)[0] == "single"}
    for cell in table.cells:
        values = differences(table, cell, runs, singles[cell.task])
        if values and cell.name not in singles.values():
            lines.append(f"| {cell.row} | {cell.column} | {len(values)} | {said(values)} | {answer(values)} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def others(table: Table, runs: Runs) -> str:
    """The last member, the ensembles of the last m, the average, and snapshots without cycles."""
    lines = ["| row | column | accuracy, mean | sd | n |", "|---|---|---|---|---|"]
    for cell, values in sub_models(table, runs):
        summary = Summary.of(values)
        mean, sd = summary.shown()
        lines.append(f"| {cell.row} | {cell.column} | {mean} | {sd} | {summary.n} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def sub_models(table: Table, runs: Runs) -> list[tuple[Cell, list[float]]]:
    """What a run's snapshots give beside its own number: each as a cell, without a number in the paper."""
    found = []
    for cell in table.cells:
        models = [runs[key]["result"]["models"] for key in sorted(runs) if key[0] == cell.name]
        for what in dict.fromkeys(what for each in models for what in each if what != "ensemble"):
            values = [percent(each.get(what)) for each in models]
            found.append((replace(cell, column=f"{cell.column}: {what}", paper=None), values))
    return found


def few(whole: Callable[[str | None], Task]) -> Callable[[str | None], Task]:
    """The task with a tenth of its training images, drawn at random once."""

    def make(data_dir: str | None) -> Task:
        task = whole(data_dir)
        return replace(task, train=held_out(task.train, FEW)[1])

    return make


def cells_of(
    row: str,
    data: str,
    task: str,
    total: int,
    max_lr: float,
    every: int,
    papers: Mapping[str, float] | None = None,
    *,
    seeds: int = 3,
    scaled: bool = True,
) -> list[Cell]:
    """One budget: the single model, and each kind of ensemble with each M."""
    columns = [("single", 1)]
    columns += [(f"{kind}, M = {m}", m) for kind in ("snapshots", "true ensemble") for m in MEMBERS]
    return [
        Cell(
            row, f"{data}, {column}", task, cyclr.cosine_restarts(0.0, max_lr, total // m), total,
            (papers or {}).get(column), seeds, every, scaled,
        )
        for column, m in columns
    ]  # fmt: skip


def table(name: str, title: str, note: str, *, scaled: bool) -> Table:
    tasks: dict[str, Callable[[str | None], Task]] = {}
    cells: list[Cell] = []
    for row, (net, papers) in NETS.items():
        for data in reversed(DATA):  # CIFAR-100 first: it is where ensembles gain most
            task = f"{DATA[data][0]}-{row.lower()}-snapshots{'-scaled' if scaled else ''}"
            whole = task_of(task, data, net, scaled)
            tasks[task] = few(whole) if scaled else whole
            epoch = (FEW if scaled else IMAGES) // net.batch_size
            epochs = SCALED_EPOCHS if scaled else net.epochs
            total = epochs * epoch
            total -= total % 15  # a whole number of cycles, 3 or 5
            cells += cells_of(row, data, task, total, net.max_lr, epochs // 20 * epoch, papers[data], scaled=scaled)
    return table_of(name, title, note, tasks, cells, gpu=not scaled)


def table_of(
    name: str, title: str, note: str, tasks: dict[str, Callable[[str | None], Task]], cells: list[Cell], *, gpu: bool
) -> Table:
    return Table(
        name, title, note, tasks, tuple(cells), value=value, train=train_and_assess, gpu=gpu, remarks=remarks,
        more=sub_models,
    )  # fmt: skip


def short_cycles() -> Table:
    """Cycles in which a net doesn't get as good as in one long anneal: what the scaled setting had been before."""
    net, papers = NETS["ResNet"]
    deeper = replace(net, small=lambda classes: ResNet(20, classes))
    on_all, on_few = "cifar100-resnet-snapshots-scaled", "cifar100-resnet-8-few-images"
    tasks = {
        on_all: single_precision(task_of(on_all, "CIFAR-100", deeper, scaled=True)),
        on_few: single_precision(few(task_of(on_few, "CIFAR-100", net, scaled=True))),
    }
    epoch, few_epoch = IMAGES // net.batch_size, FEW // net.batch_size
    total = 12 * epoch // 15 * 15
    cells = cells_of("ResNet", "CIFAR-100", on_all, total, net.max_lr, 10 * epoch, papers["CIFAR-100"], seeds=1)
    cells += cells_of("ResNet-8", f"{FEW:,} images", on_few, 60 * few_epoch, net.max_lr, 3 * few_epoch)
    return table_of(
        "snapshots-short-cycles",
        "Snapshot ensembles of short cycles",
        "What cycles give that are too short to make a good model: `ResNet` is ResNet-20 on all of CIFAR-100's images "
        "for 12 epochs, a cycle 4 (M = 3) or 2.4 (M = 5); `ResNet-8` has the 5,000 images of the table above for 60 "
        "epochs, a cycle 20 or 12. Single precision. The net still gets better from cycle to cycle, so that older "
        "members pull the mean down. These were the scaled settings before the table above, whose epochs were chosen "
        "after them, on training images that are not among the 5,000.",
        tasks,
        cells,
        gpu=False,
    )


def single_precision(make: Callable[[str | None], Task]) -> Callable[[str | None], Task]:
    return lambda data_dir: replace(make(data_dir), precision="no")


SCALED = table(
    "snapshots-scaled",
    "Snapshot ensembles, scaled",
    "The original's epochs, batches of 64 and cosine cycles from 0.2 to 0 (200 epochs, a cycle 40 of them if M = 5), "
    f"but small nets and few images: ResNet-8 and DenseNet-10-12 on {FEW:,} of the training images, drawn at random "
    "once; bf16. The paper's numbers (arXiv 1704.00109) are of ResNet-110 and DenseNet-40 (300 epochs) on all images, "
    f"for orientation. {OTHER_SINGLE}",
    scaled=True,
)
SHORT = short_cycles()
TABLE = table(
    "snapshots",
    "Snapshot ensembles",
    "ResNet-110 for 200 epochs and DenseNet-40-12 for 300, batches of 64, cosine cycles from 0.2 to 0, bf16. "
    f"{OTHER_SINGLE}",
    scaled=False,
)
