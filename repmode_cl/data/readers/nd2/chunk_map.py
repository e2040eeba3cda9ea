"""The map of chunks at the end of an ND2 file, checked against the file's size before another library believes it.

The package nd2 returns black where a frame is missing, and reads as many bytes as a chunk claims: this module finds
both out before. Layout after the package's own description of the format.
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from repmode_cl.errors import ImageError

__all__ = ["Chunk", "read_chunk_map", "read_frame_place"]

_HEADER = struct.Struct("<IIQ")  # of a chunk: mark, bytes of its name, bytes of its data
_ENTRY = struct.Struct("<QQ")
_TAIL = struct.Struct("<32sQ")
_MARK = 0x0ABECEDA
_TAIL_NAME = b"ND2 CHUNK MAP SIGNATURE 0000001!"
_FRAME = re.compile(rb"ImageDataSeq\|(\d{1,9})!")

# No microscope writes more of these; a compressed one is unpacked as a whole.
_MOST_METADATA, _COMPRESSED = 256 << 20, 76


@dataclass(frozen=True)
class Chunk:
    """Place of a chunk's data: first byte and length."""

    start: int
    length: int


def read_chunk_map(path: Path) -> dict[int, int]:
    """Return where the chunk of each frame begins.

    Raises
    ------
    ImageError
        If the file is truncated or damaged: its map is missing, or a chunk of metadata does not fit into the file.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as handle:
            return _read(handle, size)
    except (struct.error, OSError, ValueError, OverflowError) as error:
        if isinstance(error, ImageError):
            raise ImageError(f"{path}: {error}") from None
        raise ImageError(f"{path}: its ND2 map of chunks is damaged ({error})") from error


def read_frame_place(handle: BinaryIO, place: int, size: int) -> Chunk:
    """Return where the voxels of the frame are whose chunk begins at `place`, in a file of `size` bytes.

    Raises
    ------
    ImageError
        If the chunk is none, or not whole.
    """
    chunk = _chunk(handle, place, size)
    if chunk.length < 8:
        raise ImageError(f"damaged: the frame at byte {place} has no voxels")
    return Chunk(chunk.start + 8, chunk.length - 8)  # after the time at which it was recorded


def _read(handle: BinaryIO, size: int) -> dict[int, int]:
    if size < _TAIL.size:
        raise ImageError("truncated: too short for an ND2 file; copy it again")
    handle.seek(size - _TAIL.size)
    name, place = _TAIL.unpack(handle.read(_TAIL.size))
    if name != _TAIL_NAME:
        raise ImageError(
            "truncated: its end is missing, where an ND2 file has the map of its chunks; copy it again"
        )
    chunk = _chunk(handle, place, size)
    handle.seek(chunk.start)
    data = handle.read(chunk.length)
    frames: dict[int, int] = {}
    at = 0
    while (end := data.index(b"!", at) + 1) and data[at:end] != _TAIL_NAME:
        start, _ = _ENTRY.unpack_from(data, end)
        found = _FRAME.fullmatch(data[at:end])
        if found is None:
            _check_metadata(handle, _chunk(handle, start, size), data[at:end])
        else:
            frames[int(found[1])] = start
        at = end + _ENTRY.size
    return frames


def _chunk(handle: BinaryIO, place: int, size: int) -> Chunk:
    """Read the header of a chunk."""
    if not 0 <= place <= size - _HEADER.size:
        raise ImageError(f"truncated: a chunk begins at byte {place} of {size}; copy it again")
    handle.seek(place)
    mark, name, length = _HEADER.unpack(handle.read(_HEADER.size))
    if mark != _MARK:
        raise ImageError(f"damaged: there is no chunk at byte {place}; copy it again")
    start = place + _HEADER.size + name
    if start + length > size:
        raise ImageError(f"truncated: a chunk ends at byte {start + length} of {size}; copy it again")
    return Chunk(start, length)


def _check_metadata(handle: BinaryIO, chunk: Chunk, name: bytes) -> None:
    """Refuse metadata that would take a reader's memory, packed or not."""
    if not name.startswith(b"Image"):
        return  # nothing here reads it
    if chunk.length > _MOST_METADATA:
        raise ImageError(f"its chunk {name.decode('ascii', 'replace')} is larger than any microscope writes")
    handle.seek(chunk.start)
    if handle.read(1) == bytes([_COMPRESSED]):
        packed = handle.read(chunk.length - 1)[11:]
        try:
            unpacked = zlib.decompressobj().decompress(packed, _MOST_METADATA + 1)
        except zlib.error as error:
            raise ImageError(f"damaged: its chunk {name.decode('ascii', 'replace')} ({error})") from error
        if len(unpacked) > _MOST_METADATA:
            raise ImageError(
                f"its chunk {name.decode('ascii', 'replace')} is larger than any microscope writes"
            )
