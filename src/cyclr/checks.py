"""One sentence for each wrong input: what it got, what is allowed, what to do."""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Iterable
from typing import Any


def rate(name: str, value: Any, *, least: float = 0.0, above: bool = False) -> float:
    """A finite number of at least `least` (or above it): a learning rate, a momentum, a weight decay."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None
    except OverflowError:  # an int beyond every float
        number = math.inf
    if not math.isfinite(number) or number < least or (above and number == least):
        raise ValueError(f"{name} must be finite and {'above' if above else 'at least'} {least:g}, got {number:g}")
    return number


def whole(name: str, value: Any, *, least: int) -> int:
    """A whole number of at least `least`: updates, cycles, repetitions."""
    try:
        number = operator.index(value)
    except TypeError:
        hint = "; round it first" if isinstance(value, float) else ""
        raise ValueError(f"{name} must be a whole number, at least {least}, got {value!r}{hint}") from None
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    return number


def fraction(name: str, value: Any) -> float:
    """A number above 0 and at most 1: a factor of decline."""
    number = rate(name, value, above=True)
    if number > 1.0:
        raise ValueError(f"{name} must be above 0 and at most 1, got {number:g}; 1 means no decline")
    return number


def ordered(low_name: str, low: float, high_name: str, high: float) -> None:
    """`low` must not lie above `high`."""
    if low > high:
        raise ValueError(
            f"{low_name} must be below {high_name}, got {low_name}={low:g} and {high_name}={high:g} (swapped?)"
        )


def kind(name: str, value: Any, allowed: Any, words: str) -> None:
    """Something of a type, such as a function (`Callable`), which is described in words."""
    if not isinstance(value, allowed):
        raise TypeError(f"{name} must be {words}, got {type(value).__name__}")


def choice(name: str, value: Any, allowed: Iterable[str]) -> str:
    """One of the names allowed; otherwise all of them are listed, the nearest first."""
    names = list(allowed)
    if isinstance(value, str) and value in names:
        return value
    near = difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise ValueError(f"unknown {name} {value!r}; choose from {', '.join(names)}{hint}")
