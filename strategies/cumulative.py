"""Cumulative training: all earlier images are trained on again, in addition to the new ones."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from repmode_cl.config import StrategyConfig, TrainingConfig
from repmode_cl.data.patches.dataset import PatchDataset
from repmode_cl.data.sample import Sample, digest_of
from repmode_cl.strategies.fine_tuning import FineTuning
from repmode_cl.strategies.replay import Replay
from repmode_cl.strategies.replay_buffer import join_patches

__all__ = ["Cumulative"]


class Cumulative(FineTuning):
    """Fine-tuning that trains each step on as many patches of all earlier images as of new ones.

    It saves no memory: a reference for what replay could reach. The new patches are those of every other strategy; the
    earlier ones are cut again, in other places than when their images were first learned.

    Parameters
    ----------
    replay_batch
        Earlier patches of a step; ``None`` stands for as many as new ones.
    """

    distributes: ClassVar[bool] = False
    shares_base: ClassVar[bool] = True

    def __init__(self, *, replay_batch: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.replay_batch = replay_batch or self.training_config.batch_size
        #: Experience, and its patches of earlier images: a cache, not state.
        self._earlier: tuple[int, PatchDataset] | None = None

    @classmethod
    def own_options(cls, options: StrategyConfig) -> dict[str, Any]:
        """Return the number of earlier patches of a step."""
        return {} if options.replay_batch is None else {"replay_batch": options.replay_batch}

    @classmethod
    def cost_of_step(cls, options: StrategyConfig, training: TrainingConfig, earlier: int) -> float:
        """Return one, and the share of the earlier patches."""
        return Replay.cost_of_step(options, training, earlier)

    def choose_trained(self, structures: Sequence[str]) -> frozenset[str]:
        """Train all parameters."""
        return super().choose_trained(self.network.structures)

    def extend(self, batch: list[Tensor], part: int, parts: int) -> list[Tensor]:
        """Return the new patches, followed by patches of earlier images."""
        if not self._experience_number:
            return batch
        patches = self._earlier_patches(parts)
        low, high = (
            self.progress.step * self.replay_batch + self.replay_batch * k // parts for k in (part, part + 1)
        )
        items = range(low, high)
        if not items:
            return batch
        samples = [patches.sample_of(item) for item in items]
        self.trained_patches[self._experience_number].update(
            (sample.structure, sample.image_id) for sample in samples
        )
        pairs = [patches[item] for item in items]
        labels = torch.tensor([self.stream.labels[sample.structure] for sample in samples])
        return join_patches(
            batch, [torch.stack([x for x, _ in pairs]), torch.stack([y for _, y in pairs]), labels]
        )

    def _earlier_patches(self, parts: int) -> PatchDataset:
        if self._earlier is None or self._earlier[0] != self._experience_number:
            new = self.stream.patches[self._experience_number]
            patches = PatchDataset(
                _all_images(self.stream.images[: self._experience_number]),
                patch=new.patch,
                seed=self._seed_of_earlier(new.seed),
                length=self.budget.steps * self.replay_batch,
                flips=new.flips,
                foreground=new.foreground,
                batch=max(1, self.replay_batch // parts),
                structures_per_batch=self.training_config.structures_per_batch,
            )
            self._earlier = self._experience_number, patches
        return self._earlier[1]

    def _seed_of_earlier(self, seed: int) -> int:
        """Return a seed for each experience: the stream's seed would give the crops of earlier experiences."""
        return int.from_bytes(digest_of("earlier", seed, self._experience_number)[:7], "big")

    def costs(self) -> dict[str, float]:
        """Return number and bytes (signal and target, float32) of all images so far."""
        samples = _all_images(self.stream.images[: self.progress.experience + 1])
        return {
            "buffer_bytes": sum(2 * 4 * math.prod(sample.shape) for sample in samples),
            "buffer_images": len(samples),
        }


def _all_images(experiences: Iterable[Sequence[Sample]]) -> list[Sample]:
    """Return each image once, also where it arrives twice with its structure."""
    return list(dict.fromkeys(sample for images in experiences for sample in images))
