"""Steps of any framework, and the few functions that the schedules' formulas need on them."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from cyclr import checks, frameworks


class Scalars:
    """The array functions that the formulas use, for one Python int: a scheduler's step is a hot path."""

    cos = staticmethod(math.cos)
    exp2 = staticmethod(math.exp2)
    minimum = staticmethod(min)

    @staticmethod
    def clip(x: float, low: float, high: float) -> float:
        return min(max(x, low), high)

    @staticmethod
    def where(condition: bool, yes: float, no: float) -> float:
        return yes if condition else no


def evaluated(formula: Callable[[Any, Any], Any], step: Any) -> Any:
    """`formula(steps, functions)` at steps of any framework, checked; inside, all compute in double precision."""
    if isinstance(step, int | np.integer):
        return formula(checks.whole("step", step, least=0), Scalars)
    if isinstance(step, np.ndarray) and step.dtype.kind in "iu":
        steps = step.astype(np.int64)
        if steps.size and steps.min() < 0:  # an unsigned step beyond int64 wraps round to below 0
            raise ValueError(f"step must be at least 0 and below 2**63, got {step.flat[steps.argmin()]}")
        return np.asarray(formula(steps, np))
    if "int" in str(getattr(step, "dtype", "")):  # all that can be seen of a tracer
        framework = type(step).__module__.partition(".")[0]  # loaded already
        if framework in ("jax", "jaxlib"):
            return _in_double(formula, step, sys.modules["jax"])
        if framework == "torch":
            return formula(step.double(), sys.modules["torch"])  # torch divides integers in single precision
        if hasattr(step, "__array_namespace__"):
            return formula(step, step.__array_namespace__())
    raise TypeError(
        f"a step is an int or an array of ints, got {type(step).__name__} {step!r}; "
        "it counts optimiser updates from 0 (numpy.asarray turns a list into an array)"
    )


def _in_double(formula: Callable[[Any, Any], Any], step: Any, jax: Any) -> Any:
    """The rate that other frameworks have, rounded once; in JAX's single precision it would be some bits off."""
    frameworks.check("jax", "a schedule at a step of JAX")  # an older one has no enable_x64
    precision = jax.numpy.result_type(float)
    with jax.enable_x64(True):
        return formula(step.astype("int64"), jax.numpy).astype(precision)


def between(low: Any, high: Any, fraction: Any) -> Any:
    """Exactly `low` at 0 and `high` at 1, which low + (high - low) * fraction is not in floating point."""
    return low * (1.0 - fraction) + high * fraction


def power(gamma: float, exponent: Any, xp: Any) -> Any:
    """gamma**exponent for 0 < gamma <= 1; in base 2 a halving is exact and single precision keeps its digits."""
    if xp is Scalars:
        exponent = min(exponent, 2**62)  # a larger int has no float, and the power is 0 long before
    return xp.exp2(exponent * math.log2(gamma))
