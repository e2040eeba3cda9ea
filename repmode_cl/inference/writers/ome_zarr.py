"""Writer of OME-Zarr 0.5 (https://ngff.openmicroscopy.org/0.5/): a folder with a zarr 3 array for each resolution.

Writing needs no more of zarr than JSON and gzipped chunks, and so no package. Reading other software's files, with
their codecs and shards, needs the extra `zarr`.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repmode_cl.inference.display_colours import hexadecimal
from repmode_cl.inference.writers.image_metadata import NAMESPACE, ImageMetadata
from repmode_cl.inference.writers.pyramid import TILE, Pyramid
from repmode_cl.utils.atomic_files import json_text

__all__ = ["write_zarr"]

#: Planes of a chunk: 2 MB of floats, few enough files for a large volume and little enough to read for one plane.
_PLANES = 8

#: Level of compression, that of the OME-TIFFs.
_GZIP = 4


def write_zarr(path: Path, metadata: ImageMetadata, channels: Sequence[Pyramid]) -> None:
    """Write an image as an OME-Zarr folder `path`, which must not exist.

    Parameters
    ----------
    path
        The folder.
    metadata
        Of the image.
    channels
        Its voxels, a pyramid for each channel; of several time points all channels of the first, then of the next.
    """
    path.mkdir(parents=True)
    for level, shape in enumerate(channels[0].shapes):
        chunk = tuple(min(a, b) for a, b in zip((_PLANES, TILE, TILE), shape, strict=True))
        _write(path / str(level) / "zarr.json", json_text(_array_json(metadata, shape, chunk)).encode())
        for number, channel in enumerate(channels):
            for box, values in channel.tiles(level, _PLANES):
                position = (part.start // size for part, size in zip(box, chunk, strict=True))
                t, c = divmod(number, len(metadata.channels))
                place = (c,) if metadata.times is None else (t, c)
                name = Path(str(level), "c", *map(str, (*place, *position)))
                _write(path / name, _encoded(values, chunk))
    # Last: without it the folder is no image.
    _write(path / "zarr.json", json_text(_group_json(metadata, channels)).encode())


def _encoded(values: NDArray[Any], chunk: Sequence[int]) -> bytes:
    """Return a gzipped chunk; at the far ends it is padded with zeros."""
    if values.shape != tuple(chunk):
        padded = np.zeros(chunk, values.dtype)
        padded[tuple(slice(0, size) for size in values.shape)] = values
        values = padded
    little_endian = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    # Without a time, so that the same voxels are the same bytes.
    return gzip.compress(little_endian.tobytes(), _GZIP, mtime=0)


def _array_json(metadata: ImageMetadata, shape: Sequence[int], chunk: Sequence[int]) -> dict[str, Any]:
    times = [] if metadata.times is None else [metadata.times]
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [*times, len(metadata.channels), *shape],
        "data_type": metadata.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [*(1 for _ in times), 1, *chunk]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [
            {"name": "bytes", "configuration": {"endian": "little"}},
            {"name": "gzip", "configuration": {"level": _GZIP}},
        ],
        "attributes": {},
        "dimension_names": [*("t" for _ in times), "c", "z", "y", "x"],
        "storage_transformers": [],
    }


def _group_json(metadata: ImageMetadata, channels: Sequence[Pyramid]) -> dict[str, Any]:
    unit = {} if metadata.voxel_size is None else {"unit": "micrometer"}
    size = metadata.voxel_size or (1.0, 1.0, 1.0)
    time_axis = [] if metadata.times is None else [{"name": "t", "type": "time"}]
    first = [1.0] * (1 + len(time_axis))  # steps along t and c
    spaces = [{"name": axis, "type": "space", **unit} for axis in "zyx"]
    datasets = []
    for level in range(len(channels[0].shapes)):
        factor = 2**level
        scale = [*first, size[0], size[1] * factor, size[2] * factor]
        transforms: list[dict[str, Any]] = [{"type": "scale", "scale": scale}]
        if level:
            # A mean of voxels lies in their middle.
            shift = (factor - 1) / 2
            transforms.append(
                {
                    "type": "translation",
                    "translation": [*(0.0 for _ in first), 0.0, size[1] * shift, size[2] * shift],
                }
            )
        datasets.append({"path": str(level), "coordinateTransformations": transforms})
    multiscale = {
        "name": metadata.name,
        "axes": [*time_axis, {"name": "c", "type": "channel"}, *spaces],
        "datasets": datasets,
        "type": "mean",
        "metadata": {"description": "means of 2 x 2 voxels (y, x) of the level before"},
    }
    omero_channels = []
    for number, channel in enumerate(metadata.channels):
        of_times = channels[number :: len(metadata.channels)]
        ranges = [pyramid.display_range() for pyramid in of_times]
        low, high = min(pyramid.low for pyramid in of_times), max(pyramid.high for pyramid in of_times)
        if low > high:  # no number is finite
            low, high = 0.0, 1.0
        window = {
            "min": low,
            "max": max(high, low + 1e-6),
            "start": min(start for start, _ in ranges),
            "end": max(end for _, end in ranges),
        }
        omero_channels.append(
            {
                "label": channel.name,
                "color": hexadecimal(channel.colour),
                "active": True,
                "coefficient": 1,
                "family": "linear",
                "inverted": False,
                "window": window,
            }
        )
    about = {
        "uuid": metadata.uuid,
        "description": metadata.description,
        **metadata.about,
        "channels": [{"name": channel.name, **channel.about} for channel in metadata.channels],
    }
    omero = {
        "channels": omero_channels,
        "rdefs": {"defaultT": 0, "defaultZ": metadata.shape[0] // 2, "model": "color"},
    }
    return {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": {
            "ome": {"version": "0.5", "multiscales": [multiscale], "omero": omero},
            NAMESPACE: about,
        },
    }


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
