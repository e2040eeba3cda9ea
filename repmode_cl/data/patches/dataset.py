"""Patches for training and whole volumes for evaluation, cut from prepared `.npy` files.

What is cut is a pure function of (seed, structure, epoch, image), so that a dataset holds no state: any
number of loader workers, a run that is resumed, and every strategy get the identical patches. Only SHA-256
decides, because the streams of a random generator may change with the version of the library.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from repmode_cl.data.patches.foreground import ForegroundCache
from repmode_cl.data.patches.sampler import make_order
from repmode_cl.data.sample import Sample, digest_of
from repmode_cl.errors import ImageError, ManifestError

__all__ = ["PatchDataset", "VolumeDataset"]


class PatchDataset(Dataset[tuple[Tensor, Tensor]]):
    """A virtual sequence of random patches, one per image and epoch (paper, section 4.1).

    Item i belongs to epoch ``i // n`` of the n images and shows the image at place ``i % n`` of that epoch's
    seeded order; with a limit on a batch's structures, `sampler.GroupedOrder` describes the order instead.
    Only the voxels of the patch are read.

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
    batch, structures_per_batch
        Each of the batches of `batch` items, counted from item 0, shows at most so many structures; None mixes
        freely.
    foreground
        Share of items, 0 to 1, whose crop is centred on a bright voxel of the target (`bright_voxels`), as far as the
        volume's border lets it; each of these voxels is as likely. The other items are those that 0 gives, and so are
        all items of a target without a bright voxel. To find them, a target is read through once by each process.

    Raises
    ------
    ManifestError
        If there is no sample.
    ValueError
        If a size of the patch is below 1 or `length` is negative, a limit of structures comes without `batch`, or
        `foreground` is no share.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        *,
        patch: Sequence[int],
        seed: int,
        length: int,
        flips: bool | Sequence[str] = True,
        batch: int | None = None,
        structures_per_batch: int | None = None,
        foreground: float = 0.0,
    ) -> None:
        if len(patch) != 3 or min(patch) < 1:
            raise ValueError(f"a patch has three sizes (z, y, x) of at least 1 voxel, got {tuple(patch)}")
        if length < 0:
            raise ValueError(f"length is not negative, got {length}")
        if not 0 <= foreground <= 1:
            raise ValueError(f"foreground is a share of the crops, 0 to 1, got {foreground}")
        self.samples = _not_empty(samples)
        self.foreground = float(foreground)
        self._foreground = ForegroundCache()
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
        """True if targets have a second channel, the weight (0 or 1) of each voxel."""
        self._order = make_order(self.samples, self.seed, batch, structures_per_batch)

    def __len__(self) -> int:
        return self.length

    def with_length(self, length: int) -> PatchDataset:
        """Return the same sequence, which has no end, with another number of items."""
        if length == self.length:
            return self
        longer = copy.copy(self)
        longer.length = int(length)
        return longer

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return signal (1, z, y, x) and target (1, z, y, x), or (2, z, y, x) where `weighted`; float32."""
        signal, target = torch.empty(1, *self.patch), torch.empty(self.channels, *self.patch)
        self.read(index, signal, target)
        return signal, target

    @property
    def channels(self) -> int:
        """Channels of a target: 2 where it is `weighted`, else 1."""
        return 2 if self.weighted else 1

    def read(self, index: int, signal: Tensor, target: Tensor) -> None:
        """Cut item `index` into existing memory, such as a batch's.

        Parameters
        ----------
        index
            Number of the item.
        signal, target
            float32 (1, z, y, x) and (`channels`, z, y, x), contiguous; overwritten.

        Raises
        ------
        ImageError
            If a prepared volume cannot be read.
        """
        place, epoch = self._order.at(self._inside(index))
        sample = self.samples[place]
        chance = digest_of("crop", self.seed, sample.structure, epoch, sample.image_id)
        axes = []
        inside = []
        centre = self._centre(sample, epoch)
        for axis, (size, patch) in enumerate(zip(sample.shape, self.patch, strict=True)):
            if centre is None:
                # Eight bytes for at most some thousand places: the remainder's bias is below 1e-15.
                start = int.from_bytes(chance[8 * axis : 8 * axis + 8], "big") % max(1, size - patch + 1)
            else:
                start = min(max(0, centre[axis] - patch // 2), max(0, size - patch))
            where, real = _along(size, patch, start)
            if "zyx"[axis] in self.flips and chance[24] >> axis & 1:
                where, real = where[::-1], real[::-1]
            axes.append(where)
            inside.append(real)
        _gather(sample.signal, axes, signal[0])
        _gather(sample.target, axes, target[0])
        if not self.weighted:
            return
        z, y, x = inside
        weight = torch.from_numpy(z[:, None, None] & y[:, None] & x)
        if sample.mask is None:
            target[1] = weight
        else:
            _gather(sample.mask, axes, target[1])
            target[1] *= weight

    def _centre(self, sample: Sample, epoch: int) -> tuple[int, int, int] | None:
        """Return the bright voxel that a crop is centred on; None where it lies anywhere."""
        if not self.foreground:
            return None
        chance = digest_of("foreground", self.seed, sample.structure, epoch, sample.image_id)
        if int.from_bytes(chance[:8], "big") >= self.foreground * 2.0**64:
            return None
        places = self._foreground.of(sample.target, sample.mask, _mapped)
        if not len(places):
            return None
        z, y, x = places[int.from_bytes(chance[8:16], "big") % len(places)]
        return int(z), int(y), int(x)

    def sample_of(self, index: int) -> Sample:
        """Return the sample that item `index` is cut from, without reading it."""
        place, _ = self._order.at(self._inside(index))
        return self.samples[place]

    def structure_of(self, index: int) -> str:
        """Return the structure of item `index`, without reading it."""
        return self.sample_of(index).structure

    def _inside(self, index: int) -> int:
        place = index + self.length if index < 0 else index
        if not 0 <= place < self.length:
            raise IndexError(f"item {index} of {self.length}")
        return place


class VolumeDataset(Dataset[tuple[Tensor, Tensor]]):
    """Whole volumes, one item per sample, in the order given.

    Raises
    ------
    ManifestError
        If there is no sample.
    """

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = _not_empty(samples)
        self.weighted = any(sample.mask is not None for sample in self.samples)
        """True if targets have a second channel, the weight (0 or 1) of each voxel."""

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


def _not_empty(samples: Sequence[Sample]) -> tuple[Sample, ...]:
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


def _gather(path: Path, axes: Sequence[NDArray[np.intp]], out: Tensor) -> None:
    """Read the voxels at `axes` (one index array an axis) into `out`; only their bounding box is touched."""
    lowest = [int(where.min()) for where in axes]
    touched = tuple(slice(a, int(where.max()) + 1) for a, where in zip(lowest, axes, strict=True))
    box = torch.from_numpy(_mapped(path)[touched])
    # Converted by torch, which is four times as fast as numpy with half precision.
    if any(size != len(where) for size, where in zip(box.shape, axes, strict=True)):
        places = np.ix_(*[where - a for a, where in zip(lowest, axes, strict=True)])
        out.copy_(torch.from_numpy(box.float().numpy()[places]))
        return
    # No voxel stands twice: each axis is the box's own, forwards or backwards, and turning is far faster.
    turned = tuple(slice(None, None, -1 if where[0] > where[-1] else 1) for where in axes)
    if all(cut.step == 1 for cut in turned):
        out.copy_(box)
    else:
        # Turned by numpy, which needs no extra memory for it. Pages of fresh memory cost more than copies.
        np.copyto(out.numpy(), torch.empty(box.shape).copy_(box).numpy()[turned])


def _whole(path: Path) -> Tensor:
    volume = torch.from_numpy(_mapped(path))
    return torch.empty(volume.shape).copy_(volume)


def _mapped(path: Path) -> NDArray[np.generic]:
    """Map a prepared volume into memory.

    Again for every patch: keeping maps open would halve the time of small collections, which are fast anyway, and
    keep a file open for each image of large ones.
    """
    try:
        # Copy on write, because torch warns of memory that cannot be written; nothing is written.
        mapped: NDArray[np.generic] = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ImageError(
            f"{path}: the prepared volume cannot be read ({error}); it was removed or damaged since it was prepared: "
            "run the same command again, which prepares it again"
        ) from error
    return mapped
