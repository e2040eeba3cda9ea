"""Zeiss CZI files: scenes, tiles joined to one volume, time points, channels and colour samples.

Headers are read by `directory.py`, pixels by pylibCZIrw (libCZI; the extra ``czi``).
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from repmode_cl.data.geometry import Box
from repmode_cl.data.readers.czi.directory import PIXEL_TYPES, SubBlock, read_directory, read_metadata_xml
from repmode_cl.data.readers.image_reader import ImageReader, SceneInfo
from repmode_cl.data.readers.tiff.axes import sample_names
from repmode_cl.data.readers.tiff.pages import reason
from repmode_cl.errors import ImageError
from repmode_cl.utils.extras import install_command

__all__ = ["CziReader"]

# Dimensions that this project has no use for, for messages.
_FURTHER = {"R": "rotations", "I": "illuminations", "H": "phases", "V": "views", "B": "blocks"}

# A field of tiles that covers less of its rectangle than this is damaged.
_SPARSEST = 1 / 1000
_SMALL = 64 << 20


@dataclass(frozen=True)
class _TileLayout:
    """Layout of a scene: first index along each axis, and the channel and sample of each exposed channel."""

    scene: int | None
    first: dict[str, int]
    channels: tuple[tuple[int, int, int], ...]
    planes: frozenset[tuple[int, int, int]]


class CziReader(ImageReader):
    """A CZI file as an `ImageReader`.

    Parameters
    ----------
    path
        The file.
    scene, t
        Which scene and time point. The tiles of a scene are one volume; where tiles overlap, the later one counts.

    Raises
    ------
    ImageError
        If pylibCZIrw is not installed, the file is damaged, or has dimensions that mean nothing here.

    Notes
    -----
    Only the tiles that a region touches are decoded. A plane that the file lacks (an experiment that was stopped)
    is refused when it is read, not filled with black.
    """

    def __init__(self, path: Path, *, scene: int | str | None = None, t: int | None = None) -> None:
        if importlib.util.find_spec("pylibCZIrw") is None:
            raise ImageError(
                f"{path}: a Zeiss CZI file; reading these needs a further package: {install_command('czi')}"
            )
        self._lock = threading.Lock()
        self._open: Any = None
        self._layouts: dict[int, _TileLayout] = {}
        self._blocks: dict[int | None, list[SubBlock]] = {}
        for block in read_directory(path):
            self._blocks.setdefault(block.start.get("S"), []).append(block)
        if len(self._blocks) > 1:
            self._blocks.pop(None, None)  # labels and overviews besides the scenes
        self._numbers = sorted(self._blocks, key=lambda number: -1 if number is None else number)
        self._metadata = read_metadata_xml(path)
        super().__init__(path, tuple(self._scene_name(number) for number in self._numbers), scene, t)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._open is not None:
                self._open.close()
                self._open = None

    def _scene_name(self, number: int | None) -> str:
        for element in self._find("Information/Image/Dimensions/S/Scenes/Scene"):
            if number is not None and element.get("Index") == str(number):
                return element.get("Name") or ""
        return ""

    def _describe(self, scene: int) -> SceneInfo:
        blocks = self._blocks[self._numbers[scene]]
        spans = {
            axis: (
                min(block.at(axis) for block in blocks),
                max(block.at(axis) + block.size.get(axis, 1) for block in blocks),
            )
            for axis in {axis for block in blocks for axis in block.start} | set("XYZCT")
        }
        lengths = {axis: last - first for axis, (first, last) in spans.items()}
        wrong = [axis for axis in lengths if axis not in "XYZCTSM" and lengths[axis] > 1]
        if wrong:
            held = ", ".join(
                f"{lengths[axis]} {_FURTHER.get(axis, 'along ' + axis)}" for axis in sorted(wrong)
            )
            raise ImageError(f"{self._path}: holds {held}, which cannot be used; export one of them from ZEN")
        first = {axis: span[0] for axis, span in spans.items()}
        kinds = self._pixel_types(blocks, first["C"])
        types = [PIXEL_TYPES[kind] or ("", 0) for kind in kinds]
        dtype = np.result_type(*(np.dtype(name) for name, _ in types))
        self._check_area(blocks, lengths, dtype.itemsize * max(samples for _, samples in types))
        names: list[str] = []
        channels: list[tuple[int, int, int]] = []
        for place, ((_, samples), name) in enumerate(
            zip(types, self._channel_names(len(kinds)), strict=True)
        ):
            colours = sample_names((name,), samples)
            names += [f"{name} {colour}" for colour in colours] if samples > 1 and len(kinds) > 1 else colours
            # Samples are stored blue first.
            channels += [(first["C"] + place, samples, samples - 1 - sample) for sample in range(samples)]
        planes = frozenset((block.at("C"), block.at("Z"), block.at("T")) for block in blocks)
        self._layouts[scene] = _TileLayout(self._numbers[scene], first, tuple(channels), planes)
        return SceneInfo(
            shape=(lengths["Z"], lengths["Y"], lengths["X"]),
            dtype=dtype,
            channel_names=tuple(names),
            times=lengths["T"],
            voxel_size=self._voxel_size(),
        )

    def _pixel_types(self, blocks: Iterable[SubBlock], first: int) -> list[int]:
        """Return the pixel type of each channel."""
        kinds: dict[int, int] = {}
        for block in blocks:
            if PIXEL_TYPES.get(block.pixel_type) is None:
                raise ImageError(
                    f"{self._path}: pixels of CZI type {block.pixel_type} are no intensities that can be read "
                    "(8 or 16 bit or float, gray or colour)"
                )
            if kinds.setdefault(block.at("C") - first, block.pixel_type) != block.pixel_type:
                raise ImageError(
                    f"{self._path}: the tiles of channel {block.at('C')} differ in their pixel type"
                )
        missing = [number for number in range(max(kinds) + 1) if number not in kinds]
        if missing:
            raise ImageError(
                f"{self._path}: of channel {missing[0]} there is no plane; export the image again"
            )
        return [kinds[number] for number in range(len(kinds))]

    def _check_area(self, blocks: Iterable[SubBlock], lengths: dict[str, int], pixel: int) -> None:
        """Refuse tiles that lie so far apart that a plane of them cannot be meant."""
        planes: dict[tuple[int, int, int], int] = {}
        for block in blocks:
            place = block.at("C"), block.at("Z"), block.at("T")
            planes[place] = planes.get(place, 0) + block.size["X"] * block.size["Y"]
        area = lengths["X"] * lengths["Y"]
        if area * pixel > _SMALL and max(planes.values()) < area * _SPARSEST:
            raise ImageError(
                f"{self._path}: its directory claims planes of {lengths['Y']} x {lengths['X']} (y, x), far more than "
                "its tiles cover: it is damaged"
            )

    def _find(self, place: str) -> list[ElementTree.Element]:
        return [] if self._metadata is None else self._metadata.findall(f"Metadata/{place}")

    def _channel_names(self, count: int) -> list[str]:
        for place in ("Information/Image/Dimensions/Channels/Channel", "DisplaySetting/Channels/Channel"):
            names = [element.get("Name") or "" for element in self._find(place)]
            if len(names) == count and any(names):
                return [name or f"C{number}" for number, name in enumerate(names)]
        return [f"C{number}" for number in range(count)]

    def _voxel_size(self) -> tuple[float, float, float] | None:
        sizes = {}
        for element in self._find("Scaling/Items/Distance"):
            try:
                sizes[element.get("Id")] = float(element.findtext("Value") or "") * 1e6  # metres
            except ValueError:
                continue
        z, y, x = (sizes.get(axis, 0.0) for axis in "ZYX")
        return (z, y, x) if all(0 < size < float("inf") for size in (z, y, x)) else None

    def _load(self, scene: int, t: int, channel: int, box: Box) -> NDArray[Any]:
        layout = self._layouts[scene]
        number, samples, sample = layout.channels[channel]
        z, y, x = box
        area = (
            layout.first["X"] + x.start,
            layout.first["Y"] + y.start,
            x.stop - x.start,
            y.stop - y.start,
        )
        time = layout.first["T"] + t
        out = np.empty((z.stop - z.start, area[3], area[2]), self._info(scene).dtype)
        for place, plane in enumerate(range(layout.first["Z"] + z.start, layout.first["Z"] + z.stop)):
            if (number, plane, time) not in layout.planes:
                raise ImageError(
                    f"{self._path}: the file has no plane {plane} of channel {number} at time point {time}; was the "
                    "experiment stopped? Name another time point, or the planes that are there (region)"
                )
            try:
                with self._lock:
                    pixels = self._reader().read(
                        roi=area, plane={"C": number, "Z": plane, "T": time}, scene=layout.scene
                    )
            except Exception as error:  # libCZI raises whatever a damaged file leads it to
                raise ImageError(
                    f"{self._path}: plane {plane} cannot be decoded ({reason(error)})"
                ) from error
            out[place] = pixels[..., sample if samples > 1 else 0]
        return out

    def _reader(self) -> Any:
        if self._open is None:
            from pylibCZIrw import czi

            self._open = czi.CziReader(str(self._path))
        return self._open
