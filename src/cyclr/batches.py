"""Batches without end, from anything that can be iterated again and again."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import Any

ONCE = "{} can be read only once (it is an iterator); give the list, loader or dataset behind it"
EMPTY = "{} yielded no batch; is the data set empty, or smaller than a dropped last batch?"


def endless(batches: Iterable[Any], name: str = "batches") -> Generator[Any]:
    """Start over when the batches are exhausted. The first one is taken only when it is needed.

    Raises:
        TypeError: nothing that gives batches; a dict, of which only the keys would be read.
        ValueError: an iterator, which can be read only once; no batch at all.
    """
    if isinstance(batches, Iterator):
        raise ValueError(ONCE.format(name))
    if isinstance(batches, str | Mapping) or not (isinstance(batches, Iterable) or hasattr(batches, "__getitem__")):
        raise TypeError(f"{name} must be a list of batches or a loader that gives them, got {type(batches).__name__}")
    return _again_and_again(batches, name)


def _again_and_again(batches: Iterable[Any], name: str) -> Generator[Any]:
    passes = 0
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise ValueError((ONCE if passes else EMPTY).format(name))
        passes += 1
