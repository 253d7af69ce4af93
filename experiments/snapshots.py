"""Snapshot ensembles as in arXiv 1704.00109: what M snapshots of one training are worth, at the same budget of updates.

All rows have one budget: a single model under one cosine, snapshots at the ends of M cosine cycles, and a true
ensemble of M trainings of an M-th of the budget each. The number is the ensemble's accuracy; the table below it has the
last member, the ensembles of the last m, the average of the weights (SWA), and of the single model's run the ensemble
of M snapshots without cycles. Three settings: the original's, for a GPU; a scaled one; and one with few images.
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
        Net(lambda classes: ResNet(110, classes), lambda classes: ResNet(20, classes), 64, 200, (0, 0), 0.2, {}),
        {
            "CIFAR-10": {"single": 94.48, "snapshots, M = 5": 94.68},
            "CIFAR-100": {"single": 71.98, "snapshots, M = 5": 75.81},
        },
    ),
    "DenseNet": (
        Net(
            lambda classes: DenseNet(40, classes, growth=12), lambda classes: DenseNet(22, classes, growth=8),
            64, 300, (0, 0), 0.2, {},
        ),
        {"CIFAR-10": {"single": 94.76}, "CIFAR-100": {"single": 75.58}},  # its snapshots have M = 6
    ),
}  # fmt: skip
SCALED_EPOCHS = 12
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


def cells_of(
    row: str,
    data: str,
    task: str,
    total: int,
    max_lr: float,
    every: int,
    papers: Mapping[str, float] | None = None,
    *,
    scaled: bool,
) -> list[Cell]:
    """One budget: the single model, and each kind of ensemble with each M."""
    columns = [("single", 1)]
    columns += [(f"{kind}, M = {m}", m) for kind in ("snapshots", "true ensemble") for m in MEMBERS]
    return [
        Cell(
            row, f"{data}, {column}", task, cyclr.cosine_restarts(0.0, max_lr, total // m), total,
            (papers or {}).get(column), 3, every, scaled,
        )
        for column, m in columns
    ]  # fmt: skip


def table(name: str, title: str, note: str, *, scaled: bool) -> Table:
    tasks: dict[str, Callable[[str | None], Task]] = {}
    cells: list[Cell] = []
    for data in reversed(DATA):  # CIFAR-100 first: it is where ensembles gain most
        for row, (net, papers) in NETS.items():
            task = f"{DATA[data][0]}-{row.lower()}-snapshots{'-scaled' if scaled else ''}"
            tasks[task] = task_of(task, data, net, scaled)
            epoch = IMAGES // net.batch_size
            total = (SCALED_EPOCHS if scaled else net.epochs) * epoch
            total -= total % 15  # a whole number of cycles, 3 or 5
            every = epoch * max(1, net.epochs // 20)
            cells += cells_of(row, data, task, total, net.max_lr, every, papers[data], scaled=scaled)
    return table_of(name, title, note, tasks, cells, gpu=not scaled)


def table_of(
    name: str, title: str, note: str, tasks: dict[str, Callable[[str | None], Task]], cells: list[Cell], *, gpu: bool
) -> Table:
    return Table(
        name, title, note, tasks, tuple(cells), value=value, train=train_and_assess, gpu=gpu, remarks=remarks,
        more=sub_models,
    )  # fmt: skip


def few_images() -> Table:
    """Long cycles on little data: what a snapshot ensemble is worth where one cycle is enough to train a net."""
    count, epochs, name = 5000, 60, "cifar100-resnet-8-few-images"
    net = replace(NETS["ResNet"][0], small=lambda classes: ResNet(8, classes))
    whole = task_of(name, "CIFAR-100", net, scaled=True)

    def make(data_dir: str | None) -> Task:
        task = whole(data_dir)
        return replace(task, train=held_out(task.train, count)[1])

    epoch = count // net.batch_size
    every = epochs // 20 * epoch
    cells = cells_of("ResNet-8", f"{count:,} images", name, epochs * epoch, net.max_lr, every, scaled=True)
    return table_of(
        "snapshots-few-images",
        "Snapshot ensembles on few images",
        "Not the original's setting either, but with cycles that are long for their data, as its own are: "
        f"{count:,} of CIFAR-100's training images, drawn at random once, and ResNet-8, {epochs} epochs; so a cycle "
        "has 20 epochs (M = 3) or 12 (M = 5), where the table above has 4 or 2.4. Chosen after that table's first "
        "seed, to see whether it is the length of the cycles that an ensemble needs. It is not their epochs alone: the "
        "net still gets better from cycle to cycle, so that older members pull the mean down. In one run (M = 3, "
        "seed 1) the members have 23.5, 30.2 and 32.8 %, all three 32.4 (their negative log-likelihood is 2.80, the "
        "last one's 2.96; by hand, not recorded). The original's cycles have 31,000 updates, these 936 to 1,560.",
        {name: make},
        cells,
        gpu=False,
    )


SCALED = table(
    "snapshots-scaled",
    "Snapshot ensembles, scaled",
    "Not the original's setting: ResNet-20 and DenseNet-22-8, 12 epochs in batches of 64, cosine cycles from 0.2 to 0. "
    f"The paper's numbers (arXiv 1704.00109) are of ResNet-110 and DenseNet-40, for orientation. {OTHER_SINGLE}",
    scaled=True,
)
FEW = few_images()
TABLE = table(
    "snapshots",
    "Snapshot ensembles",
    "ResNet-110 for 200 epochs and DenseNet-40-12 for 300, batches of 64, cosine cycles from 0.2 to 0, bf16. "
    f"{OTHER_SINGLE}",
    scaled=False,
)
