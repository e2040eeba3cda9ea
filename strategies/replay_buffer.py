"""Buffer of earlier patches, balanced over experiences, their structures and their images."""

from __future__ import annotations

import builtins
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from repmode_cl.data.patches.dataset import PatchDataset
from repmode_cl.data.patches.foreground import bright_voxels
from repmode_cl.data.sample import digest_of

__all__ = ["BufferedPatch", "PatchBuffer", "join_patches"]


@dataclass(frozen=True)
class BufferedPatch:
    """One patch in the buffer."""

    experience: int
    """Number of the experience in which it was trained on."""
    item: int
    """Its number among the patches of that experience."""
    structure: str
    image_id: str
    signal: Tensor
    """float32 (1, z, y, x)."""
    target: Tensor
    """float32 (1 or 2, z, y, x)."""
    prediction: Tensor | None = None
    """float32 (1, z, y, x): what the network predicted when the patch was put into the buffer."""

    @property
    def bytes(self) -> int:
        """Bytes of signal, target and prediction."""
        parts = (self.signal, self.target, self.prediction)
        return sum(4 * part.numel() for part in parts if part is not None)

    def crop(
        self, size: Sequence[int], seed: builtins.bytes, flips: Iterable[str], foreground: float = 0.0
    ) -> BufferedPatch:
        """Cut a patch of `size` (z, y, x) from this one, as `PatchDataset` cuts its patches.

        Parameters
        ----------
        size
            At most that of this patch on each axis.
        seed
            32 bytes that decide place and flips.
        flips
            Axes that may be flipped.
        foreground
            Chance, 0 to 1, that the patch is centred on a bright voxel of the target, where there is one.
        """
        cuts, turned = [], []
        centre = (
            self._bright_voxel(seed) if int.from_bytes(seed[25:28], "big") < foreground * 2.0**24 else None
        )
        for axis, (whole, part) in enumerate(zip(self.signal.shape[1:], size, strict=True)):
            if centre is None:
                start = int.from_bytes(seed[8 * axis : 8 * axis + 8], "big") % (whole - part + 1)
            else:
                start = min(max(0, centre[axis] - part // 2), whole - part)
            cuts.append(slice(start, start + part))
            if "zyx"[axis] in flips and seed[24] >> axis & 1:
                turned.append(axis + 1)

        def cut(tensor: Tensor) -> Tensor:
            z, y, x = cuts
            return tensor[:, z, y, x].flip(turned)

        prediction = None if self.prediction is None else cut(self.prediction)
        return replace(self, signal=cut(self.signal), target=cut(self.target), prediction=prediction)

    def _bright_voxel(self, seed: builtins.bytes) -> Sequence[int] | None:
        """Return a voxel of the target that is bright and counts, chosen by the last bytes of `seed`."""
        mask = self.target[1].numpy() if self.target.shape[0] == 2 else None
        places = bright_voxels(self.target[0].numpy(), mask)
        return places[int.from_bytes(seed[28:32], "big") % len(places)].tolist() if len(places) else None


#: Returns what is predicted of a patch, (1, z, y, x).
Predict = Callable[[BufferedPatch], Tensor]


class PatchBuffer:
    """Buffer of patches, balanced over experiences.

    Parameters
    ----------
    capacity
        Most patches, if `capacity_bytes` is not given.
    capacity_bytes
        Most bytes.
    seed
        Decides which patches are stored, and in which order they are drawn.

    Attributes
    ----------
    patches
        The patches in the buffer, those of earlier experiences first.
    """

    def __init__(self, capacity: int, capacity_bytes: int | None = None, *, seed: int = 0) -> None:
        self.capacity, self.capacity_bytes, self.seed = capacity, capacity_bytes, seed
        self.patches: list[BufferedPatch] = []
        #: Sequence -> experience and number of its last pass over the buffer, and the order: a cache, not state.
        self._passes: dict[str, tuple[tuple[int, int], list[BufferedPatch]]] = {}

    @property
    def bytes(self) -> int:
        """Bytes of all patches in the buffer."""
        return sum(one.bytes for one in self.patches)

    @property
    def images(self) -> int:
        """Number of different images that they were cut from."""
        return len({(one.structure, one.image_id) for one in self.patches})

    def add(self, number: int, patches: PatchDataset, predict: Predict | None = None) -> None:
        """Add patches of experience `number`; drop as many of each earlier one as makes room for them.

        Parameters
        ----------
        number, patches
            The experience and its patches.
        predict
            Predicts each patch that is added; None keeps no predictions.
        """
        capacity = self.capacity
        if self.capacity_bytes is not None:
            channels = 1 + patches.channels + (predict is not None)
            largest = max([4 * channels * math.prod(patches.patch), *(one.bytes for one in self.patches)])
            capacity = self.capacity_bytes // largest
        numbers = sorted({one.experience for one in self.patches} | {number})
        # The earliest experiences get the rest that cannot be divided evenly.
        quota = {
            one: capacity // len(numbers) + (position < capacity % len(numbers))
            for position, one in enumerate(numbers)
        }
        earlier = [one for other in numbers if other != number for one in self._of(other)[: quota[other]]]
        new = [_cut(number, item, patches) for item in self._choice(number, patches)[: quota[number]]]
        if predict is not None:
            new = [replace(one, prediction=predict(one)) for one in new]
        self.patches = earlier + new
        self._passes = {}

    def restore(
        self,
        items: Iterable[Sequence[int]],
        patches: Callable[[int], PatchDataset],
        predictions: Sequence[Tensor] = (),
    ) -> None:
        """Cut the patches that `item_numbers` named again from the same images, to the same bits.

        Parameters
        ----------
        items
            Experience and item of each.
        patches
            Returns the patches of an experience.
        predictions
            What was predicted of each, if that is kept.
        """
        self.patches = [_cut(number, item, patches(number)) for number, item in items]
        if predictions:
            pairs = zip(self.patches, predictions, strict=True)
            self.patches = [replace(one, prediction=prediction) for one, prediction in pairs]
        self._passes = {}

    def item_numbers(self) -> list[list[int]]:
        """Return experience and item of each patch in the buffer."""
        return [[one.experience, one.item] for one in self.patches]

    def draw(self, first: int, count: int, experience: int, sequence: str = "replay") -> list[BufferedPatch]:
        """Return patches `first` to ``first + count`` of an endless sequence that repeats each equally often.

        Parameters
        ----------
        first, count
            Positions in the sequence.
        experience
            Experience that trains on them; each has its own sequence.
        sequence
            Name of the sequence; those of different names are independent.
        """
        if not self.patches:
            return []
        drawn = []
        for position in range(first, first + count):
            number, within = divmod(position, len(self.patches))
            if sequence not in self._passes or self._passes[sequence][0] != (experience, number):
                order = self._shuffled(sequence, experience, number)
                self._passes[sequence] = (experience, number), order
            drawn.append(self._passes[sequence][1][within])
        return drawn

    def _of(self, number: int) -> list[BufferedPatch]:
        return [one for one in self.patches if one.experience == number]

    def _shuffled(self, sequence: str, experience: int, number: int) -> list[BufferedPatch]:
        return sorted(
            self.patches,
            key=lambda one: digest_of(sequence, self.seed, experience, number, one.experience, one.item),
        )

    def _choice(self, number: int, patches: PatchDataset) -> list[int]:
        """Return all items of an experience, ordered so that the first ones cover all structures and images evenly."""
        items = sorted(range(len(patches)), key=lambda item: digest_of("keep", self.seed, number, item))
        # Stains of one field have the same image: rounds are of the images of each structure.
        items = _in_rounds(items, lambda item: (patches.structure_of(item), patches.sample_of(item).image_id))
        return _in_rounds(items, patches.structure_of)


def join_patches(batch: Sequence[Tensor], more: Sequence[Tensor]) -> list[Tensor]:
    """Join two batches of signals, targets and task labels; where one has weights, both get them."""
    (x, y, labels), (more_x, more_y, more_labels) = batch, more
    if y.shape[1] != more_y.shape[1]:
        y, more_y = (t if t.shape[1] == 2 else torch.cat([t, torch.ones_like(t)], dim=1) for t in (y, more_y))
    return [torch.cat([x, more_x]), torch.cat([y, more_y]), torch.cat([labels, more_labels])]


def _cut(number: int, item: int, patches: PatchDataset) -> BufferedPatch:
    sample = patches.sample_of(item)
    signal, target = patches[item]
    return BufferedPatch(number, item, sample.structure, sample.image_id, signal, target)


def _in_rounds(items: Sequence[int], key: Callable[[int], Hashable]) -> list[int]:
    """Order `items` in rounds, each of which has one item of each key."""
    count: Counter[Hashable] = Counter()
    turn: dict[int, int] = {}
    for item in items:
        turn[item] = count[key(item)]
        count[key(item)] += 1
    return sorted(items, key=turn.__getitem__)
