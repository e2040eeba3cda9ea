"""TIFF, OME-TIFF, ImageJ and Micro-Manager stacks, in whatever order the file keeps its axes.

tifffile parses pages and names axes; this module interprets the axes, and refuses images that are no stack of planes
with channels.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from repmode_cl.data.geometry import Box
from repmode_cl.data.readers.image_reader import ImageReader, SceneInfo
from repmode_cl.data.readers.tiff.axes import list_series, name_axes, sample_names, whole_axes
from repmode_cl.data.readers.tiff.metadata import (
    MOST_PLANES,
    SceneMetadata,
    check_ome,
    read_imagej,
    read_micro_manager,
    read_ome,
)
from repmode_cl.data.readers.tiff.pages import cut_off, native, read_pages, read_rows, reason
from repmode_cl.errors import ImageError

__all__ = ["TiffReader"]


# tifffile's names of files in which nothing but the pages themselves says how many there are.
_PLAIN = frozenset({"generic", "uniform", "shaped"})


@dataclass(frozen=True)
class _SeriesLayout:
    """Layout of one scene in its series: axes longer than 1, one letter each, with their sizes."""

    series: Any
    axes: str
    sizes: tuple[int, ...]

    def size(self, axis: str) -> int:
        return self.sizes[self.axes.index(axis)] if axis in self.axes else 1


class TiffReader(ImageReader):
    """A TIFF file as an `ImageReader`.

    Parameters
    ----------
    path
        The file; of an OME-TIFF in several files any one of them that holds OME-XML.
    scene, t
        Which scene (series, or stage position of a Micro-Manager stack) and time point.
    ome_xml
        Stands in for the file's own OME-XML, where that lies in a companion file.

    Raises
    ------
    ImageError
        If the file is damaged, or the scene is no stack of planes with channels.

    Notes
    -----
    A plain multi-page TIFF whose pages nothing names is a Z-stack. Of uncompressed volumes only the rows asked for
    are read, of others only the strips or tiles. Colour samples count as channels. One reader may be shared by
    threads, not by processes.
    """

    def __init__(
        self,
        path: Path,
        *,
        scene: int | str | None = None,
        t: int | None = None,
        ome_xml: str | None = None,
    ) -> None:
        self._lock = threading.Lock()
        self._layouts: dict[int, _SeriesLayout] = {}
        try:
            self._file = tifffile.TiffFile(path, **({} if ome_xml is None else {"omexml": ome_xml}))
        except Exception as error:
            raise ImageError(f"{path}: not readable as TIFF ({reason(error)})") from error
        try:
            self._series = self._list_series(path)
            # Series and, of a Micro-Manager stack with several positions, the position.
            self._parts = self._list_parts()
            super().__init__(path, tuple(self._name(*part) for part in self._parts), scene, t)
        except BaseException:
            self._file.close()
            raise

    def _list_series(self, path: Path) -> list[Any]:
        try:
            ome = self._file.ome_metadata if self._file.is_ome else None
            if ome is not None:
                check_ome(ome)
            self._check_micro_manager()
            series = list_series(self._file)
        except ImageError as error:
            raise ImageError(f"{path}: {error}") from None
        except Exception as error:
            raise ImageError(f"{path}: its header is damaged or truncated ({reason(error)})") from error
        if not series:
            raise ImageError(f"{path}: the file holds no image")
        kinds = {item.kind for item in series}
        if ome is not None and "BinaryOnly" in ome and not kinds & {"ome", "mmstack"}:
            raise ImageError(
                f"{path}: one file of a set whose OME-XML lies in another; give that one (*.companion.ome, or the "
                "first .ome.tif)"
            )
        if ome is not None and kinds - {"ome", "mmstack"}:
            # Without it the order of the planes is unknown: taking them for a Z-stack would mix channels.
            raise ImageError(
                f"{path}: its OME-XML header does not fit its pages; write it again (Fiji, bfconvert)"
            )
        if self._file.is_imagej and ome is None and kinds - {"imagej", "shaped", "mmstack"}:
            raise ImageError(
                f"{path}: truncated or damaged: its ImageJ header claims more planes than the file holds; copy it "
                "again"
            )
        missing = cut_off(self._file) if kinds <= _PLAIN else None
        if missing is not None:
            # What is left may look whole: of an OME-TIFF whose XML lay at its end, a stack of mixed channels.
            raise ImageError(f"{path}: truncated or damaged: {missing}; copy it again")
        return series

    def _check_micro_manager(self) -> None:
        """Refuse a summary that would have tifffile make a list of absurd length."""
        if not self._file.is_mmstack:
            return
        summary = (self._file.micromanager_metadata or {}).get("Summary") or {}
        counts = [summary.get(key, 1) for key in ("Frames", "Positions", "Slices", "Channels")]
        planes = math.prod(max(1, int(count)) for count in counts)
        if planes > MOST_PLANES:
            raise ImageError(f"the Micro-Manager header claims {planes} planes: it is damaged")

    def _list_parts(self) -> list[tuple[int, int | None]]:
        parts: list[tuple[int, int | None]] = []
        for number, series in enumerate(self._series):
            axes, sizes = whole_axes(series)
            positions = sizes[axes.index("R")] if series.kind == "mmstack" and "R" in axes else 1
            if positions == 1:
                parts.append((number, None))
                continue
            # Written as one file for each position, the file named is the choice.
            held = {int(position) for position in self._file.micromanager_metadata["IndexMap"][:, 3]}
            chosen = held if len(held) == 1 else range(positions)
            parts += [(number, position) for position in chosen]
        return parts

    def _name(self, number: int, position: int | None) -> str:
        if position is None:
            return str(self._series[number].name or "")
        try:
            summary = self._file.micromanager_metadata["Summary"]
            entry = (summary.get("StagePositions") or summary.get("InitialPositionList"))[position]
            return str(entry.get("Label") or entry.get("label") or f"Pos{position}")
        except (KeyError, IndexError, TypeError, AttributeError):
            return f"Pos{position}"

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _describe(self, scene: int) -> SceneInfo:
        series = self._series[self._parts[scene][0]]
        path = Path(self._path)
        axes, sizes = whole_axes(series)
        axes = name_axes(axes, sizes, path, positions=series.kind == "mmstack")
        if not all(sizes):
            raise ImageError(f"{path}: the image is empty: its sizes are {sizes} (axes {axes})")
        sizes = tuple(size for axis, size in zip(axes, sizes, strict=True) if axis != "_")
        layout = _SeriesLayout(series, axes.replace("_", ""), sizes)
        dtype = np.dtype(series.dtype)
        if dtype.kind not in "buif":
            raise ImageError(f"{path}: voxels of type {dtype} are no intensities (integers or floats)")
        try:
            metadata = self._metadata(scene, layout)
        except Exception:  # a file that can be read is not refused for what it says besides
            metadata = SceneMetadata()
        n_channels = layout.size("C")
        given = metadata.channel_names if len(metadata.channel_names) == n_channels else (None,) * n_channels
        names = [name or f"C{place}" for place, name in enumerate(given)]
        self._layouts[scene] = layout
        return SceneInfo(
            shape=(layout.size("Z"), layout.size("Y"), layout.size("X")),
            dtype=native(dtype),
            channel_names=sample_names(names, layout.size("S")),
            times=layout.size("T"),
            voxel_size=metadata.voxel_size,
            random_access=series.dataoffset is not None and not series.is_multifile,
        )

    def _metadata(self, scene: int, layout: _SeriesLayout) -> SceneMetadata:
        number, kind = self._parts[scene][0], layout.series.kind
        if kind in ("ome", "mmstack") and self._file.is_ome:
            images = read_ome(self._file.ome_metadata or "")
            if kind == "mmstack" or len(images) != len(self._series):
                # tifffile leaves out images without pages, and joins Micro-Manager's: match by size.
                size = {f"Size{axis}": str(layout.size(axis)) for axis in "ZYX"}
                images = [item for item in images if size.items() <= dict(item[0]).items()]
                alike = len({item[1] for item in images}) == 1
                metadata = images[0][1] if alike else SceneMetadata()
            else:
                metadata = images[number][1]
            if kind == "ome" or (metadata.voxel_size is not None and any(metadata.channel_names)):
                return metadata
        if kind == "mmstack":
            tag = self._file.pages[0].tags.valueof("MicroManagerMetadata")
            return read_micro_manager(self._file.micromanager_metadata["Summary"], tag)
        if kind == "imagej":
            tags = self._file.pages[0].tags
            resolution = [tags.valueof(f"{axis}Resolution") for axis in "YX"]
            return read_imagej(self._file.imagej_metadata or {}, resolution, layout.size("C"))
        return SceneMetadata()

    def _load(self, scene: int, t: int, channel: int, box: Box) -> NDArray[Any]:
        layout, position = self._layouts[scene], self._parts[scene][1] or 0
        channel, sample = divmod(channel, layout.size("S"))
        picked = {
            axis: slice(at, at + 1) for axis, at in zip("TCSR", (t, channel, sample, position), strict=True)
        }
        picked |= dict(zip("ZYX", box, strict=True))
        try:
            with self._lock:
                volume = self._read_box(layout, [picked[axis] for axis in layout.axes])
        except ImageError:
            raise
        except Exception as error:  # tifffile raises whatever a damaged file leads it to
            raise ImageError(
                f"{self._path}: cannot be read, damaged or truncated ({reason(error)})"
            ) from error
        order = [layout.axes.index(axis) for axis in "ZYX" if axis in layout.axes]
        others = [place for place in range(len(layout.axes)) if place not in order]
        shape = [part.stop - part.start for part in box]
        return np.ascontiguousarray(volume.transpose(others + order).reshape(shape))

    def _read_box(self, layout: _SeriesLayout, box: list[slice]) -> NDArray[Any]:
        """Return the box with all axes of the series, in the file's order."""
        series, path = layout.series, Path(self._path)
        offset = None if series.is_multifile else series.dataoffset
        if offset is None:
            return read_pages(series, layout.axes, layout.sizes, box, path)
        stored = np.dtype(series.dtype).newbyteorder(self._file.byteorder)
        return read_rows(self._file.filehandle, path, offset, stored, layout.sizes, box)
