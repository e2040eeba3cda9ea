"""One pass over the voxels of all images, each signal read once with the targets that belong to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repmode_cl.data.preprocessing.normalisation import flat_text, percentiles_of
from repmode_cl.data.readers import Region, open_image
from repmode_cl.data.readers.image_reader import BaseReader
from repmode_cl.data.validation.intensity import Measure, measure
from repmode_cl.data.validation.pair_fit import Fit, explained, fit_pair, reduce_signal, reduce_target
from repmode_cl.data.validation.rows import Image, InspectedRow
from repmode_cl.data.validation.thumbnails import thumbnail
from repmode_cl.errors import ImageError, RepmodeError
from repmode_cl.utils.process_pool import run_jobs
from repmode_cl.utils.progress import track

__all__ = ["Key", "VoxelFindings", "compare_with_others", "key_of", "read_voxels"]

#: File, channel, scene, time point and region: what one measurement is of.
Key = tuple[Path, int, int | str | None, int, str]

#: Planes of the largest deviation among so many are shown.
_PLANES = 16


@dataclass
class VoxelFindings:
    """What the voxels say.

    Attributes
    ----------
    measures
        By image.
    damaged
        Why an image could not be measured.
    constant
        Where an image lies whose voxels are all alike, and their value; it is not measured.
    flat
        What is wrong with a measured image that has one value at both percentiles that were asked for.
    absent
        How many of how many parts of a measured image are not stored, where some are not: these read as blank.
    fits
        How well a row's signal and target go together, by row number.
    thumbnails
        PNGs of a row's signal and target, by row number.
    """

    measures: dict[Key, Measure] = field(default_factory=dict)
    damaged: dict[Key, str] = field(default_factory=dict)
    constant: dict[Key, str] = field(default_factory=dict)
    flat: dict[Key, str] = field(default_factory=dict)
    absent: dict[Key, tuple[int, int]] = field(default_factory=dict)
    fits: dict[int, Fit] = field(default_factory=dict)
    thumbnails: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Part:
    """One image of a row, as a process reads it."""

    image: Image
    region: Region | None
    mask: bool = False


@dataclass(frozen=True)
class _Work:
    """A signal with the targets of the rows (by number) that have it, and masks."""

    signal: _Part | None
    targets: tuple[tuple[int, _Part], ...]
    masks: tuple[_Part, ...]


def key_of(image: Image, region: Region | None) -> Key:
    """Return what tells one measured image from another."""
    span = ",".join(f"{part.start}:{part.stop}" for part in (region or Region()).resolve(image.shape))
    return image.path, image.channel, image.header.scene, image.t, span


def read_voxels(
    looked: Sequence[InspectedRow],
    *,
    pictures: Sequence[int] = (),
    percentiles: tuple[float, float] | None = None,
    workers: int = 1,
) -> VoxelFindings:
    """Read all images of rows whose headers are in order.

    Parameters
    ----------
    looked
        Rows; images that were not found are left out.
    pictures
        Numbers of the rows that thumbnails are wanted of.
    percentiles
        A lower and an upper one between which images should not be all alike.
    workers
        Processes at work at once, each with a signal and a target in memory.
    """
    seen = VoxelFindings()
    works = _works(looked)
    done = run_jobs(partial(_see, frozenset(pictures), percentiles), works, workers, name=_name)
    for one in track(done, "reading images", len(works)):
        seen.measures.update(one.measures)
        seen.damaged.update(one.damaged)
        seen.constant.update(one.constant)
        seen.flat.update(one.flat)
        seen.absent.update(one.absent)
        seen.fits.update(one.fits)
        seen.thumbnails.update(one.thumbnails)
    return seen


def _name(work: _Work) -> str:
    parts = [work.signal, *(part for _, part in work.targets), *work.masks]
    return str(next(part.image.path for part in parts if part is not None))


def _works(looked: Sequence[InspectedRow]) -> list[_Work]:
    """Group what is to be read by signal, so that one shared by twelve structures is read once."""
    signals: dict[Key | int, _Part | None] = {}
    targets: dict[Key | int, list[tuple[int, _Part]]] = {}
    masks: dict[Key | int, dict[Key, _Part]] = {}
    for one in looked:
        region = one.row.region
        parts = {column: _Part(image, region, column == "mask") for column, image in one.images.items()}
        signal = parts.get("signal")
        group: Key | int = one.row.number if signal is None else key_of(signal.image, region)
        signals[group] = signal
        targets.setdefault(group, [])
        masks.setdefault(group, {})
        if "target" in parts:
            targets[group].append((one.row.number, parts["target"]))
        if "mask" in parts:
            masks[group].setdefault(key_of(parts["mask"].image, region), parts["mask"])
    return [
        _Work(signal, tuple(targets[group]), tuple(masks[group].values()))
        for group, signal in signals.items()
        if signal is not None or targets[group] or masks[group]
    ]


def _see(pictures: frozenset[int], percentiles: tuple[float, float] | None, work: _Work) -> VoxelFindings:
    seen = VoxelFindings()
    signal = None if work.signal is None else _measured(work.signal, seen, percentiles)
    features = None
    volumes: dict[Key, NDArray[Any] | None] = {}
    last: Key | None = None
    for number, part in work.targets:
        key = key_of(part.image, part.region)
        if key != last:  # one target in memory at a time
            volumes = {key: _measured(part, seen, percentiles)}
            last = key
        target = volumes[key]
        if signal is None or target is None or signal.shape != target.shape:
            continue
        if features is None:
            features = reduce_signal(signal)
        seen.fits[number] = fit_pair(features, reduce_target(target))
        if number in pictures:
            step = max(1, target.shape[0] // _PLANES)
            spread = [float(np.std(plane, dtype=np.float64)) for plane in target[::step]]
            plane = step * int(np.argmax(spread))
            seen.thumbnails[number] = (thumbnail(signal, plane), thumbnail(target, plane))
    for part in work.masks:
        _measured(part, seen, percentiles)
    return seen


def _read(part: _Part) -> NDArray[Any]:
    image = part.image
    try:
        with open_image(image.path, scene=image.scene) as reader:
            return reader.read(image.channel, part.region, t=image.t)
    except MemoryError as error:
        raise RepmodeError(
            f"{image.path}: not enough memory to read it; use fewer processes (--workers 1), a region of the file, or "
            "--headers-only"
        ) from error


def _absent(part: _Part) -> tuple[int, int]:
    """Return how many of how many stored parts of an image are not there."""
    image = part.image
    if not image.path.is_dir():
        return 0, 0
    with open_image(image.path, scene=image.scene) as reader:
        if isinstance(reader, BaseReader):
            return reader.absent_parts(image.channel, part.region, image.t)
    return 0, 0


def _measured(
    part: _Part, seen: VoxelFindings, percentiles: tuple[float, float] | None
) -> NDArray[Any] | None:
    """Read and measure an image; return it unless something is wrong with it."""
    image, key = part.image, key_of(part.image, part.region)
    if key in seen.damaged or key in seen.constant:
        return None
    try:
        volume = _read(part)
    except ImageError as error:
        seen.damaged[key] = str(error)
        return None
    place = f"{image.path}, channel {image.header.channel_names[image.channel]}"
    place += f", region {part.region}" if part.region else ""
    # NaN survives both, so two passes without a copy tell everything.
    low, high = float(volume.min()), float(volume.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        seen.damaged[key] = f"{place}: voxels are not finite (NaN or infinite)"
    elif part.mask:
        if low == high == 0:
            seen.damaged[key] = f"{place}: the mask is zero everywhere, so that no voxel counts"
        return None
    elif low == high:
        seen.constant[key] = f"{place}: the volume is constant ({low:g} everywhere)"
    if key in seen.damaged or key in seen.constant:
        return None
    if key not in seen.measures:
        seen.measures[key] = measure(volume)
        if percentiles is not None:
            low, high = percentiles_of(lambda: (volume,), volume.size, percentiles)
            if low == high:
                seen.flat[key] = f"{place}: {flat_text(low, percentiles)}"
        absent, parts = _absent(part)
        if absent:
            seen.absent[key] = absent, parts
    return volume


def compare_with_others(
    rows: Sequence[tuple[InspectedRow, Sequence[InspectedRow]]], kinds: Sequence[int], *, workers: int = 1
) -> dict[int, dict[int, float]]:
    """Return how well the signals of other rows explain a row's target: R2 by row number and other row's number.

    Parameters
    ----------
    rows
        Rows, each with the others whose signals, of the same shape, are tried.
    kinds
        Set of features to use for each row: of its `Fit`.
    workers
        Processes at work at once.
    """
    works = [
        (one.row.number, _part(one, "target"), [(o.row.number, _part(o, "signal")) for o in others], kind)
        for (one, others), kind in zip(rows, kinds, strict=True)
    ]
    done = run_jobs(_compare, works, workers, name=lambda work: str(work[1].image.path))
    return dict(track(done, "comparing with other images", len(works)))


def _part(one: InspectedRow, column: str) -> _Part:
    return _Part(one.images[column], one.row.region)


def _compare(work: tuple[int, _Part, list[tuple[int, _Part]], int]) -> tuple[int, dict[int, float]]:
    number, part, others, kind = work
    target = reduce_target(_read(part))
    found = {}
    for other, signal in others:
        features = reduce_signal(_read(signal))
        if features.sets[kind].shape[1:] == target.shape:
            found[other] = explained(features, target, kind)
    return number, found
