"""The Keras 3 adapter, on its JAX and torch backends: `LearningRate`, `Momentum`, `AtCycleEnds` and `range_test`."""

from cyclr import frameworks as _frameworks

try:
    import keras as _keras
except ImportError as error:
    if error.name != "keras":
        raise ImportError(
            f"Keras' backend cannot be imported ({error}); set KERAS_BACKEND=jax or torch before Keras is imported"
        ) from None
_frameworks.check("keras")
if _keras.backend.backend() not in ("jax", "torch"):
    raise ImportError(
        f"cyclr.keras runs on Keras' jax and torch backends, got {_keras.backend.backend()}; "
        "set KERAS_BACKEND=jax or torch before Keras is imported"
    )

from cyclr.keras.cycle_ends import AtCycleEnds
from cyclr.keras.range_test import range_test
from cyclr.keras.schedule import LearningRate, Momentum

__all__ = ["AtCycleEnds", "LearningRate", "Momentum", "range_test"]
