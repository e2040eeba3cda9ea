"""Predict a volume from disk to disk in bounded memory, so that it can be interrupted at any instant and goes on.

Stages: copy the image onto the network's grid (where it is not there already), take mean and deviation,
predict block by block, bring the result back onto the image's grid, put it in place. Windows, batches and the order of
sums are those of `sliding_window`, so that without resampling the result has the same bits as in one piece; with
resampling it differs by rounding (below 1e-5 of the largest value).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from repmode_cl.data.normalise import ZScore
from repmode_cl.errors import RepmodeError
from repmode_cl.files import put_in_place
from repmode_cl.inference.batches import Network, predict_batches
from repmode_cl.inference.blocks import Block, BlockPlan
from repmode_cl.inference.memory import MemoryPlan, format_bytes
from repmode_cl.inference.raw import RawVolume
from repmode_cl.inference.scratch import Scratch, part_of
from repmode_cl.inference.source import FileSource, Source, copy_resampled, read_z_scored, z_score_of
from repmode_cl.inference.sums import Sums, sums_nbytes
from repmode_cl.inference.volume_io import begin_volume
from repmode_cl.inference.windows import WindowGrid, gaussian_weights, summed_weights

__all__ = ["Output", "PredictionStopped", "Stream", "predict_stream"]


class PredictionStopped(Exception):  # noqa: N818 - nothing went wrong
    """A prediction ended after the number of windows it was given; the same call goes on."""


@dataclass(frozen=True)
class Output:
    """One file to write.

    Attributes
    ----------
    path
        Its name when whole.
    voxel_size
        um (z, y, x), or None.
    description
        Text for the image.
    uuid
        Of the OME-TIFF.
    """

    path: Path
    voxel_size: tuple[float, float, float] | None
    description: str
    uuid: str

    def begin(self, shape: tuple[int, int, int], structure: str, folder: Path) -> RawVolume:
        """Make the file under its name for unfinished ones of the scratch `folder`."""
        part, suffix = part_of(self.path, folder), self.path.suffix.lower()
        return begin_volume(part, suffix, shape, self.voxel_size, structure, self.description, self.uuid)


@dataclass(frozen=True)
class Stream:
    """What is predicted, from where, to where.

    Attributes
    ----------
    source
        The image.
    grid
        Windows on the network's grid; where its shape is not the image's, the image is resampled.
    order
        Of that resampling's spline.
    networks
        One for each structure, in evaluation mode on `device`.
    outputs
        One for each structure.
    device
        Where the networks are.
    plan
        Batch and blocks.
    tile_bytes
        What resampling may take at once.
    """

    source: FileSource
    grid: WindowGrid
    order: int
    networks: Mapping[str, Network]
    outputs: Mapping[str, Output]
    device: torch.device
    plan: MemoryPlan
    tile_bytes: int

    @property
    def resampled(self) -> bool:
        """Whether the network's grid is another than the image's."""
        return self.grid.shape != self.source.shape


def predict_stream(
    stream: Stream,
    scratch: Scratch,
    *,
    progress: Callable[[int, int], None] | None = None,
    status: Callable[[str], None] | None = None,
    stop_after: int | None = None,
) -> None:
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
                score = z_score_of(source)
                scratch.save(z_score=[score.mean, score.deviation])
            score = ZScore(*scratch.journal["z_score"])
            say("Predicting")
            _predict(stream, scratch, blocks, source, score, progress, stop_after)
    for name, output in stream.outputs.items():
        _finish(stream, scratch, name, output, say)
    scratch.discard()


def _check_disk(stream: Stream, folder: Path) -> None:
    z, y, x = stream.grid.shape
    volume = 4 * z * y * x
    here = sum(4 * a * b * c for a, b, c in [stream.source.shape]) * len(stream.outputs)
    need = here + sums_nbytes(stream.plan.blocks(stream.grid)) * len(stream.outputs)
    if stream.resampled:
        need += volume * (1 + len(stream.outputs))
    elif not stream.source.image.random_access:
        need += volume // 4 * stream.source.image.dtype.itemsize
    free = shutil.disk_usage(folder).free
    if need > free:
        raise RepmodeError(
            f"{folder.parent}: {format_bytes(need)} are needed there while predicting, {format_bytes(free)} are free; "
            "make room or write elsewhere"
        )


def _prepared(stream: Stream, scratch: Scratch, say: Callable[[str], None]) -> RawVolume:
    """Return the image on the network's grid, made if need be."""
    done = bool(scratch.journal.get("prepared"))
    dtype = np.dtype(np.float32) if stream.resampled else stream.source.image.dtype
    volume = RawVolume(scratch.folder / "prepared", stream.grid.shape, dtype, new=not done)
    if not done:
        say("Resampling" if stream.resampled else "Decoding")
        copy_resampled(stream.source, volume, stream.order, stream.tile_bytes)
        volume.sync()
        scratch.save(prepared=True)
    return volume


def _predict(
    stream: Stream,
    scratch: Scratch,
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
        results = {name: stack.enter_context(_result(stream, scratch, name)) for name in stream.networks}
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


def _result(stream: Stream, scratch: Scratch, name: str) -> RawVolume:
    """Return where the prediction on the network's grid goes: the output itself, if it has the same grid."""
    done, shape = int(scratch.journal.get("blocks", 0)), stream.grid.shape
    if stream.resampled:
        return RawVolume(scratch.folder / f"{name}.result", shape, new=done == 0)
    if done == 0:
        volume = stream.outputs[name].begin(shape, name, scratch.folder)
        scratch.save(offsets={**scratch.journal.get("offsets", {}), name: volume.offset})
        return volume
    offset = int(scratch.journal["offsets"][name])
    return RawVolume(part_of(stream.outputs[name].path, scratch.folder), shape, offset=offset, new=False)


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


def _finish(stream: Stream, scratch: Scratch, name: str, output: Output, say: Callable[[str], None]) -> None:
    part, written = part_of(output.path, scratch.folder), list(scratch.journal.get("written", []))
    if name not in written:
        if stream.resampled:
            say("Writing")
            with (
                RawVolume(scratch.folder / f"{name}.result", stream.grid.shape, new=False) as result,
                output.begin(stream.source.shape, name, scratch.folder) as volume,
            ):
                copy_resampled(result, volume, 1, stream.tile_bytes)
                volume.sync()
        else:
            _result(stream, scratch, name).close()  # refuses one that has gone meanwhile
        # Written down before it is done: should the process die in between, the name of the part tells.
        scratch.save(written=[*written, name])
    if part.is_file():
        put_in_place(part, output.path)
