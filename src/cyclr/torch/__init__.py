"""The PyTorch adapter: `ScheduleLR` delivers a schedule, `range_test` runs one, `restored` leaves no trace.

It computes no rate: those come from `cyclr.schedules`.
"""

from cyclr import frameworks as _frameworks

_frameworks.check("torch")

from cyclr.torch.ensemble import Ensemble
from cyclr.torch.layers import groups_by_depth
from cyclr.torch.processes import ProcessError
from cyclr.torch.range_test import range_test
from cyclr.torch.scheduler import ScheduleLR
from cyclr.torch.snapshots import SnapshotError, Snapshots
from cyclr.torch.state import RestoreError, SavedState, restored

__all__ = [
    "Ensemble",
    "ProcessError",
    "RestoreError",
    "SavedState",
    "ScheduleLR",
    "SnapshotError",
    "Snapshots",
    "groups_by_depth",
    "range_test",
    "restored",
]
