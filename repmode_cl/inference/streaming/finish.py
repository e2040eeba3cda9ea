"""From results on the network's grid to the files that were asked for: on the image's grid, whole or not at all."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repmode_cl.data.preprocessing.normalisation import strips
from repmode_cl.errors import RepmodeError
from repmode_cl.inference.raw_volume import RawVolume
from repmode_cl.inference.rescale import Rescale
from repmode_cl.inference.streaming.journal import PredictionJournal, part_of
from repmode_cl.inference.volume_source import FileSource, Source, copy_resampled
from repmode_cl.inference.writers import check_suffix, put, write_picture
from repmode_cl.inference.writers.image_metadata import ImageMetadata
from repmode_cl.inference.writers.pyramid import Pyramid

__all__ = ["Output", "disk_of", "finish", "result_of"]

_Convert = Callable[[NDArray[Any]], NDArray[Any]]


@dataclass(frozen=True)
class Output:
    """One file to write.

    Attributes
    ----------
    path
        Its name when whole; its suffix is the format.
    picture
        What it is; its channels are those of `structures`, after that of `light`.
    structures
        What it shows.
    rescale
        What becomes of z-scores; None leaves them as float32.
    light
        The transmitted light, where it is the first channel.
    """

    path: Path
    picture: ImageMetadata
    structures: tuple[str, ...]
    rescale: Rescale | None = None
    light: FileSource | None = None


def result_of(scratch: PredictionJournal, structure: str) -> Path:
    """Return where a structure's z-scores on the network's grid are kept."""
    return scratch.folder / f"{structure}.result"


def disk_of(output: Output, voxels: int, *, resampled: bool) -> int:
    """Return the bytes that an output and what it is made of may take, of an image of `voxels`."""
    need = (
        output.picture.nbytes * 5 // 3
    )  # the file with its lower levels, and these once more while they wait
    if resampled:
        need += 4 * voxels * len(output.structures)
    if output.light is not None and not output.light.image.random_access:
        need += voxels * output.light.image.dtype.itemsize
    return need


def finish(
    output: Output,
    number: int,
    scratch: PredictionJournal,
    image: FileSource,
    grid: tuple[int, int, int],
    memory: int,
    say: Callable[[str], None],
) -> None:
    """Write a file and put it in place; one that an earlier call wrote is only put in place.

    Parameters
    ----------
    output
        What to write.
    number
        Its place among all outputs.
    scratch
        Where the results are.
    image
        The image that was predicted: its grid is the file's.
    grid
        Voxels (Z, Y, X) of the results.
    memory
        Bytes that resampling may take at once.
    say
        Called with a few words.

    Raises
    ------
    RepmodeError
        If a file that an earlier call made is missing.
    """
    part = part_of(output.path, scratch.folder)
    written = list(scratch.journal.get("written", []))
    if number not in written:
        say("Writing")
        with ExitStack() as stack:
            picture, channels = output.picture, []
            if output.light is not None:
                source, convert, about = _light(output.light, picture.dtype, scratch, stack, memory)
                channels.append(Pyramid(source, picture.dtype, convert, scratch.folder / "light"))
                first = picture.channels[0]
                first = dataclasses.replace(first, about={**first.about, **about})
                picture = dataclasses.replace(picture, channels=(first, *picture.channels[1:]))
            for name in output.structures:
                result = stack.enter_context(RawVolume(result_of(scratch, name), grid, new=False))
                if grid != image.shape:
                    back = stack.enter_context(_removed(scratch.folder / f"{name}.back", image.shape))
                    copy_resampled(result, back, 1, memory)
                    result = back
                channels.append(Pyramid(result, picture.dtype, output.rescale, scratch.folder / name))
            for channel in channels:
                stack.enter_context(closing(channel))
            write_picture(part, check_suffix(output.path), picture, channels)
        # Written down before it is put in place: should the process die in between, the name of the part tells.
        scratch.save(written=[*written, number])
    if not part.exists() and not output.path.exists():
        raise RepmodeError(
            f"{part}: is missing, so that this prediction cannot go on; give --restart (restart=True) to begin anew"
        )
    put(part, output.path, scratch.folder / f"replaced-{number}")


class _removed(RawVolume):  # noqa: N801 - used as a context manager
    """A raw volume whose file goes when it is closed."""

    def __init__(self, path: Path, shape: tuple[int, int, int], dtype: Any = np.float32) -> None:
        path.unlink(missing_ok=True)
        super().__init__(path, shape, dtype)

    def close(self) -> None:
        """Close the file and remove it."""
        super().close()
        self.path.unlink(missing_ok=True)


def _light(
    light: FileSource, dtype: np.dtype[Any], scratch: PredictionJournal, stack: ExitStack, memory: int
) -> tuple[Source, _Convert | None, Mapping[str, str]]:
    """Return the transmitted light as a source that is read in tiles, what makes `dtype` of it, and a word on it."""
    source: Source = light
    own = light.image.dtype
    if not light.image.random_access:
        copy = stack.enter_context(_removed(scratch.folder / "light.copy", light.shape, own))
        copy_resampled(light, copy, 1, memory)
        source = copy
    if dtype.kind == "f" or np.can_cast(own, dtype):
        return source, None, {"values": f"those of the input ({own})"}
    low, high = math.inf, -math.inf
    for box in strips(source.shape):
        values = source.read(box)
        low, high = min(low, float(values.min())), max(high, float(values.max()))
    top = np.iinfo(dtype).max
    range_of = Rescale(low, high, dtype.name)
    about = {
        "values": f"those of the input ({own}), of which {low:g} to {high:g} are 0 to {top}",
        "value_of_0": repr(low),
        f"value_of_{top}": repr(high),
    }
    return source, range_of, about
