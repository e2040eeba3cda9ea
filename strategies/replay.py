"""Replay (rehearsal): patches of a small buffer are trained on in addition to the new ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from repmode_cl.config import Config, StrategyConfig, TrainingConfig
from repmode_cl.data.patches.dataset import PatchDataset
from repmode_cl.data.sample import digest_of
from repmode_cl.errors import ConfigError
from repmode_cl.scenarios import StructureStream
from repmode_cl.strategies.fine_tuning import FineTuning
from repmode_cl.strategies.hooks import Experiences
from repmode_cl.strategies.replay_buffer import BufferedPatch, PatchBuffer, Predict, join_patches

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
    buffer_bytes_each
        Most bytes for each structure so far, in place of both.
    replay_batch
        Earlier patches of a step; ``None`` stands for as many as new ones.
    region
        Voxels (z, y, x) of what is kept of an image, at most those of the smallest image: each step cuts fresh patches
        from it. ``None`` keeps patches, as they were trained on.
    """

    distributes: ClassVar[bool] = False
    #: What is kept of a patch, for messages, and how many volumes of float32 that is.
    kept_volumes: ClassVar[tuple[str, int]] = ("signal and target", 2)

    def __init__(
        self,
        *,
        buffer: int = BUFFER,
        buffer_bytes: int | None = None,
        buffer_bytes_each: int | None = None,
        replay_batch: int | None = None,
        region: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        # First: a stream that is given is checked by them.
        self.region = None if region is None else tuple(region)
        self.buffer_bytes, self.buffer_bytes_each = buffer_bytes, buffer_bytes_each
        super().__init__(**kwargs)
        self.buffer = PatchBuffer(buffer, buffer_bytes, seed=self.seed)
        self.replay_batch = replay_batch or self.training_config.batch_size

    @classmethod
    def check(cls, config: Config, options: StrategyConfig, experiences: Experiences) -> None:
        """Refuse a region smaller than a patch, and a buffer that holds none: that would be fine-tuning."""
        super().check(config, options, experiences)
        given = {key: getattr(options, key) for key in ("buffer_bytes", "buffer_bytes_each")}
        cls._check_buffer(f"strategy {options.title}", config.patch.size, options.region, given, experiences)

    def check_stream(self, stream: StructureStream) -> None:
        """Refuse a region smaller than the stream's patches, and a buffer that holds none of them."""
        given = {"buffer_bytes": self.buffer_bytes, "buffer_bytes_each": self.buffer_bytes_each}
        self._check_buffer(type(self).__name__, stream.patch, self.region, given, stream.experiences)

    @classmethod
    def _check_buffer(
        cls,
        name: str,
        patch: Sequence[int],
        region: Sequence[int] | None,
        most: Mapping[str, int | None],
        experiences: Experiences,
    ) -> None:
        size = region or patch
        if any(whole < part for whole, part in zip(size, patch, strict=True)):
            raise ConfigError(
                f"{name}: region is {list(size)}, smaller than patch.size {list(patch)}, and patches are cut from it: "
                "give a larger one"
            )
        what, volumes = cls.kept_volumes
        needed = volumes * 4 * math.prod(size)
        # For each structure, the buffer is that of the base at first.
        for key, times in (("buffer_bytes", 1), ("buffer_bytes_each", len(experiences[0]))):
            given = most[key]
            if given and given * times < needed:
                raise ConfigError(
                    f"{name}: {key} is {given}, less than the {-(-needed // times)} of one "
                    f"{'region' if region else 'patch'} ({what}, float32; half more with a mask), so that none is "
                    f"kept: give at least {-(-needed // times)}, or 0 to keep none"
                )

    @classmethod
    def own_options(cls, options: StrategyConfig) -> dict[str, Any]:
        """Return the size of the buffer and of the batches drawn from it."""
        keys = ("buffer", "buffer_bytes", "buffer_bytes_each", "replay_batch", "region")
        return {key: value for key in keys if (value := getattr(options, key)) is not None}

    @classmethod
    def cost_of_step(cls, options: StrategyConfig, training: TrainingConfig, earlier: int) -> float:
        """Return one, and the share of the earlier patches."""
        return 1 + (options.replay_batch or training.batch_size) / training.batch_size if earlier else 1.0

    def rehearsal_batch(self, part: int, parts: int) -> list[Tensor]:
        """Return micro-batch `part` of `parts` of this step's earlier patches; an empty list without a buffer."""
        drawn = self.drawn_patches(part, parts)
        return self._batch(drawn) if drawn else []

    def drawn_patches(self, part: int, parts: int, sequence: str = "replay") -> list[BufferedPatch]:
        """Return those patches one by one; sequences of different names are drawn independently."""
        low, high = (self.replay_batch * k // parts for k in (part, part + 1))
        first, number = self.progress.step * self.replay_batch + low, self._experience_number
        drawn = self.buffer.draw(first, high - low, number, sequence)
        self.trained_patches[number].update((one.structure, one.image_id) for one in drawn)
        if self.region is None:
            return drawn
        new = self.stream.patches[number]
        return [
            one.crop(
                new.patch,
                digest_of("crop", sequence, self.seed, number, first + place),
                new.flips,
                new.foreground,
            )
            for place, one in enumerate(drawn)
        ]

    def _batch(self, drawn: Sequence[BufferedPatch]) -> list[Tensor]:
        joined: list[Tensor] = []
        for one in drawn:
            label = torch.tensor([self.stream.labels[one.structure]])
            single = [one.signal[None], one.target[None], label]
            joined = join_patches(joined, single) if joined else single
        return joined

    def after_experience(self, number: int) -> None:
        """Add patches, or larger regions, of the experience to the buffer."""
        if self.buffer_bytes_each is not None:
            so_far = {name for names in self.stream.experiences[: number + 1] for name in names}
            self.buffer.capacity_bytes = self.buffer_bytes_each * len(so_far)
        self.buffer.add(number, self.buffered(number), self.predictor())

    def predictor(self) -> Predict | None:
        """Return what predicts the patches that are kept, or None where no predictions are kept."""
        return None

    def buffered(self, number: int) -> PatchDataset:
        """Return what the buffer may keep of experience `number`: its patches, or larger regions of its images."""
        patches = self.patches_of(number)
        if self.region is None:
            return patches
        shapes = [sample.shape for sample in patches.samples]
        smallest = [min(sizes) for sizes in zip(*shapes, strict=True)]
        size = [
            max(part, min(whole, least))
            for part, whole, least in zip(patches.patch, self.region, smallest, strict=True)
        ]
        # About as many as lie in an image side by side: of whole images, each once.
        each = math.prod(max(1, n // part) for n, part in zip(smallest, size, strict=True))
        return PatchDataset(
            patches.samples,
            patch=size,
            seed=patches.seed,
            length=len(patches.samples) * each,
            flips=False,
            foreground=patches.foreground,
        )

    def extra_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return which patches are in the buffer; they can be cut again from the images."""
        return {}, {"kept": self.buffer.item_numbers()}

    def load_extra_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Cut the patches again."""
        self.buffer.restore(values["kept"], self.buffered)

    def costs(self) -> dict[str, float]:
        """Return bytes of the buffer, and how many images its patches are from."""
        return {"buffer_bytes": self.buffer.bytes, "buffer_images": self.buffer.images}


class Replay(RehearsalStrategy):
    """Replay with a buffer balanced over experiences (Rolnick et al., 2019; Chaudhry et al., 2019).

    In each step patches of the buffer are in the same batch as the new ones, so that they share its norms, and each
    voxel of both has the same weight. The gate rows of earlier structures are trained further.
    """

    shares_base: ClassVar[bool] = True

    def choose_trained(self, structures: Sequence[str]) -> frozenset[str]:
        """Train all parameters; a gate row moves only where its structure is replayed."""
        return super().choose_trained(self.network.structures)

    def extend(self, batch: list[Tensor], part: int, parts: int) -> list[Tensor]:
        """Return the new patches, followed by earlier ones."""
        earlier = self.rehearsal_batch(part, parts)
        return join_patches(batch, earlier) if earlier else batch
