"""Writers of predicted volumes, chosen by the suffix of the file's name: OME-TIFF, OME-Zarr or a raw `.npy` array."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repmode_cl.errors import ImageError, RepmodeError
from repmode_cl.inference.writers.image_metadata import NAMESPACE, ChannelMetadata, ImageMetadata
from repmode_cl.inference.writers.imagej import write_imagej
from repmode_cl.inference.writers.npy import write_npy
from repmode_cl.inference.writers.ome_tiff import write_tiff
from repmode_cl.inference.writers.ome_zarr import write_zarr
from repmode_cl.inference.writers.pyramid import Pyramid
from repmode_cl.utils.atomic_files import put_in_place, replacing

__all__ = [
    "SUFFIXES",
    "write_image",
    "write_ome_tiff",
    "check_output",
    "check_suffix",
    "move_into_place",
    "remove_path",
    "title_of",
]

_Writer = Callable[[Path, ImageMetadata, Sequence[Pyramid]], None]

_WRITERS: dict[str, _Writer] = {
    ".tif": write_tiff,
    ".tiff": write_tiff,
    ".zarr": write_zarr,
    ".npy": write_npy,
}

#: Suffixes that the name of a prediction may have.
SUFFIXES = tuple(_WRITERS)


def check_suffix(path: Path) -> str:
    """Return the suffix of a prediction's file, in lower case.

    Raises
    ------
    ImageError
        If no format has it.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ImageError(
            f"{path}: predictions are written as OME-TIFF, OME-Zarr or .npy; give a name that ends in .ome.tif, "
            ".ome.zarr or .npy"
        )
    return suffix


def check_output(path: Path) -> None:
    """Refuse a name at which no prediction may be written.

    Raises
    ------
    ImageError
        If its suffix is no format's, or a TIFF or folder is there that is no earlier prediction. Arrays (.npy) do not
        say what they are, and are replaced.
    """
    suffix = check_suffix(path)
    if not path.is_dir():
        if suffix == ".zarr" and path.exists():
            raise ImageError(f"{path}: is a file, and an OME-Zarr is a folder; give another name")
        if suffix in (".tif", ".tiff") and path.exists() and not _is_predicted_tiff(path):
            raise ImageError(
                f"{path}: is there, holds something else than a prediction, and is not replaced; give another name, or "
                "remove it"
            )
        return
    if suffix != ".zarr":
        raise ImageError(f"{path}: is a folder; give the name of a file")
    if any(path.iterdir()) and not _is_prediction(path):
        raise ImageError(
            f"{path}: is a folder that holds something else than a prediction, and is not replaced; give another "
            "name, or remove it"
        )


def _is_predicted_tiff(path: Path) -> bool:
    # Imported here for a fast start: most calls have no earlier file.
    import tifffile

    try:
        with tifffile.TiffFile(path) as tiff:
            return NAMESPACE in (tiff.ome_metadata or "") + str((tiff.imagej_metadata or {}).get("Info", ""))
    except (OSError, ValueError, tifffile.TiffFileError):
        return False


def _is_prediction(path: Path) -> bool:
    try:
        return NAMESPACE in json.loads((path / "zarr.json").read_text(encoding="utf-8"))["attributes"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def title_of(path: Path) -> str:
    """Return a file's name without its suffixes (``cells`` of ``cells.ome.tif``)."""
    name = path.name
    for suffix in (path.suffix, ".ome"):
        name = name[: -len(suffix)] if suffix and name.lower().endswith(suffix.lower()) else name
    return name or path.name


def write_image(
    path: Path, suffix: str, metadata: ImageMetadata, channels: Sequence[Pyramid], *, imagej: bool = False
) -> None:
    """Write an image in the format of `suffix` to `path`, replacing anything there; `path` may have another suffix.

    With `imagej` a TIFF is an ImageJ hyperstack instead of an OME-TIFF.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_path(path)
    (write_imagej if imagej else _WRITERS[suffix])(path, metadata, channels)


def remove_path(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def move_into_place(part: Path, path: Path, replaced: Path) -> None:
    """Rename the finished `part` to `path`; a folder that was there is moved to `replaced`, to be removed later.

    No instant leaves half a file. Between the two moves of a folder the name is free: while `part` still exists, this
    is to be called again.
    """
    if part.is_file():
        put_in_place(part, path)
    elif part.is_dir():
        if path.is_dir():
            check_output(path)
            remove_path(replaced)
            path.replace(replaced)
        part.replace(path)
        if os.name != "nt":
            handle = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


class _ArraySource:
    """An array that is read box by box."""

    def __init__(self, values: NDArray[Any]) -> None:
        self._values = values
        self.shape = (values.shape[0], values.shape[1], values.shape[2])

    def read(self, box: tuple[slice, slice, slice]) -> NDArray[Any]:
        return self._values[box]


def write_ome_tiff(
    path: str | Path,
    volume: NDArray[np.generic],
    voxel_size: Sequence[float] | None = None,
    channel_name: str | None = None,
    description: str | None = None,
) -> None:
    """Write an array as an OME-TIFF of one channel, whole or not at all.

    Parameters
    ----------
    path
        Ends in .tif or .tiff; an existing file is replaced.
    volume
        (Z, Y, X); written as float32.
    voxel_size
        um (z, y, x); None writes none.
    channel_name
        Name of the channel, as a rule the structure's.
    description
        Free text for the image: its origin and unit.

    Raises
    ------
    ImageError
        If the suffix is no TIFF's or the volume does not have three axes.
    """
    path = Path(path)
    if path.suffix.lower() not in (".tif", ".tiff"):
        raise ImageError(f"{path}: predictions are written as OME-TIFF; give a name that ends in .ome.tif")
    if volume.ndim != 3:
        raise ImageError(f"{path}: a volume has three axes (Z, Y, X), got the shape {volume.shape}")
    if voxel_size is not None and len(voxel_size) != 3:
        raise RepmodeError(f"voxel size {tuple(voxel_size)}: three numbers in um (z, y, x) are needed")
    size = None if voxel_size is None else (float(voxel_size[0]), float(voxel_size[1]), float(voxel_size[2]))
    source, dtype = _ArraySource(volume), np.dtype(np.float32)
    channel = ChannelMetadata(channel_name if channel_name is not None else "")
    metadata = ImageMetadata(title_of(path), source.shape, dtype, (channel,), size, description or "")
    with replacing(path) as temporary:
        pyramid = Pyramid(source, dtype, None, temporary)
        try:
            write_tiff(temporary, metadata, [pyramid])
        finally:
            pyramid.close()
