"""Write README.md's table of benchmarks from the records, or check that it is what they say.

    python benchmarks/table.py [--check] [--readme PATH]

The table stands between the markers `<!-- benchmarks -->` and `<!-- /benchmarks -->`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cyclr.files import write_atomically
from cyclr.lab.pages import with_part
from record import FOLDER

NAMES = (
    "scheduler_step",
    "range_test_cost",
    "throughput",
    "start_up",
    "demo",
    "adapters",
    "snapshot_cost",
    "hundred_range_tests",
)
README = Path(__file__).parent.parent / "README.md"


def table() -> str:
    """Markdown: a line for each measurement that has a target or is a peer's, then where and when they were made."""
    records = [json.loads((FOLDER / f"{name}.json").read_text()) for name in NAMES]
    lines = ["| measured | median (min to max, n) | target | met |", "|---|---|---|---|"]
    lines += [
        line(each) for record in records for each in record["rows"] if each["target"] or " torch " in each["what"]
    ]
    made = dict.fromkeys(circumstances(record) for record in records)  # each once, in order
    return "\n".join([*lines, "", *(f"{one}  " for one in list(made)[:-1]), list(made)[-1]])


def line(each: Mapping[str, Any]) -> str:
    median, low, high = (number(each[key], each["unit"]) for key in ("median", "min", "max"))
    spread = f"n = {each['repetitions']}" if each["repetitions"] == 1 else f"{low} to {high}, {each['repetitions']}"
    target = ""
    if each["target"] is not None:
        ((kind, limit),) = each["target"].items()
        target = f"{kind.replace('_', ' ')} {limit:g}"
    met = {None: "", True: "yes", False: "**no**"}[each["met"]]
    value = f"{median} {each['unit']}".strip()
    return f"| {each['what']} | {value} ({spread}) | {target} | {met} |"


def number(value: float, unit: str) -> str:
    """As many digits as the target is told by."""
    digits = 0 if unit in ("ms", "") else 2 if unit == "s" else 3 if value < 2 else 2 if value < 10 else 1
    return f"{value:.{digits}f}"


def circumstances(record: Mapping[str, Any]) -> str:
    hardware, versions = record["hardware"], record["versions"]
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"{hardware['cpu']}, {hardware['cores']} cores, torch on {hardware['threads']} thread"
        f"{'s' if hardware['threads'] > 1 else ''}; {packages}; {record['date']}."
    )


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the table is not the records'")
    parser.add_argument("--readme", type=Path, default=README)
    arguments = parser.parse_args()
    text = arguments.readme.read_text()
    try:
        wanted = with_part(text, "benchmarks", table())
    except ValueError as error:
        sys.exit(str(error))
    if arguments.check and text != wanted:
        sys.exit(f"{arguments.readme.name}'s table of benchmarks is not what the records say; run benchmarks/table.py")
    if not arguments.check and text != wanted:
        write_atomically(arguments.readme, wanted.encode())


if __name__ == "__main__":
    run()
