"""The oracle: for a task and a policy, the best rate of a grid, coarse far from it and fine, with 3 seeds, around it.

Rates are 10 ** (k / 6). First one a decade; then three a decade around the best; then six a decade with all seeds
around the best of those, until it has such neighbours on both sides.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from training import schedule_of, train

from records import PER_DECADE, SEEDS, rate_of

DECADES = {"SGD": (-4, 1), "Adagrad": (-4, 1), "RMSprop": (-6, -1), "Adam": (-5, 0), "AdamW": (-5, 0)}
OTHERS = (-6, 1)


def search(study: Any, name: str, policy: str) -> tuple[float, float]:
    """Train what the grid still needs; (the best rate, its mean metric over the seeds)."""
    seen: dict[int, dict[int, float]] = {}

    def look(ks: range | list[int], seeds: tuple[int, ...]) -> None:
        for k in ks:
            for seed in seeds:
                if seed not in seen.setdefault(k, {}):
                    seen[k][seed] = trained(study, name, policy, rate_of(k), None, seed).get("metric", 0.0)

    def best(count: int) -> int:
        return max((k for k in seen if len(seen[k]) >= count), key=lambda k: np.mean(list(seen[k].values())))

    low, high = DECADES.get(optimizer_of(study, name), OTHERS)
    look(range(low * PER_DECADE, high * PER_DECADE + 1, PER_DECADE), SEEDS[:1])
    middle = best(1)
    look([middle + shift for shift in (-4, -2, 2, 4)], SEEDS[:1])
    middle, looked = best(1), set()
    while middle not in looked:
        looked.add(middle)
        look([middle + shift for shift in (0, -1, 1)], SEEDS)
        middle = best(len(SEEDS))
    return rate_of(middle), float(np.mean(list(seen[middle].values())))


def trained(
    study: Any, name: str, policy: str, max_lr: float, base_lr: float | None, seed: int, **known: str
) -> dict[str, Any]:
    """The result of one training; base_lr None is the rule of thumb."""
    config = {"task": name, "policy": policy, "max_lr": max_lr, "base_lr": base_lr, "seed": seed, **known}
    return study.result(
        config, lambda task, updates: train(task, updates, seed, schedule_of(policy, max_lr, updates, base_lr))
    )


def optimizer_of(study: Any, name: str) -> str:
    """The optimiser's name: the range of rates that make sense depends on it."""
    return type(study.task(name).build(0)[1]).__name__
