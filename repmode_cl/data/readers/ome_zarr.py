"""OME-Zarr images (0.4, 0.5 and their predecessors), in a folder or wherever fsspec reaches; the extra ``zarr``.

Only the chunks that a region touches are fetched, at full resolution.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repmode_cl.data.geometry import Box
from repmode_cl.data.readers.image_reader import ImageReader, SceneInfo
from repmode_cl.data.readers.location import is_url
from repmode_cl.data.readers.region import Region
from repmode_cl.data.readers.tiff.metadata import to_um
from repmode_cl.data.readers.tiff.pages import native, reason
from repmode_cl.errors import ImageError, counted
from repmode_cl.utils.extras import install_command

__all__ = ["OmeZarrReader"]

# As of the other formats: no codec shrinks more; small reads are never suspected.
_MOST_COMPRESSION = 50_000
_SMALL = 64 << 20
# Chunks that may be absent (blank) before a large read is taken for one of nothing.
_MOST_ABSENT = 10_000
# A chunk of at most this many bytes is cheap to decode again for each of several small regions.
_SMALL_CHUNK = 4 << 20
# Bytes before what Blosc stores; the last four are the length of all.
_BLOSC_HEADER = 16


@dataclass(frozen=True)
class _ArrayLayout:
    """Layout of a scene: the array of full resolution, and a letter for each of its axes."""

    array: Any
    axes: str

    def box(self, t: int, channel: int, box: Box) -> list[slice]:
        """Return the part of the array that one channel's box (z, y, x) is."""
        picked: dict[str, slice] = {"T": slice(t, t + 1), "C": slice(channel, channel + 1), "?": slice(0, 1)}
        picked |= dict(zip("ZYX", box, strict=True))
        return [picked[axis] for axis in self.axes]


class OmeZarrReader(ImageReader):
    """An OME-Zarr image as an `ImageReader`.

    Parameters
    ----------
    path
        Folder or URL of the image's group; of a group written by bioformats2raw, or of a plate's well, whose images
        are the scenes.
    scene, t
        Which scene and time point.

    Raises
    ------
    ImageError
        If zarr is not installed, or there is no OME-Zarr image with axes T, C, Z, Y, X there.

    Notes
    -----
    The voxel size is known where all three axes name a unit of length: without one, the scale means nothing.
    """

    def __init__(self, path: Path | str, *, scene: int | str | None = None, t: int | None = None) -> None:
        if importlib.util.find_spec("zarr") is None:
            raise ImageError(
                f"{path}: OME-Zarr; reading it needs a further package: {install_command('zarr')}"
            )
        self._layouts: dict[int, _ArrayLayout] = {}
        self._root = _open_group(path)
        attributes = _ome(self._root.attrs.asdict())
        # Path of each scene's group below the root, and number of its `multiscales`.
        self._places: list[tuple[str, int]]
        self._places = _scenes(self._root, attributes, path)
        names = [place for place, _ in self._places]
        if names == [""]:
            names = [str(_first(attributes.get("multiscales"), {}).get("name") or "")]
        elif not any(names):
            names = [str(scale.get("name") or "") for scale in attributes["multiscales"]]
        super().__init__(path, tuple(names), scene, t)

    def _describe(self, scene: int) -> SceneInfo:
        place, number = self._places[scene]
        try:
            group = self._root[place] if place else self._root
            attributes = _ome(group.attrs.asdict())
            scale = attributes["multiscales"][number]
            dataset = scale["datasets"][0]
            array = group[dataset["path"]]
            shape, dtype = tuple(int(size) for size in array.shape), np.dtype(array.dtype)
            axes, units = _axes(scale.get("axes"), len(shape))
        except Exception as error:  # zarr raises whatever damaged metadata lead it to
            raise ImageError(f"{self._path}: its OME-Zarr metadata are damaged ({reason(error)})") from error
        if dtype.kind not in "buif":
            raise ImageError(f"{self._path}: voxels of type {dtype} are no intensities (integers or floats)")
        if not all(shape):
            raise ImageError(f"{self._path}: the image is empty: its sizes are {shape} (axes {axes})")
        sizes = {axis: size for axis, size in zip(axes, shape, strict=True) if axis in "TCZYX"}
        wrong = [
            f"{size} along axis {place}"
            for place, size in enumerate(shape)
            if axes[place] == "?" and size > 1
        ]
        if wrong or len(sizes) + axes.count("?") < len(axes) or not {"Y", "X"} <= set(sizes):
            raise ImageError(
                f"{self._path}: an array of shape {shape} whose axes are {scale.get('axes')}; readable are "
                "t, c, z, y, x"
            )
        self._layouts[scene] = _ArrayLayout(array, axes)
        chunk = math.prod(array.shards or array.chunks) * dtype.itemsize
        return SceneInfo(
            shape=(sizes.get("Z", 1), sizes["Y"], sizes["X"]),
            dtype=native(dtype),
            channel_names=_channel_names(attributes, sizes.get("C", 1)),
            times=sizes.get("T", 1),
            voxel_size=_voxel_size(scale, dataset, axes, units),
            random_access=not is_url(self._path) and chunk <= _SMALL_CHUNK,
        )

    def absent_parts(
        self, channel: int, region: Region | None = None, t: int | None = None
    ) -> tuple[int, int]:
        """Return the number of chunks (or shards) of a sub-volume that are missing in a local folder, and of all."""
        if not isinstance(self._path, Path):
            return 0, 0  # a request for each would cost as much as reading
        scene = self._chosen_scene or 0
        info, layout = self._info(scene), self._layouts[scene]
        time = self._find_time(self._chosen_time if t is None else t, info)
        box = layout.box(time, channel, (region or Region()).resolve(info.shape))
        sizes = [_size_of(self._path, key) for key in _keys(layout.array, box)]
        return sizes.count(None), len(sizes)

    def _load(self, scene: int, t: int, channel: int, box: Box) -> NDArray[Any]:
        layout = self._layouts[scene]
        chosen = layout.box(t, channel, box)
        shape = tuple(part.stop - part.start for part in box)
        try:
            claimed = math.prod(shape) * np.dtype(layout.array.dtype).itemsize
            if claimed > _SMALL:
                self._check_stored(layout.array, chosen, claimed)
            self._check_blosc(layout.array, chosen)
            stored = np.asarray(layout.array[tuple(chosen)])
        except ImageError:
            raise
        except Exception as error:
            raise ImageError(
                f"{self._path}: cannot be read, damaged or truncated ({reason(error)})"
            ) from error
        order = [layout.axes.index(axis) for axis in "ZYX" if axis in layout.axes]
        others = [place for place in range(len(layout.axes)) if place not in order]
        volume = stored.transpose(others + order).reshape(shape)
        return np.array(volume, self._info(scene).dtype, order="C")

    def _check_stored(self, array: Any, box: Sequence[slice], claimed: int) -> None:
        """Refuse to read far more than the chunks that are there can hold; absent ones are blank."""
        stored = absent = 0
        for key in _keys(array, box):
            size = _size_of(self._path, key)
            absent += size is None
            stored += size or 0
            if stored * _MOST_COMPRESSION >= claimed:
                return
            if absent > _MOST_ABSENT:
                break
        raise ImageError(
            f"{self._path}: its metadata claim {claimed} bytes for what is read, far more than its chunks hold: it is "
            "damaged, or was not copied whole"
        )

    def _check_blosc(self, array: Any, box: Sequence[slice]) -> None:
        """Refuse chunks that end early: Blosc believes their header and decodes what lies behind them in memory."""
        if not isinstance(self._path, Path) or array.shards or not _has_blosc(array):
            return
        for key in _keys(array, box):
            try:
                with (self._path / key).open("rb") as file:
                    head, size = file.read(_BLOSC_HEADER), file.seek(0, 2)
            except (FileNotFoundError, NotADirectoryError):
                continue  # blank
            claimed = max(_BLOSC_HEADER, int.from_bytes(head[12:16], "little"))
            if size < claimed:
                raise ImageError(
                    f"{self._path}: truncated: its chunk {key} has {size} of {claimed} bytes; copy it again"
                )


def _open_group(path: Path | str) -> Any:
    import zarr
    from zarr.storage import FsspecStore, LocalStore

    try:
        if is_url(path):
            group = zarr.open(FsspecStore.from_url(str(path), read_only=True), mode="r")
        else:
            group = zarr.open(LocalStore(path, read_only=True), mode="r")
    except ImportError as error:  # fsspec says which of its back ends is missing
        raise ImageError(
            f"{path}: reading from there needs a further package ({reason(error)}); pip install it"
        ) from error
    except Exception as error:
        raise ImageError(f"{path}: not readable as Zarr ({reason(error)})") from error
    if not isinstance(group, zarr.Group):
        raise ImageError(
            f"{path}: a Zarr array by itself; give the folder of the OME-Zarr image that it belongs to, which says "
            "what its axes are"
        )
    return group


def _ome(attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return OME-Zarr's part of a group's attributes: below ``ome`` from 0.5 on."""
    ome = attributes.get("ome")
    return ome if isinstance(ome, Mapping) else attributes


def _scenes(root: Any, attributes: Mapping[str, Any], path: Path | str) -> list[tuple[str, int]]:
    try:
        scales = attributes.get("multiscales")
        if scales:
            return [("", number) for number in range(len(scales))]
        if "well" in attributes:
            return [(str(image["path"]), 0) for image in attributes["well"]["images"]]
        wells = [str(well["path"]) for well in attributes["plate"]["wells"]] if "plate" in attributes else []
        if "bioformats2raw.layout" in attributes:
            listed = _ome(root["OME"].attrs.asdict()).get("series") if "OME" in root else None
            if listed:
                return [(str(name), 0) for name in listed]
            numbered = itertools.takewhile(lambda name: name in root, map(str, itertools.count()))
            return [(name, 0) for name in numbered] or [("0", 0)]
    except Exception as error:
        raise ImageError(f"{path}: its OME-Zarr metadata are damaged ({reason(error)})") from error
    if wells:
        named = ", ".join(wells[:8]) + (", ..." if len(wells) > 8 else "")
        raise ImageError(
            f"{path}: a plate of {counted(len(wells), 'well')} ({named}); "
            f"give one well or field, such as {path}/{wells[0]}/0"
        )
    raise ImageError(f"{path}: a Zarr group that is no OME-Zarr image (no multiscales among its attributes)")


def _axes(axes: Any, count: int) -> tuple[str, list[str | None]]:
    """Return a letter for each axis, ``?`` for those without a meaning here, and their units."""
    if axes is None:  # 0.1 and 0.2
        axes = list("tczyx")
    if len(axes) != count:
        raise ImageError(f"{len(axes)} axes of an array with {count}")
    named = [{"name": axis} if isinstance(axis, str) else axis for axis in axes]  # 0.3: only names
    letters = [str(axis["name"]).upper() for axis in named]
    return "".join(axis if axis in "TCZYX" and axis else "?" for axis in letters), [
        axis.get("unit") for axis in named
    ]


def _voxel_size(
    scale: Mapping[str, Any], dataset: Mapping[str, Any], axes: str, units: Sequence[str | None]
) -> tuple[float, float, float] | None:
    """Return the product of both scales that the format has, in um."""
    sizes = [1.0] * len(axes)
    stated = False
    try:
        for source in (dataset, scale):
            for step in source.get("coordinateTransformations") or ():
                if step.get("type") == "scale":
                    stated |= source is dataset
                    sizes = [size * float(factor) for size, factor in zip(sizes, step["scale"], strict=True)]
        lengths = []
        for axis in "ZYX":
            place = axes.index(axis)
            factor = to_um(units[place] or "")
            if factor is None or not 0 < sizes[place] * factor < float("inf"):
                return None
            lengths.append(sizes[place] * factor)
    except (ValueError, TypeError, AttributeError, KeyError):
        return None
    return (lengths[0], lengths[1], lengths[2]) if stated else None


def _channel_names(attributes: Mapping[str, Any], count: int) -> tuple[str, ...]:
    try:
        labels = [channel.get("label") for channel in attributes["omero"]["channels"]]
    except (KeyError, TypeError, AttributeError):
        labels = []
    labels = labels if len(labels) == count else [None] * count
    return tuple(str(label) if label else f"C{number}" for number, label in enumerate(labels))


def _keys(array: Any, box: Sequence[slice]) -> Iterator[str]:
    """Yield the paths below the root of the chunks (or shards) that a box of an array touches."""
    unit = array.shards or array.chunks
    grid = [range(part.start // size, -(-part.stop // size)) for part, size in zip(box, unit, strict=True)]
    for coordinates in itertools.product(*grid):
        yield "/".join((array.path, array.metadata.encode_chunk_key(coordinates)))


def _has_blosc(array: Any) -> bool:
    return any("blosc" in type(codec).__name__.lower() for codec in array.compressors)


def _size_of(root: Path | str, key: str) -> int | None:
    """Return the bytes of a stored chunk; None if it is absent."""
    try:
        if isinstance(root, Path):
            return (root / key).stat().st_size
        import fsspec

        return int(fsspec.url_to_fs(f"{root}/{key}")[0].info(f"{root}/{key}")["size"] or 0)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _first(entries: Any, otherwise: Any) -> Any:
    is_list = isinstance(entries, Sequence) and entries and isinstance(entries[0], Mapping)
    return entries[0] if is_list else otherwise
