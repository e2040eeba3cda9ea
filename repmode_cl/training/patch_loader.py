"""Loader of patches, cut in this process or ahead of time by worker processes: the same batches either way.

Workers are spawned processes that import torch and this package's core, and never Avalanche. An item depends only on
its number, so that neither the number of workers nor their speed changes a batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from repmode_cl.data.patches.collate import BatchDataset, PatchBatch, identity
from repmode_cl.data.patches.dataset import PatchDataset
from repmode_cl.errors import ConfigError, RepmodeError
from repmode_cl.utils.process_pool import initialise_worker, starting_workers

__all__ = ["PatchLoader", "patch_loader"]


def patch_loader(
    dataset: PatchDataset,
    *,
    batch_size: int,
    start: int = 0,
    workers: int = 0,
    pin_memory: bool = False,
    rank: int = 0,
    world: int = 1,
) -> PatchLoader:
    """Load a dataset in its own order, batch by batch.

    Parameters
    ----------
    dataset
        The patches.
    batch_size
        Items of a joint batch, over all processes that train together. The last batch is smaller where the items
        do not fill it.
    start
        First item, where an interrupted training stopped.
    workers
        Processes that cut patches ahead, two batches each; 0 cuts them in this process when they are needed. They start
        with the first iteration and stay for later ones, until `PatchLoader.close` or until the loader is gone.
    pin_memory
        Put batches into pinned memory, from which a GPU copies while it computes; ignored without a GPU.
    rank, world
        Number of this process among the `world` that train together. Each gets its contiguous share of every
        joint batch: the shares, in the order of the ranks, are the batch that a single process would get.

    Returns
    -------
    PatchLoader
        Yields a `PatchBatch` for each batch.

    Raises
    ------
    ConfigError
        If the last batch has fewer items than there are processes: one would compute nothing.
    ValueError
        If a number is out of range, or no batch has an item for each process.
    RepmodeError
        While iterating: if a prepared volume cannot be read. A worker's error comes with its own message.
    """
    last = (len(dataset) - start) % max(batch_size, 1)
    if 0 < last < world <= batch_size:
        raise ConfigError(
            f"the last batch has {last} items, fewer than the {world} processes that share it: set "
            "training.last_batch=continuous, another training.batch_size, or start fewer processes"
        )
    return PatchLoader(
        BatchDataset(dataset, batch_size=batch_size, start=start, rank=rank, world=world), workers, pin_memory
    )


class PatchLoader:
    """Batches of patches, to be iterated over; see `patch_loader`, which makes it.

    ``len()`` is the number of batches. Each iteration starts at the loader's first batch; only one runs at a time
    where there are workers.
    """

    def __init__(self, batches: BatchDataset, workers: int, pin_memory: bool) -> None:
        if workers < 0:
            raise ValueError(f"workers is not negative, got {workers}")
        self._batches = batches
        self._workers = workers
        self._pin = pin_memory and torch.cuda.is_available()  # torch warns where there is no GPU
        self._loader: DataLoader[Any] | None = None

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[PatchBatch]:
        """Yield one `PatchBatch` after the other."""
        if self._loader is None:
            self._loader = self._make()
        with starting_workers(hold_stop_signals=True):
            batches = iter(self._loader)
        try:
            for batch in batches:
                yield _checked(batch)
        except GeneratorExit:
            raise  # a caller that stops early may iterate again
        except BaseException as error:
            del batches  # which holds the workers
            self.close()
            if _is_lost_worker(error):
                raise RepmodeError(
                    f"a process that loads patches was ended by the system ({error}); memory may have run out, or the "
                    "shared memory that batches travel in (/dev/shm; containers have little by default): "
                    "run the same command with a smaller training.loader_workers"
                ) from error
            raise

    def close(self) -> None:
        """End the workers, if there are any; the next iteration starts new ones."""
        self._loader = None

    def _make(self) -> DataLoader[Any]:
        return DataLoader(
            self._batches,
            batch_size=None,  # an item is a batch
            collate_fn=identity,
            num_workers=self._workers,
            multiprocessing_context="spawn" if self._workers else None,
            persistent_workers=self._workers > 0,
            worker_init_fn=initialise_worker if self._workers else None,
            pin_memory=self._pin,
            # A separate generator: drawing from torch's would make weights depend on how patches are loaded.
            generator=torch.Generator(),
        )


def _checked(batch: PatchBatch | RepmodeError) -> PatchBatch:
    if isinstance(batch, RepmodeError):
        raise batch
    # Pinning turns tuples into lists.
    return batch._replace(structures=tuple(batch.structures))


def _is_lost_worker(error: BaseException) -> bool:
    """Return whether a worker process ended; an error that a worker raised starts with "Caught ..." instead."""
    if isinstance(error, ConnectionError | EOFError):
        return True
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid")
