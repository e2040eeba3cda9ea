"""Replay (rehearsal): patches of a small buffer are trained on in addition to the new ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from repmode_cl.config import Config, StrategyConfig, TrainingConfig
from repmode_cl.errors import ConfigError
from repmode_cl.strategies.fine_tuning import FineTuning
from repmode_cl.strategies.hooks import REPMODE, Experiences
from repmode_cl.strategies.replay_buffer import BufferedPatch, PatchBuffer, join_patches

__all__ = ["RehearsalStrategy", "Replay"]

#: Patches of a buffer where the configuration sets no number.
BUFFER = 64


class RehearsalStrategy(FineTuning):
    """Fine-tuning with a buffer of earlier patches, the base of replay and A-GEM.

    Parameters
    ----------
    buffer
        Most patches in it, as many of each experience, if `buffer_bytes` is not given.
    buffer_bytes
        Most bytes of them.
    replay_batch
        Earlier patches of a step; ``None`` stands for as many as new ones.
    """

    distributes: ClassVar[bool] = False

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
        """Refuse a buffer that is smaller than one patch: it would stay empty, which is fine-tuning."""
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
        """Return the size of the buffer and of the batches drawn from it."""
        keys = ("buffer", "buffer_bytes", "replay_batch")
        return {key: value for key in keys if (value := getattr(options, key)) is not None}

    @classmethod
    def cost_of_step(cls, options: StrategyConfig, training: TrainingConfig, earlier: int) -> float:
        """Return one, and the share of the earlier patches."""
        return 1 + (options.replay_batch or training.batch_size) / training.batch_size if earlier else 1.0

    def rehearsal_batch(self, part: int, parts: int) -> list[Tensor]:
        """Return micro-batch `part` of `parts` of this step's earlier patches; an empty list without a buffer."""
        low, high = (self.replay_batch * k // parts for k in (part, part + 1))
        first = self.progress.step * self.replay_batch
        drawn = self.buffer.draw(first + low, high - low, self._experience_number)
        self.trained_patches[self._experience_number].update((one.structure, one.image_id) for one in drawn)
        return self._batch(drawn) if drawn else []

    def _batch(self, drawn: Sequence[BufferedPatch]) -> list[Tensor]:
        joined: list[Tensor] = []
        for one in drawn:
            label = torch.tensor([self.stream.labels[one.structure]])
            single = [one.signal[None], one.target[None], label]
            joined = join_patches(joined, single) if joined else single
        return joined

    def after_experience(self, number: int) -> None:
        """Add patches of the experience to the buffer."""
        self.buffer.add(number, self.patches_of(number))

    def extra_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return which patches are in the buffer; they can be cut again from the images."""
        return {}, {"kept": self.buffer.item_numbers()}

    def load_extra_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Cut the patches again."""
        self.buffer.restore(
            values["kept"], [self.patches_of(number) for number in range(self.stream.n_experiences)]
        )

    def costs(self) -> dict[str, float]:
        """Return bytes of the buffer, and how many images its patches are from."""
        return {"buffer_bytes": self.buffer.bytes, "buffer_images": self.buffer.images}


class Replay(RehearsalStrategy):
    """Replay with a buffer balanced over experiences (Rolnick et al., 2019; Chaudhry et al., 2019).

    In each step patches of the buffer are in the same batch as the new ones, so that they share its norms, and each
    voxel of both has the same weight. The gate rows of earlier structures are trained further.
    """

    @classmethod
    def shared_base(cls, options: StrategyConfig) -> str | None:
        """Return the key of the one RepMode base."""
        return REPMODE

    def choose_trained(self, structures: Sequence[str]) -> frozenset[str]:
        """Train all parameters; a gate row moves only where its structure is replayed."""
        return super().choose_trained(self.network.structures)

    def extend(self, batch: list[Tensor], part: int, parts: int) -> list[Tensor]:
        """Return the new patches, followed by earlier ones."""
        earlier = self.rehearsal_batch(part, parts)
        return join_patches(batch, earlier) if earlier else batch
