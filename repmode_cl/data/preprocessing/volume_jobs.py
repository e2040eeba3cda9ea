"""Jobs that make prepared volumes: the work of the processes that fill the cache.

Separate from the planning, so that such a process imports neither torch nor the configuration.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from repmode_cl.data.geometry import VoxelSize
from repmode_cl.data.preprocessing.normalisation import normalise, z_score_of_volume
from repmode_cl.data.preprocessing.recipe import PreprocessingRecipe
from repmode_cl.data.preprocessing.resampling import resample
from repmode_cl.data.preprocessing.storage_dtype import to_storage_dtype
from repmode_cl.data.preprocessing.volume_cache import VolumeCache
from repmode_cl.data.readers import Region, open_image
from repmode_cl.errors import ImageError, RepmodeError
from repmode_cl.utils.process_pool import JobCluster, run_jobs

__all__ = ["VolumeJob", "VolumeResult", "make_volumes"]


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
    if cluster is not None:
        elsewhere = [replace(job, path=job.path.absolute()) for job in jobs]
        return cluster.run(partial(_make, store.folder.absolute()), elsewhere, name=lambda job: str(job.path))
    return run_jobs(partial(_make, store.folder), jobs, workers, name=lambda job: str(job.path))


def _make(folder: Path, job: VolumeJob) -> VolumeResult:
    try:
        volume = _volume(job)
    except MemoryError as error:
        raise RepmodeError(
            f"{job.path}: not enough memory to prepare it; use fewer processes (--workers 1), or a region of the file"
        ) from error
    except RepmodeError as error:
        return VolumeResult(job.key, None, str(error))
    except Exception as error:
        error.add_note(f"while preparing {job.path}, channel {job.channel}")
        raise
    try:
        stored = volume if job.float32 else to_storage_dtype(volume)
        VolumeCache(folder).store(job.key, stored, {"source": job.path.name, "column": job.column})
    except OSError as error:
        raise RepmodeError(
            f"{folder}: the prepared volume of {job.path} cannot be written ({error.strerror or error}); make room, or "
            "name another folder as data.cache: what is prepared is kept"
        ) from error
    z, y, x = volume.shape
    return VolumeResult(job.key, (z, y, x), "")


def _volume(job: VolumeJob) -> NDArray[Any]:
    """Read, resample and normalise one volume: float32, or bool for a mask."""
    with open_image(job.path, scene=job.scene) as image:
        volume: NDArray[Any] = image.read(job.channel, job.region, scene=job.scene, t=job.t)
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
    if job.voxel_from is not None and job.voxel_to is not None:
        volume = resample(
            volume,
            job.voxel_from,
            job.voxel_to,
            order=0 if is_mask else recipe.order,
            anti_alias=recipe.anti_alias,
            corners=recipe.before_resampling,
        )
    if is_mask:
        return np.asarray(volume, np.bool_)
    if score is not None:
        # A spline's weights sum to 1: the z-score of the resampled image is the resampled z-score.
        return score(volume)
    try:
        return normalise(volume, percentiles=recipe.percentiles, empty=recipe.empty)
    except ImageError as error:
        raise ImageError(f"{job.path}, channel {job.channel}: {error}") from error
