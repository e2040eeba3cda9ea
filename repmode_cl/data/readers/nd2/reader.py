"""Nikon ND2 files: positions, times, planes, channels and colour samples.

The map of chunks is read by `chunk_map.py`, metadata by the package nd2 (the extra ``nd2``); voxels are mapped from the
file, frame by frame.
"""

from __future__ import annotations

import importlib.util
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from repmode_cl.data.geometry import Box, VoxelSize
from repmode_cl.data.readers.image_reader import ImageReader, SceneInfo
from repmode_cl.data.readers.nd2.chunk_map import read_chunk_map, read_frame_place
from repmode_cl.data.readers.tiff.axes import sample_names
from repmode_cl.data.readers.tiff.pages import reason
from repmode_cl.errors import ImageError
from repmode_cl.utils.extras import install_command

__all__ = ["Nd2Reader"]

# Axes of one frame; of all others frames are counted.
_OF_A_FRAME = "CYXS"

# No codec of the format (deflate) shrinks more than this.
_MOST_COMPRESSION = 1100

# No microscope records more numbers for a pixel: spectral detectors have some tens.
_MOST_COMPONENTS = 10_000


@dataclass(frozen=True)
class _Metadata:
    """What nd2 says of a file.

    Attributes
    ----------
    loops
        Length of each axis that frames are counted along, the outermost first: P, T, Z.
    positions
        Name of each position.
    height, width, row_bytes, components
        Of a frame: its rows, pixels of a row, bytes from row to row, numbers of a pixel.
    dtype
        Of a number.
    compressed
        Whether frames are deflated.
    channel_names
        One for each number of a pixel.
    voxel_size
        um (z, y, x), or None.
    """

    loops: dict[str, int]
    positions: tuple[str, ...]
    height: int
    width: int
    row_bytes: int
    components: int
    dtype: np.dtype[Any]
    compressed: bool
    channel_names: tuple[str, ...]
    voxel_size: VoxelSize | None

    @property
    def frame_bytes(self) -> int:
        return self.height * self.row_bytes


class Nd2Reader(ImageReader):
    """An ND2 file as an `ImageReader`.

    Parameters
    ----------
    path
        The file.
    scene, t
        Which position and time point.

    Raises
    ------
    ImageError
        If nd2 is not installed, the file is damaged or truncated, or has axes that mean nothing here.

    Notes
    -----
    Only the frames that a region touches are read. A frame that the file lacks (an experiment that was stopped) is
    refused when it is read, not filled with black. Nothing is kept open.
    """

    def __init__(self, path: Path, *, scene: int | str | None = None, t: int | None = None) -> None:
        if importlib.util.find_spec("nd2") is None:
            raise ImageError(
                f"{path}: a Nikon ND2 file; reading these needs a further package: {install_command('nd2')}"
            )
        self._frames = read_chunk_map(path)
        try:
            self._metadata = _read_metadata(path, len(self._frames))
        except ImageError as error:
            raise ImageError(f"{path}: {error}") from None
        except Exception as error:  # nd2 raises whatever a damaged file leads it to
            raise ImageError(f"{path}: its ND2 metadata are damaged ({reason(error)})") from error
        self._check_sizes(path)
        super().__init__(path, self._metadata.positions, scene, t)

    def _check_sizes(self, path: Path) -> None:
        metadata, size = self._metadata, path.stat().st_size
        if not self._frames:
            raise ImageError(f"{path}: the file holds no image")
        row = metadata.width * metadata.components * metadata.dtype.itemsize
        if min(metadata.height, metadata.width, metadata.components) < 1 or metadata.row_bytes < row:
            raise ImageError(f"{path}: damaged: frames of {metadata.height} x {metadata.width} (y, x) pixels")
        if metadata.frame_bytes > size * (_MOST_COMPRESSION if metadata.compressed else 1):
            raise ImageError(
                f"{path}: truncated or damaged: its header claims {metadata.frame_bytes} bytes for a frame, the file "
                f"has {size}"
            )

    def _describe(self, scene: int) -> SceneInfo:
        metadata = self._metadata
        further = {axis: count for axis, count in metadata.loops.items() if axis not in "PTZ" and count > 1}
        if further:
            held = ", ".join(f"{count} along {axis}" for axis, count in further.items())
            raise ImageError(
                f"{self._path}: holds loops of another kind ({held}), which cannot be used; export one of them"
            )
        return SceneInfo(
            shape=(metadata.loops.get("Z", 1), metadata.height, metadata.width),
            dtype=metadata.dtype.newbyteorder("="),
            channel_names=metadata.channel_names,
            times=metadata.loops.get("T", 1),
            voxel_size=metadata.voxel_size,
            random_access=not metadata.compressed,
        )

    def _load(self, scene: int, t: int, channel: int, box: Box) -> NDArray[Any]:
        z, y, x = box
        planes = range(z.start, z.stop)
        numbers = []
        # Before memory is taken for them: a header may claim any number of planes.
        for plane in planes:
            numbers.append(self._frame_number(scene, t, plane))
            if numbers[-1] not in self._frames:
                raise ImageError(
                    f"{self._path}: the file has no plane {plane} at time point {t}; was the experiment stopped? Name "
                    "another time point, or the planes that are there (region)"
                )
        out = np.empty((len(planes), y.stop - y.start, x.stop - x.start), self._info(scene).dtype)
        assert isinstance(self._path, Path)
        try:
            with self._path.open("rb") as handle:
                for place, number in enumerate(numbers):
                    out[place] = self._frame(handle, self._frames[number])[y, x, channel]
        except ImageError as error:
            raise ImageError(f"{self._path}: {error}") from None
        except (OSError, ValueError, zlib.error) as error:
            raise ImageError(
                f"{self._path}: cannot be read, damaged or truncated ({reason(error)})"
            ) from error
        return out

    def _frame_number(self, scene: int, t: int, z: int) -> int:
        place = {"P": scene, "T": t, "Z": z}
        number = 0
        for axis, count in self._metadata.loops.items():
            number = number * count + place.get(axis, 0)
        return number

    def _frame(self, handle: BinaryIO, place: int) -> NDArray[Any]:
        """Return a frame (y, x, number of a pixel), as a view of the file where it is not compressed."""
        metadata = self._metadata
        chunk = read_frame_place(handle, place, handle.seek(0, 2))
        data: Any
        if metadata.compressed:
            handle.seek(chunk.start)
            data = zlib.decompressobj().decompress(handle.read(chunk.length), metadata.frame_bytes)
            held = len(data)
        else:
            held = chunk.length
            data = np.memmap(handle, np.uint8, mode="r", offset=chunk.start, shape=(held,))
        # The last row need not be padded.
        needed = metadata.frame_bytes - metadata.row_bytes
        needed += metadata.width * metadata.components * metadata.dtype.itemsize
        if held < needed:
            raise ImageError(f"truncated: a frame has {held} bytes of {metadata.frame_bytes}; copy it again")
        size = metadata.dtype.itemsize
        return np.ndarray(
            (metadata.height, metadata.width, metadata.components),
            metadata.dtype,
            data,
            strides=(metadata.row_bytes, size * metadata.components, size),
        )


def _read_metadata(path: Path, frames: int) -> _Metadata:
    import nd2

    with nd2.ND2File(path) as file:
        if file.is_legacy:
            raise ImageError("an ND2 file of before 2010 (JPEG 2000); save it again with NIS-Elements")
        attributes, sizes = file.attributes, file.sizes
        components = int(attributes.componentCount)
        _check_components(file, components)
        if attributes.compressionType == "lossy":
            raise ImageError("its frames are compressed with a loss, which cannot be read; export it as TIFF")
        loops = {axis: int(count) for axis, count in sizes.items() if axis not in _OF_A_FRAME}
        names: list[str] = []
        for loop in file.experiment:
            if loop.type == "XYPosLoop":
                names = [point.name or "" for point in loop.parameters.points]
        count = loops.get("P", 1)
        if count > max(1, len(names), frames):
            raise ImageError(f"damaged: its header claims {count} positions, the file has {frames} frames")
        channels = file.metadata.channels or []
        return _Metadata(
            loops=loops,
            positions=tuple(names) if len(names) == count else ("",) * count,
            height=int(attributes.heightPx),
            width=int(attributes.widthPx or 0),
            row_bytes=int(
                attributes.widthBytes or (attributes.widthPx or 0) * components * file.dtype.itemsize
            ),
            components=components,
            dtype=file.dtype.newbyteorder("<"),
            compressed=attributes.compressionType == "lossless",
            channel_names=_channel_names([channel.channel.name for channel in channels], components),
            voxel_size=_voxel_size(channels),
        )


def _check_components(file: Any, components: int) -> None:
    """Refuse counts for which nd2, or `_channel_names`, would make lists of any length."""
    chunk = "ImageMetadataSeqLV|0" if file.version >= (3, 0) else "ImageMetadataSeq|0"
    held = _sum_of("uiCompCount", file.unstructured_metadata(strip_prefix=False, include={chunk}))
    if max(components, held) > _MOST_COMPONENTS:
        raise ImageError(
            f"damaged: its header claims {max(components, held)} numbers for each pixel (channels and colour samples); "
            f"at most {_MOST_COMPONENTS} are read"
        )


def _sum_of(key: str, value: Any) -> int:
    """Return the sum of all numbers of this name in nested dictionaries."""
    if not isinstance(value, dict):
        return 0
    own = value.get(key, 0)
    return (own if isinstance(own, int) else 0) + sum(_sum_of(key, one) for one in value.values())


def _channel_names(names: list[str], components: int) -> tuple[str, ...]:
    """Return a name for each number of a pixel; three numbers of one channel are a colour image."""
    if len(names) == components:
        return tuple(name or f"C{number}" for number, name in enumerate(names))
    if names and components == 3 * len(names):
        return sample_names(names, 3)
    return tuple(f"C{number}" for number in range(components))


def _voxel_size(channels: Any) -> VoxelSize | None:
    if not channels:
        return None
    volume = channels[0].volume
    # An edge that was not calibrated is given as 1.
    if not all(volume.axesCalibrated):
        return None
    x, y, z = (float(edge) for edge in volume.axesCalibration)
    return (z, y, x) if all(0 < edge < math.inf for edge in (z, y, x)) else None
