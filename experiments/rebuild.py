"""Everything that is made from records: tables, figures, cells.json and the numbers on the project's first page.

    python experiments/rebuild.py [--check]

`--check` writes nothing and exits 1 if a page is not what the records say that it was made of; those that the queue
has added since do not count. A number may differ by one in its last digit, since processors round differently.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import claims
import figures
from cells import HERE, Cell, Record, Runs, Summary, Table, known
from cyclr.files import write_atomically
from cyclr.lab import read_records, verdict
from cyclr.lab import table as rows_of
from cyclr.lab.pages import says_the_same, with_part
from tables import TABLES

FRONT = HERE.parent / "README.md"


def refuse_unfinished(table: Table) -> None:
    """A page is made of whole records; the queue takes a half-written one away when it writes the next."""
    path = HERE / table.name / "records.jsonl"
    if path.exists() and not path.read_bytes().endswith(b"\n"):
        raise ValueError(f"the last line of {path} is half written; run the queue again, or remove that line")


def numbers(table: Table, cell: Cell, runs: Runs) -> list[float]:
    """The cell's number in each run, in the order of the seeds; NaN where a run has none."""
    return [table.value(runs[key]) for key in sorted(runs) if key[0] == cell.name]


def command(table: Table) -> str:
    return f"python experiments/run.py {table.name} --data-dir DIR"


def cell_of(table: Table, cell: Cell, values: Sequence[float]) -> dict[str, Any]:
    """One object of cells.json."""
    summary = Summary.of(values)
    return {
        "table": table.name,
        "row": cell.row,
        "column": cell.column,
        "paper": cell.paper,
        "mean": None if summary.mean is None else round(summary.mean, 4),
        "sd": None if summary.sd is None else round(summary.sd, 4),
        "n": summary.n,
        "updates": cell.updates,
        "scaled": cell.scaled,
        "command": command(table),
    }


def objects_of(table: Table, runs: Runs) -> list[dict[str, Any]]:
    """A table's cells, and after them what else its records hold."""
    cells = [(cell, numbers(table, cell, runs)) for cell in table.cells]
    return [cell_of(table, cell, values) for cell, values in (*cells, *table.more(table, runs))]


def line_of(table: Table, cell: Cell, runs: Runs) -> str:
    """One line of a table in README.md."""
    records = [record for (name, _), record in runs.items() if name == cell.name]
    summary = Summary.of(numbers(table, cell, runs))
    mean, sd = summary.shown(table.decimals)
    paper = "" if cell.paper is None else f"{cell.paper:g}"
    ours = mean or ("no number" if records else why_not(cell))
    hours = ", ".join(hours_by_device(records))
    lost = diverged(table, records)
    row = f"{cell.row}{' (scaled)' if cell.scaled else ''}{f' ({lost} diverged)' if lost else ''}"
    return f"| {row} | {cell.column} | {paper} | {ours} | {sd} | {summary.n} | {cell.updates:,} | {hours} |"


def diverged(table: Table, records: Sequence[Record]) -> int:
    """Runs that did, or that have no number, which is how a net that is no longer finite shows."""
    return sum(record["result"]["status"] == "diverged" or not known([table.value(record)]) for record in records)


def why_not(cell: Cell, root: Path = HERE) -> str:
    """Why a cell has no number."""
    try:
        cell.schedule_in(root)
    except ValueError:
        return "the range test had no bounds to read"
    return "not run yet"


def hours_by_device(records: Sequence[Record]) -> list[str]:
    """Mean hours a run, on CPUs and on a GPU."""
    where: dict[str, list[float]] = {"": [], "GPU ": []}
    for record in records:
        where["GPU " if record["hardware"]["gpu"] else ""].append(hours_of(record))
    return [f"{device}{statistics.fmean(hours):.2g}" for device, hours in where.items() if hours]


def hours_of(record: Record) -> float:
    """The time that a run's updates took."""
    return record["result"]["steps"] / record["result"]["updates_per_second"] / 3600.0


def text_of(table: Table, runs: Runs) -> str:
    """A table as README.md shows it."""
    lines = [
        f"## {table.title}",
        "",
        f"    {command(table)}",
        "",
        table.note,
        "",
        f"| row | column | the paper | here, mean | sd | n | updates | hours a run |\n|{'---|' * 8}",
        *(line_of(table, cell, runs) for cell in table.cells),
        "",
        f"In {table.unit}; n runs that differ in their seed.",
    ]
    if again := claims.to_repeat(runs):
        lines += ["", again]
    if remarks := table.remarks(table, runs):
        lines += ["", remarks]
    for figure, cells in figures.against_updates(table, runs).items():
        shown = "; ".join(f"{cell.row}, {cell.column}" for cell in cells)
        lines += ["", f"![Accuracy against updates: {shown}]({table.name}/{figure}.png)"]
    if runs:
        lines += ["", circumstances(list(runs.values()))]
    return "\n".join([*lines, "", made_of(table, len(runs))])


def comparison_text(records: Sequence[Record]) -> str:
    """What `cyclr compare` found."""
    rows = rows_of(records)
    lines = [
        "| policy | accuracy on the test set, mean | sd | n | updates | difference to fixed (95 %) |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        difference = "" if row.difference is None else f"{row.difference[0]:+.3f} to {row.difference[1]:+.3f}"
        lines.append(
            f"| {row.policy} | {row.mean:.4f} | {row.sd:.4f} | {len(row.values)} | {row.updates:,} | {difference} |"
        )
    return "\n".join([*lines, "", f"Verdict: {verdict(rows)}.", "", circumstances(records)])


def made_of(table: Table, count: int) -> str:
    """What the page remembers, unseen: how many records of a table it was made of."""
    return f"<!-- {table.name}: {count} records -->"


def first_records(page: str, name: str, runs: Runs) -> Runs:
    """The records that the page was made of: the queue may have added others since."""
    found = re.search(rf"<!-- {name}: (\d+) records -->", page)
    return dict(list(runs.items())[: int(found[1])]) if found else runs


def circumstances(records: Sequence[Record]) -> str:
    """Each machine and set of versions that made records, with its speed."""
    made: dict[str, list[Record]] = {}
    for record in records:
        hardware = record["hardware"]
        device = hardware["gpu"] or f"{hardware['cpu']}, {hardware['threads']} of {hardware['cores']} cores a run"
        packages = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
        made.setdefault(f"{device}; {packages}", []).append(record)
    lines = []
    for where, group in made.items():
        speeds = [record["result"]["updates_per_second"] for record in group]
        days = sorted(record["finished"][:10] for record in group)
        lines.append(
            f"{len(group)} runs: {where}; {span(*(f'{of(speeds):.0f}' for of in (min, max)))} updates a second; "
            f"{span(days[0], days[-1])}."
        )
    return "  \n".join(lines)


def span(first: str, last: str) -> str:
    return first if first == last else f"{first} to {last}"


def pages(runs: dict[str, Runs]) -> dict[Path, str]:
    """What every generated text file should hold."""
    objects = [each for name, table in TABLES.items() for each in objects_of(table, runs[name])]
    tables = "\n\n".join(text_of(table, runs[name]) for name, table in TABLES.items())
    readme = with_part((HERE / "README.md").read_text(), "tables", tables)
    readme = with_part(readme, "figure3", figures.bounds_text(HERE / "figure3"))
    readme = with_part(readme, "comparison", comparison_text(read_records(HERE / "comparison")))
    readme = with_part(readme, "claims", claims.text(TABLES["table1"], runs["table1"]))
    return {
        HERE / "cells.json": json.dumps(objects, indent=1, allow_nan=False) + "\n",
        HERE / "README.md": readme,
        FRONT: with_part(FRONT.read_text(), "claim", claims.front(TABLES["table1"], runs["table1"])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    try:
        for table in TABLES.values():
            refuse_unfinished(table)
        runs = {name: table.runs() for name, table in TABLES.items()}
        if check:
            page = (HERE / "README.md").read_text()
            runs = {name: first_records(page, name, each) for name, each in runs.items()}
        wanted = pages(runs)
    except ValueError as error:
        sys.exit(str(error))
    for path, text in wanted.items():
        if not check:
            write_atomically(path, text.encode())
        elif not (path.exists() and says_the_same(text, path.read_text())):
            sys.exit(f"{path.name} is not what the records say; run python experiments/rebuild.py")
    if not check:
        figures.draw(TABLES, runs)


if __name__ == "__main__":
    main()
