"""What all benchmarks share: paired timing, and a record with numbers, spread, hardware and versions.

A benchmark is a function that returns rows (see `row`). `main` runs it, prints the rows and writes them to
benchmarks/records/NAME.json, or to the path that --json names. benchmarks/table.py makes README.md's table of them.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import importlib.metadata
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch

from cyclr.files import write_atomically
from cyclr.lab.records import hardware, versions

FOLDER = Path(__file__).parent / "records"
Row: TypeAlias = dict[str, Any]


def row(what: str, values: Sequence[float], unit: str, *, most: float | None = None, least: float | None = None) -> Row:
    """One line of the table: repeated measurements of one thing and, if there is one, the target for their median."""
    median = statistics.median(values)
    target = {name: limit for name, limit in (("at_most", most), ("at_least", least)) if limit is not None}
    met = (most is None or median <= most) and (least is None or median >= least)
    return {
        "what": what,
        "unit": unit,
        "median": median,
        "min": min(values),
        "max": max(values),
        "repetitions": len(values),
        "target": target or None,
        "met": met if target else None,
    }


def clock() -> float:
    """Seconds of the processor, so that other processes hardly matter.

    Where work is elsewhere too, on a GPU or in further threads: seconds on the wall.
    """
    alone = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    return time.process_time() if alone else time.perf_counter()


def paired_ratios(
    bare: Callable[[], object], others: Mapping[str, Callable[[], object]], repetitions: int
) -> dict[str, list[float]]:
    """Time of each of `others` divided by the time of `bare` beside it, once a repetition.

    All take turns within one process, so what else the machine does meets all of them alike.
    """
    ratios: dict[str, list[float]] = {name: [] for name in others}
    for turn in range(-2, repetitions):  # two turns to warm up
        for name, function in others.items():
            if turn % 2:  # in turn, neither is always the first
                other, own = seconds(function), seconds(bare)
            else:
                own, other = seconds(bare), seconds(function)
            if turn >= 0:
                ratios[name].append(other / own)
    return ratios


def seconds(function: Callable[[], object]) -> float:
    """The time that one call takes, without garbage collection in it."""
    gc.disable()
    try:
        started = clock()
        function()
        return clock() - started
    finally:
        gc.enable()


def main(
    name: str,
    description: str | None,
    measure: Callable[[argparse.Namespace], list[Row]],
    packages: Sequence[str] = (),
    **options: Any,
) -> None:
    """Run a benchmark as a command: `options` are further arguments, name to argparse's keywords.

    `packages` are those whose versions matter beside the ones that every record names.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=FOLDER / f"{name}.json", help="where the record goes")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads; 1, since several wait for each other")
    for option, keywords in options.items():
        parser.add_argument(f"--{option.replace('_', '-')}", **keywords)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = measure(arguments)
    for each in rows:
        print(f"{each['what']}: {text_of(each)}")
    content = json.dumps({"name": name, "rows": rows, **circumstances(name, packages)}, indent=2)
    write_atomically(arguments.json, f"{content}\n".encode())


def text_of(each: Mapping[str, Any]) -> str:
    """A row in words."""
    form = "{:.0f}" if each["unit"] in ("ms", "") else "{:.3g}" if each["unit"] == "s" else "{:.3f}"
    median, low, high = (form.format(each[key]) for key in ("median", "min", "max"))
    target = "no target"
    if each["target"] is not None:
        ((kind, limit),) = each["target"].items()
        target = f"target {kind.replace('_', ' ')} {limit:g}, {'met' if each['met'] else 'MISSED'}"
    value = f"{median} {each['unit']}".strip()
    return f"{value} ({low} to {high}, n = {each['repetitions']}), {target}"


def circumstances(name: str, packages: Sequence[str]) -> dict[str, Any]:
    """What is needed to believe a number: versions, hardware, date and command."""
    return {
        "versions": versions() | {each: importlib.metadata.version(each) for each in packages},
        "hardware": hardware(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": " ".join(["python", f"benchmarks/{name}.py", *_public(sys.argv[1:])]),
    }


def _public(arguments: Sequence[str]) -> list[str]:
    """The arguments, with the user's own folders left out."""
    return [Path(each).name if os.sep in each else each for each in arguments]
