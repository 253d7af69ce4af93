"""The command: what each word does. How it talks: console.py; its bounds: ranges.py; its files: results.py."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

try:
    import typer

    from cyclr.console import (
        FAILED,
        WRONG_INPUT,
        bar,
        print_ensemble,
        print_json,
        print_table,
        run,
        say_bounds,
        stop,
    )
    from cyclr.ranges import Search, find_range, range_for
except ImportError:
    sys.exit("the cyclr command needs a few packages more: pip install 'cyclr[lab]'")

if TYPE_CHECKING:
    from cyclr.lab.records import Record
    from cyclr.lab.task import Task

EPOCHS = 24.0

app = typer.Typer(
    name="cyclr",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Find the learning-rate range that a network can use, cycle the rate through it, see whether that won.\n\n"
    "TASK is a built-in name ([bold]digits[/], [bold]cifar10-caffe[/], [bold]googlenet-pneumonia[/]) or "
    "[bold]file.py[:function][/] that returns a cyclr.lab.Task. Start with [bold]cyclr demo[/]; then "
    "[bold]cyclr find TASK[/], [bold]cyclr compare TASK[/].",
)

TaskName = Annotated[str, typer.Argument(metavar="TASK", help="A built-in task, or file.py[:function].")]
Out = Annotated[Path | None, typer.Option("--out", help="Folder for results. (default: cyclr-out/TASK)")]
DataDir = Annotated[
    str | None, typer.Option("--data-dir", help="Folder with data sets; else CYCLR_DATA, else the hub.")
]
Precision = Annotated[str | None, typer.Option(help="no, bf16 or fp16. (default: the task's own)")]
Accumulation = Annotated[int, typer.Option(help="Batches in one update.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object and nothing else.")]
Epochs = Annotated[float, typer.Option(help="Budget of a run, in epochs.")]
Steps = Annotated[int | None, typer.Option("--steps", help="Budget of a run in updates, instead of epochs.")]
BaseLr = Annotated[float | None, typer.Option("--base-lr", help="Lower bound, instead of the one found.")]
MaxLr = Annotated[float | None, typer.Option("--max-lr", help="Upper bound, instead of the one found.")]


@app.command()
def find(
    task: TaskName,
    out: Out = None,
    seeds: Annotated[int, typer.Option(help="Range tests, one a seed: more give a steadier max_lr.")] = 1,
    steps: Annotated[
        int | None, typer.Option(help="Updates in the linear pass. (default: 8 epochs, 300 to 4000)")
    ] = None,
    end_lr: Annotated[float | None, typer.Option(help="One ramp from 0 to here, and no short cycles.")] = None,
    policy: Annotated[str, typer.Option(help="The policy that the bounds are for.")] = "triangular",
    metric: Annotated[str, typer.Option(help="Read the ramp's loss, accuracy or 'validation accuracy'.")] = "loss",
    data_dir: DataDir = None,
    precision: Precision = None,
    accumulation: Accumulation = 1,
    as_json: Json = False,
) -> None:
    """Run an LR range test and read base_lr and max_lr off it.

    The rate rises during a short run: base_lr is where learning starts.
    Short cycles with different peaks, each from the start, then show the
    max_lr that training bears; with --end-lr it is where the rise slows.
    Leaves curve.json, bounds.json and range_test.png in --out.

    It takes 96 updates to look for the ramp's end, --steps for the ramp,
    which is run again if its end was wrong, and up to 9 short cycles of at
    most 128 updates.
    """
    loaded, folder = _start(task, out, data_dir)
    search = Search(seeds, steps, end_lr, policy, metric, precision, accumulation)
    bounds = find_range(loaded, folder, search, quiet=as_json)
    result = {"task": loaded.name, **asdict(bounds), "out": str(folder)}
    if as_json:
        print_json(result)
        return
    say_bounds(bounds)
    files = [name for name in ("curve.json", "bounds.json", "range_test.png") if (folder / name).exists()]
    typer.echo(f"\nresults in {folder}: {', '.join(files)}")


@app.command()
def train(
    task: TaskName,
    policy: Annotated[str, typer.Option(help="A policy's name, or fixed=RATE.")] = "triangular",
    base_lr: BaseLr = None,
    max_lr: MaxLr = None,
    epochs: Epochs = EPOCHS,
    steps: Steps = None,
    stepsize: Annotated[int | None, typer.Option(help="Updates in half a cycle. (default: planned)")] = None,
    seed: Annotated[int, typer.Option(help="Determines weights, batches and all else.")] = 0,
    out: Out = None,
    data_dir: DataDir = None,
    precision: Precision = None,
    accumulation: Accumulation = 1,
    seconds: Annotated[
        float | None, typer.Option(help="Wall-clock budget: stop at the last cycle's end that fits into it.")
    ] = None,
    patience: Annotated[
        int | None, typer.Option(help="Stop at a cycle's end after so many cycles without a better validation metric.")
    ] = None,
    snapshots: Annotated[
        int | None, typer.Option(help="Keep the weights of so many cycles' ends, for cyclr ensemble.")
    ] = None,
    snapshots_by: Annotated[str, typer.Option(help="Of which: the last, or the best by validation.")] = "last",
    checkpoint_seconds: Annotated[float, typer.Option(help="Least time between checkpoints.")] = 60.0,
    as_json: Json = False,
) -> None:
    """Train once under a policy; a run that was killed goes on where it was.

    The bounds come from the options, from an earlier cyclr find in the same --out, or from a range test made first.
    """
    loaded, folder = _start(task, out, data_dir)
    from cyclr.bounds import bears_as
    from cyclr.lab import train as run_one
    from cyclr.lab.comparing import plan_for, score
    from cyclr.lab.training import events_of

    per_epoch = loaded.updates_per_epoch(accumulation)
    budget = {"steps_per_epoch": per_epoch, "stepsize": stepsize, **_budget(epochs, steps)}
    events: dict[str, Any] = {
        "stop": "budget" if seconds is None and patience is None else "cycle_end",
        "seconds": seconds, "patience": patience, "snapshots": snapshots, "snapshots_by": snapshots_by,
    }  # fmt: skip
    trial = plan_for(policy, 0.1, 1.0, **budget)  # a typing error is told before any range test
    events_of(loaded, trial.schedule, trial.total_steps, **events)
    search = Search(policy=bears_as(policy), precision=precision, accumulation=accumulation)
    low, high = range_for(loaded, folder, base_lr, max_lr, search, quiet=as_json)
    planned = plan_for(policy, low, high, **budget)
    if not as_json:
        typer.echo(str(planned))
    with bar(quiet=as_json) as bars:
        record = run_one(
            loaded, planned.schedule, planned.total_steps, folder, policy=policy, seed=seed, precision=precision,
            accumulation=accumulation, checkpoint_seconds=checkpoint_seconds, progress=bars(f"{policy}, seed {seed}"),
            **events,
        )  # fmt: skip
    if as_json:
        print_json(record)
    else:
        where = "test" if record["result"]["test"] is not None else "validation"
        typer.echo(
            f"{record['result']['status']}: {where} metric {score(record):.4f} after {record['result']['steps']:,} "
            f"updates, {record['result']['updates_per_second']:.0f} a second; record in {folder / 'records.jsonl'}"
        )
        if why := record["result"].get("stopped"):
            typer.echo(f"stopped at a cycle's end: {why}")
        count = min(snapshots or 0, len(planned.schedule.cycle_ends(record["result"]["steps"])))
        if count:  # none if it diverged before its first cycle's end
            ends = f"{count} cycles' ends" if count > 1 else "cycle's end"
            kept = f"snapshot{'s' * (count > 1)} of the {snapshots_by} {ends}"
            typer.echo(f"{kept} in {folder / 'snapshots' / record['run']}: cyclr ensemble says what they are worth")
    if record["result"]["status"] == "diverged":
        raise typer.Exit(FAILED)


@app.command()
def compare(
    task: TaskName,
    policies: Annotated[str, typer.Option(help="Names, separated by commas.")] = "fixed,triangular,triangular2",
    seeds: Annotated[int, typer.Option(help="Runs of each policy, paired by seed.")] = 3,
    base_lr: BaseLr = None,
    max_lr: MaxLr = None,
    epochs: Epochs = EPOCHS,
    steps: Steps = None,
    out: Out = None,
    data_dir: DataDir = None,
    precision: Precision = None,
    on: Annotated[
        str, typer.Option(help="local, or the runs at once on ray, ray:HOST:PORT, ray://HOST:PORT.")
    ] = "local",
    cpus: Annotated[float, typer.Option(help="CPUs that a run on Ray needs.")] = 1.0,
    gpus: Annotated[float, typer.Option(help="GPUs that a run on Ray needs.")] = 0.0,
    as_json: Json = False,
) -> None:
    """The paper's advice: a fixed rate against cyclical ones in the found range; whichever wins is yours.

    Goes on where it stopped. Leaves records.jsonl and report.html in --out.
    """
    if on != "local":
        from cyclr.lab.on_ray import address_of, checked_needs

        address_of(on)  # a typing error is told now
        checked_needs(cpus, gpus)
    loaded, folder = _start(task, out, data_dir)
    where = {"on": on, "cpus": cpus, "gpus": gpus}
    _compare(
        loaded, folder, policies.split(","), seeds, base_lr, max_lr, _budget(epochs, steps), precision, as_json, where
    )


@app.command()
def ensemble(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A run's folder, or one with a manifest.json.")],
    task: Annotated[str | None, typer.Option(help="What the run trained, if that isn't a built-in task.")] = None,
    last: Annotated[int | None, typer.Option(help="Only so many members, the last ones.")] = None,
    best: Annotated[int | None, typer.Option(help="Only so many members, the best by validation.")] = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Say what a run's snapshots are worth: members, ensembles of the last m, the average of their weights.

    Make them with cyclr train TASK --snapshots 4. Gain and cost are held against the last member.
    """
    from cyclr.lab import assess, load_task
    from cyclr.lab.ensembling import find_snapshots
    from cyclr.lab.tasks import BUILT_IN
    from cyclr.torch.snapshots import read_manifest

    path = find_snapshots(folder)
    name = str(read_manifest(path)[0]["task"] or "no named task ").rpartition(" ")[0]
    if task is None and name not in BUILT_IN:  # a manifest must not say which Python file is run
        raise ValueError(f"{path} holds snapshots of {name}, which is not built in; give --task file.py[:function]")
    found = assess(load_task(task or name, BUILT_IN, data_dir), path, last=last, best=best)
    if as_json:
        print_json({"snapshots": str(path), "models": [asdict(each) for each in found]})
    else:
        print_ensemble(found)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder with records.")],
    as_json: Json = False,
) -> None:
    """Write report.html, one page that needs nothing else, from the records in a folder."""
    path = _report(folder)
    if as_json:
        print_json({"report": str(path)})
    else:
        typer.echo(f"report in {path}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for results.")] = Path("cyclr-demo"),
    as_json: Json = False,
) -> None:
    """Find, compare and report on real handwritten digits: a minute or two, no network."""
    import torch

    torch.set_num_threads(1)  # so small a net is faster without threads that wait for each other
    loaded, folder = _start("digits", out, None)
    if not as_json:
        typer.echo("1. The LR range test: the rate rises while a small net learns 1,200 handwritten digits,")
        typer.echo("   then short cycles try out how much of it a training bears.\n")
    bounds = find_range(loaded, folder, Search(seeds=3), quiet=as_json)
    if not as_json:
        say_bounds(bounds)
        typer.echo("\n2. The comparison: a fixed rate in the middle of that range, and two that cycle through it.\n")
    _compare(loaded, folder, ["fixed", "triangular", "triangular2"], 5, None, None, {"epochs": EPOCHS}, None, as_json)


def _start(task: str, out: Path | None, data_dir: str | None) -> tuple[Task, Path]:
    """Load the task, and find out now, not after hours, whether results can be written."""
    from cyclr.lab import load_task
    from cyclr.lab.tasks import BUILT_IN

    loaded = load_task(task, BUILT_IN, data_dir)
    folder = out or Path("cyclr-out") / loaded.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        stop(WRONG_INPUT, f"cannot write to {folder} ({error.strerror or error}); choose another --out")
    return loaded, folder


def _budget(epochs: float, steps: int | None) -> dict[str, Any]:
    return {"epochs": epochs} if steps is None else {"total_steps": steps}


def _compare(
    task: Task,
    folder: Path,
    policies: list[str],
    seeds: int,
    base_lr: float | None,
    max_lr: float | None,
    budget: dict[str, Any],
    precision: str | None,
    as_json: bool,
    where: dict[str, Any] | None = None,
) -> None:
    """All runs, the table, the verdict and the page."""
    from cyclr import checks
    from cyclr.lab import compare as run_all
    from cyclr.lab import table, verdict
    from cyclr.lab.comparing import plan_for

    names = [name.strip() for name in policies]
    count = range(checks.whole("seeds", seeds, least=1))
    for name in names:  # a typing error is told before any run
        plan_for(name, 0.1, 1.0, steps_per_epoch=task.steps_per_epoch, **budget)
    low, high = range_for(task, folder, base_lr, max_lr, Search(precision=precision), quiet=as_json)
    for name in names:
        planned = plan_for(name, low, high, steps_per_epoch=task.steps_per_epoch, **budget)
        if not as_json:
            typer.echo(str(planned))
    with bar(quiet=as_json) as bars:
        records = run_all(
            task, low, high, folder, policies=names, seeds=count, precision=precision, progress=bars, **budget,
            **(where or {}),
        )  # fmt: skip
    rows = table(records)
    path = _report(folder, records)
    if as_json:
        print_json({"verdict": verdict(rows), "rows": [asdict(row) for row in rows], "report": str(path)})
        return
    print_table(rows)
    typer.echo(f"{verdict(rows)}\n\nrecords and report in {path.parent}: open {path}")


def _report(folder: Path, records: list[Record] | None = None) -> Path:
    """The page, from the given records or from all in the folder."""
    from cyclr.lab.processes import on_first
    from cyclr.results import write_report

    return on_first(lambda: write_report(folder, records))


def main() -> None:
    """The entry point."""
    run(app)
