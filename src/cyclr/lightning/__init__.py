"""The PyTorch Lightning adapter: `range_test` on a trainer, `RangeTest` inside a fit, `AtCycleEnds` for snapshots.

Schedules need no adapter: return `cyclr.torch.ScheduleLR` from `configure_optimizers`, with interval "step":

    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": ScheduleLR(optimizer, schedule), "interval": "step"}}
"""

from cyclr import frameworks as _frameworks

_frameworks.check("lightning")

from cyclr.lightning.cycle_ends import AtCycleEnds
from cyclr.lightning.range_test import RangeTest, range_test

__all__ = ["AtCycleEnds", "RangeTest", "range_test"]
