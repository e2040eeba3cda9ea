"""Measurements of the voxels of all images: each signal is read once, with the targets that belong to it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from repmode_cl.data.preprocessing.normalisation import flat_message, streaming_percentiles
from repmode_cl.data.readers import Region, open_image
from repmode_cl.data.validation.intensity import IntensityStatistics, measure_intensity
from repmode_cl.data.validation.pair_fit import (
    PairFit,
    brightness_skewness,
    explained_variance,
    fit_pair,
    prepare_target,
    signal_features,
)
from repmode_cl.data.validation.rows import ChannelImage, InspectedRow
from repmode_cl.data.validation.thumbnails import (
    FrameKey,
    Thumbnail,
    ThumbnailFrame,
    busiest_plane,
    thumbnail,
)
from repmode_cl.errors import ImageError, RepmodeError
from repmode_cl.utils.process_pool import run_jobs
from repmode_cl.utils.progress import track

__all__ = ["ImageKey", "VoxelFindings", "compare_with_others", "image_key", "measure_voxels"]

#: Identity of a measured image: file, channel, scene, time point and region.
ImageKey = tuple[Path, int, int | str | None, int, str]


@dataclass
class VoxelFindings:
    """Results of reading the voxels.

    Attributes
    ----------
    statistics
        Statistics by image.
    damaged
        Reason why an image could not be measured.
    constant
        Message for an image whose voxels all have one value; it is not measured.
    flat_between_percentiles
        Message for a measured image that has one value at both percentiles of the normalisation.
    skewness
        Skewness of the brightness of signal and target, by row number, for the rows of `fits`.
    absent_chunks
        Number of chunks of a measured image that are not stored and read as blank, and number of all its chunks;
        only for images that lack some.
    fits
        Fit of a row's signal and target, by row number.
    thumbnails
        Pictures of signals and targets that could be read, by row number and column.
    """

    statistics: dict[ImageKey, IntensityStatistics] = field(default_factory=dict)
    damaged: dict[ImageKey, str] = field(default_factory=dict)
    constant: dict[ImageKey, str] = field(default_factory=dict)
    flat_between_percentiles: dict[ImageKey, str] = field(default_factory=dict)
    skewness: dict[int, tuple[float, float]] = field(default_factory=dict)
    absent_chunks: dict[ImageKey, tuple[int, int]] = field(default_factory=dict)
    fits: dict[int, PairFit] = field(default_factory=dict)
    thumbnails: dict[FrameKey, Thumbnail] = field(default_factory=dict)

    def update(self, other: VoxelFindings) -> None:
        """Add the results of other images."""
        for one in fields(self):
            getattr(self, one.name).update(getattr(other, one.name))


@dataclass(frozen=True)
class _ImageRegion:
    """One image of a row and the region of it that a process reads."""

    image: ChannelImage
    region: Region | None
    mask: bool = False


@dataclass(frozen=True)
class _SignalGroup:
    """A signal with the targets (by row number) and masks of all rows that use it, and the numbers of the rows."""

    rows: tuple[int, ...]
    signal: _ImageRegion | None
    targets: tuple[tuple[int, _ImageRegion], ...]
    masks: tuple[_ImageRegion, ...]


def image_key(image: ChannelImage, region: Region | None) -> ImageKey:
    """Return the identity of a region of an image."""
    span = ",".join(f"{part.start}:{part.stop}" for part in (region or Region()).resolve(image.shape))
    return image.path, image.channel, image.header.scene, image.t, span


def measure_voxels(
    inspected: Sequence[InspectedRow],
    *,
    thumbnails: Mapping[FrameKey, ThumbnailFrame] | None = None,
    percentiles: tuple[float, float] | None = None,
    workers: int = 1,
) -> VoxelFindings:
    """Read all images of rows whose headers are in order.

    Parameters
    ----------
    inspected
        Rows; columns without a readable image are skipped.
    thumbnails
        Sizes of the thumbnails to make, by row number and column; None makes none.
    percentiles
        Lower and upper percentile of the normalisation; an image with one value between them gets a message.
    workers
        Processes that read at the same time, each with a signal and a target in memory.
    """
    findings = VoxelFindings()
    groups = _signal_groups(inspected)
    done = run_jobs(partial(_measure_group, thumbnails or {}, percentiles), groups, workers, name=_name)
    for one in track(done, "reading images", len(groups)):
        findings.update(one)
    return findings


def _name(group: _SignalGroup) -> str:
    parts = [group.signal, *(part for _, part in group.targets), *group.masks]
    return str(next(part.image.path for part in parts if part is not None))


def _signal_groups(inspected: Sequence[InspectedRow]) -> list[_SignalGroup]:
    """Group what is to be read by signal, so that one shared by twelve structures is read once."""
    signals: dict[ImageKey | int, _ImageRegion | None] = {}
    targets: dict[ImageKey | int, list[tuple[int, _ImageRegion]]] = {}
    masks: dict[ImageKey | int, dict[ImageKey, _ImageRegion]] = {}
    rows: dict[ImageKey | int, list[int]] = {}
    for one in inspected:
        region = one.row.region
        parts = {
            column: _ImageRegion(image, region, column == "mask") for column, image in one.images.items()
        }
        signal = parts.get("signal")
        group: ImageKey | int = one.row.number if signal is None else image_key(signal.image, region)
        signals[group] = signal
        targets.setdefault(group, [])
        masks.setdefault(group, {})
        rows.setdefault(group, []).append(one.row.number)
        if "target" in parts:
            targets[group].append((one.row.number, parts["target"]))
        if "mask" in parts:
            masks[group].setdefault(image_key(parts["mask"].image, region), parts["mask"])
    return [
        _SignalGroup(tuple(rows[group]), signal, tuple(targets[group]), tuple(masks[group].values()))
        for group, signal in signals.items()
        if signal is not None or targets[group] or masks[group]
    ]


def _measure_group(
    thumbnails: Mapping[FrameKey, ThumbnailFrame],
    percentiles: tuple[float, float] | None,
    group: _SignalGroup,
) -> VoxelFindings:
    findings = VoxelFindings()
    signal = None if group.signal is None else _measure(group.signal, findings, percentiles)
    features, signal_skewness = None, 0.0
    volumes: dict[ImageKey, NDArray[Any] | None] = {}
    last: ImageKey | None = None
    for number, part in group.targets:
        key = image_key(part.image, part.region)
        if key != last:  # one target in memory at a time
            volumes = {key: _measure(part, findings, percentiles)}
            last = key
        target = volumes[key]
        _add_thumbnails(findings, number, thumbnails, signal, target)
        if signal is None or target is None or signal.shape != target.shape:
            continue
        if features is None:
            features, signal_skewness = signal_features(signal), brightness_skewness(signal)
        findings.fits[number] = fit_pair(features, prepare_target(target))
        findings.skewness[number] = signal_skewness, brightness_skewness(target)
    for number in set(group.rows) - {number for number, _ in group.targets}:
        _add_thumbnails(findings, number, thumbnails, signal, None)
    for part in group.masks:
        _measure(part, findings, percentiles)
    return findings


def _add_thumbnails(
    findings: VoxelFindings,
    number: int,
    frames: Mapping[FrameKey, ThumbnailFrame],
    signal: NDArray[Any] | None,
    target: NDArray[Any] | None,
) -> None:
    """Make pictures of the images of a row that could be read, of the same plane where they have the same shape."""
    plane = 0
    for column, volume in (("target", target), ("signal", signal)):
        frame = frames.get((number, column))
        if frame is None or volume is None:
            continue
        if column == "target" or target is None or target.shape != volume.shape:
            plane = busiest_plane(volume)
        findings.thumbnails[number, column] = thumbnail(volume, plane, frame)


def _read(part: _ImageRegion) -> NDArray[Any]:
    image = part.image
    try:
        with open_image(image.path, scene=image.scene) as reader:
            return reader.read(image.channel, part.region, t=image.t)
    except MemoryError as error:
        raise RepmodeError(
            f"{image.path}: not enough memory to read it; use fewer processes (--workers 1), a region of the file, or "
            "--headers-only"
        ) from error


def _absent_chunks(part: _ImageRegion) -> tuple[int, int]:
    """Return the number of chunks of an image that are not stored, and of all its chunks."""
    image = part.image
    if not image.path.is_dir():
        return 0, 0
    with open_image(image.path, scene=image.scene) as reader:
        return reader.absent_parts(image.channel, part.region, image.t)


def _measure(
    part: _ImageRegion, findings: VoxelFindings, percentiles: tuple[float, float] | None
) -> NDArray[Any] | None:
    """Read and measure an image; return it unless something is wrong with it."""
    image, key = part.image, image_key(part.image, part.region)
    if key in findings.damaged or key in findings.constant:
        return None
    try:
        volume = _read(part)
    except ImageError as error:
        findings.damaged[key] = str(error)
        return None
    place = f"{image.path}, channel {image.header.channel_names[image.channel]}"
    place += f", region {part.region}" if part.region else ""
    # NaN survives both, so that two passes without a copy are enough.
    low, high = float(volume.min()), float(volume.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        findings.damaged[key] = f"{place}: voxels are not finite (NaN or infinite)"
    elif part.mask:
        if low == high == 0:
            findings.damaged[key] = f"{place}: the mask is zero everywhere, so that no voxel counts"
        return None
    elif low == high:
        findings.constant[key] = f"{place}: the volume is constant ({low:g} everywhere)"
    if key in findings.damaged or key in findings.constant:
        return None
    if key not in findings.statistics:
        findings.statistics[key] = measure_intensity(volume)
        if percentiles is not None:
            low, high = streaming_percentiles(lambda: (volume,), volume.size, percentiles)
            if low == high:
                findings.flat_between_percentiles[key] = f"{place}: {flat_message(low, percentiles)}"
        absent, chunks = _absent_chunks(part)
        if absent:
            findings.absent_chunks[key] = absent, chunks
    return volume


def compare_with_others(
    rows: Sequence[tuple[InspectedRow, Sequence[InspectedRow]]],
    feature_sets: Sequence[int],
    *,
    workers: int = 1,
) -> dict[int, dict[int, float]]:
    """Return the R2 of rows' targets by the signals of other rows: by row number and the other row's number.

    Parameters
    ----------
    rows
        Rows, each with the others whose signals, of the same shape, are tried.
    feature_sets
        Set of features to use for each row, as in its `PairFit`.
    workers
        Processes that read at the same time.
    """
    comparisons = [
        (
            one.row.number,
            _part(one, "target"),
            [(o.row.number, _part(o, "signal")) for o in others],
            feature_set,
        )
        for (one, others), feature_set in zip(rows, feature_sets, strict=True)
    ]
    done = run_jobs(_compare, comparisons, workers, name=lambda comparison: str(comparison[1].image.path))
    return dict(track(done, "comparing with other images", len(comparisons)))


def _part(one: InspectedRow, column: str) -> _ImageRegion:
    return _ImageRegion(one.images[column], one.row.region)


def _compare(
    comparison: tuple[int, _ImageRegion, list[tuple[int, _ImageRegion]], int],
) -> tuple[int, dict[int, float]]:
    number, part, others, feature_set = comparison
    target = prepare_target(_read(part))
    r2 = {}
    for other, signal in others:
        features = signal_features(_read(signal))
        if features.sets[feature_set].shape[1:] == target.shape:
            r2[other] = explained_variance(features, target, feature_set)
    return number, r2
