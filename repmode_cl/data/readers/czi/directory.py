"""The directory and metadata of a CZI file, read without any other library and checked against the file's size.

libCZI, which decodes the pixels, fills what is missing with black and allocates what a directory claims: this module
finds both out before. Layout after ZEISS's description of the format ("CZI File Format", DS_ZISRAW, 1.2.2).
"""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from xml.etree import ElementTree

import numpy as np

from repmode_cl.errors import ImageError

__all__ = ["PIXEL_TYPES", "SubBlock", "read_directory", "read_metadata_xml"]

#: Pixel types by their number: NumPy's type and samples of a pixel; None where nothing here can use it.
PIXEL_TYPES: dict[int, tuple[str, int] | None] = {
    0: ("uint8", 1), 1: ("uint16", 1), 2: ("float32", 1), 3: ("uint8", 3), 4: ("uint16", 3), 8: ("float32", 3),
    9: None, 10: None, 11: None, 12: None, 13: None,
}  # fmt: skip

# No codec of the format shrinks more than this; small blocks are never suspected.
_MOST_COMPRESSION = 50_000
_SMALL = 64 << 20
_MOST_XML = 512 << 20


@dataclass(frozen=True)
class SubBlock:
    """One tile of one plane, at full resolution.

    Attributes
    ----------
    start, size
        By dimension's letter (X, Y, Z, C, T, S, ...).
    pixel_type
        Number of the format.
    """

    start: dict[str, int]
    size: dict[str, int]
    pixel_type: int

    def at(self, axis: str) -> int:
        """Return where it lies along an axis that it has one index of; 0 where it lacks the axis."""
        return self.start.get(axis, 0)


def read_directory(path: Path) -> list[SubBlock]:
    """Return the tiles of full resolution.

    Raises
    ------
    ImageError
        If the file is damaged, truncated, or one of a set.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as handle:
            place = _header(handle)[0]
            data = _segment(handle, place, b"ZISRAWDIRECTORY", size)
            blocks, ends = _entries(data)
    except (struct.error, UnicodeDecodeError, OverflowError, OSError) as error:
        raise ImageError(f"{path}: its CZI directory is damaged ({error})") from error
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None
    if not blocks:
        raise ImageError(f"{path}: the file holds no image")
    _check_stored(path, size, ends)
    return blocks


def read_metadata_xml(path: Path) -> ElementTree.Element | None:
    """Return the root of a file's XML; None where it has none, or none that can be parsed.

    Raises
    ------
    ImageError
        If the file is too short for it: without a voxel size an image would be read at a wrong scale.
    """
    try:
        with path.open("rb") as handle:
            place = _header(handle)[1]
            if place == 0:
                return None
            data = _segment(handle, place, b"ZISRAWMETADATA", path.stat().st_size)
        (length,) = struct.unpack_from("<i", data)
        text = data[256 : 256 + length]
        if b"<!ENTITY" in text:  # a parser would expand them without bound
            return None
        return ElementTree.fromstring(text.rstrip(b"\0"))
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None
    except (struct.error, ElementTree.ParseError, OSError, OverflowError, ValueError):
        return None


def _header(handle: BinaryIO) -> tuple[int, int]:
    """Return the places of the directory and of the metadata."""
    handle.seek(0)
    head = handle.read(112)
    part, directory, metadata = struct.unpack_from("<iqq", head, 80)
    if part != 0:
        raise ImageError("one file of a set of CZI files; export the image as one file (ZEN, libCZI)")
    return directory, metadata


def _segment(handle: BinaryIO, place: int, name: bytes, size: int) -> bytes:
    handle.seek(max(0, place))
    head = handle.read(32)
    if place <= 0 or place + 32 > size or not head.startswith(name):
        raise ImageError(f"truncated or damaged: no {name.decode()} at byte {place} of {size}; copy it again")
    allocated, used = struct.unpack_from("<qq", head, 16)
    length = used or allocated
    if length < 0 or place + 32 + length > size or (name == b"ZISRAWMETADATA" and length > _MOST_XML):
        raise ImageError(
            f"truncated: its {name.decode()} ends at byte {place + 32 + length} of {size}; copy it again"
        )
    return handle.read(length)


def _entries(data: bytes) -> tuple[list[SubBlock], list[tuple[int, int, int]]]:
    """Return the tiles of full resolution, and of every tile its place, bytes of pixels and compression."""
    (count,) = struct.unpack_from("<i", data)
    blocks: list[SubBlock] = []
    stored: list[tuple[int, int, int]] = []
    place = 128
    for _ in range(count):
        kind, pixel_type, position, part, compression, _, dimensions = struct.unpack_from(
            "<2siqii6si", data, place
        )
        if kind != b"DV" or not 0 <= dimensions <= 40:
            raise ImageError(f"damaged: entry {len(stored)} of its directory is none")
        if part != 0:
            raise ImageError("its tiles lie in several CZI files; export the image as one file (ZEN, libCZI)")
        place += 32
        start: dict[str, int] = {}
        extent: dict[str, int] = {}
        full, pixels = True, 1
        for _ in range(dimensions):
            axis, first, length, _, held = struct.unpack_from("<4siifi", data, place)
            name = axis.rstrip(b"\0").decode("ascii")
            if length < 1 or held < 0:
                raise ImageError(f"damaged: a tile of {length} (stored {held}) along {name}")
            start[name], extent[name] = first, length
            full &= held in (0, length)
            pixels *= held or length
            place += 20
        if not {"X", "Y"} <= set(start):
            raise ImageError("damaged: a tile without X and Y")
        known = PIXEL_TYPES.get(pixel_type)
        depth = 1 if known is None else known[1] * np.dtype(known[0]).itemsize
        stored.append((position, pixels * depth, compression))
        if full:
            blocks.append(SubBlock(start, extent, pixel_type))
    return blocks, stored


def _check_stored(path: Path, size: int, stored: list[tuple[int, int, int]]) -> None:
    """Refuse tiles that lie beyond the file's end, or claim more than lies between them and what follows."""
    places = [*sorted({place for place, _, _ in stored}), size]
    room = {place: following - place for place, following in itertools.pairwise(places)}
    for place, claimed, compression in stored:
        if not 0 < place < size or (compression == 0 and claimed > room[place]):
            raise ImageError(
                f"{path}: truncated: a tile of {claimed} bytes begins at byte {place} of {size}; copy it again"
            )
        if claimed > _SMALL and claimed > room[place] * _MOST_COMPRESSION:
            raise ImageError(
                f"{path}: its directory claims {claimed} bytes for a tile, far more than the file holds: it is damaged"
            )
