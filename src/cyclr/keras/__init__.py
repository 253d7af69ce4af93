"""The Keras 3 adapter, on its JAX and torch backends: `LearningRate`, `Momentum` and `range_test`."""

try:
    import keras as _keras
except ImportError as error:
    if error.name == "keras":
        raise ImportError("cyclr.keras needs Keras: pip install 'cyclr[keras]'") from None
    raise ImportError(
        f"Keras' backend cannot be imported ({error}); set KERAS_BACKEND=jax or torch before Keras is imported"
    ) from None

_OLDEST = (3, 10)
if tuple(int(part) for part in _keras.__version__.split(".")[:2]) < _OLDEST:
    raise ImportError(
        f"cyclr.keras needs Keras {_OLDEST[0]}.{_OLDEST[1]} or later, found "
        f"{_keras.__version__}: pip install --upgrade 'cyclr[keras]'"
    )
if _keras.backend.backend() not in ("jax", "torch"):
    raise ImportError(
        f"cyclr.keras runs on Keras' jax and torch backends, got {_keras.backend.backend()}; "
        "set KERAS_BACKEND=jax or torch before Keras is imported"
    )

from cyclr.keras.range_test import range_test  # noqa: E402
from cyclr.keras.schedule import LearningRate, Momentum  # noqa: E402

__all__ = ["LearningRate", "Momentum", "range_test"]
