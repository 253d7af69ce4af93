"""Plan: from the updates in an epoch and a budget to a schedule that ends at a cycle's end."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from cyclr import checks, policies
from cyclr.schedules import Schedule

LEAST_EPOCHS, MOST_EPOCHS = 2, 10  # half a cycle, the paper, 3.2
LEAST_CYCLES, ADVISED_CYCLES = 3, 4
DECLINE = 0.1  # what is left of a rate at the end where a policy declines exponentially and no gamma is given


@dataclass(frozen=True)
class Plan:
    """A schedule and how long to follow it.

    Attributes:
        policy: the name it was asked for by.
        schedule: step -> rate.
        total_steps: updates to train for; the end of the last cycle.
        reasons: what was chosen and why, one sentence each.
        warnings: where the budget does not fit the method.
    """

    policy: str
    schedule: Schedule
    total_steps: int
    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.policy}: {self.total_steps:,} updates", *self.reasons]
        return "\n  ".join(lines + [f"warning: {warning}" for warning in self.warnings])


def _gamma(total: int) -> float:
    return float(DECLINE ** (1.0 / total))


# How each policy is filled in: (base_lr, max_lr, stepsize, total_steps) -> schedule.
_CYCLIC: dict[str, Callable[[float, float, int, int], Schedule]] = {
    "triangular": lambda base, top, half, total: policies.triangular(base, top, half),
    "triangular2": lambda base, top, half, total: policies.triangular2(base, top, half),
    "exp_range": lambda base, top, half, total: policies.exp_range(base, top, half, _gamma(total)),
    "exp_range_amplitude": lambda base, top, half, total: policies.exp_range_amplitude(base, top, half, _gamma(total)),
    "welch": lambda base, top, half, total: policies.welch(base, top, half),
    "hann": lambda base, top, half, total: policies.hann(base, top, half),
    "cosine_restarts": lambda base, top, half, total: policies.cosine_restarts(base, top, 2 * half),
}
_ONE_WAY: dict[str, Callable[[float, float, int], Schedule]] = {
    "fixed": lambda base, top, total: policies.fixed(math.sqrt(base * top) if base else top / 2),
    "decay": policies.decay,
    "exp": lambda base, top, total: policies.exp(top, _gamma(total)),
    "one_cycle": lambda base, top, total: policies.one_cycle(top, total, base_lr=base),
    "linear_to_zero": lambda base, top, total: policies.decay(0.0, top, total),
}
POLICIES: tuple[str, ...] = (*_CYCLIC, *_ONE_WAY)


def plan(
    policy: str,
    base_lr: float,
    max_lr: float,
    *,
    steps_per_epoch: int,
    epochs: float | None = None,
    total_steps: int | None = None,
    stepsize: int | None = None,
) -> Plan:
    """Fill in a policy for a budget: a stepsize of 2 to 10 epochs, 4 cycles or more, the end at a cycle's end.

    Args:
        policy: one of `cyclr.POLICIES`. What has no cycle takes the whole budget: `fixed` at the geometric middle
            of the bounds, `exp` from max_lr to a tenth of it, `linear_to_zero` from max_lr.
        base_lr, max_lr: the bounds, as `cyclr.find_bounds` reads them.
        steps_per_epoch: updates in an epoch, at least 1: training examples / (batch size x batches that accumulate x
            processes).
        epochs, total_steps: the budget, one of the two.
        stepsize: updates in half a cycle, if you want to set it.

    Raises:
        ValueError: an unknown policy, swapped bounds, no budget or two, a budget that is too short for one cycle.

    Example:
        >>> import cyclr
        >>> p = cyclr.plan("triangular", 0.001, 0.006, steps_per_epoch=500, total_steps=25_000)
        >>> p.schedule.length, p.total_steps, len(p.schedule.cycle_ends(p.total_steps))
        (6250, 25000, 4)

    Reference: the paper, 3.2.
    """
    checks.choice("policy", policy, POLICIES)
    base_lr, max_lr = checks.rate("base_lr", base_lr), checks.rate("max_lr", max_lr, above=True)
    checks.ordered("base_lr", base_lr, "max_lr", max_lr)
    per_epoch = checks.whole("steps_per_epoch", steps_per_epoch, least=1)
    if (epochs is None) == (total_steps is None):
        raise ValueError("the budget is either epochs or total_steps, got " + ("neither" if epochs is None else "both"))
    if epochs is not None:
        updates = checks.rate("epochs", epochs, above=True) * per_epoch
        if math.isinf(updates):
            raise ValueError(f"the budget of {epochs:g} epochs is not finite in updates; give fewer")
        total_steps = int(round(updates, 6))  # 0.29 * 100 is a little below 29
    budget = checks.whole("the budget in updates", total_steps, least=2)
    if policy in _ONE_WAY:
        if stepsize is not None:
            raise ValueError(f"{policy} has no cycles, so no stepsize; leave it out (got {stepsize!r})")
        return Plan(policy, _ONE_WAY[policy](base_lr, max_lr, budget), budget, ("it has no cycles: the whole budget",))
    half, cycles, reasons, warnings = _half_cycle(budget, per_epoch, stepsize)
    total = 2 * half * cycles
    if total < budget:
        reasons.append(f"it stops {budget - total:,} updates early, at the last cycle's end, where accuracy peaks")
    schedule = _CYCLIC[policy](base_lr, max_lr, half, total)
    return Plan(policy, schedule, total, tuple(reasons), tuple(warnings))


def _half_cycle(budget: int, per_epoch: int, stepsize: int | None) -> tuple[int, int, list[str], list[str]]:
    """Stepsize and number of cycles for a budget, with the reasons and warnings."""
    if stepsize is not None:
        half = checks.whole("stepsize", stepsize, least=1)
        cycles = budget // (2 * half)
        if cycles < 1:
            raise ValueError(f"stepsize must be at most half the budget of {budget} updates, got {half}")
        chosen = "as you set it"
    else:
        cycles = ADVISED_CYCLES
        if budget < 2 * cycles * LEAST_EPOCHS * per_epoch:
            cycles = LEAST_CYCLES
        # Long budgets get more cycles, not longer ones.
        cycles = max(cycles, math.ceil(budget / (2 * MOST_EPOCHS * per_epoch)))
        half = budget // (2 * cycles)
        if half < 1:
            raise ValueError(
                f"the budget must hold {LEAST_CYCLES} cycles of at least 2 updates, got {budget} updates; train longer"
            )
        chosen = "the paper advises 2 to 10 epochs and 4 cycles or more"
    epochs = half / per_epoch
    reasons = [f"stepsize {half:,} updates = {epochs:.3g} epochs, {cycles} cycles ({chosen})"]
    warnings = []
    if epochs < LEAST_EPOCHS:
        advice = "give a larger stepsize"
        if stepsize is None:
            advice = f"train for at least {2 * LEAST_CYCLES * LEAST_EPOCHS} epochs"
        warnings.append(
            f"half a cycle is {epochs:.4g} epochs, below the {LEAST_EPOCHS} that the paper advises: {advice}"
        )
    if epochs > MOST_EPOCHS:
        warnings.append(
            f"half a cycle is {epochs:.4g} epochs, above the {MOST_EPOCHS} that the paper advises: "
            "give a smaller stepsize"
        )
    if cycles < LEAST_CYCLES:
        warnings.append(f"{cycles} cycle{'s' * (cycles > 1)} in the budget, the paper advises at least {LEAST_CYCLES}")
    return half, cycles, reasons, warnings
