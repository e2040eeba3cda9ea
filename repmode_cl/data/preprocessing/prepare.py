"""From the rows of a manifest to volumes that training can map into memory.

Each volume is read, resampled to one voxel size, z-scored (paper, section 4.1) and cached. A signal that
several structures share is prepared once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from repmode_cl.config.schema import PreprocessingConfig
from repmode_cl.data.manifest import Manifest, Row
from repmode_cl.data.preprocessing.recipe import PreprocessingRecipe
from repmode_cl.data.preprocessing.volume_cache import ContentDigests, VolumeCache
from repmode_cl.data.preprocessing.volume_jobs import VolumeJob, VoxelSize, make_volumes
from repmode_cl.data.readers import Region, open_image
from repmode_cl.data.sample import Sample, digest_of
from repmode_cl.errors import ManifestError, RepmodeError, UnknownStructureError
from repmode_cl.utils.progress import track

__all__ = ["prepare", "voxel_size_of"]


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
    left: list[tuple[int, str]] | None = None,
) -> list[Sample]:
    """Prepare the images of a manifest, as far as the cache does not hold them.

    Parameters
    ----------
    manifest
        The rows.
    splits
        Split (train, val, test) by row number, as `assign_splits` returns.
    preprocessing
        Resampling and normalisation. Images without a known voxel size keep their own grid.
    cache
        Folder of prepared volumes.
    structures
        Prepare these alone; None takes all.
    workers
        Processes at work at once; 1 works in this one.
    left
        Where given, rows that cannot be prepared are left out, and added here: their numbers, and why.

    Returns
    -------
    list[Sample]
        One per row, in the manifest's order.

    Notes
    -----
    Each volume is kept as soon as it is made: after an interruption or an error the same call goes on from there.

    Raises
    ------
    ManifestError
        Listing every row whose images cannot be read, are constant or not finite, or do not fit together, unless
        `left` is given. The images of all other rows are prepared by then.
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
    plans: list[_Plan] = []
    headers: _Headers = {}
    try:
        for row in track(rows, "reading headers", len(rows)):
            try:
                plans.append(_plan(row, preprocessing, digests, headers))
            except (RepmodeError, OSError) as error:
                problems.append((row.number, str(error)))
    finally:
        digests.save()  # also of an interrupted run, which goes on from there
    shapes, failed = _prepare_all([job for plan in plans for job in plan.jobs], store, workers)
    samples = []
    for plan in plans:
        row = plan.row
        said = [failed[job.key] for job in plan.jobs if job.key in failed]
        found = {job.column: shapes[job.key] for job in plan.jobs if job.key in shapes}
        if not said and len(set(found.values())) > 1:
            listed = ", ".join(f"{column} {shape}" for column, shape in found.items())
            said = [f"the shapes (z, y, x) differ: {listed}; the images of a row cover the same voxels"]
        if not said and preprocessing.empty == "zeros" and splits[row.number] != "train":
            said = _blank(store.path(plan.target.key), splits[row.number])
        problems += [(row.number, what) for what in said]
        if said:
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
            )
        )
    if left is not None:
        left += sorted(problems)
    elif problems:
        lines = [f"  line {number}: {what}" for number, what in sorted(problems)]
        count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
        raise ManifestError(f"{manifest.path}: {count} in preparing its images\n" + "\n".join(lines))
    return samples


@dataclass(frozen=True)
class _Header:
    """What the header of a file says about one channel."""

    channel: int
    shape: tuple[int, int, int]
    voxel_size: VoxelSize | None
    scene: int | None
    """Number of the scene that was asked for, perhaps by name; None where none was."""
    n_scenes: int
    n_times: int


# By file, channel as the manifest names it, and scene.
_Headers = dict[tuple[Path, str | int | None, int | str | None], _Header]


@dataclass(frozen=True)
class _Plan:
    """What one row needs."""

    row: Row
    image_id: str
    content: str
    signal: VolumeJob
    target: VolumeJob
    mask: VolumeJob | None

    @property
    def jobs(self) -> tuple[VolumeJob, ...]:
        return (self.signal, self.target) if self.mask is None else (self.signal, self.target, self.mask)


def _plan(
    row: Row,
    preprocessing: PreprocessingConfig,
    digests: ContentDigests,
    headers: _Headers,
) -> _Plan:
    signal = _header(row.signal, row.signal_channel, row.scene, headers)
    target = _header(row.target, row.target_channel, row.scene, headers)
    voxel_from = _voxel_size(row, signal, target)
    recipe, voxel_to = PreprocessingRecipe.of(preprocessing), preprocessing.voxel_size
    voxel_to = recipe.target_voxel(voxel_from, voxel_to) if voxel_from and voxel_to else None

    def part(header: _Header) -> list[list[int]]:
        """Return the voxels taken, so that a region of the whole file and none are the same."""
        return [[span.start, span.stop] for span in (row.region or Region()).resolve(header.shape)]

    def job(column: str, path: Path, header: _Header, t: int | None) -> VolumeJob:
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
        if column != "mask":
            made_from |= _unusual(recipe, voxel_to is not None)
        key = VolumeCache.key(made_from)
        return VolumeJob(
            key, column, path, header.channel, row.region, header.scene, t, voxel_from, voxel_to, recipe
        )

    mask = None
    if row.mask is not None:
        # One mask may serve every scene and time of an image.
        header = _header(row.mask, row.mask_channel, None, headers)
        if header.n_scenes > 1 and row.scene is not None:
            header = _header(row.mask, row.mask_channel, row.scene, headers)
        mask = job("mask", row.mask, header, row.t if header.n_times > 1 else None)
    content = digests.of(row.signal)
    taken = f"channel {signal.channel}, scene {signal.scene}, t {row.t}, region {part(signal)}"
    return _Plan(
        row=row,
        image_id=digest_of("image", content, taken).hex()[:16],
        content=content[:16],
        signal=job("signal", row.signal, signal, row.t),
        target=job("target", row.target, target, row.t),
        mask=mask,
    )


def _unusual(recipe: PreprocessingRecipe, resampled: bool) -> dict[str, Any]:
    """Return what a prepared image depends on besides, where that is no default: caches of earlier versions hold on."""
    found: dict[str, Any] = {}
    if recipe.anti_alias and resampled:
        found["anti_alias"] = True
    if recipe.percentiles is not None:
        found["percentiles"] = list(recipe.percentiles)
    if recipe.empty != "refuse":
        found["empty"] = recipe.empty
    return found


def _blank(target: Path, split: str) -> list[str]:
    """Say what is wrong with a target that is held out and 0 everywhere."""
    if np.load(target, mmap_mode="r", allow_pickle=False).any():
        return []
    return [
        f"the target is constant, and its row is in the split {split}: R2 is undefined on such an image; set its "
        "split to train, or leave the row out"
    ]


def _header(path: Path, channel: str | int | None, scene: int | str | None, headers: _Headers) -> _Header:
    found = headers.get((path, channel, scene))
    if found is None:
        with open_image(path, scene=scene) as image:
            number = image.channel_index(channel)
            # Found by its name or its number, it is the same image.
            place = (
                image.scenes.index(scene) if scene in image.scenes else None if scene is None else int(scene)
            )
            found = _Header(number, image.shape, image.voxel_size, place, len(image.scenes), image.times)
        headers[path, channel, scene] = found
    return found


def voxel_size_of(row: Row) -> VoxelSize | None:
    """Return the voxel size (z, y, x) in um that `prepare` takes the images of a row to have; reads headers.

    Raises
    ------
    ImageError, OSError
        If a header cannot be read.
    ManifestError
        If signal and target contradict one another.
    """
    headers: _Headers = {}
    signal = _header(row.signal, row.signal_channel, row.scene, headers)
    return _voxel_size(row, signal, _header(row.target, row.target_channel, row.scene, headers))


def _voxel_size(row: Row, signal: _Header, target: _Header) -> VoxelSize | None:
    """Return the one voxel size of a row: the manifest's, the signal's or the target's."""
    if row.voxel_size is not None:
        z, y, x = row.voxel_size
        return z, y, x
    if signal.voxel_size is not None and target.voxel_size is not None:
        pairs = zip(signal.voxel_size, target.voxel_size, strict=True)
        if any(abs(a - b) > _SAME_VOXEL * max(a, b) for a, b in pairs):
            raise ManifestError(
                f"signal and target state other voxel sizes (z, y, x in um): {signal.voxel_size} and "
                f"{target.voxel_size}; give the right one in the column voxel_size_zyx"
            )
    return signal.voxel_size if signal.voxel_size is not None else target.voxel_size


def _prepare_all(
    jobs: Sequence[VolumeJob], store: VolumeCache, workers: int
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
    made = make_volumes(list(missing.values()), store, workers)
    for one in track(made, "preparing images", len(missing)):
        if one.shape is None:
            failed[one.key] = one.problem
        else:
            shapes[one.key] = one.shape
    return shapes, failed
