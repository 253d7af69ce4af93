"""cyclr finds the learning-rate range that a network can use, cycles the rate through it, and shows whether that won.

`import cyclr` loads NumPy and no framework. `cyclr.torch` is the PyTorch adapter, `cyclr.lab` trains whole tasks.
"""

from cyclr.bounds import Bounds, find_bounds
from cyclr.curve import Curve
from cyclr.plan import POLICIES, Plan, plan
from cyclr.policies import (
    cosine_restarts,
    decay,
    exp,
    exp_range,
    exp_range_amplitude,
    fixed,
    hann,
    one_cycle,
    ramp,
    stages,
    triangular,
    triangular2,
    welch,
)
from cyclr.range_test import range_test
from cyclr.schedules import Cycle, Schedule
from cyclr.stages import schedule_from_dict
from cyclr.stopping import reason_to_stop

__version__ = "0.1.0"

__all__ = [
    "POLICIES",
    "Bounds",
    "Curve",
    "Cycle",
    "Plan",
    "Schedule",
    "cosine_restarts",
    "decay",
    "exp",
    "exp_range",
    "exp_range_amplitude",
    "find_bounds",
    "fixed",
    "hann",
    "one_cycle",
    "plan",
    "ramp",
    "range_test",
    "reason_to_stop",
    "schedule_from_dict",
    "stages",
    "triangular",
    "triangular2",
    "welch",
]
