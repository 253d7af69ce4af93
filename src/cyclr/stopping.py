"""When to stop at a cycle's end, where the rate is lowest and accuracy peaks: a pure function of what was seen."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cyclr import checks


def reason_to_stop(
    ends: Sequence[tuple[float, float]], *, seconds: float | None = None, patience: int | None = None
) -> str | None:
    """Whether to stop at the cycle's end that has just been reached, and why; None to go on.

    Args:
        ends: for each cycle's end until now (seconds since the start, metric); a higher metric is better, and NaN
            the worst.
        seconds: the budget of wall-clock time. It stops where another cycle, as long as the last, would exceed it; one
            cycle is always made.
        patience: cycles without a new best metric after which it stops, at least 1.

    Raises:
        ValueError: seconds that are not above 0, a patience below 1.

    Example:
        >>> from cyclr import reason_to_stop
        >>> reason_to_stop([(60, 0.70), (120, 0.75)], seconds=200)
        >>> reason_to_stop([(60, 0.70), (120, 0.75), (180, 0.76)], seconds=200)
        'another cycle would take it past 200 seconds'
        >>> reason_to_stop([(60, 0.70), (120, 0.75), (180, 0.74), (240, 0.73)], patience=2)
        'no better metric for 2 cycles'
    """
    if seconds is not None:
        checks.rate("seconds", seconds, above=True)
    if patience is not None:
        checks.whole("patience", patience, least=1)
    if not ends:
        return None
    times = [time for time, _ in ends]
    metrics = [-math.inf if math.isnan(metric) else metric for _, metric in ends]
    last = times[-1] - (times[-2] if len(times) > 1 else 0.0)
    if seconds is not None and times[-1] + last > seconds:
        return f"another cycle would take it past {seconds:g} seconds"
    if patience is not None and len(metrics) - 1 - metrics.index(max(metrics)) >= patience:
        return f"no better metric for {patience} cycle{'s' * (patience > 1)}"
    return None
