"""Which reader opens which file: told by the first bytes, because suffixes lie.

A further format is one more entry of `_FORMATS`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from repmode_cl.data.readers.npy import NpyReader
from repmode_cl.data.readers.protocol import ImageReader
from repmode_cl.data.readers.tiff import TiffReader
from repmode_cl.errors import ImageError

__all__ = ["open_image", "SUPPORTED"]

#: What messages list as readable.
SUPPORTED = "TIFF, OME-TIFF and ImageJ stacks (.tif, .tiff), and NumPy arrays (.npy)"

# First bytes -> reader: classic and big TIFF in both byte orders, NumPy's arrays.
_FORMATS: tuple[tuple[tuple[bytes, ...], Callable[[Path, int | None], ImageReader]], ...] = (
    ((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), TiffReader),
    ((b"\x93NUMPY",), NpyReader),
)

# First bytes of formats people have, and what to do about them.
_REFUSED: tuple[tuple[bytes, str], ...] = (
    (b"ZISRAWFILE", "Zeiss CZI"),
    (b"\xda\xce\xbe\x0a", "Nikon ND2"),
    (b"\x70\x00\x00\x00", "Leica LIF"),
    (b"\x89HDF", "HDF5 (Imaris)"),
    (b"\x89PNG", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
)


def open_image(path: str | Path, scene: int | None = None) -> ImageReader:
    """Open an image file, reading headers only.

    Parameters
    ----------
    path
        The file.
    scene
        Which scene (series) the reader's shape, channels and voxel size describe, and `read` takes by
        default; needed only where a file holds several.

    Raises
    ------
    ImageError
        If the file is missing, unreadable, of an unknown format, or holds what is no Z-stack with channels
        (RGB, lifetime bins, ...).
    """
    path = Path(path)
    try:
        with path.open("rb") as handle:
            head = handle.read(16)
    except FileNotFoundError:
        hint = "; write paths with /, which works on every system" if "\\" in str(path) else ""
        raise ImageError(f"{path}: there is no such file{hint}") from None
    except OSError as error:
        if path.is_dir():
            raise ImageError(f"{path}: a folder, not an image file; readable are {SUPPORTED}") from None
        raise ImageError(f"{path}: cannot be read ({error.strerror or error})") from error
    for marks, reader in _FORMATS:
        if head.startswith(marks):
            return reader(path, scene)
    if not head:
        raise ImageError(f"{path}: the file is empty")
    for mark, name in _REFUSED:
        if head.startswith(mark):
            raise ImageError(
                f"{path}: {name} is not supported yet; convert it to OME-TIFF (with Fiji or bfconvert). "
                f"Readable are {SUPPORTED}"
            )
    raise ImageError(f"{path}: no format known here (it begins with {head[:8]!r}); readable are {SUPPORTED}")
