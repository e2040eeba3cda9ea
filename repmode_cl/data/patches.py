"""Patches for training and whole volumes for evaluation, cut from prepared `.npy` files.

What is cut is a pure function of (seed, structure, epoch, image), so that a dataset holds no state: any
number of loader workers, a run that is resumed, and every strategy get the identical patches. SHA-256 alone
decides, because the streams of a random generator may change with the version of the library.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from repmode_cl.data.sample import Sample, digest_of
from repmode_cl.errors import ManifestError

__all__ = ["PatchDataset", "VolumeDataset"]


class PatchDataset(Dataset[tuple[Tensor, Tensor]]):
    """A virtual sequence of random patches, one per image and epoch (paper, section 4.1).

    Item i belongs to epoch ``i // n`` of the n images and shows the image at place ``i % n`` of that epoch's
    seeded order. Only the voxels of the patch are read.

    Parameters
    ----------
    samples
        Prepared images; their order has no influence.
    patch
        Voxels (z, y, x). A volume that is smaller in an axis is centred and padded: by reflection as far as
        it goes, then with the last value; padded voxels weigh 0.
    seed
        Decides order, crops and flips.
    length
        Number of items: batch size times steps, or images times epochs.
    flips
        Flip each axis with probability one half; or the axes that may be flipped, such as ``("y", "x")``:
        transmitted light is not the same above and below the focus.

    Raises
    ------
    ManifestError
        If there is no sample.
    ValueError
        If a size of the patch is below 1 or `length` is negative.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        *,
        patch: Sequence[int],
        seed: int,
        length: int,
        flips: bool | Sequence[str] = True,
    ) -> None:
        if len(patch) != 3 or min(patch) < 1:
            raise ValueError(f"a patch has three sizes (z, y, x) of at least 1 voxel, got {tuple(patch)}")
        if length < 0:
            raise ValueError(f"length is not negative, got {length}")
        self.samples = _checked(samples)
        self.patch = (int(patch[0]), int(patch[1]), int(patch[2]))
        self.seed = int(seed)
        self.length = int(length)
        self.flips = (tuple("zyx") if flips else ()) if isinstance(flips, bool) else tuple(flips)
        if wrong := set(self.flips) - set("zyx"):
            raise ValueError(f"flips are axes z, y, x, not {', '.join(sorted(wrong))}")
        self.weighted = any(
            sample.mask is not None or any(a < b for a, b in zip(sample.shape, self.patch, strict=True))
            for sample in self.samples
        )
        """Whether targets have a second channel, the weight (0 or 1) of each voxel."""
        self._order: tuple[int, list[int]] | None = None  # of the last epoch asked for: a cache, not state

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return signal (1, z, y, x) and target (1, z, y, x), or (2, z, y, x) where `weighted`; float32."""
        sample = self.sample_of(index)
        epoch = self._inside(index) // len(self.samples)
        chance = digest_of("crop", self.seed, sample.structure, epoch, sample.image_id)
        axes = []
        inside = []
        for axis, (size, patch) in enumerate(zip(sample.shape, self.patch, strict=True)):
            # Eight bytes for at most some thousand places: the remainder's bias is below 1e-15.
            start = int.from_bytes(chance[8 * axis : 8 * axis + 8], "big") % max(1, size - patch + 1)
            where, real = _along(size, patch, start)
            if "zyx"[axis] in self.flips and chance[24] >> axis & 1:
                where, real = where[::-1], real[::-1]
            axes.append(where)
            inside.append(real)
        signal = _gather(sample.signal, axes)
        target = _gather(sample.target, axes)
        if not self.weighted:
            return signal[None], target[None]
        z, y, x = inside
        weight = torch.from_numpy(z[:, None, None] & y[:, None] & x).float()
        if sample.mask is not None:
            weight = weight * _gather(sample.mask, axes)
        return signal[None], torch.stack([target, weight])

    def sample_of(self, index: int) -> Sample:
        """Return the sample that item `index` is cut from, without reading it."""
        epoch, place = divmod(self._inside(index), len(self.samples))
        cached = self._order
        if cached is None or cached[0] != epoch:
            cached = self._order = (epoch, self._order_of(epoch))
        return self.samples[cached[1][place]]

    def structure_of(self, index: int) -> str:
        """Return the structure of item `index`, without reading it."""
        return self.sample_of(index).structure

    def _inside(self, index: int) -> int:
        place = index + self.length if index < 0 else index
        if not 0 <= place < self.length:
            raise IndexError(f"item {index} of {self.length}")
        return place

    def _order_of(self, epoch: int) -> list[int]:
        def chance(place: int) -> tuple[bytes, int]:
            sample = self.samples[place]
            # The row tells apart two samples of one structure with the same signal, as a manifest might hold.
            return digest_of("order", self.seed, epoch, sample.structure, sample.image_id), sample.row

        return sorted(range(len(self.samples)), key=chance)


class VolumeDataset(Dataset[tuple[Tensor, Tensor]]):
    """Whole volumes, one item per sample, in the order given.

    Raises
    ------
    ManifestError
        If there is no sample.
    """

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = _checked(samples)
        self.weighted = any(sample.mask is not None for sample in self.samples)
        """Whether targets have a second channel, the weight (0 or 1) of each voxel."""

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return signal (1, Z, Y, X) and target (1, Z, Y, X), or (2, Z, Y, X) where `weighted`; float32."""
        sample = self.samples[index]
        signal, target = _whole(sample.signal), _whole(sample.target)
        if not self.weighted:
            return signal[None], target[None]
        weight = torch.ones_like(target) if sample.mask is None else _whole(sample.mask)
        return signal[None], torch.stack([target, weight])

    def sample_of(self, index: int) -> Sample:
        """Return the sample of item `index`, without reading it."""
        return self.samples[index]

    def structure_of(self, index: int) -> str:
        """Return the structure of item `index`, without reading it."""
        return self.samples[index].structure


def _checked(samples: Sequence[Sample]) -> tuple[Sample, ...]:
    if not samples:
        raise ManifestError("there is no image to read: the manifest has no row of this split and structure")
    return tuple(samples)


def _along(size: int, patch: int, start: int) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Return the voxel behind each of `patch` places of an axis, and whether the place is inside."""
    if size >= patch:
        return np.arange(start, start + patch), np.ones(patch, bool)
    wanted = np.arange(patch) - (patch - size) // 2
    real = (wanted >= 0) & (wanted < size)
    # A reflection that would leave the volume on its far side stays at the last voxel it reached.
    below = np.minimum(-wanted, size - 1)
    above = np.maximum(2 * (size - 1) - wanted, 0)
    return np.where(wanted < 0, below, np.where(real, wanted, above)).astype(np.intp), real


def _gather(path: Path, axes: Sequence[NDArray[np.intp]]) -> Tensor:
    """Read the voxels at `axes` (one index array an axis), float32; only their bounding box is touched."""
    volume = np.load(path, mmap_mode="r")
    lowest = [int(where.min()) for where in axes]
    touched = tuple(slice(a, int(where.max()) + 1) for a, where in zip(lowest, axes, strict=True))
    box = volume[touched]
    if all(size == len(where) for size, where in zip(box.shape, axes, strict=True)):
        # No voxel stands twice: each axis is the box's own, forwards or backwards, and slices are far faster.
        turned = tuple(slice(None, None, -1 if where[0] > where[-1] else 1) for where in axes)
        return torch.from_numpy(np.array(box[turned], np.float32, order="C"))
    padded = np.array(box, np.float32)[np.ix_(*[where - a for a, where in zip(lowest, axes, strict=True)])]
    return torch.from_numpy(padded)


def _whole(path: Path) -> Tensor:
    return torch.from_numpy(np.array(np.load(path, mmap_mode="r"), np.float32))
