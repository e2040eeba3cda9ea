"""Output files of a prediction: from the network's grid back onto the image's, whole or not at all."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repmode_cl.data.geometry import Box
from repmode_cl.data.preprocessing.normalisation import strips
from repmode_cl.errors import RepmodeError
from repmode_cl.inference.raw_volume import RawVolume
from repmode_cl.inference.rescale import Rescale
from repmode_cl.inference.streaming.journal import PredictionJournal, PredictionStopped, part_path
from repmode_cl.inference.volume_source import FileSource, VolumeSource, copy_resampled
from repmode_cl.inference.writers import check_suffix, move_into_place, write_image
from repmode_cl.inference.writers.image_metadata import ImageMetadata
from repmode_cl.inference.writers.pyramid import Pyramid

__all__ = ["Output", "write_output", "output_disk_bytes", "result_path", "WRITING_BYTES"]

_Convert = Callable[[NDArray[Any]], NDArray[Any]]

#: Memory that writing a file takes: tiles that wait to be compressed, as many compressed ones, and small things. What
#: is resampled or decoded meanwhile takes `tile_bytes` more.
WRITING_BYTES = 96 << 20


@dataclass(frozen=True)
class Output:
    """One file to write.

    Attributes
    ----------
    path
        Its name when whole; its suffix is the format.
    metadata
        Of the image; its channels are those of `structures`, after that of `light`.
    structures
        The structures in it, and names of other results (`conversions`).
    rescale
        The range of z-scores that is mapped onto integers; None leaves z-scores as float32.
    light
        The transmitted light, where it is the first channel.
    conversions
        For results that are no predictions: what makes a channel's values of them, in place of `rescale`.
    imagej
        Write an ImageJ hyperstack instead of an OME-TIFF.
    """

    path: Path
    metadata: ImageMetadata
    structures: tuple[str, ...]
    rescale: Rescale | None = None
    light: FileSource | None = None
    conversions: Mapping[str, _Convert] = field(default_factory=dict)
    imagej: bool = False


def result_path(folder: Path, structure: str) -> Path:
    """Return the file in a journal's folder that holds a structure's z-scores on the network's grid."""
    return folder / f"{structure}.result"


def output_disk_bytes(output: Output, voxels: int, *, resampled: bool) -> int:
    """Return the bytes on disk that an output and its temporary files may take, for an image of `voxels`."""
    # The file with its lower levels, and these once more while they wait.
    need = output.metadata.nbytes * 5 // 3
    if resampled:
        need += 4 * voxels * len(output.structures)
    if output.light is not None and not output.light.image.random_access:
        need += voxels * output.light.image.dtype.itemsize
    return need


def write_output(
    output: Output,
    number: int,
    journal: PredictionJournal,
    image: FileSource,
    grid: tuple[int, int, int],
    tile_bytes: int,
    status: Callable[[str], None],
    *,
    corners: bool = False,
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Write a file and put it in place; one that an earlier call wrote is only put in place.

    Parameters
    ----------
    output
        The file.
    number
        Its place among all outputs.
    journal
        Of the prediction: its folder holds the results.
    image
        The image that was predicted: its grid is the file's.
    grid
        Voxels (Z, Y, X) of the results.
    tile_bytes
        Bytes that resampling may take at once.
    status
        Called with a few words.
    corners
        Whether the image was resampled with the centres of its outermost voxels kept (`resample_to`).
    stopped
        Asked before each tile is read; True ends the writing.

    Raises
    ------
    RepmodeError
        If a file that an earlier call made is missing.
    PredictionStopped
        If `stopped` says so.
    """
    folder = journal.folder
    part = part_path(output.path, folder)
    written = list(journal.state.get("written", []))
    if number not in written:
        status("Writing")
        with ExitStack() as stack:
            metadata, channels = output.metadata, []
            if output.light is not None:
                source, convert, about = _light_channel(
                    output.light, metadata.dtype, folder, stack, tile_bytes, stopped
                )
                channels.append(
                    Pyramid(_Stoppable(source, stopped), metadata.dtype, convert, folder / "light")
                )
                first = metadata.channels[0]
                first = dataclasses.replace(first, about={**first.about, **about})
                metadata = dataclasses.replace(metadata, channels=(first, *metadata.channels[1:]))
            for name in output.structures:
                result = stack.enter_context(RawVolume(result_path(folder, name), grid, new=False))
                if grid != image.shape:
                    resampled = stack.enter_context(_TemporaryVolume(folder / f"{name}.back", image.shape))
                    copy_resampled(_Stoppable(result, stopped), resampled, 1, tile_bytes, corners=corners)
                    result = resampled
                convert = output.conversions.get(name, output.rescale)
                channels.append(Pyramid(_Stoppable(result, stopped), metadata.dtype, convert, folder / name))
            for channel in channels:
                stack.enter_context(closing(channel))
            write_image(part, check_suffix(output.path), metadata, channels, imagej=output.imagej)
        # Saved before it is put in place: should the process die in between, the name of the part tells.
        journal.save(written=[*written, number])
    if not part.exists() and not output.path.exists():
        raise RepmodeError(
            f"{part}: is missing, so that this prediction cannot continue; give --restart (restart=True) to start over"
        )
    move_into_place(part, output.path, folder / f"replaced-{number}")


class _Stoppable:
    """A volume that is read until the caller wants to stop."""

    def __init__(self, source: VolumeSource, stopped: Callable[[], bool]) -> None:
        self.shape = source.shape
        self._source, self._stopped = source, stopped

    def read(self, box: Box) -> NDArray[Any]:
        if self._stopped():
            raise PredictionStopped("the output is not whole yet")
        return self._source.read(box)


class _TemporaryVolume(RawVolume):
    """A raw volume whose file is removed when it is closed."""

    def __init__(self, path: Path, shape: tuple[int, int, int], dtype: Any = np.float32) -> None:
        path.unlink(missing_ok=True)
        super().__init__(path, shape, dtype)

    def close(self) -> None:
        """Close the file and remove it."""
        super().close()
        self.path.unlink(missing_ok=True)


def _rounding(light: np.dtype[Any], dtype: np.dtype[Any]) -> str:
    """Return how numbers of the light's type change in another; nothing where it holds them all."""
    if np.can_cast(light, dtype):
        return ""
    exact = 1 << (np.finfo(dtype).nmant + 1)
    which = f" whole numbers above {exact}" if light.kind in "iu" else ""
    return f",{which} rounded to {dtype}"


def _light_channel(
    light: FileSource,
    dtype: np.dtype[Any],
    folder: Path,
    stack: ExitStack,
    tile_bytes: int,
    stopped: Callable[[], bool],
) -> tuple[VolumeSource, _Convert | None, Mapping[str, str]]:
    """Return the transmitted light as a source that is read in tiles, its conversion to `dtype`, and a note on it."""
    source: VolumeSource = light
    light_dtype = light.image.dtype
    if not light.image.random_access:
        copy = stack.enter_context(_TemporaryVolume(folder / "light.copy", light.shape, light_dtype))
        copy_resampled(_Stoppable(light, stopped), copy, 1, tile_bytes)
        source = copy
    if dtype.kind == "f" or np.can_cast(light_dtype, dtype):
        return source, None, {"values": f"those of the input ({light_dtype}){_rounding(light_dtype, dtype)}"}
    low, high = math.inf, -math.inf
    for box in strips(source.shape):
        values = _Stoppable(source, stopped).read(box)
        low, high = min(low, float(values.min())), max(high, float(values.max()))
    top = np.iinfo(dtype).max
    if low == high:
        # A model that takes constant images (empty: zeros) predicts it, and no range can be mapped.
        about = {
            "values": f"those of the input ({light_dtype}), which are all {low:g}, as 0",
            "value_of_0": repr(low),
        }
        return source, lambda values: np.zeros(values.shape, dtype), about
    about = {
        "values": f"those of the input ({light_dtype}), of which {low:g} to {high:g} are 0 to {top}",
        "value_of_0": repr(low),
        f"value_of_{top}": repr(high),
    }
    return source, Rescale(low, high, dtype.name), about
