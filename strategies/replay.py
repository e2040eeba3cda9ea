"""Replay: earlier patches are trained on beside the new ones, from a small buffer or from all earlier images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from repmode_cl.strategies.buffer import Kept, PatchBuffer, join_patches
from repmode_cl.strategies.deciding import Experiences
from repmode_cl.strategies.fine_tuning import FineTuning
from torch import Tensor

from repmode_cl.config import Config, StrategyConfig, TrainingConfig
from repmode_cl.data.patches import PatchDataset
from repmode_cl.data.sample import Sample, digest_of
from repmode_cl.errors import ConfigError

__all__ = ["Cumulative", "Remembering", "Replay"]

#: Patches that are kept where nothing else is asked for.
BUFFER = 64


class Remembering(FineTuning):
    """Fine-tuning with a buffer of earlier patches: what replay and A-GEM share.

    Parameters
    ----------
    buffer
        Most patches that are kept, as many of each experience, if `buffer_bytes` is not given.
    buffer_bytes
        Most bytes of them.
    replay_batch
        Earlier patches of a step; ``None`` takes as many as there are new ones.
    """

    def __init__(
        self,
        *,
        buffer: int = BUFFER,
        buffer_bytes: int | None = None,
        replay_batch: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.buffer = PatchBuffer(buffer, buffer_bytes, seed=self.seed)
        self.replay_batch = replay_batch or self.training_config.batch_size

    @classmethod
    def check(cls, config: Config, options: StrategyConfig, experiences: Experiences) -> None:
        """Refuse a buffer that is smaller than one patch: it would keep nothing, and be fine-tuning unnoticed."""
        super().check(config, options, experiences)
        patch = 2 * 4 * math.prod(config.patch.size)
        if options.buffer_bytes and options.buffer_bytes < patch:
            raise ConfigError(
                f"strategy {options.title}: buffer_bytes is {options.buffer_bytes}, less than the {patch} of one patch "
                f"(signal and target, float32; half more with a mask), so that none is kept: give at least {patch}, or "
                "0 to keep none"
            )

    @classmethod
    def own_options(cls, options: StrategyConfig) -> dict[str, Any]:
        """Return the size of the buffer and of what is drawn from it."""
        keys = ("buffer", "buffer_bytes", "replay_batch")
        return {key: value for key in keys if (value := getattr(options, key)) is not None}

    @classmethod
    def cost_of_step(cls, options: StrategyConfig, training: TrainingConfig, earlier: int) -> float:
        """Return the share of the earlier patches besides."""
        return 1 + (options.replay_batch or training.batch_size) / training.batch_size if earlier else 1.0

    def remembered(self, part: int, parts: int) -> list[Tensor]:
        """Return micro-batch `part` of `parts` of this step's earlier patches, as a batch; empty without a buffer."""
        low, high = (self.replay_batch * k // parts for k in (part, part + 1))
        first = self.progress.step * self.replay_batch
        drawn = self.buffer.draw(first + low, high - low, self._number)
        self.seen[self._number].update((one.structure, one.image_id) for one in drawn)
        return self._batch(drawn) if drawn else []

    def _batch(self, drawn: Sequence[Kept]) -> list[Tensor]:
        joined: list[Tensor] = []
        for one in drawn:
            label = torch.tensor([self.stream.labels[one.structure]])
            single = [one.signal[None], one.target[None], label]
            joined = join_patches(joined, single) if joined else single
        return joined

    def after_experience(self, number: int) -> None:
        """Keep patches of it."""
        self.buffer.take(number, self.stream.patches[number])

    def extra_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return which patches are kept; they themselves can be cut again."""
        return {}, {"kept": self.buffer.places()}

    def load_extra_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Cut the patches again."""
        self.buffer.restore(values["kept"], self.stream.patches)

    def costs(self) -> dict[str, float]:
        """Return bytes of the buffer, and how many images it shows."""
        return {"buffer_bytes": self.buffer.bytes, "buffer_images": self.buffer.images}


class Replay(Remembering):
    """Replay with a buffer balanced over experiences (Rolnick et al., 2019; Chaudhry et al., 2019).

    In each step patches of the buffer are in the batch beside the new ones, so that they share its norms, and each
    voxel of both weighs the same. The gate rows of earlier structures go on learning.
    """

    def choose_trained(self, structures: Sequence[str]) -> frozenset[str]:
        """Train all parameters; a gate row moves only where its structure is replayed."""
        return super().choose_trained(self.network.structures)

    def extend(self, batch: list[Tensor], part: int, parts: int) -> list[Tensor]:
        """Return the new patches, and then earlier ones."""
        earlier = self.remembered(part, parts)
        return join_patches(batch, earlier) if earlier else batch


class Cumulative(FineTuning):
    """All images so far are kept: beside the new patches, each step shows as many of all earlier images.

    No memory is saved: a reference for what replay could reach. The new patches are those of every other strategy;
    the earlier ones are cut anew, elsewhere than when their images were first learned.

    Parameters
    ----------
    replay_batch
        Earlier patches of a step; ``None`` takes as many as there are new ones.
    """

    def __init__(self, *, replay_batch: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.replay_batch = replay_batch or self.training_config.batch_size
        self._earlier: tuple[int, PatchDataset] | None = (
            None  # of the experience under way: a cache, not state
        )

    @classmethod
    def own_options(cls, options: StrategyConfig) -> dict[str, Any]:
        """Return the number of earlier patches of a step."""
        return {"replay_batch": options.replay_batch}

    @classmethod
    def cost_of_step(cls, options: StrategyConfig, training: TrainingConfig, earlier: int) -> float:
        """Return the share of the earlier patches besides."""
        return Replay.cost_of_step(options, training, earlier)

    def choose_trained(self, structures: Sequence[str]) -> frozenset[str]:
        """Train all parameters."""
        return super().choose_trained(self.network.structures)

    def extend(self, batch: list[Tensor], part: int, parts: int) -> list[Tensor]:
        """Return the new patches, and then patches of earlier images."""
        if not self._number:
            return batch
        patches = self._patches(parts)
        low, high = (
            self.progress.step * self.replay_batch + self.replay_batch * k // parts for k in (part, part + 1)
        )
        items = range(low, high)
        if not items:
            return batch
        samples = [patches.sample_of(item) for item in items]
        self.seen[self._number].update((sample.structure, sample.image_id) for sample in samples)
        cut = [patches[item] for item in items]
        labels = torch.tensor([self.stream.labels[sample.structure] for sample in samples])
        return join_patches(
            batch, [torch.stack([x for x, _ in cut]), torch.stack([y for _, y in cut]), labels]
        )

    def _patches(self, parts: int) -> PatchDataset:
        if self._earlier is None or self._earlier[0] != self._number:
            now = self.stream.patches[self._number]
            patches = PatchDataset(
                _all_images(self.stream.images[: self._number]),
                patch=now.patch,
                seed=self._seed_of_earlier(now.seed),
                length=self.budget.steps * self.replay_batch,
                flips=now.flips,
                foreground=now.foreground,
                batch=max(1, self.replay_batch // parts),
                structures_per_batch=self.training_config.structures_per_batch,
            )
            self._earlier = self._number, patches
        return self._earlier[1]

    def _seed_of_earlier(self, seed: int) -> int:
        """Return a seed for each experience: by the stream's own, the crops would be those of earlier experiences."""
        return int.from_bytes(digest_of("earlier", seed, self._number)[:7], "big")

    def costs(self) -> dict[str, float]:
        """Return number and bytes (signal and target, float32) of all images so far."""
        samples = _all_images(self.stream.images[: self.progress.experience + 1])
        return {
            "buffer_bytes": sum(2 * 4 * math.prod(sample.shape) for sample in samples),
            "buffer_images": len(samples),
        }


def _all_images(experiences: Iterable[Sequence[Sample]]) -> list[Sample]:
    """Return each image once, also where a structure comes with it twice."""
    return list(dict.fromkeys(sample for images in experiences for sample in images))
