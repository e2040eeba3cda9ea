"""One prepared pair of images: what preparing hands to the datasets and to whoever lists or splits them.

Apart from the preparing itself, so that a worker of a data loader imports neither image readers nor scipy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

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
    """Digest of the signal's content and of what was taken from it; equal wherever the same image is used."""
    signal: Path
    """float16 or float32 .npy, (Z, Y, X)."""
    target: Path
    """float16 or float32 .npy, (Z, Y, X)."""
    mask: Path | None
    """bool .npy, (Z, Y, X), True where a voxel counts; None where all count."""
    shape: tuple[int, int, int]
    """Voxels (Z, Y, X)."""
    group: str
    """What must not straddle splits: the manifest's `group`, or the digest of the signal file's content."""
    voxel_size: tuple[float, float, float] | None = None
    """um (z, y, x) of the images before they were resampled; None where nobody states it, and they were not."""

    @property
    def content(self) -> tuple[str, str, str, str]:
        """The same wherever signal, target, mask and what was taken of them are: it names prepared files."""
        return (self.image_id, self.signal.name, self.target.name, self.mask.name if self.mask else "")


def digest_of(*parts: str | int) -> bytes:
    """Return 32 bytes that depend on `parts` and on nothing else: no machine, version or order."""
    return hashlib.sha256(canonical_json(parts).encode("ascii")).digest()


def structure_digests(samples: Iterable[Sample]) -> dict[str, str]:
    """Return for each structure a digest of what its images are, and how they are split, in whatever order."""
    images: dict[str, set[tuple[str, ...]]] = {}
    for sample in samples:
        images.setdefault(sample.structure, set()).add((*sample.content, sample.split))
    return {
        structure: digest_of(*(part for image in sorted(found) for part in image)).hex()
        for structure, found in images.items()
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
    circles: dict[tuple[str, tuple[int, int, int]], dict[str, list[int]]] = {}
    for place, sample in enumerate(samples):
        circles.setdefault((sample.structure, sample.shape), {}).setdefault(sample.image_id, []).append(place)
    for (structure, shape), images in circles.items():
        if len(images) < 2:
            raise ManifestError(
                f"shuffle_signals: {structure} has one image alone of the shape {shape}; at least two "
                "of each shape are needed to exchange signals"
            )
        order = sorted(images, key=lambda image: digest_of("shuffle", seed, image))
        for mine, other in zip(order, order[1:] + order[:1], strict=True):
            for place in images[mine]:
                partner[place] = samples[images[other][0]].signal
    return [replace(sample, signal=partner[place]) for place, sample in enumerate(samples)]
