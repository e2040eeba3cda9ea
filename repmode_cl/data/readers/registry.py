"""Choice of the reader for a file, by the file's first bytes, because suffixes lie.

A further format comes as an entry point of the group ``repmode_cl.readers`` that names a `ReaderFormat`; it is tried on
files that no reader here recognises.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from repmode_cl.data.readers.image_reader import ImageReader
from repmode_cl.data.readers.location import as_location, is_url
from repmode_cl.data.readers.npy import NpyReader
from repmode_cl.data.readers.tiff.companion import open_companion
from repmode_cl.data.readers.tiff.reader import TiffReader
from repmode_cl.errors import ImageError

__all__ = ["open_image", "image_format", "refuse_folder", "ReaderFormat", "SUPPORTED", "ENTRY_POINTS"]

#: Readable formats, for messages.
SUPPORTED = (
    "TIFF, OME-TIFF, ImageJ and Micro-Manager stacks (.tif, .tiff), CZI (.czi), LIF (.lif), ND2 (.nd2), "
    "OME-Zarr (.zarr folders and URLs) and NumPy arrays (.npy)"
)

#: Group of entry points that offer further formats.
ENTRY_POINTS = "repmode_cl.readers"

_HEAD = 512


class ReaderFormat(Protocol):
    """A further format, as an entry point names it: an object (a module will do) with these two functions."""

    def recognises(self, path: Path | str, head: bytes) -> bool:
        """Tell whether a file is of this format.

        Parameters
        ----------
        path
            The file or folder; a URL as text.
        head
            The file's first 512 bytes; empty for a folder or URL.
        """

    def open(self, path: Path | str, *, scene: int | str | None = None, t: int | None = None) -> ImageReader:
        """Open it, reading headers only; raise `ImageError` where it cannot be read."""


def _open_czi(path: Path, **choice: Any) -> ImageReader:
    from repmode_cl.data.readers.czi.reader import CziReader

    return CziReader(path, **choice)


def _open_lif(path: Path, **choice: Any) -> ImageReader:
    from repmode_cl.data.readers.lif.reader import LifReader

    return LifReader(path, **choice)


def _open_nd2(path: Path, **choice: Any) -> ImageReader:
    from repmode_cl.data.readers.nd2.reader import Nd2Reader

    return Nd2Reader(path, **choice)


def _open_zarr(path: Path | str, **choice: Any) -> ImageReader:
    from repmode_cl.data.readers.ome_zarr import OmeZarrReader

    return OmeZarrReader(path, **choice)


# First bytes, name and reader: classic and big TIFF in both byte orders, NumPy's arrays, Zeiss's, Leica's and
# Nikon's files.
_FORMATS: tuple[tuple[tuple[bytes, ...], str, Callable[..., ImageReader]], ...] = (
    ((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "TIFF", TiffReader),
    ((b"\x93NUMPY",), "NumPy", NpyReader),
    ((b"ZISRAWFILE",), "CZI", _open_czi),
    ((b"\x70\x00\x00\x00",), "LIF", _open_lif),
    ((b"\xda\xce\xbe\x0a",), "ND2", _open_nd2),
)

# One of these files makes a folder a Zarr group or array, of format 3 or 2.
_ZARR_FILES = ("zarr.json", ".zgroup", ".zattrs", ".zarray")

# First bytes of common formats that are not supported, and their names.
_REFUSED: tuple[tuple[bytes, str], ...] = (
    (b"\x89HDF", "HDF5 (Imaris)"),
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000 (and ND2 of before 2010)"),
    (b"\x89PNG", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
)


def open_image(path: str | Path, *, scene: int | str | None = None, t: int | None = None) -> ImageReader:
    """Open an image, reading headers only.

    Parameters
    ----------
    path
        The file; for OME-Zarr the folder, or a URL that fsspec opens (``s3://``, ``https://``, ``memory://``).
    scene
        Which scene (series, position) the reader's shape, channels and voxel size describe, and `read` takes:
        its number from 0, or its name; needed only where a file holds several.
    t
        Which time point `read` takes, from 0; needed only where there are several.

    Returns
    -------
    ImageReader
        Close it, or use it in ``with``. Without a choice where one is needed it can be looked at, not read.

    Raises
    ------
    ImageError
        If the file is missing, unreadable, of an unknown format, holds what is no Z-stack with channels
        (lifetime bins, ...), has no such scene or time point, or needs an extra that is not installed.
    """
    path = as_location(path)
    if is_url(path):
        return (_plugin(path, b"") or _open_zarr)(path, scene=scene, t=t)
    assert isinstance(path, Path)
    head = _head_of(path)
    if head is None:
        if _is_zarr(path):
            return _open_zarr(path, scene=scene, t=t)
        opener = _plugin(path, b"")
        if opener is None:
            raise ImageError(f"{path}: a folder, not an image file; readable are {SUPPORTED}")
        return opener(path, scene=scene, t=t)
    for marks, _, reader in _FORMATS:
        if head.startswith(marks):
            return reader(path, scene=scene, t=t)
    if path.name in _ZARR_FILES and head.lstrip().startswith(b"{"):
        return _open_zarr(path.parent, scene=scene, t=t)
    if b"<OME" in head:
        return open_companion(path, scene=scene, t=t)
    if not head:
        raise ImageError(f"{path}: the file is empty")
    further = _plugin(path, head)
    if further is not None:
        return further(path, scene=scene, t=t)
    for mark, name in _REFUSED:
        if head.startswith(mark):
            raise ImageError(
                f"{path}: {name} is not supported yet; convert it to OME-TIFF (with Fiji or bfconvert). "
                f"Readable are {SUPPORTED}"
            )
    raise ImageError(f"{path}: no format known here (it begins with {head[:8]!r}); readable are {SUPPORTED}")


def refuse_folder(path: Path | str) -> None:
    """Refuse a folder of images where one image is needed.

    Raises
    ------
    ImageError
        If `path` is a folder that no reader takes for an image.
    """
    if isinstance(path, Path) and path.is_dir() and not _is_zarr(path) and _plugin(path, b"") is None:
        raise ImageError(
            f"{path}: the input is a folder, not an image; for the images in it give a pattern and --out DIR, such as "
            f"'{path / '*.tif'}' --out predictions"
        )


def _is_zarr(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _ZARR_FILES)


def image_format(head: bytes) -> str | None:
    """Return the name of the image format that a file's first bytes are of; None for anything else."""
    known = [(marks, name) for marks, name, _ in _FORMATS] + [((mark,), name) for mark, name in _REFUSED]
    return next((name for marks, name in known if head.startswith(marks)), None)


def _head_of(path: Path) -> bytes | None:
    """Return a file's first bytes; None for a folder."""
    try:
        if path.is_dir():
            return None
        if path.exists() and not path.is_file():  # opening a pipe would wait for ever
            raise ImageError(f"{path}: no regular file, but a pipe or a device")
        with path.open("rb") as handle:
            return handle.read(_HEAD)
    except FileNotFoundError:
        hint = "; write paths with /, which works on every system" if "\\" in str(path) else ""
        raise ImageError(f"{path}: there is no such file{hint}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{path}: cannot be read ({reason})") from error


def _plugin(path: Path | str, head: bytes) -> Callable[..., ImageReader] | None:
    """Return the opener of the first format of other packages that recognises a file."""
    for name, plugin in _plugins():
        try:
            mine = plugin.recognises(path, head)
        except Exception as error:  # of another package: whatever it raises
            raise ImageError(
                f"{path}: the reader {name!r} of another package fails on it ({error})"
            ) from error
        if mine:
            return plugin.open
    return None


@cache
def _plugins() -> tuple[tuple[str, ReaderFormat], ...]:
    plugins = []
    for entry in sorted(importlib.metadata.entry_points(group=ENTRY_POINTS), key=lambda entry: entry.name):
        try:
            plugins.append((entry.name, entry.load()))
        except Exception as error:
            raise ImageError(
                f"the image reader {entry.name!r} ({entry.value}) of another package cannot be loaded ({error}); "
                "install that package again, or remove it"
            ) from error
    return tuple(plugins)
