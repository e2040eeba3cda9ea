"""Loader of batches for Avalanche's strategies: signal, target, and the task label of each item.

Labels are added here, in the training process. A dataset that Avalanche has wrapped can be read only where Avalanche is
imported, and the workers that load patches must not pay for that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from repmode_cl.training.patch_loader import PatchLoader

__all__ = ["LabelledBatches"]


class LabelledBatches:
    """Batches ``[signal, target, task labels]``, with labels int64 (N,).

    Parameters
    ----------
    loader
        Loads the patches.
    labels
        Task label of each structure.
    """

    def __init__(self, loader: PatchLoader, labels: Mapping[str, int]) -> None:
        self.loader = loader
        self.labels = dict(labels)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[list[Tensor]]:
        """Yield batch after batch; the workers of the loader end with the last."""
        try:
            for batch in self.loader:
                yield [batch.signal, batch.target, torch.tensor([self.labels[n] for n in batch.structures])]
        finally:
            # Evaluation follows, or training failed: idle processes would hold memory meanwhile.
            self.loader.close()
