"""Which frameworks an adapter needs, and how new: one sentence where one is missing or too old."""

from __future__ import annotations

import importlib
import re

# By adapter, which is also the name of its extra: module, name and oldest version, in the order of the look.
_TORCH = ("torch", "PyTorch", (2, 9))
NEEDS = {
    "torch": [_TORCH],
    "lightning": [_TORCH, ("pytorch_lightning", "PyTorch Lightning", (2, 4))],
    "transformers": [_TORCH, ("accelerate", "Accelerate", (1, 10)), ("transformers", "Transformers", (5, 0))],
    "keras": [("keras", "Keras", (3, 10))],
    "jax": [("jax", "JAX", (0, 8))],
}


def check(adapter: str, who: str | None = None) -> None:
    """Import what `cyclr.<adapter>` needs; `who` is named in the sentence, if it isn't the adapter.

    Raises:
        ImportError: a framework that is missing or too old, with the command that installs it.
    """
    who = who or f"cyclr.{adapter}"
    for module, name, oldest in NEEDS[adapter]:
        try:
            found = str(importlib.import_module(module).__version__)
        except ModuleNotFoundError as error:
            if error.name != module:  # it is there, and lacks something itself
                raise
            raise ImportError(f"{who} needs {name}: pip install 'cyclr[{adapter}]'") from None
        if tuple(map(int, re.findall(r"\d+", found)[:2])) < oldest:  # of 2.10rc1 as of 2.10.0+cpu the first two
            raise ImportError(
                f"{who} needs {name} {oldest[0]}.{oldest[1]} or later, found {found}: "
                f"pip install --upgrade 'cyclr[{adapter}]'"
            )
