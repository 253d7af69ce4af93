"""The range that a command works in: given, found earlier in the same folder, or found now."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cyclr.console import FAILED, bar, notes, stop

if TYPE_CHECKING:
    from cyclr.bounds import Bounds
    from cyclr.lab.task import Task


@dataclass(frozen=True)
class Search:
    """What is asked of a search for bounds; the words are those of `cyclr.lab.find` and of the command's options."""

    seeds: int = 1
    steps: int | None = None
    end_lr: float | None = None
    policy: str = "triangular"
    metric: str = "loss"
    precision: str | None = None
    accumulation: int = 1


def find_range(task: Task, folder: Path, search: Search, *, quiet: bool) -> Bounds:
    """Range test, bounds and picture, with their files."""
    from cyclr import checks, ramp
    from cyclr.lab import find
    from cyclr.lab.processes import on_first
    from cyclr.plan import POLICIES
    from cyclr.results import write_found

    checks.choice("policy", search.policy, POLICIES)
    checks.choice("metric", search.metric, ("loss", "accuracy", "validation accuracy"))
    seeds = range(checks.whole("seeds", search.seeds, least=1))
    steps = search.steps or max(300, 8 * task.updates_per_epoch(search.accumulation))
    given = None if search.end_lr is None else ramp(0.0, search.end_lr, steps)
    with bar(quiet=quiet) as bars:
        curves, bounds = find(
            task, seeds=seeds, steps=search.steps, ramp=given, policy=search.policy, metric=search.metric,
            precision=search.precision, accumulation=search.accumulation, progress=bars("range test"),
        )  # fmt: skip
    on_first(lambda: write_found(task, folder, curves, bounds, search.policy, search.metric, search.accumulation))
    return bounds


def range_for(
    task: Task, folder: Path, base_lr: float | None, max_lr: float | None, search: Search, *, quiet: bool
) -> tuple[float, float]:
    """The bounds: given, found earlier, or found now by this search.

    Raises:
        ValueError: only one of the two is given, or what was found is of something else.
    """
    if base_lr is not None and max_lr is not None:
        return base_lr, max_lr
    if (base_lr is None) != (max_lr is None):
        raise ValueError("give both --base-lr and --max-lr, or neither to have them found")
    from cyclr.bounds import bears_as
    from cyclr.lab.processes import on_first
    from cyclr.results import read_bounds

    path = folder / "bounds.json"
    found = on_first(lambda: read_bounds(path) if path.exists() else None)
    if found is not None:
        if found.get("fingerprint") != task.fingerprint():
            raise ValueError(f"{path} is of another task or setting; choose another --out, or run cyclr find again")
        if found.get("accumulation", 1) != search.accumulation:
            raise ValueError(
                f"{path} was found with --accumulation {found.get('accumulation', 1)}, not {search.accumulation}; run "
                f"cyclr find --accumulation {search.accumulation} again, or choose another --out"
            )
        read_for, wanted = (bears_as(policy) for policy in (found.get("policy", search.policy), search.policy))
        if read_for != wanted:
            notes.print(f"{path} is for {read_for}; cyclr find --policy {wanted} says what {wanted} bears")
    else:
        notes.print("no bounds yet: running the LR range test first")
        found = asdict(find_range(task, folder, search, quiet=quiet))
    if found["status"] != "ok":
        stop(FAILED, f"no bounds ({found['status']}): {found['reason']}; or give --base-lr and --max-lr")
    return found["base_lr"], found["max_lr"]
