"""Batches of patches, made in the processes that load them.

Separate from `repmode_cl.training`, so that such a process imports torch and little more.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from repmode_cl.data.patches.dataset import PatchDataset
from repmode_cl.errors import RepmodeError

__all__ = ["BatchDataset", "PatchBatch", "identity"]

T = TypeVar("T")


class PatchBatch(NamedTuple):
    """One process's part of a batch."""

    signal: Tensor
    """float32 (N, 1, z, y, x)."""
    target: Tensor
    """float32 (N, 1, z, y, x), or (N, 2, z, y, x) where the dataset is `weighted`."""
    structures: tuple[str, ...]
    """Structure of each item."""


class BatchDataset(Dataset[Any]):
    """One process's part of every joint batch, as a dataset for loader workers: each item is a batch.

    Parameters
    ----------
    dataset, batch_size, start, rank, world
        See `repmode_cl.training.patch_loader.patch_loader`.

    Raises
    ------
    ValueError
        If a number is out of range, or a batch has fewer items than there are processes.
    """

    def __init__(self, dataset: PatchDataset, *, batch_size: int, start: int, rank: int, world: int) -> None:
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} of {world} processes: ranks are 0 to {world - 1}")
        if batch_size < world:
            raise ValueError(f"a batch of {batch_size} has fewer items than there are processes, {world}")
        if not 0 <= start <= len(dataset):
            raise ValueError(f"start {start} is no item of a dataset of {len(dataset)}")
        if 0 < (remainder := (len(dataset) - start) % batch_size) < world:
            raise ValueError(f"the last batch has {remainder} items, fewer than there are processes, {world}")
        self._dataset = dataset
        self._size, self._start, self._rank, self._world = batch_size, start, rank, world

    def __len__(self) -> int:
        return -(-(len(self._dataset) - self._start) // self._size)

    def __getitem__(self, number: int) -> PatchBatch | RepmodeError:
        """Cut a batch; an error that the user can correct is returned, not raised."""
        if not 0 <= number < len(self):
            raise IndexError(f"batch {number} of {len(self)}")
        first = self._start + number * self._size
        count = min(self._size, len(self._dataset) - first)
        low, high = (count * part // self._world for part in (self._rank, self._rank + 1))
        items = range(first + low, first + high)
        signals = _empty(len(items), 1, *self._dataset.patch)
        targets = _empty(len(items), self._dataset.channels, *self._dataset.patch)
        try:
            for item, signal, target in zip(items, signals, targets, strict=True):
                self._dataset.read(item, signal, target)
        except RepmodeError as error:
            # As a value: torch would put a traceback into the message of an error that a worker raises.
            return error
        return PatchBatch(signals, targets, tuple(self._dataset.structure_of(item) for item in items))


def _empty(*shape: int) -> Tensor:
    """Allocate memory for a batch: in a worker, memory shared with its parent process, so that nothing is copied."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.float32)
    # What torch's own collate function takes; `share_memory_` would copy.
    size = torch.float32.itemsize * math.prod(shape)
    storage: torch.UntypedStorage = torch.UntypedStorage._new_shared(size)  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=torch.float32).set_(storage).view(shape)


def identity(item: T) -> T:
    """Return `item`: the dataset's items are batches already, and torch has nothing to collate."""
    return item
