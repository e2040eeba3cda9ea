"""Sample: one prepared pair of images, as datasets, splits and streams use it.

Separate from the preparation itself, so that a worker of a data loader imports neither image readers nor scipy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from repmode_cl.data.geometry import VoxelSize
from repmode_cl.errors import ManifestError
from repmode_cl.utils.atomic_files import canonical_json

__all__ = ["Sample", "digest_of", "structure_digests", "shuffle_signals"]


@dataclass(frozen=True)
class Sample:
    """A signal and the target of one structure, prepared: on one voxel size, z-scored, of one shape."""

    structure: str
    """Name of the structure that the target shows."""
    split: str
    """train, val or test."""
    row: int
    """Line of the manifest that it came from."""
    image_id: str
    """Digest of the signal's content and of the part used; equal wherever the same image is used."""
    signal: Path
    """float16 or float32 .npy, (Z, Y, X)."""
    target: Path
    """float16 or float32 .npy, (Z, Y, X)."""
    mask: Path | None
    """bool .npy, (Z, Y, X), True where a voxel counts; None where all count."""
    shape: tuple[int, int, int]
    """Voxels (Z, Y, X)."""
    group: str
    """Samples of one group stay in one split: the manifest's `group`, or the digest of the signal file's content."""
    voxel_size: VoxelSize | None = None
    """Voxel size of the images before they were resampled; None where it is unknown, and they were not resampled."""
    light_scale: tuple[float, float] | None = None
    """Mean and deviation by which the signal was z-scored, where they are not its own (`normalise: data_set`)."""
    target_scale: tuple[float, float] | None = None
    """The target's."""
    source: str = ""
    """Part of a file that the signal is, as `repmode_cl.data.split_record.ImagePart` writes it; empty if of no file."""

    @property
    def content(self) -> tuple[str, str, str, str]:
        """Identity of the prepared files: the same wherever signal, target, mask and the parts used are."""
        return (self.image_id, self.signal.name, self.target.name, self.mask.name if self.mask else "")


def digest_of(*parts: str | int) -> bytes:
    """Return 32 bytes that depend only on `parts`: not on machine, version or order of calls."""
    return hashlib.sha256(canonical_json(parts).encode("ascii")).digest()


def structure_digests(samples: Iterable[Sample]) -> dict[str, str]:
    """Return for each structure a digest of its images and their splits, independent of their order."""
    images: dict[str, set[tuple[str, ...]]] = {}
    for sample in samples:
        images.setdefault(sample.structure, set()).add((*sample.content, sample.split))
    return {
        structure: digest_of(*(part for image in sorted(contents) for part in image)).hex()
        for structure, contents in images.items()
    }


def shuffle_signals(samples: Iterable[Sample], seed: int) -> list[Sample]:
    """Give every target the signal of another image: a control that nothing can be learned from.

    The images of a structure that share a shape are put in a seeded order, and each takes the signal of the
    next.

    Raises
    ------
    ManifestError
        If an image has no other of its structure and shape.
    """
    samples = list(samples)
    partner: dict[int, Path] = {}
    exchanges: dict[tuple[str, tuple[int, int, int]], dict[str, list[int]]] = {}
    for place, sample in enumerate(samples):
        same_shape = exchanges.setdefault((sample.structure, sample.shape), {})
        same_shape.setdefault(sample.image_id, []).append(place)
    for (structure, shape), images in exchanges.items():
        if len(images) < 2:
            raise ManifestError(
                f"shuffle_signals: {structure} has only one image of the shape {shape}; at least two "
                "of each shape are needed to exchange signals"
            )
        order = sorted(images, key=lambda image: digest_of("shuffle", seed, image))
        for image, other in zip(order, order[1:] + order[:1], strict=True):
            for place in images[image]:
                partner[place] = samples[images[other][0]].signal
    return [replace(sample, signal=partner[place]) for place, sample in enumerate(samples)]
