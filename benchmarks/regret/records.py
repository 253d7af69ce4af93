"""The study's records, by what they are about."""

from __future__ import annotations

import json
import statistics
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from cyclr.lab import read_records

SEEDS = (0, 1, 2)
PER_DECADE = 6  # the grid's rates


def rate_of(k: int) -> float:
    """The grid's k-th rate."""
    return float(f"{10.0 ** (k / PER_DECADE):.4g}")


RATES = {rate_of(k) for k in range(-8 * PER_DECADE, 3 * PER_DECADE)}


class Records:
    """All records of a folder.

    Attributes:
        trained: (task, policy, max_lr, base_lr) -> seed -> metric in points.
        inside: (task, policy) -> seed -> (base_lr, max_lr, metric): trained inside the bounds that cyclr gave.
        swept: (task, finder, updates, seed) -> what the finder said, or cyclr's curve.
        errors: what failed and why -> how many trainings or sweeps.
        updates: task -> its budget.
    """

    def __init__(self, folder: Path) -> None:
        self.trained: dict[tuple[str, str, float | None, float | None], dict[int, float]] = defaultdict(dict)
        self.inside: dict[tuple[str, str], dict[int, tuple[float | None, float, float]]] = defaultdict(dict)
        self.swept: dict[tuple[str, str, int, int], dict[str, Any]] = {}
        self.errors: Counter[str] = Counter()
        self.updates: dict[str, int] = {}
        versions: dict[str, set[str]] = defaultdict(set)
        for record in read_records(folder):
            config, result = record["config"], record["result"]
            task, policy, seed = config["task"], config["policy"], config["seed"]
            self.updates.setdefault(task, config.get("updates", 0))
            if "error" in result:
                self.errors[f"{task}: {result['error']}"] += 1
                continue
            self.updates[task] = config["updates"]
            versions[task].add(f"{config['fingerprint']} {config['updates']}")
            if "sweep" in config:
                self.swept[task, policy, config["sweep"], seed] = result
            elif "adviser" in config:
                self.inside[task, policy][seed] = config["base_lr"], config["max_lr"], result["metric"]
            else:
                self.trained[task, policy, config.get("max_lr"), config.get("base_lr")][seed] = result["metric"]
        for task, several in versions.items():
            if len(several) > 1:
                raise ValueError(f"{folder} holds {len(several)} versions of task {task}; move the old records away")

    def grid(self, task: str, policy: str) -> dict[float, float]:
        """Rate -> mean metric, on the grid of a policy."""
        cells = self.trained.items()
        found = {lr: seeds for (of, by, lr, base), seeds in cells if (of, by, base) == (task, policy, None)}
        return {lr: statistics.fmean(seeds.values()) for lr, seeds in found.items() if lr in RATES}

    def best(self, task: str, policy: str) -> tuple[float, float] | None:
        """The rate with the best mean over all seeds, and that mean; None while the grid has none."""
        means = self.grid(task, policy)
        whole = {lr: mean for lr, mean in means.items() if len(self.trained[task, policy, lr, None]) == len(SEEDS)}
        return max(whole.items(), key=lambda item: item[1]) if whole else None

    def curves(self, steps: int) -> dict[str, dict[int, str]]:
        """Task -> seed -> cyclr's curve after a sweep of that length, as JSON."""
        found: dict[str, dict[int, str]] = defaultdict(dict)
        for (task, finder, length, seed), result in self.swept.items():
            if finder == "cyclr" and length == steps:
                found[task][seed] = json.dumps(result["curve"])
        return found
