"""Leica LIF files: series, time points, channels, scans in any order of axes.

The container is checked by `container.py` and parsed by liffile (the extra ``lif``); voxels are mapped from the file by
the strides that its XML states.
"""

from __future__ import annotations

import importlib.util
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from repmode_cl.data.geometry import Box, VoxelSize
from repmode_cl.data.readers.image_reader import ImageReader, SceneInfo
from repmode_cl.data.readers.lif.container import check_container
from repmode_cl.data.readers.tiff.pages import reason
from repmode_cl.errors import ImageError
from repmode_cl.utils.extras import install_command

__all__ = ["LifReader"]

# Numbers of dimensions (DimID), and for messages those that this project has no use for.
_AXES = {1: "X", 2: "Y", 3: "Z", 4: "T"}
_FURTHER = {
    5: "emission wavelengths", 6: "rotations", 7: "XT slices", 8: "T slices", 9: "excitation wavelengths",
    10: "tiles of a mosaic", 11: "loops",
}  # fmt: skip

# Tags of the samples of a colour image.
_COLOURS = {1: "red", 2: "green", 3: "blue"}


@dataclass(frozen=True)
class _Series:
    """One image of the file, as liffile found it: its XML, and the place and length of its voxels."""

    description: ElementTree.Element | None
    offset: int
    size: int
    problem: str = ""


@dataclass(frozen=True)
class _Channel:
    """Stored type and first byte of a channel in its block."""

    dtype: np.dtype[Any]
    offset: int
    name: str


@dataclass(frozen=True)
class _Layout:
    """Place of a scene's voxels: (T, Z, Y, X) with their strides in bytes."""

    shape: tuple[int, int, int, int]
    strides: tuple[int, int, int, int]
    channels: tuple[_Channel, ...]


class LifReader(ImageReader):
    """A LIF file as an `ImageReader`.

    Parameters
    ----------
    path
        The file.
    scene, t
        Which series and time point.

    Raises
    ------
    ImageError
        If liffile is not installed, the file is damaged or truncated, or a series has axes that mean nothing here.

    Notes
    -----
    A line scan in z (an xz image) is a volume whose y is 1. Voxels are mapped for each `read`, nothing is kept open.
    """

    def __init__(self, path: Path, *, scene: int | str | None = None, t: int | None = None) -> None:
        if importlib.util.find_spec("liffile") is None:
            raise ImageError(
                f"{path}: a Leica LIF file; reading these needs a further package: {install_command('lif')}"
            )
        check_container(path)
        self._layouts: dict[int, _Layout] = {}
        names, self._series = _read_series(path)
        if not names:
            raise ImageError(f"{path}: the file holds no image")
        super().__init__(path, names, scene, t)

    def _describe(self, scene: int) -> SceneInfo:
        series = self._series[scene]
        if series.description is None:
            raise ImageError(f"{self._path}: {series.problem}")
        try:
            layout, voxel_size = _layout(series)
        except ImageError as error:
            raise ImageError(f"{self._path}: {error}") from None
        except (KeyError, ValueError, OverflowError) as error:
            raise ImageError(
                f"{self._path}: the description of its series {self._scene_names[scene]!r} is damaged "
                f"({reason(error)})"
            ) from error
        self._layouts[scene] = layout
        times, z, y, x = layout.shape
        return SceneInfo(
            shape=(z, y, x),
            dtype=np.result_type(*(channel.dtype.newbyteorder("=") for channel in layout.channels)),
            channel_names=tuple(
                channel.name or f"C{number}" for number, channel in enumerate(layout.channels)
            ),
            times=times,
            voxel_size=voxel_size,
            random_access=True,
        )

    def _load(self, scene: int, t: int, channel: int, box: Box) -> NDArray[Any]:
        layout, series = self._layouts[scene], self._series[scene]
        stored = layout.channels[channel]
        try:
            mapped = np.memmap(self._path, np.uint8, mode="r", offset=series.offset, shape=(series.size,))
        except (OSError, ValueError) as error:
            raise ImageError(
                f"{self._path}: cannot be read, damaged or truncated since it was opened ({error})"
            ) from error
        voxels: NDArray[Any] = np.ndarray(
            layout.shape,
            stored.dtype,
            mapped,
            stored.offset,
            layout.strides,
        )
        return np.array(voxels[t][box], self._info(scene).dtype, order="C")


def _read_series(path: Path) -> tuple[tuple[str, ...], list[_Series]]:
    """Return the names and places of all images, read by liffile."""
    import liffile

    # What it warns of is refused here where it matters, with what to do about it.
    logging.getLogger("liffile").setLevel(logging.CRITICAL)
    try:
        with liffile.LifFile(path) as file:
            images = [file.images[number] for number in range(len(file.images))]
            return tuple(image.path for image in images), [_series(image) for image in images]
    except Exception as error:  # liffile raises whatever a damaged header leads it to
        raise ImageError(f"{path}: its LIF header is damaged or truncated ({reason(error)})") from error


def _series(image: Any) -> _Series:
    if image.is_flim:
        return _Series(None, 0, 0, "holds photon arrival times (FLIM); export the intensities from LAS X")
    description = image.xml_element.find("./Data/Image/ImageDescription")
    try:
        block = image.memory_block
    except Exception as error:
        return _Series(
            None,
            0,
            0,
            f"truncated: the voxels of {image.name!r} are missing ({reason(error)}); copy it again",
        )
    if description is None:
        return _Series(None, 0, 0, f"the image {image.name!r} is not described; export it from LAS X")
    return _Series(description, int(block.offset), int(block.size))


def _layout(series: _Series) -> tuple[_Layout, VoxelSize | None]:
    """Return a series' axes, strides and channels, compared with the bytes that are there, and its voxel size."""
    assert series.description is not None
    counts, strides, sizes = dict.fromkeys("TZYX", 1), dict.fromkeys("TZYX", 0), {}
    for dimension in series.description.findall("Dimensions/DimensionDescription"):
        number, count = int(dimension.attrib["DimID"]), int(dimension.attrib["NumberOfElements"])
        if count < 1:
            raise ImageError(f"damaged: an axis of {count} elements")
        if number not in _AXES:
            if count > 1:
                held = _FURTHER.get(number, f"elements of dimension {number}")
                raise ImageError(f"holds {count} {held}, which cannot be used; export one of them from LAS X")
            continue
        axis = _AXES[number]
        if strides[axis]:
            raise ImageError(f"damaged: two axes {axis}")
        counts[axis], strides[axis] = count, int(dimension.attrib["BytesInc"])
        # Length is from the first voxel's centre to the last one's; a scan downwards has a negative one.
        length = abs(float(dimension.attrib["Length"]))
        if dimension.attrib.get("Unit") == "m" and count > 1:
            sizes[axis] = length / (count - 1) * 1e6
    channels = _channels(series.description)
    shape, steps = tuple(counts[axis] for axis in "TZYX"), tuple(strides[axis] for axis in "TZYX")
    _check_bytes(series, shape, steps, channels)
    z, y, x = (sizes.get(axis, 0.0) for axis in "ZYX")
    voxel_size = (z, y, x) if all(0 < size < float("inf") for size in (z, y, x)) else None
    return _Layout(shape, steps, channels), voxel_size  # type: ignore[arg-type]


def _channels(description: ElementTree.Element) -> tuple[_Channel, ...]:
    elements = description.findall("Channels/ChannelDescription")
    if not elements:
        raise ImageError("the series has no channel")
    tags = [int(element.get("ChannelTag", "0")) for element in elements]
    # Of one channel each, a tag only colours it.
    coloured = len(tags) > 1 and all(tag in _COLOURS for tag in tags) and len(set(tags)) == len(tags)
    channels = []
    for element, tag in zip(elements, tags, strict=True):
        kind, bits = int(element.attrib["DataType"]), int(element.attrib["Resolution"])
        if kind not in (0, 1) or not 0 < bits <= 64 or (kind == 1 and bits <= 8):
            raise ImageError(
                f"voxels of LIF type {kind} with {bits} bits are no intensities that can be read"
            )
        if int(element.get("BitInc", "0")):
            raise ImageError("voxels that do not begin at a byte cannot be read; export the image from LAS X")
        size = next(size for size in (1, 2, 4, 8) if bits <= 8 * size)
        name = _COLOURS[tag] if coloured else _channel_name(element)
        dtype = np.dtype(f"<{'uf'[kind]}{size}")
        channels.append(_Channel(dtype, int(element.attrib["BytesInc"]), name))
    return tuple(channels)


def _channel_name(element: ElementTree.Element) -> str:
    """Return the dye's name, else that of the colour table, which LAS X shows; empty where there is neither."""
    for entry in element.findall("ChannelProperty"):
        if entry.findtext("Key") == "DyeName" and entry.findtext("Value"):
            return str(entry.findtext("Value"))
    return element.get("LUTName") or ""


def _check_bytes(
    series: _Series, shape: tuple[int, ...], strides: tuple[int, ...], channels: tuple[_Channel, ...]
) -> None:
    """Refuse a header that claims voxels outside of the series' block, or more than it can hold."""
    if min(strides) < 0 or min(channel.offset for channel in channels) < 0:
        raise ImageError("damaged: an axis or a channel begins before its voxels")
    for channel in channels:
        size = channel.dtype.itemsize
        last = channel.offset + size
        last += sum((count - 1) * stride for count, stride in zip(shape, strides, strict=True))
        # Strides may be anything; voxels on top of each other would be a volume of any size.
        claimed = max(last, math.prod(shape) * size)
        if claimed > series.size:
            raise ImageError(
                f"truncated or damaged: its header claims {claimed} bytes of voxels, its block has {series.size}; "
                "copy it again"
            )
