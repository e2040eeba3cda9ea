"""Jobs that make prepared volumes: the work of the processes that fill the cache.

Separate from the planning, so that such a process imports neither torch nor the configuration.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from repmode_cl.data.geometry import VoxelSize
from repmode_cl.data.preprocessing.intensity_scales import IntensityScale, Moments
from repmode_cl.data.preprocessing.normalisation import ZScore, normalise, z_score_of_volume
from repmode_cl.data.preprocessing.recipe import PreprocessingRecipe
from repmode_cl.data.preprocessing.resampling import resample
from repmode_cl.data.preprocessing.storage_dtype import to_storage_dtype
from repmode_cl.data.preprocessing.volume_cache import VolumeCache
from repmode_cl.data.readers import Region, open_image
from repmode_cl.errors import ImageError, RepmodeError
from repmode_cl.utils.atomic_files import write_json
from repmode_cl.utils.process_pool import JobCluster, run_jobs

__all__ = ["MeasuredVolume", "VolumeJob", "VolumeResult", "make_volumes", "measure_volumes"]

T = TypeVar("T")


@dataclass(frozen=True)
class VolumeJob:
    """One volume to make; everything that a worker process needs."""

    key: str
    column: str
    path: Path
    channel: int
    region: Region | None
    scene: int | str | None
    t: int | None
    voxel_from: VoxelSize | None
    voxel_to: VoxelSize | None
    recipe: PreprocessingRecipe
    float32: bool = False
    """True if an image is stored in float32 in any case."""
    scale: IntensityScale | None = None
    """Mean and deviation of the z-score, where the recipe's are those of a data set; None for a mask."""


class MeasuredVolume(NamedTuple):
    """Result of measuring: what the volume's voxels are like, or the reason why nobody knows."""

    key: str
    moments: Moments | None
    """None where there are none."""
    problem: str
    """Reason why there are none; empty where there are."""


class VolumeResult(NamedTuple):
    """Result of a job: the shape of the volume, or the reason why there is none."""

    key: str
    shape: tuple[int, int, int] | None
    """Voxels (Z, Y, X) of the volume; None where there is none."""
    problem: str
    """Reason why there is none; empty where there is one."""


def make_volumes(
    jobs: Sequence[VolumeJob], store: VolumeCache, workers: int, cluster: JobCluster | None = None
) -> Iterator[VolumeResult]:
    """Fill the cache, and yield the result of each job as it ends.

    Parameters
    ----------
    jobs
        Volumes to make.
    store
        The cache.
    workers
        Processes that work at the same time; 1 works in this process.
    cluster
        Makes the volumes, in place of processes here.

    Raises
    ------
    RepmodeError
        If memory or the disk of the cache is full, or a process dies. A file that cannot be read as requested is no
        reason to stop: `VolumeResult.problem` holds the message.
    """
    return _run(_make, jobs, store, workers, cluster)


def measure_volumes(
    jobs: Sequence[VolumeJob], store: VolumeCache, workers: int, cluster: JobCluster | None = None
) -> Iterator[MeasuredVolume]:
    """Yield mean and deviation of each volume before its z-score; the cache keeps them.

    Parameters and errors are those of `make_volumes`.
    """
    return _run(_measure, jobs, store, workers, cluster)


def _run(
    work: Callable[[Path, VolumeJob], T],
    jobs: Sequence[VolumeJob],
    store: VolumeCache,
    workers: int,
    cluster: JobCluster | None,
) -> Iterator[T]:
    if cluster is not None:
        elsewhere = [replace(job, path=job.path.absolute()) for job in jobs]
        return cluster.run(partial(work, store.folder.absolute()), elsewhere, name=lambda job: str(job.path))
    return run_jobs(partial(work, store.folder), jobs, workers, name=lambda job: str(job.path))


def _attempt(work: Callable[[VolumeJob], T], job: VolumeJob) -> T | str:
    """Return what `work` makes of a job, or the reason why a file cannot be used."""
    try:
        return work(job)
    except MemoryError as error:
        raise RepmodeError(
            f"{job.path}: not enough memory to prepare it; use fewer processes (--workers 1), or a region of the file"
        ) from error
    except RepmodeError as error:
        return str(error)
    except Exception as error:
        error.add_note(f"while preparing {job.path}, channel {job.channel}")
        raise


def _measure(folder: Path, job: VolumeJob) -> MeasuredVolume:
    path = VolumeCache(folder).path(job.key).with_suffix(".moments.json")
    with suppress(OSError, ValueError, TypeError):
        return MeasuredVolume(job.key, Moments(**json.loads(path.read_text(encoding="utf-8"))), "")
    moments = _attempt(_moments, job)
    if isinstance(moments, str):
        return MeasuredVolume(job.key, None, moments)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, moments._asdict())
    except OSError as error:
        raise _full(folder, job, error) from error
    return MeasuredVolume(job.key, moments, "")


def _moments(job: VolumeJob) -> Moments:
    volume = _resampled(job)
    try:
        # A constant image counts with its mean, whatever becomes of it.
        score = z_score_of_volume(volume, empty="keep")
    except ImageError as error:
        raise ImageError(f"{job.path}, channel {job.channel}: {error}") from error
    return Moments(volume.size, score.mean, score.deviation)


def _full(folder: Path, job: VolumeJob, error: OSError) -> RepmodeError:
    return RepmodeError(
        f"{folder}: the prepared volume of {job.path} cannot be written ({error.strerror or error}); make room, or "
        "name another folder as data.cache: what is prepared is kept"
    )


def _make(folder: Path, job: VolumeJob) -> VolumeResult:
    volume = _attempt(_volume, job)
    if isinstance(volume, str):
        return VolumeResult(job.key, None, volume)
    try:
        stored = volume if job.float32 else to_storage_dtype(volume)
        VolumeCache(folder).store(job.key, stored, {"source": job.path.name, "column": job.column})
    except OSError as error:
        raise _full(folder, job, error) from error
    z, y, x = volume.shape
    return VolumeResult(job.key, (z, y, x), "")


def _read(job: VolumeJob) -> NDArray[Any]:
    with open_image(job.path, scene=job.scene) as image:
        volume: NDArray[Any] = image.read(job.channel, job.region, scene=job.scene, t=job.t)
    return volume


def _resampled(job: VolumeJob, volume: NDArray[Any] | None = None) -> NDArray[Any]:
    """Return the volume on the grid that it is prepared on; `volume` is what was read, where that was done."""
    volume = _read(job) if volume is None else volume
    if job.voxel_from is None or job.voxel_to is None:
        return volume
    return resample(
        volume,
        job.voxel_from,
        job.voxel_to,
        order=0 if job.column == "mask" else job.recipe.order,
        anti_alias=job.recipe.anti_alias,
        corners=job.recipe.before_resampling,
    )


def _volume(job: VolumeJob) -> NDArray[Any]:
    """Read, resample and normalise one volume: float32, or bool for a mask."""
    volume = _read(job)
    is_mask = job.column == "mask"
    if is_mask:
        volume = volume != 0
        if not volume.any():
            raise ImageError(f"{job.path}: the mask is 0 everywhere, so no voxel would count")
    recipe, score = job.recipe, None
    try:
        if recipe.before_resampling and not is_mask:
            score = z_score_of_volume(volume, empty=recipe.empty)
    except ImageError as error:
        raise ImageError(f"{job.path}, channel {job.channel}: {error}") from error
    volume = _resampled(job, volume)
    if is_mask:
        return np.asarray(volume, np.bool_)
    if score is not None:
        # A spline's weights sum to 1: the z-score of the resampled image is the resampled z-score.
        return score(volume)
    try:
        given = None if job.scale is None else ZScore(*job.scale)
        return normalise(volume, percentiles=recipe.percentiles, empty=recipe.empty, given=given)
    except ImageError as error:
        raise ImageError(f"{job.path}, channel {job.channel}: {error}") from error
