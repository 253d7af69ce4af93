"""What each adviser says about a task, and what training with it reaches.

A sweep is a record of its own: a peer's advised rates, or the curves of cyclr's range test, which `rule.py` reads.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from grid import trained
from peers import FINDERS
from rule import advised, read, share_from
from tasks import CASES
from training import train
from tuning_free import METHODS

from cyclr.lab import Task
from cyclr.lab.data import Batches
from cyclr.torch import range_test
from records import SEEDS, Records

LENGTHS = (100, 300, 1000)
USUAL = 300  # cyclr's default
# The schedule that each peer's users follow.
SCHEDULES = {
    "fastai valley": "one_cycle",
    "fastai slide": "one_cycle",
    "fastai steep": "one_cycle",
    "fastai minimum": "one_cycle",
    "Lightning": "fixed",
    "torch-lr-finder": "fixed",
    "ignite": "fixed",
}
CYCLR = ("triangular", "triangular2", "one_cycle", "linear_to_zero")


def peers(study: Any, name: str) -> None:
    """What every other finder says about one task; long sweeps of slow tasks and of more seeds are left out."""
    for steps in LENGTHS:
        for seed in SEEDS if steps < LENGTHS[-1] else SEEDS[:1]:
            for finder, find in FINDERS.items():
                said = lambda task, _, find=find, seed=seed, steps=steps: {  # noqa: E731
                    "advice": {each: asdict(said) for each, said in find(task, seed, steps).items()}
                }
                if steps <= max(LENGTHS[0], 2 * CASES[name].updates):
                    study.result({"task": name, "policy": finder, "sweep": steps, "seed": seed}, said)


def curves(study: Any, name: str) -> None:
    """cyclr's range tests of one task; the longest with one seed only."""
    first = usual(CASES[name].updates)
    for steps in (first, *(each for each in LENGTHS if each != first)):
        for seed in SEEDS if steps < LENGTHS[-1] else SEEDS[:1]:
            curve = lambda task, _, seed=seed, steps=steps: curve_of(task, seed, steps)  # noqa: E731
            if steps <= max(LENGTHS[0], 3 * CASES[name].updates):
                study.result({"task": name, "policy": "cyclr", "sweep": steps, "seed": seed}, curve)


def usual(updates: int) -> int:
    """Steps of the range test that cyclr is judged by: the default, or fewer where the training itself is short."""
    return USUAL if 3 * updates >= USUAL else LENGTHS[0]


def curve_of(task: Task, seed: int, steps: int) -> dict[str, Any]:
    """cyclr's range test, as it is by default; numbers with six digits keep the record small."""
    model, optimizer = task.build(seed)
    made = [0]
    optimizer.register_step_post_hook(lambda *_: made.__setitem__(0, made[0] + 1))
    curve = range_test(model, optimizer, task.loss, Batches(task.train, task.batch_size, seed), steps=steps)
    return {"curve": rounded(curve.to_dict()), "updates": made[0]}


def rounded(curve: dict[str, Any]) -> dict[str, Any]:
    """A curve as it is kept."""
    short = {name: [float(f"{each:.6g}") for each in curve[name]] for name in ("lrs", "values")}
    return {**curve, **short, "companions": [rounded(each) for each in curve["companions"]]}


def judge(study: Any, name: str) -> None:
    """Train inside the bounds that cyclr's default range test gives, its shares fitted on the other tasks."""
    records = Records(study.folder)
    swept = {task: records.curves(usual(case.updates)).get(task, {}) for task, case in CASES.items()}
    curves_of = {task: list(each.values()) for task, each in swept.items()}
    for policy in CYCLR:
        grids = {task: records.grid(task, policy) for task in CASES if records.best(task, policy)}
        share = share_from(curves_of, grids, policy, without=name)
        for seed, curve in swept[name].items():
            bounds = read(curve, policy) if share is None else advised(curve, policy, share)
            if bounds.max_lr is not None:
                base, top = (float(f"{rate:.4g}") for rate in (bounds.base_lr, bounds.max_lr))
                base_lr = base if policy.startswith("triangular") else None  # the others start where they always do
                trained(study, name, policy, top, base_lr, seed, adviser="cyclr")


def judge_peers(study: Any, name: str, seed: int) -> None:
    """Train with what the other finders say after a sweep of their usual length."""
    records = Records(study.folder)
    for finder in FINDERS:
        known = records.swept.get((name, finder, LENGTHS[0], seed), {})
        for adviser, said in known.get("advice", {}).items():
            if said["lr"] is not None:
                trained(study, name, SCHEDULES[adviser], float(f"{said['lr']:.4g}"), None, seed)


def methods(study: Any, name: str, seed: int) -> None:
    """Train without a rate: the methods that promise to need none, and plain defaults."""
    for method, settings in METHODS.items():
        study.result(
            {"task": name, "policy": method, "seed": seed},
            lambda task, updates, settings=settings: train(
                task, updates, seed, settings.schedule(updates), settings.optimizer, settings.companion
            ),
        )
