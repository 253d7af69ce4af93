"""Batches from tensors in memory or from a torch Dataset, in an order that a seed and a step determine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

Augment: TypeAlias = Callable[[Tensor, torch.Generator], Tensor]
Source: TypeAlias = "tuple[Tensor, Tensor] | Dataset[Any]"


def size_of(source: Source) -> int:
    """Examples in a data source."""
    return len(source[0]) if isinstance(source, tuple) else len(source)  # type: ignore[arg-type]


def on_device(source: Source, device: torch.device | str) -> Source:
    """Tensors in memory, moved there; a Dataset as it is."""
    return (source[0].to(device), source[1].to(device)) if isinstance(source, tuple) else source


@dataclass
class Batches:
    """Training batches without end, each epoch in a new order; batch `step` is the same however one gets there.

    Iterating yields one epoch's batches (the range test wants that); `starting_at(step)` goes on for ever.

    Args:
        source: a pair of tensors (x, y) held in memory, or a map-style torch Dataset.
        batch_size: examples in a batch; the last, smaller batch of an epoch is left out.
        seed: with the epoch, determines the order and the augmentation.
        augment: `augment(x, generator)` for a whole batch of tensors at once.
        device: where in-memory data is kept; batches come from there.
        workers: processes that load a Dataset's examples.
        part, parts: of each batch, only this one of so many equal parts: what one of several processes trains on.
    """

    source: Source
    batch_size: int
    seed: int = 0
    augment: Augment | None = None
    device: torch.device | str = "cpu"
    workers: int = 0
    part: int = 0
    parts: int = 1

    def __post_init__(self) -> None:
        if self.batch_size % self.parts:
            raise ValueError(
                f"a batch of {self.batch_size} examples cannot be shared equally by {self.parts} processes; "
                "change the task's batch_size or the number of processes"
            )
        if isinstance(self.source, tuple):
            x, y = self.source
            if len(x) != len(y):
                raise ValueError(f"data must have one target an example, got {len(x)} inputs and {len(y)} targets")
            self.source = on_device(self.source, self.device)
        if size_of(self.source) < self.batch_size:
            raise ValueError(
                f"{size_of(self.source)} training examples do not fill one batch of {self.batch_size}; "
                "check the data, or choose a smaller batch_size"
            )

    def __len__(self) -> int:
        return size_of(self.source) // self.batch_size

    def __iter__(self) -> Iterator[Any]:
        return self._epoch(0, 0)

    def starting_at(self, step: int) -> Iterator[Any]:
        """The batches of update `step` and all that follow."""
        epoch, position = divmod(step, len(self))
        while True:
            yield from self._epoch(epoch, position)
            epoch, position = epoch + 1, 0

    def _epoch(self, epoch: int, position: int) -> Iterator[Any]:
        generator = torch.Generator().manual_seed(mixed(self.seed, epoch))
        order = torch.randperm(size_of(self.source), generator=generator)
        if isinstance(self.source, tuple):
            order = order.to(self.source[0].device)  # at once: each transfer waits for the device
        whole = torch.split(order, self.batch_size)[: len(self)][position:]
        rows = [row[self.part :: self.parts] for row in whole]
        for offset, (x, y) in enumerate(self._chosen(rows)):
            if self.augment is not None:
                generator.manual_seed(mixed(self.seed, epoch, position + offset, *((self.part,) if self.part else ())))
                x = self.augment(x, generator)
            yield x, y

    def _chosen(self, rows: list[Tensor]) -> Iterator[Any]:
        if isinstance(self.source, tuple):
            x, y = self.source
            for row in rows:
                yield x[row], y[row]
        else:
            own = torch.Generator()  # or the loader would take a number from the global one
            order = [row.tolist() for row in rows]
            loader = DataLoader(self.source, batch_sampler=order, generator=own, num_workers=self.workers)
            for x, y in loader:
                yield x.to(self.device), y.to(self.device)


def mixed(*numbers: int) -> int:
    """One seed from several numbers, without collisions between neighbours."""
    seed = 0
    for number in numbers:
        seed = (seed * 6364136223846793005 + number + 1442695040888963407) % 2**63
    return seed


def in_order(source: Source, batch_size: int, device: torch.device | str = "cpu", workers: int = 0) -> Iterator[Any]:
    """All examples once, in their own order: for evaluation."""
    if isinstance(source, tuple):
        for x, y in zip(*(torch.split(each, batch_size) for each in source), strict=True):
            yield x.to(device), y.to(device)
    else:
        for x, y in DataLoader(source, batch_size=batch_size, generator=torch.Generator(), num_workers=workers):
            yield x.to(device), y.to(device)


def chosen(source: Source, rows: Tensor) -> Source:
    """The examples of these rows, as a source of their own."""
    return (source[0][rows], source[1][rows]) if isinstance(source, tuple) else Subset(source, rows.tolist())


def held_out(source: Source, count: int, seed: int = 0) -> tuple[Source, Source]:
    """Split off `count` examples, chosen at random: (the rest, those)."""
    order = torch.randperm(size_of(source), generator=torch.Generator().manual_seed(seed))
    return chosen(source, order[count:]), chosen(source, order[:count])


def crop_and_flip(padding: int = 4) -> Augment:
    """Zero-pad, crop at random and mirror every second image: CIFAR's usual augmentation, a whole batch at once.

    For images of shape (batch, channels, height, width).
    """

    def augment(x: Tensor, generator: torch.Generator) -> Tensor:
        n, _, height, width = x.shape
        draw = torch.randint(2 * padding + 1, (2, n, 1), generator=generator)
        flip = torch.rand(n, 1, generator=generator) < 0.5
        rows = draw[0] + torch.arange(height)
        columns = draw[1] + torch.where(flip, torch.arange(width).flip(0), torch.arange(width))
        places = torch.cat((rows, columns), 1).to(x.device)  # together: each transfer waits for the device
        image = torch.arange(n, device=x.device)[:, None, None]
        padded = torch.nn.functional.pad(x, (padding,) * 4).permute(0, 2, 3, 1)
        picked = padded[image, places[:, :height, None], places[:, None, height:]].permute(0, 3, 1, 2)
        last = x.is_contiguous(memory_format=torch.channels_last)
        return picked.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)

    return augment
