"""The files of a folder of results: what the command writes there, and reads again."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclr.curve import Curve
from cyclr.files import write_atomically

if TYPE_CHECKING:
    from cyclr.bounds import Bounds
    from cyclr.lab.records import Record
    from cyclr.lab.task import Task


def write_found(
    task: Task, folder: Path, curves: list[Curve], bounds: Bounds, policy: str, metric: str, accumulation: int
) -> None:
    """A range test's curves, bounds.json and range_test.png; nothing of an earlier one stays."""
    from cyclr.pictures import draw_range_test  # matplotlib takes longer to load than all else

    names = ["curve.json", *(f"curve-seed{seed}.json" for seed in range(1, len(curves)))]
    for name, curve in zip(names, curves, strict=True):
        curve.save(folder / name)
    (folder / "bounds.json").unlink(missing_ok=True)  # an earlier find's, in case this is killed before its own
    for stale in folder.glob("curve-seed*.json"):  # of an earlier find with more seeds
        if stale.name not in names:
            stale.unlink()
    picture = folder / "range_test.png"
    if drawn := [curve for curve in curves if _has_points(curve, curve.of(metric))]:
        draw_range_test(drawn, bounds, metric, picture)
    else:
        picture.unlink(missing_ok=True)  # an earlier find's is not this one's
    about = {"task": task.name, "fingerprint": task.fingerprint(), "policy": policy, "accumulation": accumulation}
    content = {**about, **asdict(bounds)}
    write_atomically(folder / "bounds.json", (json.dumps(content, indent=2) + "\n").encode())


def write_report(folder: Path, records: list[Record] | None) -> Path:
    """report.html, from the given records or from all in the folder.

    Raises:
        ValueError: there is no folder, or nothing in it; its records are of several tasks, or of several settings.
    """
    from cyclr.lab import read_records
    from cyclr.report import render

    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; give one that cyclr compare or train has written")
    if records is None:
        records = read_records(folder)
    if not records:
        raise ValueError(f"{folder} holds no records; run cyclr compare or cyclr train with --out {folder} first")
    _check_comparable(folder, records)
    curves = [Curve.load(path) for path in sorted(folder.glob("curve*.json"))]
    curves = [curve for curve in curves if _has_points(curve, *(c for c in curve.companions if c.metric == "loss"))]
    bounds = read_bounds(folder / "bounds.json") if (folder / "bounds.json").exists() else None
    path = folder / "report.html"
    write_atomically(path, render(records, curves, bounds).encode())
    return path


def _check_comparable(folder: Path, records: list[Record]) -> None:
    """All runs of one task, and those of a policy alike but for the seed."""
    shared, own = ("task", "fingerprint", "precision", "accumulation", "batch_size"), ("schedule", "total_steps")
    first = records[0]["config"]
    alike: dict[str, dict[str, Any]] = {}
    for record in records:
        config = record["config"]
        before = alike.setdefault(config["policy"], config)
        for names, other in ((shared, first), (own, before)):
            for name in names:
                if config.get(name) != other.get(name):
                    raise ValueError(
                        f"{folder} holds records that differ in {name} ({config['policy']}, seed {config['seed']}): "
                        "they are no comparison; choose another --out for each, or take the others out of records.jsonl"
                    )


def _has_points(*curves: Curve) -> bool:
    return all((curve.lrs > 0).any() for curve in curves)


def read_bounds(path: Path) -> dict[str, Any]:
    """What bounds.json holds.

    Raises:
        ValueError: it is damaged.
    """
    damaged = ValueError(f"{path} is damaged; remove it, or run cyclr find again")
    try:
        content = json.loads(path.read_text())
    except ValueError:
        raise damaged from None
    if not isinstance(content, dict) or not isinstance(content.get("status"), str) or "reason" not in content:
        raise damaged
    numbers = [content.get("base_lr"), content.get("max_lr"), *(content.get("interval") or ["none"])]
    if content["status"] == "ok" and not all(isinstance(number, float) for number in numbers):
        raise damaged
    return content
