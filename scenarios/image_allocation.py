"""Allocation of training images to experiences: all of a structure's, a part where it comes again, or a few.

Validation and test images are never divided: figures of all streams are of the same images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

from repmode_cl.data.sample import Sample, digest_of
from repmode_cl.errors import ConfigError, ManifestError
from repmode_cl.scenarios.stream_variants import StreamVariant

__all__ = ["check_images", "refuse_count", "training_images"]


def refuse_count(name: str, value: Any, none: str) -> None:
    """Refuse an argument that is neither None nor a whole number of at least 1.

    Parameters
    ----------
    name, value
        Of the argument.
    none
        Meaning of None, for the message.

    Raises
    ------
    ConfigError
        If it is something else.
    """
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if value is not None and not (whole and value >= 1):
        raise ConfigError(
            f"{name} {value!r}: a whole number of at least 1 is needed, or None, which takes {none}"
        )


def training_images(
    samples: Sequence[Sample],
    experiences: Sequence[Sequence[str]],
    *,
    seed: int,
    images_each: int | None = None,
    arrivals: Sequence[Sequence[str]] | None = None,
) -> tuple[tuple[Sample, ...], ...]:
    """Choose the training images of each experience.

    A structure that arrives P times has its images divided into P disjoint parts, one for each time, whose sizes
    differ by at most one. `images_each` then keeps the first n of a part, so that fewer images are always among
    more. Both go by the SHA-256 of seed, structure and image: neither other structures nor other images of the
    manifest change the order of two images.

    Parameters
    ----------
    samples
        Prepared images; those of the split "train" are chosen from.
    experiences
        Structures of each experience, as they are to be trained.
    seed
        Decides parts and choice.
    images_each
        Most images of each structure at each of its arrivals, except in the first of `arrivals`; ``None`` keeps all.
    arrivals
        Structures as they arrive, where `experiences` arranges them otherwise (each of a base by itself, all at
        once): a structure that is trained fewer times than it arrives is trained on all its parts together.

    Returns
    -------
    tuple of tuple of Sample
        For each experience, in the order of `samples`. An image of which the manifest has several rows of a
        structure counts once and brings all of them.

    Raises
    ------
    ConfigError
        If `images_each` is no whole number of at least 1.
    ManifestError
        If a structure has no training image, or fewer than the number of times that it arrives.
    ValueError
        If a structure is trained that never arrives, or more than once and not as often as it arrives.
    """
    refuse_count("images_each", images_each, "all images")
    arrivals = experiences if arrivals is None else arrivals
    parts = _parts(samples, arrivals, seed, images_each)
    times = Counter(name for group in experiences for name in group)
    for name, count in times.items():
        arrived = len(parts.get(name, ()))
        if not arrived or count not in (1, arrived):
            raise ValueError(f"{name} is trained {count} times and arrives {arrived} times")
    arrivals_so_far: Counter[str] = Counter()
    chosen = []
    for group in experiences:
        images_of: dict[str, frozenset[str]] = {}
        for name in group:
            parts_of_structure = parts[name]
            images_of[name] = (
                parts_of_structure[arrivals_so_far[name]]
                if times[name] == len(parts_of_structure)
                else frozenset().union(*parts_of_structure)
            )
            arrivals_so_far[name] += 1
        chosen.append(
            tuple(s for s in samples if s.split == "train" and s.image_id in images_of.get(s.structure, ()))
        )
    return tuple(chosen)


def check_images(samples: Sequence[Sample], variants: Mapping[str, StreamVariant]) -> list[str]:
    """Return notes about streams that get fewer images than they request, before anything is trained.

    Parameters
    ----------
    samples
        Prepared images of all structures.
    variants
        The streams; see `stream_variants`.

    Raises
    ------
    ManifestError
        As `training_images`, or if an added structure has no test image.
    """
    notes: dict[str, None] = {}
    tested = {sample.structure for sample in samples if sample.split == "test"}
    for variant in variants.values():
        for name, parts in _parts(samples, variant.experiences, 0, None).items():
            if name not in tested and name not in variant.experiences[0]:
                raise ManifestError(
                    f"no test image of {name!r}, so that it could not be evaluated: name a row of it with split test "
                    "in the manifest, or give more images of it"
                )
            least = min(map(len, parts))
            if variant.images is not None and name not in variant.experiences[0] and least < variant.images:
                times = f" at one of its {len(parts)} arrivals" if len(parts) > 1 else ""
                notes[
                    f"{name}: {variant.images} training images are requested, and there are {least}{times}; it learns "
                    "from those"
                ] = None
    return list(notes)


def _parts(
    samples: Sequence[Sample],
    arrivals: Sequence[Sequence[str]],
    seed: int,
    images_each: int | None,
) -> dict[str, list[frozenset[str]]]:
    """Return the identities of each structure's training images, one set for each of its arrivals."""
    first = set(arrivals[0]) if arrivals else set()
    parts = {}
    for name, times in Counter(name for group in arrivals for name in group).items():
        image_ids = {s.image_id for s in samples if s.structure == name and s.split == "train"}
        if not image_ids:
            raise ManifestError(
                f"no training image of {name!r}: the manifest needs at least one row of it that is not held "
                "out (split train, or no split)"
            )
        if len(image_ids) < times:
            raise ManifestError(
                f"{name} comes {times} times, each time with new images, and there are {len(image_ids)} training "
                "images of it: give more images of it, or let it come less often"
            )
        order = sorted(image_ids, key=lambda image: digest_of("images", seed, name, image))
        most = None if name in first else images_each
        parts[name] = [frozenset(order[place::times][:most]) for place in range(times)]
    return parts
