"""Patches of earlier experiences, kept in memory: as many of each experience, of its structures, and of its images."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from repmode_cl.data.patches.dataset import PatchDataset
from repmode_cl.data.sample import digest_of

__all__ = ["BufferedPatch", "PatchBuffer", "join_patches"]


@dataclass(frozen=True)
class BufferedPatch:
    """One patch that is kept."""

    experience: int
    """Number of the experience that it was trained on in."""
    item: int
    """Its number among the patches of that experience."""
    structure: str
    image_id: str
    signal: Tensor
    """float32 (1, z, y, x)."""
    target: Tensor
    """float32 (1 or 2, z, y, x)."""

    @property
    def bytes(self) -> int:
        """Bytes of signal and target."""
        return 4 * (self.signal.numel() + self.target.numel())


class PatchBuffer:
    """Keeps patches, balanced over experiences; which, and in which order they come again, a seed decides.

    Parameters
    ----------
    patches
        Most patches, if `size` is not given.
    size
        Most bytes.
    seed
        Decides the choice.
    """

    def __init__(self, patches: int, size: int | None = None, *, seed: int = 0) -> None:
        self.patches, self.size, self.seed = patches, size, seed
        self.kept: list[BufferedPatch] = []
        self._pass: tuple[tuple[int, int], list[BufferedPatch]] | None = (
            None  # the last asked for: a cache, not state
        )

    @property
    def bytes(self) -> int:
        """Bytes of all patches that are kept."""
        return sum(one.bytes for one in self.kept)

    @property
    def images(self) -> int:
        """Number of different images that they were cut from."""
        return len({(one.structure, one.image_id) for one in self.kept})

    def take(self, number: int, patches: PatchDataset) -> None:
        """Keep patches of experience `number`, and of each earlier one as many less as make room for them."""
        capacity = self.patches
        if self.size is not None:
            largest = max(
                [4 * (1 + patches.channels) * math.prod(patches.patch), *(k.bytes for k in self.kept)]
            )
            capacity = self.size // largest
        numbers = sorted({one.experience for one in self.kept} | {number})
        # What cannot be shared out evenly goes to the earliest.
        quota = {
            one: capacity // len(numbers) + (place < capacity % len(numbers))
            for place, one in enumerate(numbers)
        }
        earlier = [one for other in numbers if other != number for one in self._of(other)[: quota[other]]]
        new = [_cut(number, item, patches) for item in self._choice(number, patches)[: quota[number]]]
        self.kept = earlier + new
        self._pass = None

    def restore(self, kept: Iterable[Sequence[int]], patches: Sequence[PatchDataset]) -> None:
        """Keep again what `places` told: the patches are cut from the same images, to the same bits."""
        self.kept = [_cut(number, item, patches[number]) for number, item in kept]
        self._pass = None

    def places(self) -> list[list[int]]:
        """Return experience and item of each patch that is kept."""
        return [[one.experience, one.item] for one in self.kept]

    def draw(self, first: int, count: int, experience: int) -> list[BufferedPatch]:
        """Return patches `first` to ``first + count`` of an endless sequence that shows each equally often.

        Parameters
        ----------
        first, count
            Places in the sequence.
        experience
            During which they are shown: each has a sequence of its own.
        """
        if not self.kept:
            return []
        found = []
        for place in range(first, first + count):
            number, within = divmod(place, len(self.kept))
            if self._pass is None or self._pass[0] != (experience, number):
                self._pass = (experience, number), self._shuffled(experience, number)
            found.append(self._pass[1][within])
        return found

    def _of(self, number: int) -> list[BufferedPatch]:
        return [one for one in self.kept if one.experience == number]

    def _shuffled(self, experience: int, number: int) -> list[BufferedPatch]:
        return sorted(
            self.kept,
            key=lambda one: digest_of("replay", self.seed, experience, number, one.experience, one.item),
        )

    def _choice(self, number: int, patches: PatchDataset) -> list[int]:
        """Return all items of an experience, so that the first ones show all structures and images evenly."""
        items = sorted(range(len(patches)), key=lambda item: digest_of("keep", self.seed, number, item))
        items = _in_rounds(items, lambda item: patches.sample_of(item).image_id)
        return _in_rounds(items, patches.structure_of)


def join_patches(batch: Sequence[Tensor], more: Sequence[Tensor]) -> list[Tensor]:
    """Return one batch of two: signals, targets and task labels; where one has weights, all have."""
    (x, y, labels), (more_x, more_y, more_labels) = batch, more
    if y.shape[1] != more_y.shape[1]:
        y, more_y = (t if t.shape[1] == 2 else torch.cat([t, torch.ones_like(t)], dim=1) for t in (y, more_y))
    return [torch.cat([x, more_x]), torch.cat([y, more_y]), torch.cat([labels, more_labels])]


def _cut(number: int, item: int, patches: PatchDataset) -> BufferedPatch:
    sample = patches.sample_of(item)
    signal, target = patches[item]
    return BufferedPatch(number, item, sample.structure, sample.image_id, signal, target)


def _in_rounds(items: Sequence[int], key: Callable[[int], Hashable]) -> list[int]:
    """Return `items` in rounds, each of which has one of each key."""
    count: Counter[Hashable] = Counter()
    turn: dict[int, int] = {}
    for item in items:
        turn[item] = count[key(item)]
        count[key(item)] += 1
    return sorted(items, key=turn.__getitem__)
