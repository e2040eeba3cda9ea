"""Prediction of a volume from disk to disk in bounded memory, which continues after an interruption at any instant.

Stages: copy the image onto the network's grid (where it is not on it already), measure mean and deviation, predict
block by block, and (`streaming.outputs`) bring the result back onto the image's grid and into its files. Windows,
batches and the order of sums are those of `sliding_window`, so that without resampling the result has the same bits as
in one piece; with resampling it differs by rounding (below 1e-5 of the largest value).
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from repmode_cl.data.geometry import Box
from repmode_cl.data.preprocessing.normalisation import ZScore
from repmode_cl.data.preprocessing.recipe import PreprocessingRecipe
from repmode_cl.errors import ImageError, RepmodeError
from repmode_cl.inference.options import PredictionOptions
from repmode_cl.inference.raw_volume import RawVolume
from repmode_cl.inference.streaming.blocks import Block, BlockPlan
from repmode_cl.inference.streaming.journal import PredictionJournal, PredictionStopped
from repmode_cl.inference.streaming.memory_plan import MemoryPlan
from repmode_cl.inference.streaming.metrics import compare_volumes
from repmode_cl.inference.streaming.outputs import (
    WRITING_BYTES,
    Output,
    output_disk_bytes,
    result_path,
    write_output,
)
from repmode_cl.inference.streaming.partial_sums import PartialSums, partial_sums_nbytes
from repmode_cl.inference.streaming.previews import part_to_predict, predict_part, read_results
from repmode_cl.inference.streaming.unlike import (
    open_scores,
    with_unlike,
    write_map,
    write_scores,
)
from repmode_cl.inference.unlike import ImageScore, WindowScores, WindowSums
from repmode_cl.inference.volume_source import (
    FileSource,
    VolumeSource,
    copy_resampled,
    read_z_scored,
    z_score_of,
)
from repmode_cl.inference.window_batches import Network, WindowOutputs, WindowsSource, predict_batches
from repmode_cl.inference.windows import WindowGrid, WindowWeights, gaussian_weights, summed_weights
from repmode_cl.store.reliability import FeatureStatistics
from repmode_cl.utils.background import read_ahead, working_behind
from repmode_cl.utils.memory import format_bytes

__all__ = [
    "compute_streaming_job",
    "write_streaming_job",
    "PreviewCall",
    "StreamingJob",
    "StreamingResult",
    "PredictionStopped",
    "WritingBeside",
]


#: Takes a box on the network's grid, the z-scored light in it, and the results of all networks there, by name.
PreviewCall = Callable[[Box, NDArray[np.float32], Mapping[str, NDArray[np.float32]]], None]


@dataclass(frozen=True)
class StreamingJob:
    """Everything that a prediction from disk to disk needs, checked and planned.

    Attributes
    ----------
    source
        The image.
    grid
        Windows on the network's grid; where its shape is not the image's, the image is resampled.
    recipe
        How the image is resampled and normalised.
    networks
        One for each structure, in evaluation mode on `device`.
    outputs
        The files to write, of one or of several structures each.
    device
        Device of the networks.
    plan
        Batch and blocks.
    tile_bytes
        Bytes that resampling may take at once.
    targets
        For structures whose truth is known: its channel, on the image's grid.
    target_scores
        Of the same structures: the z-score of the truth, where it is not its own.
    weights
        Weights of a window's voxels.
    scores
        For structures whose training features are known: the network, within `networks`, that scores windows.
    statistics
        Of the same structures: what windows are scored against.
    unlike_maps
        Names of the results to make of the scores, by structure.
    preview
        Called with a box on the network's grid, the z-scored light in it and the results there, before the outputs are
        written; None makes no preview.
    preview_networks
        Networks for a part that is predicted before the whole, with the names of `networks`, but other objects: those
        keep the scores of the whole's windows.
    elsewhere
        Computes batches of windows in other processes, in order; None computes them here.
    """

    source: FileSource
    grid: WindowGrid
    recipe: PreprocessingRecipe
    networks: Mapping[str, Network]
    outputs: Sequence[Output]
    device: torch.device
    plan: MemoryPlan
    tile_bytes: int
    targets: Mapping[str, FileSource] = field(default_factory=dict)
    target_scores: Mapping[str, ZScore] = field(default_factory=dict)
    weights: WindowWeights = "floored"
    scores: Mapping[str, WindowScores] = field(default_factory=dict)
    statistics: Mapping[str, FeatureStatistics] = field(default_factory=dict)
    unlike_maps: Mapping[str, str] = field(default_factory=dict)
    preview: PreviewCall | None = None
    preview_networks: Mapping[str, Network] = field(default_factory=dict)
    elsewhere: Callable[[WindowsSource, Iterator[range]], Iterator[WindowOutputs]] | None = None

    @property
    def resampled(self) -> bool:
        """True if the network's grid is another than the image's."""
        return self.grid.shape != self.source.shape

    @property
    def writing_memory(self) -> int:
        """Bytes of memory that `write_streaming_job` takes."""
        in_tiles = self.resampled or not self.source.image.random_access
        return WRITING_BYTES + (self.tile_bytes if in_tiles else 0)

    @property
    def writing_disk(self) -> int:
        """Most bytes on disk that `write_streaming_job` takes."""
        voxels = math.prod(self.source.shape)
        return sum(output_disk_bytes(output, voxels, resampled=self.resampled) for output in self.outputs)


@dataclass(frozen=True)
class WritingBeside:
    """Outputs of an earlier image, which another thread writes while this one is computed.

    Attributes
    ----------
    memory, disk
        Most bytes that writing them takes.
    wait
        Waits until they are written.
    """

    memory: int
    disk: int
    wait: Callable[[], None]


@dataclass(frozen=True)
class StreamingResult:
    """Findings of a prediction in addition to its files.

    Attributes
    ----------
    metrics
        Of each structure whose truth is known, as of `repmode_cl.metrics.image_metrics`.
    unlike
        Of each structure whose training features are known: how unlike them the image is.
    """

    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    unlike: Mapping[str, ImageScore] = field(default_factory=dict)


def compute_streaming_job(
    job: StreamingJob,
    journal: PredictionJournal,
    options: PredictionOptions,
    beside: WritingBeside | None = None,
) -> StreamingResult:
    """Compute all that the outputs need, continuing from the journal; `write_streaming_job` writes them.

    Parameters
    ----------
    job
        The prediction.
    journal
        Its journal.
    options
        `progress`, `status` and `stop_after_windows` are used; the job holds the others.
    beside
        What is written meanwhile.

    Returns
    -------
    StreamingResult
        Metrics, and how unlike the training images the image is.

    Raises
    ------
    ImageError
        If the image cannot be read or has no z-score, or a network predicts numbers of it that are not finite.
    RepmodeError
        If the disk is too small, or a file of an unfinished prediction is missing.
    PredictionStopped
        After `stop_after_windows` windows.
    """
    status = options.status if options.status is not None else lambda stage: None
    if "blocks" not in journal.state and not journal.has_progress:
        _check_disk(job, journal.folder, beside)
    if not journal.has_progress:
        _check_targets(job)
    blocks = job.plan.blocks(job.grid)
    remaining = journal.state.get("blocks", 0) < len(blocks)
    if remaining or job.preview is not None:
        with ExitStack() as stack:
            source: VolumeSource = job.source
            if job.resampled or not job.source.image.random_access:
                source = stack.enter_context(_prepared(job, journal, status))
            if "z_score" not in journal.state:
                status("Reading")
                measured = job.source if job.recipe.before_resampling else source
                score = z_score_of(
                    measured,
                    percentiles=job.recipe.percentiles,
                    empty=job.recipe.empty,
                    given=job.recipe.light_score,
                )
                journal.save(z_score=[score.mean, score.deviation])
            score = ZScore(*journal.state["z_score"])
            early = job.preview is not None and remaining and part_to_predict(job.grid) is not None
            if early:
                status("Previewing")
                _preview(job, journal, source, score, finished=False)
            if remaining:
                status("Predicting")
                _predict_blocks(job, journal, blocks, source, score, options)
            if not early:
                _preview(job, journal, source, score, finished=True)
    if job.targets and "metrics" not in journal.state:
        status("Comparing")
        journal.save(metrics=_compare_with_targets(job, journal.folder))
    unlike = {
        name: ImageScore.of(WindowSums.from_json(journal.state["windows"][name]), statistics, job.grid)
        for name, statistics in job.statistics.items()
    }
    if job.unlike_maps and not journal.state.get("maps"):
        status("Mapping")
        for name, result in job.unlike_maps.items():
            write_map(journal.folder, name, result_path(journal.folder, result), blocks, job.weights)
        journal.save(maps=True)
    metrics: dict[str, dict[str, float]] = journal.state.get("metrics", {})
    return StreamingResult(metrics, unlike)


def write_streaming_job(
    job: StreamingJob,
    journal: PredictionJournal,
    result: StreamingResult,
    *,
    status: Callable[[str], None] = lambda stage: None,
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Write the outputs that are not written yet, and remove the journal's folder.

    Parameters
    ----------
    job, journal
        As of `compute_streaming_job`.
    result
        Of `compute_streaming_job`.
    status
        Called with a few words at the beginning of each output.
    stopped
        Asked again and again; True ends the writing.

    Raises
    ------
    RepmodeError
        If a file of an unfinished prediction is missing.
    PredictionStopped
        If `stopped` says so.
    """
    for number, output in enumerate(job.outputs):
        write_output(
            dataclasses.replace(output, metadata=with_unlike(output.metadata, result.unlike)),
            number,
            journal,
            job.source,
            job.grid.shape,
            job.tile_bytes,
            status,
            corners=job.recipe.before_resampling,
            stopped=stopped,
        )
    journal.discard()


def _preview(
    job: StreamingJob, journal: PredictionJournal, source: VolumeSource, score: ZScore, *, finished: bool
) -> None:
    """Hand a part of the image to the preview: predicted now, or of results where all blocks are done."""
    if job.preview is None:
        return
    grid, part = job.grid, part_to_predict(job.grid)
    if part is None or finished:
        job.preview(*read_results(source, score, grid, journal.folder, job.networks))
        return
    light, predictions = predict_part(
        source,
        score,
        part,
        grid,
        job.preview_networks,
        batch=job.plan.batch,
        device=job.device,
        weights=job.weights,
    )
    for name, values in predictions.items():
        if not np.isfinite(values).all():
            raise _not_finite(name, [one.start for one in part])
    job.preview(part, light, predictions)


def _check_disk(job: StreamingJob, folder: Path, beside: WritingBeside | None) -> None:
    """Refuse a prediction whose temporary and output files do not fit on the disk."""
    volume = 4 * math.prod(job.grid.shape)
    need = (volume + partial_sums_nbytes(job.plan.blocks(job.grid))) * len(job.networks)
    need += volume * len(job.unlike_maps)
    if job.resampled:
        need += volume
    elif not job.source.image.random_access:
        need += volume // 4 * job.source.image.dtype.itemsize
    need += job.writing_disk
    free = shutil.disk_usage(folder).free
    if beside is not None and need + beside.disk > free:
        beside.wait()
        free = shutil.disk_usage(folder).free
    if need > free:
        raise RepmodeError(
            f"{folder.parent}: {format_bytes(need)} are needed there while predicting, {format_bytes(free)} are free; "
            "make room or write elsewhere"
        )


def _prepared(job: StreamingJob, journal: PredictionJournal, status: Callable[[str], None]) -> RawVolume:
    """Return the image on the network's grid, made unless an earlier call did."""
    done = bool(journal.state.get("prepared"))
    dtype = np.dtype(np.float32) if job.resampled else job.source.image.dtype
    volume = RawVolume(journal.folder / "prepared", job.grid.shape, dtype, new=not done)
    if done:
        return volume
    try:
        status("Resampling" if job.resampled else "Decoding")
        recipe = job.recipe
        copy_resampled(
            job.source,
            volume,
            recipe.order,
            job.tile_bytes,
            anti_alias=recipe.anti_alias,
            corners=recipe.before_resampling,
        )
        volume.sync()
        journal.save(prepared=True)
    except BaseException:
        volume.close()
        raise
    return volume


def _predict_blocks(
    job: StreamingJob,
    journal: PredictionJournal,
    blocks: BlockPlan,
    source: VolumeSource,
    score: ZScore,
    options: PredictionOptions,
) -> None:
    """Predict the blocks that are not done, and write each structure's z-scores on the network's grid."""
    grid, done = job.grid, int(journal.state.get("blocks", 0))
    first = blocks[done].windows.start
    with ExitStack() as stack:
        results = {
            name: stack.enter_context(RawVolume(result_path(journal.folder, name), grid.shape, new=done == 0))
            for name in job.networks
        }
        partial_sums = {
            name: stack.enter_context(PartialSums(journal.folder, name, blocks, new=done == 0))
            for name in job.networks
        }
        scores = {
            name: stack.enter_context(open_scores(journal.folder, name, len(grid), new=done == 0))
            for name in job.scores
        }
        if done == 0:
            journal.save(blocks=0)
        if options.progress is not None:
            options.progress(first, len(grid))
        files = _ResultFiles(results, partial_sums, scores)
        blending = _Blending(job, journal, blocks, files, stop=options.stop_after_windows)
        number = first - first % job.plan.batch
        # Reading, computing and blending (which writes) each have a thread; their order is that of the windows, so that
        # the result has the same bits as one after the other.
        with (
            working_behind(blending.add) as behind,
            closing(_outputs(job, blocks, first, source, score)) as batches,
        ):
            for batch in batches:
                behind.put(batch)
                number += len(batch.outputs[0])
                if options.progress is not None:
                    options.progress(number, len(grid))


@dataclass(frozen=True)
class _ResultFiles:
    """Files of a prediction that is at work, by structure: z-scores, sums, and scores of windows."""

    results: Mapping[str, RawVolume]
    partial_sums: Mapping[str, PartialSums]
    scores: Mapping[str, RawVolume]


class _Blending:
    """The sums of windows: a block is written when its last window is added, and the journal says so."""

    def __init__(
        self,
        job: StreamingJob,
        journal: PredictionJournal,
        blocks: BlockPlan,
        files: _ResultFiles,
        *,
        stop: int | None,
    ) -> None:
        self._job, self._journal, self._blocks, self._files = job, journal, blocks, files
        self._weights = gaussian_weights(job.grid.size, kind=job.weights)
        self._weighted = np.empty(job.grid.size, np.float32)
        self._block = blocks[int(journal.state["blocks"])]
        self._first = self._block.windows.start
        self._number = self._first - self._first % job.plan.batch
        self._stop = None if stop is None else self._first + stop
        self._over_windows = {
            name: WindowSums.from_json(journal.state["windows"][name]) if self._first else WindowSums()
            for name in job.scores
        }
        self._load()

    def _load(self) -> None:
        self._sums = {name: part.load(self._block) for name, part in self._files.partial_sums.items()}

    def add(self, batch: WindowOutputs) -> None:
        """Add the next batch of windows."""
        grid, outputs, files = self._job.grid, batch.outputs, self._files
        for name, (distances, _) in batch.scores.items():
            write_scores(files.scores[name], self._number, distances)
        for index in range(len(outputs[0])):
            if self._number >= self._first:
                box = _box_in_block(grid, self._number, self._block)
                for name, predictions in zip(self._job.networks, outputs, strict=True):
                    with np.errstate(over="ignore", invalid="ignore"):
                        np.multiply(predictions[index], self._weights, out=self._weighted)
                        self._sums[name][box] += self._weighted
                    if not np.isfinite(self._sums[name][box]).all():
                        raise _not_finite(name, grid[self._number].start)
                for name, (distances, deviations) in batch.scores.items():
                    self._over_windows[name].add(float(distances[index]), deviations[index])
            self._number += 1
            if self._number == self._block.windows.stop:
                _finish_block(grid, self._weights, self._block, self._sums, files.partial_sums, files.results)
                for file in files.scores.values():
                    file.sync()
                over_windows = {name: sums.to_json() for name, sums in self._over_windows.items()}
                self._journal.save(blocks=self._block.number + 1, windows=over_windows)
                if self._number < len(grid):
                    self._block = self._blocks[self._block.number + 1]
                    self._load()
        if self._stop is not None and self._number >= self._stop:
            raise PredictionStopped(f"{self._number} of {len(grid)} windows are done")


def _outputs(
    job: StreamingJob, blocks: BlockPlan, first: int, source: VolumeSource, score: ZScore
) -> Generator[WindowOutputs]:
    """Yield what the networks make of each batch of windows, from the one that holds window `first` on."""
    grid, batch = job.grid, job.plan.batch
    if job.elsewhere is None:
        cut = _batches(grid, blocks, first, batch, lambda box: read_z_scored(source, score, box))
        with read_ahead(cut) as batches:
            for outputs in predict_batches(list(job.networks.values()), batches, job.device):
                yield WindowOutputs(outputs, {name: network.take() for name, network in job.scores.items()})
        return
    prepared = source if isinstance(source, RawVolume) else None
    path = job.source.image.path if prepared is None else prepared.path
    dtype = job.source.dtype if prepared is None else prepared.dtype
    described = WindowsSource(
        path=path.absolute() if isinstance(path, Path) else path,
        shape=None if prepared is None else prepared.shape,
        dtype=None if dtype is None else np.dtype(dtype).name,
        channel=job.source.channel,
        scene=job.source.scene,
        t=job.source.t,
        z_score=(score.mean, score.deviation),
        window=grid.size,
        overlap=grid.overlap,
        grid=grid.shape,
    )
    starts = range(first - first % batch, len(grid), batch)
    yield from job.elsewhere(described, (range(a, min(a + batch, len(grid))) for a in starts))


def _not_finite(name: str, corner: Sequence[int]) -> ImageError:
    """Return the error about a network whose output is beyond float32, in a window or part that begins at `corner`."""
    return ImageError(
        f"the network predicts numbers that are not finite for this image ({name}, from voxel "
        f"{', '.join(map(str, corner))} (z, y, x) of the model's grid on): look there for voxels far beyond those of "
        "the training images, such as marks of missing data, and replace them; where every image fails so, train again"
    )


def _check_targets(job: StreamingJob) -> None:
    """Refuse truth that nothing can be compared with, such as a channel of zeros, before hours of prediction."""
    for name, target in job.targets.items():
        with _truth_of(name):
            z_score_of(target, percentiles=job.recipe.percentiles, given=job.target_scores.get(name))


@contextmanager
def _truth_of(name: str) -> Iterator[None]:
    """Say in an error about an image that it is of the truth."""
    try:
        yield
    except ImageError as error:
        # What a training image may be is no help here.
        reason = str(error).partition("; data.preprocessing")[0]
        raise ImageError(
            f"the truth of {name} cannot be compared with: {reason}; without a target the image is predicted all the "
            "same"
        ) from error


def _compare_with_targets(job: StreamingJob, folder: Path) -> dict[str, dict[str, float]]:
    """Compare predictions with their truth on the network's grid, as training does."""
    metrics, recipe = {}, job.recipe
    path = folder / "target"
    for name, target in job.targets.items():
        with (
            RawVolume(path, job.grid.shape) as truth,
            RawVolume(result_path(folder, name), job.grid.shape, new=False) as result,
        ):
            copy_resampled(
                target,
                truth,
                recipe.order,
                job.tile_bytes,
                anti_alias=recipe.anti_alias,
                corners=recipe.before_resampling,
            )
            measured = target if recipe.before_resampling else truth
            with _truth_of(name):
                score = z_score_of(
                    measured, percentiles=recipe.percentiles, given=job.target_scores.get(name)
                )
            metrics[name] = compare_volumes(result, truth, score)
        path.unlink()
    return metrics


def _batches(
    grid: WindowGrid,
    blocks: BlockPlan,
    first: int,
    batch: int,
    read: Callable[[tuple[slice, slice, slice]], NDArray[np.float32]],
) -> Iterator[Tensor]:
    """Cut the batches of windows, from the one that holds window `first` on, reading block by block."""
    block, voxels = None, np.empty(0, np.float32)
    for start in range(first - first % batch, len(grid), batch):
        windows = np.empty((min(batch, len(grid) - start), 1, *grid.size), np.float32)
        for index in range(len(windows)):
            if block is None or start + index not in block.windows:
                block = blocks.block_of(start + index)
                # Freed before the next is read: two blocks need not be in memory.
                voxels = np.empty(0, np.float32)
                voxels = read(block.box)
            windows[index, 0] = voxels[_box_in_block(grid, start + index, block)]
        yield torch.from_numpy(windows)


def _box_in_block(grid: WindowGrid, number: int, block: Block) -> tuple[slice, slice, slice]:
    """Return the voxels of a window as an index into its block."""
    start = grid[number].start
    z, y, x = (
        slice(a - part.start, a - part.start + size)
        for a, part, size in zip(start, block.box, grid.size, strict=True)
    )
    return z, y, x


def _finish_block(
    grid: WindowGrid,
    weights: NDArray[np.float32],
    block: Block,
    sums: dict[str, NDArray[np.float32]],
    partial_sums: Mapping[str, PartialSums],
    results: Mapping[str, RawVolume],
) -> None:
    """Write the complete voxels, leave the other sums to later blocks, and make both survive a loss of power."""
    weight = summed_weights(grid, weights, block.final)
    for name, part in partial_sums.items():
        results[name].write(block.final, part.store(block, sums.pop(name)) / weight)
    for name, part in partial_sums.items():
        results[name].sync()
        part.sync()
