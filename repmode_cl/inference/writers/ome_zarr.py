"""OME-Zarr 0.5 (https://ngff.openmicroscopy.org/0.5/): a folder of zarr version 3 arrays, one for each resolution.

Of zarr no more is needed here than JSON and gzipped chunks, so that writing wants no package; reading what others
wrote, with their codecs and shards, is another matter and the extra `zarr`'s.
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

#: As of the OME-TIFFs.
_LEVEL = 4


def write_zarr(path: Path, picture: ImageMetadata, channels: Sequence[Pyramid]) -> None:
    """Write a picture as an OME-Zarr folder under the name `path`, which must not exist.

    Parameters
    ----------
    path
        The folder.
    picture
        What it is.
    channels
        Its voxels, a pyramid for each channel.
    """
    path.mkdir(parents=True)
    for level, shape in enumerate(channels[0].shapes):
        chunk = tuple(min(a, b) for a, b in zip((_PLANES, TILE, TILE), shape, strict=True))
        _write(path / str(level) / "zarr.json", json_text(_array(picture, shape, chunk)).encode())
        for number, channel in enumerate(channels):
            for box, values in channel.tiles(level, _PLANES):
                place = (part.start // size for part, size in zip(box, chunk, strict=True))
                name = Path(str(level), "c", str(number), *map(str, place))
                _write(path / name, _encoded(values, chunk))
    # Last: before it is there, the folder is no image.
    _write(path / "zarr.json", json_text(_group(picture, channels)).encode())


def _encoded(values: NDArray[Any], chunk: Sequence[int]) -> bytes:
    if values.shape != tuple(chunk):
        whole = np.zeros(chunk, values.dtype)
        whole[tuple(slice(0, size) for size in values.shape)] = values
        values = whole
    # Without a time, so that the same voxels are the same bytes.
    stored = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    return gzip.compress(stored.tobytes(), _LEVEL, mtime=0)


def _array(picture: ImageMetadata, shape: Sequence[int], chunk: Sequence[int]) -> dict[str, Any]:
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [len(picture.channels), *shape],
        "data_type": picture.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, *chunk]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [
            {"name": "bytes", "configuration": {"endian": "little"}},
            {"name": "gzip", "configuration": {"level": _LEVEL}},
        ],
        "attributes": {},
        "dimension_names": ["c", "z", "y", "x"],
        "storage_transformers": [],
    }


def _group(picture: ImageMetadata, channels: Sequence[Pyramid]) -> dict[str, Any]:
    known = picture.voxel_size is not None
    size = picture.voxel_size or (1.0, 1.0, 1.0)
    spaces = [{"name": axis, "type": "space", **({"unit": "micrometer"} if known else {})} for axis in "zyx"]
    datasets = []
    for level in range(len(channels[0].shapes)):
        factor = 2**level
        scale = [1.0, size[0], size[1] * factor, size[2] * factor]
        transforms: list[dict[str, Any]] = [{"type": "scale", "scale": scale}]
        if level:
            # A mean of voxels lies in their middle.
            shift = (factor - 1) / 2
            transforms.append(
                {"type": "translation", "translation": [0.0, 0.0, size[1] * shift, size[2] * shift]}
            )
        datasets.append({"path": str(level), "coordinateTransformations": transforms})
    multiscale = {
        "name": picture.name,
        "axes": [{"name": "c", "type": "channel"}, *spaces],
        "datasets": datasets,
        "type": "mean",
        "metadata": {"description": "means of 2 x 2 voxels (y, x) of the level before"},
    }
    shown = []
    for channel, pyramid in zip(picture.channels, channels, strict=True):
        start, end = pyramid.shown()
        window = {
            "min": pyramid.low,
            "max": max(pyramid.high, pyramid.low + 1e-6),
            "start": start,
            "end": end,
        }
        shown.append(
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
    own = {
        "uuid": picture.uuid,
        "description": picture.description,
        **picture.about,
        "channels": [{"name": channel.name, **channel.about} for channel in picture.channels],
    }
    omero = {"channels": shown, "rdefs": {"defaultT": 0, "defaultZ": picture.shape[0] // 2, "model": "color"}}
    return {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": {
            "ome": {"version": "0.5", "multiscales": [multiscale], "omero": omero},
            NAMESPACE: own,
        },
    }


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
