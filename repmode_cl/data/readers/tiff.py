"""TIFF, OME-TIFF and ImageJ stacks, read lazily plane by plane in whatever order the file keeps its axes.

tifffile decodes pages and names axes; this module decides what the axes mean, refuses what is no stack of
planes with channels, and never allocates what a header claims before the file is seen to hold it.
"""

from __future__ import annotations

import itertools
import math
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import tifffile
from numpy.typing import NDArray

from repmode_cl.data.readers.protocol import Region, find_channel
from repmode_cl.data.readers.tiff_axes import name_axes
from repmode_cl.data.readers.tiff_metadata import SceneMetadata, check_ome, read_imagej, read_ome
from repmode_cl.errors import ImageError

__all__ = ["TiffReader"]

# No codec of use here shrinks more than this; a header that claims more is damaged. Small planes are never
# suspected.
_MOST_COMPRESSION = 50_000
_SMALL = 64 << 20


@dataclass(frozen=True)
class _Scene:
    """One series: its axes (full, one letter each) with sizes, and where its pages are."""

    series: Any
    axes: str
    sizes: tuple[int, ...]
    names: tuple[str, ...]
    voxel_size: tuple[float, float, float] | None

    def size(self, axis: str) -> int:
        return self.sizes[self.axes.index(axis)] if axis in self.axes else 1

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.size("Z"), self.size("Y"), self.size("X")


class TiffReader:
    """A TIFF file as an `ImageReader`.

    Parameters
    ----------
    path
        The file.
    scene
        The series that shape, channels and voxel size describe and `read` takes by default.

    Raises
    ------
    ImageError
        If the file is damaged, or the scene is no stack of planes with channels.

    Notes
    -----
    A plain multi-page TIFF whose pages nothing names is a Z-stack. Planes are the unit of reading for
    compressed files; of uncompressed ones only the rows asked for are read. One reader may be shared by
    threads, not by processes.
    """

    def __init__(self, path: Path, scene: int | None = None) -> None:
        self._path = path
        self._chosen = scene
        self._lock = threading.Lock()
        self._scenes: dict[int, _Scene] = {}
        try:
            self._file = tifffile.TiffFile(path)
        except Exception as error:
            raise ImageError(f"{path}: not readable as TIFF ({_reason(error)})") from error
        try:
            self._series: list[Any] = self._list_series()
            self._current = self._scene(scene or 0)
        except BaseException:
            self._file.close()
            raise

    def _list_series(self) -> list[Any]:
        try:
            ome = self._file.ome_metadata if self._file.is_ome else None
            if ome is not None:
                check_ome(ome)
            series = list(self._file.series)
        except ImageError as error:
            raise ImageError(f"{self._path}: {error}") from None
        except Exception as error:
            raise ImageError(f"{self._path}: its header is damaged ({_reason(error)})") from error
        if not series:
            raise ImageError(f"{self._path}: the file holds no image")
        if ome is not None and any(item.kind != "ome" for item in series):
            # Without it the order of the planes is unknown: taking them for a Z-stack would mix channels.
            raise ImageError(
                f"{self._path}: its OME-XML header does not fit its pages; write it anew (Fiji, bfconvert)"
            )
        return series

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    @property
    def axes(self) -> str:
        """``"CZYX"``."""
        return "CZYX"

    @property
    def n_channels(self) -> int:
        """Number of channels."""
        return self._current.size("C")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels (Z, Y, X) of one channel."""
        return self._current.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the voxels, in this machine's byte order."""
        return _native(self._current.series.dtype)

    @property
    def voxel_size(self) -> tuple[float, float, float] | None:
        """Edges of a voxel (z, y, x) in um; None unless the file states all three."""
        return self._current.voxel_size

    @property
    def channel_names(self) -> tuple[str, ...]:
        """One name for each channel; ``C0``, ``C1`` ... where the file names none."""
        return self._current.names

    @property
    def n_scenes(self) -> int:
        """Number of series in the file."""
        return len(self._series)

    @property
    def n_times(self) -> int:
        """Number of time points."""
        return self._current.size("T")

    @property
    def random_access(self) -> bool:
        """Whether the voxels lie uncompressed in one piece, so that only the rows asked for are read."""
        series = self._current.series
        return series.dataoffset is not None and not series.is_multifile

    def channel_index(self, channel: str | int | None) -> int:
        """Return the number of a channel given by name, number, or (where there is only one) not at all."""
        return find_channel(channel, self.channel_names, self._path)

    def read(
        self, channel: int, region: Region | None = None, scene: int | None = None, t: int | None = None
    ) -> NDArray[Any]:
        """Return one channel's sub-volume (Z, Y, X) in the file's own type, native byte order.

        Raises
        ------
        ImageError
            If there are several scenes or time points and none is named, something asked for is not there, or
            the file is damaged or truncated.
        """
        scene = self._chosen if scene is None else scene
        if scene is None and len(self._series) > 1:
            raise ImageError(f"{self._path}: {self._list_scenes()}; name one of them (column scene)")
        chosen = self._scene(scene or 0)
        n_times, n_channels = chosen.size("T"), chosen.size("C")
        if t is None and n_times > 1:
            hint = ""
            if chosen.size("Z") == 1:
                hint = "; if these are the planes of a Z-stack, save it with its planes as Z"
            raise ImageError(
                f"{self._path}: {n_times} time points of {chosen.size('Z')} planes; name one from 0 to "
                f"{n_times - 1} (column t){hint}"
            )
        if t is not None and not 0 <= t < n_times:
            raise ImageError(f"{self._path}: there is no time point {t}; there are 0 to {n_times - 1}")
        if not 0 <= channel < n_channels:
            raise ImageError(f"{self._path}: there is no channel {channel}; there are 0 to {n_channels - 1}")
        try:
            z, y, x = (region or Region()).resolve(chosen.shape)
        except ImageError as error:
            raise ImageError(f"{self._path}: {error}") from None
        picked = {"T": slice(t or 0, (t or 0) + 1), "C": slice(channel, channel + 1), "Z": z, "Y": y, "X": x}
        try:
            with self._lock:
                volume = self._read_box(chosen, [picked[axis] for axis in chosen.axes])
        except ImageError:
            raise
        except Exception as error:  # tifffile raises whatever a damaged file leads it to
            raise ImageError(
                f"{self._path}: cannot be read, damaged or truncated ({_reason(error)})"
            ) from error
        order = [chosen.axes.index(axis) for axis in "ZYX" if axis in chosen.axes]
        others = [place for place in range(len(chosen.axes)) if place not in order]
        shape = (z.stop - z.start, y.stop - y.start, x.stop - x.start)
        return np.ascontiguousarray(volume.transpose(others + order).reshape(shape))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _list_scenes(self) -> str:
        listed = [
            f"{number} {item.name!r} {item.axes} {'x'.join(map(str, item.shape))}"
            for number, item in enumerate(self._series[:20])
        ]
        more = ", ..." if len(self._series) > 20 else ""
        return f"the file holds {len(self._series)} scenes: {', '.join(listed)}{more}"

    def _scene(self, number: int) -> _Scene:
        if not 0 <= number < len(self._series):
            raise ImageError(f"{self._path}: there is no scene {number}; {self._list_scenes()}")
        if number not in self._scenes:
            self._scenes[number] = self._describe(number)
        return self._scenes[number]

    def _describe(self, number: int) -> _Scene:
        series = self._series[number]
        axes, sizes = str(series.get_axes(False)), tuple(int(size) for size in series.get_shape(False))
        axes = name_axes(axes, sizes, self._path)
        sizes = tuple(size for axis, size in zip(axes, sizes, strict=True) if axis != "_")
        axes = axes.replace("_", "")
        dtype = np.dtype(series.dtype)
        if dtype.kind not in "buif":
            raise ImageError(f"{self._path}: voxels of type {dtype} are no intensities (integers or floats)")
        scene = _Scene(series, axes, sizes, (), None)
        n_channels = scene.size("C")
        try:
            found = self._metadata(number, scene)
        except Exception:  # a file that can be read is not refused for what it says besides
            found = SceneMetadata()
        given = found.channel_names if len(found.channel_names) == n_channels else ()
        names = tuple(name or f"C{place}" for place, name in enumerate(given or (None,) * n_channels))
        return _Scene(series, axes, sizes, names, found.voxel_size)

    def _metadata(self, number: int, scene: _Scene) -> SceneMetadata:
        if scene.series.kind == "ome":
            images = read_ome(self._file.ome_metadata or "")
            if len(images) != len(self._series):  # tifffile leaves out images without pages: match by size
                size = {f"Size{axis}": str(scene.size(axis)) for axis in "ZYX"}
                images = [item for item in images if size.items() <= dict(item[0]).items()]
                return images[0][1] if len(images) == 1 else SceneMetadata()
            return images[number][1]
        if scene.series.kind == "imagej":
            tags = self._file.pages[0].tags
            resolution = [tags.valueof(f"{axis}Resolution") for axis in "YX"]
            return read_imagej(self._file.imagej_metadata or {}, resolution, scene.size("C"))
        return SceneMetadata()

    def _read_box(self, scene: _Scene, box: list[slice]) -> NDArray[Any]:
        """Return the box with all axes of the file, in the file's order."""
        series = scene.series
        offset = None if series.is_multifile else series.dataoffset
        shape = tuple(part.stop - part.start for part in box)
        itemsize = np.dtype(series.dtype).itemsize
        if offset is not None:
            handle = self._file.filehandle
            claimed = math.prod(scene.sizes) * itemsize
            if offset + claimed > handle.size:
                raise ImageError(
                    f"{self._path}: truncated: its header claims {claimed} bytes of voxels, the file has "
                    f"{handle.size}; copy it again"
                )
            return self._read_rows(scene, box, shape, offset)
        page_axes = self._axes_of_page(scene)
        lead = len(scene.axes) - page_axes
        numbers = {
            place: int(np.ravel_multi_index(place, scene.sizes[:lead])) if lead else 0
            for place in itertools.product(*(range(part.start, part.stop) for part in box[:lead]))
        }
        pages = {number: self._page(series, number) for number in numbers.values()}
        self._check_stored(pages)
        out = np.empty(shape, _native(series.dtype))
        for place, number in numbers.items():
            try:
                plane = pages[number].asarray(maxworkers=1)
            except Exception as error:
                hint = ""
                if "imagecodecs" in str(error):
                    hint = "; its compression needs a further package: pip install 'repmode-cl[compressed]'"
                raise ImageError(
                    f"{self._path}: page {number} cannot be decoded ({_reason(error)}){hint}"
                ) from error
            target = tuple(value - part.start for value, part in zip(place, box, strict=False))
            out[target] = plane.reshape(scene.sizes[lead:])[tuple(box[lead:])]
        return out

    def _read_rows(
        self, scene: _Scene, box: list[slice], shape: tuple[int, ...], offset: int
    ) -> NDArray[Any]:
        """Read a box of voxels that lie in the file as one uncompressed array: only the rows asked for."""
        stored = np.dtype(scene.series.dtype).newbyteorder(self._file.byteorder)
        out = np.empty(shape, _native(stored))
        rows, row = box[-2], scene.sizes[-1]
        handle = self._file.filehandle
        for place in itertools.product(*(range(part.start, part.stop) for part in box[:-2])):
            plane = int(np.ravel_multi_index(place, scene.sizes[:-2])) if place else 0
            first = (plane * scene.sizes[-2] + rows.start) * row
            count = (rows.stop - rows.start) * row
            handle.seek(offset + first * stored.itemsize)
            data = np.frombuffer(handle.read(count * stored.itemsize), stored)
            target = tuple(value - part.start for value, part in zip(place, box, strict=False))
            out[target] = data.reshape(-1, row)[:, box[-1]]
        return out

    def _axes_of_page(self, scene: _Scene) -> int:
        """Return how many of the last axes one page holds."""
        held = math.prod(scene.series.keyframe.shape)
        for count in range(1, len(scene.sizes) + 1):
            if math.prod(scene.sizes[-count:]) == held:
                return count
        raise ImageError(f"{self._path}: its pages do not fit its axes {scene.axes}; save it as OME-TIFF")

    def _page(self, series: Any, number: int) -> Any:
        page = series.pages[number] if number < len(series.pages) else None
        if page is None:
            raise ImageError(
                f"{self._path}: page {number} is missing: the file is truncated, or part of a set of files "
                "that is not whole"
            )
        return page

    def _check_stored(self, pages: dict[int, Any]) -> None:
        """Refuse pages whose data lie beyond the file's end or are too few for what the header claims."""
        claimed = stored = 0
        for number, page in pages.items():
            size = page.parent.filehandle.size if page.parent is self._file else None
            ends = [
                start + count for start, count in zip(page.dataoffsets, page.databytecounts, strict=False)
            ]
            if size is not None and ends and max(ends) > size:
                raise ImageError(
                    f"{self._path}: truncated: page {number} ends at byte {max(ends)} of {size}; copy it "
                    "again"
                )
            claimed += page.nbytes
            # Counts of zero are empty tiles, which need not be stored.
            whole = page.keyframe.compression == 1 and all(page.databytecounts)
            stored += sum(page.databytecounts) * (1 if whole else _MOST_COMPRESSION)
            if claimed > _SMALL and claimed > stored * 1.01 + 64:
                raise ImageError(
                    f"{self._path}: its header claims {page.nbytes} bytes for page {number}, far more than "
                    "the file holds: it is damaged"
                )


def _native(dtype: Any) -> np.dtype[Any]:
    native: np.dtype[Any] = np.dtype(dtype).newbyteorder("=")
    return native


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text[:200] or type(error).__name__
