"""The PyTorch Lightning adapter: `range_test` on a trainer, `RangeTest` inside a fit, `AtCycleEnds` for snapshots.

Schedules need no adapter: return `cyclr.torch.ScheduleLR` from `configure_optimizers`, with interval "step":

    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": ScheduleLR(optimizer, schedule), "interval": "step"}}
"""

try:
    import pytorch_lightning as _lightning
except ImportError:
    raise ImportError("cyclr.lightning needs PyTorch Lightning: pip install 'cyclr[lightning]'") from None

_OLDEST = (2, 4)
_version: str = _lightning.__version__  # type: ignore[attr-defined]
if tuple(int(part) for part in _version.split(".")[:2]) < _OLDEST:
    raise ImportError(
        f"cyclr.lightning needs PyTorch Lightning {_OLDEST[0]}.{_OLDEST[1]} or later, found "
        f"{_version}: pip install --upgrade 'cyclr[lightning]'"
    )

from cyclr.lightning.cycle_ends import AtCycleEnds  # noqa: E402
from cyclr.lightning.range_test import RangeTest, range_test  # noqa: E402

__all__ = ["AtCycleEnds", "RangeTest", "range_test"]
