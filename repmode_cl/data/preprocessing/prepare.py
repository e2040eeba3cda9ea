"""Preparation of a manifest's images as volumes that training can map into memory.

Each volume is read, resampled to one voxel size, z-scored (paper, section 4.1) and cached. A signal that
several structures share is prepared once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from repmode_cl.config.schema import PreprocessingConfig
from repmode_cl.data.geometry import VoxelSize
from repmode_cl.data.manifest import Manifest, Row, as_written
from repmode_cl.data.preprocessing.intensity_scales import IntensityScale, Moments, pooled_scale
from repmode_cl.data.preprocessing.recipe import PreprocessingRecipe
from repmode_cl.data.preprocessing.volume_cache import ContentDigests, VolumeCache
from repmode_cl.data.preprocessing.volume_jobs import VolumeJob, make_volumes, measure_volumes
from repmode_cl.data.readers import Region, open_image
from repmode_cl.data.sample import Sample, digest_of
from repmode_cl.data.split_record import ImagePart
from repmode_cl.errors import ManifestError, RepmodeError, UnknownStructureError
from repmode_cl.utils.process_pool import JobCluster
from repmode_cl.utils.progress import track

__all__ = ["image_part_of", "prepare", "voxel_size_of"]


#: Two files of one row may state voxel sizes that differ by this much: rounding in their metadata.
_SAME_VOXEL = 0.01


def prepare(
    manifest: Manifest,
    splits: Mapping[int, str],
    preprocessing: PreprocessingConfig,
    cache: str | Path,
    *,
    structures: Sequence[str] | None = None,
    workers: int = 1,
    skipped: list[tuple[int, str]] | None = None,
    cluster: JobCluster | None = None,
) -> list[Sample]:
    """Prepare the images of a manifest, as far as the cache does not hold them.

    Parameters
    ----------
    manifest
        The rows.
    splits
        Split (train, val, test) by row number, as `assign_splits` returns.
    preprocessing
        Resampling and normalisation. Images without a known voxel size keep their own grid. With `data_set` mean and
        deviation that it does not state are measured over the rows of `splits` that train.
    cache
        Folder of prepared volumes.
    structures
        Structures to prepare; None prepares all.
    workers
        Processes that prepare at the same time; 1 works in this process.
    skipped
        Where given, rows that cannot be prepared are skipped, and their numbers and reasons are added here.
    cluster
        Makes the volumes, in place of processes here.

    Returns
    -------
    list[Sample]
        One per row, in the manifest's order.

    Notes
    -----
    Each volume is stored as soon as it is made: after an interruption or an error the same call resumes from there.

    Raises
    ------
    ManifestError
        Listing every row whose images cannot be read, are constant or not finite, or do not fit together, unless
        `skipped` is given. The images of all other rows are prepared by then.
    UnknownStructureError
        If `structures` names one that the manifest does not have.
    RepmodeError
        If memory or the cache's disk is full, or a process dies.
    """
    for name in structures or ():
        if name not in manifest.structures:
            raise UnknownStructureError(name, manifest.structures, f"the manifest {manifest.path}")
    rows = [row for row in manifest.rows if structures is None or row.structure in structures]
    unsplit = [row.number for row in rows if row.number not in splits]
    if unsplit:
        raise ValueError(f"splits has no entry for the rows {unsplit} of {manifest.path}")
    store = VolumeCache(cache)
    digests = ContentDigests(store.folder / "contents.json")
    problems: list[tuple[int, str]] = []
    plans: list[_RowPlan] = []
    headers: _HeaderTable = {}
    try:
        for row in track(rows, "reading headers", len(rows)):
            try:
                plans.append(_plan_row(row, preprocessing, digests, headers))
            except (RepmodeError, OSError) as error:
                problems.append((row.number, str(error)))
    finally:
        digests.save()  # also after an interruption, so that the next run resumes from here
    if preprocessing.normalise == "data_set":
        plans = _with_scales(plans, splits, preprocessing, store, workers, cluster)
    shapes, failed = _prepare_all([job for plan in plans for job in plan.jobs], store, workers, cluster)
    samples = []
    for plan in plans:
        row = plan.row
        reasons = [failed[job.key] for job in plan.jobs if job.key in failed]
        made = {job.column: shapes[job.key] for job in plan.jobs if job.key in shapes}
        if not reasons and len(set(made.values())) > 1:
            listed = ", ".join(f"{column} {shape}" for column, shape in made.items())
            reasons = [f"the shapes (z, y, x) differ: {listed}; the images of a row cover the same voxels"]
        if not reasons and preprocessing.empty != "refuse" and splits[row.number] != "train":
            reasons = _held_out_constant(store.path(plan.target.key), splits[row.number])
        problems += [(row.number, what) for what in reasons]
        if reasons:
            continue
        signal, target = plan.signal, plan.target
        samples.append(
            Sample(
                structure=row.structure,
                split=splits[row.number],
                row=row.number,
                image_id=plan.image_id,
                signal=store.path(signal.key),
                target=store.path(target.key),
                mask=None if plan.mask is None else store.path(plan.mask.key),
                shape=shapes[signal.key],
                group=row.group if row.group is not None else plan.content,
                voxel_size=signal.voxel_from,
                light_scale=signal.scale,
                target_scale=target.scale,
                source=str(plan.part),
            )
        )
    if skipped is not None:
        skipped += sorted(problems)
    elif problems:
        lines = [f"  line {number}: {what}" for number, what in sorted(problems)]
        count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
        raise ManifestError(f"{manifest.path}: {count} in preparing its images\n" + "\n".join(lines))
    return samples


@dataclass(frozen=True)
class _ChannelHeader:
    """Header of one channel of a file."""

    channel: int
    shape: tuple[int, int, int]
    voxel_size: VoxelSize | None
    scene: int | None
    """Number of the scene that the row names; None where it names none."""
    n_scenes: int
    n_times: int


# By file, channel and scene as the manifest names them.
_HeaderTable = dict[tuple[Path, str | None, str | None], _ChannelHeader]


@dataclass(frozen=True)
class _RowPlan:
    """Volumes that one row needs, and its identity."""

    row: Row
    image_id: str
    content: str
    part: ImagePart
    signal: VolumeJob
    target: VolumeJob
    mask: VolumeJob | None

    @property
    def jobs(self) -> tuple[VolumeJob, ...]:
        return (self.signal, self.target) if self.mask is None else (self.signal, self.target, self.mask)


def _with_scales(
    plans: Sequence[_RowPlan],
    splits: Mapping[int, str],
    preprocessing: PreprocessingConfig,
    store: VolumeCache,
    workers: int,
    cluster: JobCluster | None,
) -> list[_RowPlan]:
    """Return the plans with the mean and deviation of the data set, measured where `preprocessing` does not state them.

    An image that several rows share counts once. One that cannot be read counts not at all: its row becomes a problem
    when it is prepared.
    """
    stated = preprocessing.targets or {}
    training = [plan for plan in plans if splits[plan.row.number] == "train"]
    pools: dict[str, list[VolumeJob]] = {}
    if preprocessing.light is None:
        pools[""] = [plan.signal for plan in training]
    for name in dict.fromkeys(plan.row.structure for plan in plans):
        if name not in stated:
            pools[name] = [plan.target for plan in training if plan.row.structure == name]
    jobs = {job.key: job for pool in pools.values() for job in pool}
    measured = {}
    for result in track(
        measure_volumes(list(jobs.values()), store, workers, cluster), "measuring intensities", len(jobs)
    ):
        if result.moments is not None:
            measured[result.key] = result.moments
    scales: dict[str, IntensityScale] = dict(stated)
    if preprocessing.light is not None:
        scales[""] = preprocessing.light
    for name, pool in pools.items():
        keys = [key for key in dict.fromkeys(job.key for job in pool) if key in measured]
        scales[name] = _scale_of([measured[key] for key in keys], name)
    return [
        replace(
            plan,
            signal=_scaled(plan.signal, scales[""]),
            target=_scaled(plan.target, scales[plan.row.structure]),
        )
        for plan in plans
    ]


def _scale_of(parts: Sequence[Moments], structure: str) -> IntensityScale:
    """Return mean and deviation of a pool: of the light, or of a structure's targets."""
    what = f"targets of {structure}" if structure else "transmitted light"
    key = f"targets: {{{structure}: [mean, deviation]}}" if structure else "light: [mean, deviation]"
    state = f"state them as data.preprocessing.{key}, or take normalise: z_score"
    if not parts:
        raise ManifestError(
            f"normalise: data_set measures mean and deviation of the training images, and no {what} can be read in the "
            f"split train: {state}"
        )
    scale = pooled_scale(parts)
    if not scale[1] > 0:
        raise ManifestError(f"every voxel of the {what} in the split train is {scale[0]:g}: {state}")
    return scale


def _scaled(job: VolumeJob, scale: IntensityScale) -> VolumeJob:
    """Return a job that z-scores by `scale`, under another key: the intensities decide its voxels."""
    return replace(job, key=VolumeCache.key({"image": job.key, "z_score": list(scale)}), scale=scale)


def _plan_row(
    row: Row,
    preprocessing: PreprocessingConfig,
    digests: ContentDigests,
    headers: _HeaderTable,
) -> _RowPlan:
    signal = _header(row.signal, row.signal_channel, row.scene, headers)
    target = _header(row.target, row.target_channel, row.scene, headers)
    voxel_from = _voxel_size(row, signal, target)
    recipe, voxel_to = PreprocessingRecipe.of(preprocessing), preprocessing.voxel_size
    voxel_to = recipe.target_voxel(voxel_from, voxel_to) if voxel_from and voxel_to else None

    def part(header: _ChannelHeader) -> list[list[int]]:
        """Return the voxels of the row, so that a region of the whole file and no region are the same."""
        return [[span.start, span.stop] for span in (row.region or Region()).resolve(header.shape)]

    def job(column: str, path: Path, header: _ChannelHeader, t: int | None) -> VolumeJob:
        made_from: dict[str, Any] = {
            "kind": "mask" if column == "mask" else "image",
            "content": digests.of(path),
            "channel": header.channel,
            "region": part(header),
            "scene": header.scene,
            "t": t,
            # Without both there is no resampling, and its settings make no difference.
            "voxel_size": None if voxel_from is None or voxel_to is None else [voxel_from, voxel_to],
            "order": None if voxel_to is None or column == "mask" else recipe.order,
        }
        if recipe.before_resampling and voxel_to is not None:
            made_from["before_resampling"] = True  # a mask's voxels lie elsewhere too
        float32 = preprocessing.storage == "float32" and column != "mask"
        if float32:
            made_from["storage"] = "float32"
        if column != "mask":
            made_from |= _nondefault_settings(recipe, voxel_to is not None)
        key = VolumeCache.key(made_from)
        return VolumeJob(
            key,
            column,
            path,
            header.channel,
            row.region,
            header.scene,
            t,
            voxel_from,
            voxel_to,
            recipe,
            float32=float32,
        )

    mask = None
    if row.mask is not None:
        # One mask may serve every scene and time of an image.
        header = _header(row.mask, row.mask_channel, None, headers)
        if header.n_scenes > 1 and row.scene is not None:
            header = _header(row.mask, row.mask_channel, row.scene, headers)
        mask = job("mask", row.mask, header, row.t if header.n_times > 1 else None)
    content = digests.of(row.signal)
    part_text = f"channel {signal.channel}, scene {signal.scene}, t {row.t}, region {part(signal)}"
    return _RowPlan(
        row=row,
        image_id=digest_of("image", content, part_text).hex()[:16],
        content=content[:16],
        part=_image_part(row, content, signal),
        signal=job("signal", row.signal, signal, row.t),
        target=job("target", row.target, target, row.t),
        mask=mask,
    )


def _nondefault_settings(recipe: PreprocessingRecipe, resampled: bool) -> dict[str, Any]:
    """Return further settings that decide a prepared image, without defaults, so that earlier caches stay valid."""
    settings: dict[str, Any] = {}
    if recipe.anti_alias and resampled:
        settings["anti_alias"] = True
    if recipe.percentiles is not None:
        settings["percentiles"] = list(recipe.percentiles)
    if recipe.empty != "refuse":
        settings["empty"] = recipe.empty
    if recipe.data_set:
        settings["normalise"] = "data_set"
    return settings


def _held_out_constant(target: Path, split: str) -> list[str]:
    """Return the problem of a target that is held out and constant; empty where it is not."""
    voxels = np.load(target, mmap_mode="r", allow_pickle=False)
    if voxels.min() < voxels.max():
        return []
    return [
        f"the target is constant, and its row is in the split {split}: R2 is undefined on such an image; set its "
        "split to train, or leave the row out"
    ]


def _header(
    path: Path, channel: str | int | None, scene: int | str | None, headers: _HeaderTable
) -> _ChannelHeader:
    key = (path, as_written(channel), as_written(scene))
    header = headers.get(key)
    if header is None:
        with open_image(path, scene=key[2]) as image:
            channel_number = image.channel_index(key[1])
            # A scene named by its name or by its number is the same image.
            scene_number = None if key[2] is None else image.scene_index(key[2])
            header = _ChannelHeader(
                channel_number, image.shape, image.voxel_size, scene_number, len(image.scenes), image.times
            )
        headers[key] = header
    return header


def image_part_of(row: Row, content: str) -> ImagePart:
    """Return the part of the signal file that a row stands for; reads its header where the row does not say it.

    Parameters
    ----------
    row
        A row of a manifest.
    content
        SHA-256 of its signal file.

    Raises
    ------
    ImageError, OSError
        If the header cannot be read, or lacks what the row names.
    """
    if row.scene is None and row.region is None:
        return ImagePart.of(content, None, row.t, None, ())
    return _image_part(row, content, _header(row.signal, row.signal_channel, row.scene, {}))


def _image_part(row: Row, content: str, header: _ChannelHeader) -> ImagePart:
    box = None if row.region is None else row.region.resolve(header.shape)
    return ImagePart.of(content, header.scene, row.t, box, header.shape)


def voxel_size_of(row: Row) -> VoxelSize | None:
    """Return the voxel size (z, y, x) in um that `prepare` uses for the images of a row; reads headers.

    Raises
    ------
    ImageError, OSError
        If a header cannot be read.
    ManifestError
        If signal and target contradict one another.
    """
    headers: _HeaderTable = {}
    signal = _header(row.signal, row.signal_channel, row.scene, headers)
    return _voxel_size(row, signal, _header(row.target, row.target_channel, row.scene, headers))


def _voxel_size(row: Row, signal: _ChannelHeader, target: _ChannelHeader) -> VoxelSize | None:
    """Return the one voxel size of a row: the manifest's, the signal's or the target's."""
    if row.voxel_size is not None:
        z, y, x = row.voxel_size
        return z, y, x
    if signal.voxel_size is not None and target.voxel_size is not None:
        pairs = zip(signal.voxel_size, target.voxel_size, strict=True)
        if any(abs(a - b) > _SAME_VOXEL * max(a, b) for a, b in pairs):
            raise ManifestError(
                f"signal and target state different voxel sizes (z, y, x in um): {signal.voxel_size} and "
                f"{target.voxel_size}; give the right one in the column voxel_size_zyx"
            )
    return signal.voxel_size if signal.voxel_size is not None else target.voxel_size


def _prepare_all(
    jobs: Sequence[VolumeJob], store: VolumeCache, workers: int, cluster: JobCluster | None
) -> tuple[dict[str, tuple[int, int, int]], dict[str, str]]:
    """Make what the cache lacks; return the shapes and the failures, both by key."""
    shapes: dict[str, tuple[int, int, int]] = {}
    missing: dict[str, VolumeJob] = {}
    for job in jobs:
        if job.key in shapes or job.key in missing:
            continue
        shape = store.find(job.key)
        if shape is None:
            missing[job.key] = job
        else:
            shapes[job.key] = shape
    failed: dict[str, str] = {}
    made = make_volumes(list(missing.values()), store, workers, cluster)
    for result in track(made, "preparing images", len(missing)):
        if result.shape is None:
            failed[result.key] = result.problem
        else:
            shapes[result.key] = result.shape
    return shapes, failed
