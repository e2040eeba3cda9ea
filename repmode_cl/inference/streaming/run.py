"""Predict a volume from disk to disk in bounded memory, so that it can be interrupted at any instant and goes on.

Stages: copy the image onto the network's grid (where it is not there already), take mean and deviation, predict block
by block, and (`finish`) bring the result back onto the image's grid and into its files. Windows, batches and the order
of sums are those of `sliding_window`, so that without resampling the result has the same bits as in one piece; with
resampling it differs by rounding (below 1e-5 of the largest value).
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from repmode_cl.data.preprocessing.normalisation import ZScore
from repmode_cl.data.preprocessing.recipe import Recipe
from repmode_cl.errors import RepmodeError
from repmode_cl.inference.raw_volume import RawVolume
from repmode_cl.inference.streaming.blocks import Block, BlockPlan
from repmode_cl.inference.streaming.finish import Output, disk_of, finish, result_of
from repmode_cl.inference.streaming.journal import PredictionJournal
from repmode_cl.inference.streaming.memory_plan import MemoryPlan
from repmode_cl.inference.streaming.metrics import compare_volumes
from repmode_cl.inference.streaming.partial_sums import Sums, sums_nbytes
from repmode_cl.inference.volume_source import (
    FileSource,
    Source,
    copy_resampled,
    read_z_scored,
    z_score_of,
)
from repmode_cl.inference.window_batches import Network, predict_batches
from repmode_cl.inference.windows import WindowGrid, gaussian_weights, summed_weights
from repmode_cl.utils.memory import format_bytes

__all__ = ["PredictionStopped", "StreamingJob", "predict_stream"]


class PredictionStopped(Exception):  # noqa: N818 - nothing went wrong
    """A prediction ended after the number of windows it was given; the same call goes on."""


@dataclass(frozen=True)
class StreamingJob:
    """What is predicted, from where, to where.

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
        Where the networks are.
    plan
        Batch and blocks.
    tile_bytes
        What resampling may take at once.
    targets
        For structures whose truth is known: where it is, on the image's grid.
    """

    source: FileSource
    grid: WindowGrid
    recipe: Recipe
    networks: Mapping[str, Network]
    outputs: Sequence[Output]
    device: torch.device
    plan: MemoryPlan
    tile_bytes: int
    targets: Mapping[str, FileSource] = field(default_factory=dict)

    @property
    def resampled(self) -> bool:
        """Whether the network's grid is another than the image's."""
        return self.grid.shape != self.source.shape


def predict_stream(
    stream: StreamingJob,
    scratch: PredictionJournal,
    *,
    progress: Callable[[int, int], None] | None = None,
    status: Callable[[str], None] | None = None,
    stop_after: int | None = None,
) -> dict[str, dict[str, float]]:
    """Make the outputs, going on from what the scratch folder holds; removes it at the end.

    Parameters
    ----------
    stream
        What to do.
    scratch
        Its journal and files.
    progress
        Called with the number of windows done and their total.
    status
        Called with a few words at the beginning of each stage.
    stop_after
        End in the middle, as if killed, after so many windows.

    Returns
    -------
    dict
        Metrics of each structure whose truth is known, as of `repmode_cl.evaluation.image_metrics`.

    Raises
    ------
    ImageError
        If the image cannot be read or has no z-score.
    RepmodeError
        If the disk is too small, or a file of an unfinished prediction is missing.
    PredictionStopped
        After `stop_after` windows.
    """
    say = status if status is not None else lambda text: None
    if "blocks" not in scratch.journal and not scratch.worth_keeping:
        _check_disk(stream, scratch.folder)
    blocks = stream.plan.blocks(stream.grid)
    if scratch.journal.get("blocks", 0) < len(blocks):
        with ExitStack() as stack:
            source: Source = stream.source
            if stream.resampled or not stream.source.image.random_access:
                source = stack.enter_context(_prepared(stream, scratch, say))
            if "z_score" not in scratch.journal:
                say("Reading")
                score = z_score_of(source, percentiles=stream.recipe.percentiles, empty=stream.recipe.empty)
                scratch.save(z_score=[score.mean, score.deviation])
            score = ZScore(*scratch.journal["z_score"])
            say("Predicting")
            _predict(stream, scratch, blocks, source, score, progress, stop_after)
    if stream.targets and "metrics" not in scratch.journal:
        say("Comparing")
        scratch.save(metrics=_measure(stream, scratch))
    for number, output in enumerate(stream.outputs):
        finish(output, number, scratch, stream.source, stream.grid.shape, stream.tile_bytes, say)
    measured: dict[str, dict[str, float]] = scratch.journal.get("metrics", {})
    scratch.discard()
    return measured


def _check_disk(stream: StreamingJob, folder: Path) -> None:
    volume, here = 4 * math.prod(stream.grid.shape), math.prod(stream.source.shape)
    need = (volume + sums_nbytes(stream.plan.blocks(stream.grid))) * len(stream.networks)
    if stream.resampled:
        need += volume
    elif not stream.source.image.random_access:
        need += volume // 4 * stream.source.image.dtype.itemsize
    need += sum(disk_of(output, here, resampled=stream.resampled) for output in stream.outputs)
    free = shutil.disk_usage(folder).free
    if need > free:
        raise RepmodeError(
            f"{folder.parent}: {format_bytes(need)} are needed there while predicting, {format_bytes(free)} are free; "
            "make room or write elsewhere"
        )


def _prepared(stream: StreamingJob, scratch: PredictionJournal, say: Callable[[str], None]) -> RawVolume:
    """Return the image on the network's grid, made if need be."""
    done = bool(scratch.journal.get("prepared"))
    dtype = np.dtype(np.float32) if stream.resampled else stream.source.image.dtype
    volume = RawVolume(scratch.folder / "prepared", stream.grid.shape, dtype, new=not done)
    if done:
        return volume
    try:
        say("Resampling" if stream.resampled else "Decoding")
        recipe = stream.recipe
        copy_resampled(stream.source, volume, recipe.order, stream.tile_bytes, anti_alias=recipe.anti_alias)
        volume.sync()
        scratch.save(prepared=True)
    except BaseException:
        volume.close()
        raise
    return volume


def _predict(
    stream: StreamingJob,
    scratch: PredictionJournal,
    blocks: BlockPlan,
    source: Source,
    score: ZScore,
    progress: Callable[[int, int], None] | None,
    stop_after: int | None,
) -> None:
    grid, done = stream.grid, int(scratch.journal.get("blocks", 0))
    weights = gaussian_weights(grid.size)
    weighted = np.empty(grid.size, np.float32)
    block = blocks[done]
    begun = block.windows.start
    with ExitStack() as stack:
        results = {
            name: stack.enter_context(RawVolume(result_of(scratch, name), grid.shape, new=done == 0))
            for name in stream.networks
        }
        sums = {
            name: stack.enter_context(Sums(scratch.folder, name, blocks, new=done == 0))
            for name in stream.networks
        }
        if done == 0:
            scratch.save(blocks=0)
        if progress is not None:
            progress(begun, len(grid))
        under_way = {name: part.load(block) for name, part in sums.items()}
        batches = _batches(
            grid, blocks, begun, stream.plan.batch, lambda box: read_z_scored(source, score, box)
        )
        number = begun - begun % stream.plan.batch
        for outputs in predict_batches(list(stream.networks.values()), batches, stream.device):
            for place in range(len(outputs[0])):
                if number >= begun:
                    where = _within(grid, number, block)
                    for name, predictions in zip(stream.networks, outputs, strict=True):
                        np.multiply(predictions[place], weights, out=weighted)
                        under_way[name][where] += weighted
                number += 1
                if number == block.windows.stop:
                    _end_block(grid, weights, block, under_way, sums, results)
                    scratch.save(blocks=block.number + 1)
                    if number < len(grid):
                        block = blocks[block.number + 1]
                        under_way = {name: part.load(block) for name, part in sums.items()}
            if progress is not None:
                progress(number, len(grid))
            if stop_after is not None and number - begun >= stop_after:
                raise PredictionStopped(f"{number} of {len(grid)} windows are done")


def _measure(stream: StreamingJob, scratch: PredictionJournal) -> dict[str, dict[str, float]]:
    """Compare predictions with their truth on the network's grid, as training does."""
    found, recipe = {}, stream.recipe
    path = scratch.folder / "target"
    for name, target in stream.targets.items():
        with (
            RawVolume(path, stream.grid.shape) as truth,
            RawVolume(result_of(scratch, name), stream.grid.shape, new=False) as result,
        ):
            copy_resampled(target, truth, recipe.order, stream.tile_bytes, anti_alias=recipe.anti_alias)
            score = z_score_of(truth, percentiles=recipe.percentiles)
            found[name] = compare_volumes(result, truth, score)
        path.unlink()
    return found


def _batches(
    grid: WindowGrid,
    blocks: BlockPlan,
    begun: int,
    batch: int,
    read: Callable[[tuple[slice, slice, slice]], NDArray[np.float32]],
) -> Iterator[Tensor]:
    """Cut the batches of windows from the one that holds window `begun` on, reading block by block."""
    block, held = None, np.empty(0, np.float32)
    for first in range(begun - begun % batch, len(grid), batch):
        cut = np.empty((min(batch, len(grid) - first), 1, *grid.size), np.float32)
        for place in range(len(cut)):
            if block is None or first + place not in block.windows:
                block = blocks.block_of(first + place)
                # Before the next is read: two blocks need not be held.
                held = np.empty(0, np.float32)
                held = read(block.box)
            cut[place, 0] = held[_within(grid, first + place, block)]
        yield torch.from_numpy(cut)


def _within(grid: WindowGrid, number: int, block: Block) -> tuple[slice, slice, slice]:
    """Return where a window lies in its block."""
    start = grid[number].start
    z, y, x = (
        slice(a - part.start, a - part.start + size)
        for a, part, size in zip(start, block.box, grid.size, strict=True)
    )
    return z, y, x


def _end_block(
    grid: WindowGrid,
    weights: NDArray[np.float32],
    block: Block,
    under_way: dict[str, NDArray[np.float32]],
    sums: Mapping[str, Sums],
    results: Mapping[str, RawVolume],
) -> None:
    """Write what is complete, leave the rest to later blocks, and have both on disk."""
    weight = summed_weights(grid, weights, block.final)
    for name, part in sums.items():
        results[name].write(block.final, part.store(block, under_way.pop(name)) / weight)
    for name, part in sums.items():
        results[name].sync()
        part.sync()
