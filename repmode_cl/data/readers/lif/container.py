"""The parts of a LIF file, checked against the file's size before another library allocates what they claim.

A LIF file is a header of XML, in UTF-16, and memory blocks with the voxels, each with its length before it.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import BinaryIO

from repmode_cl.errors import ImageError

__all__ = ["check_container"]

_PART, _ITEM = 0x70, 0x2A

# Of a block, by the version of the file: mark, bytes that follow, mark, bytes of voxels, mark, characters of its name.
_BLOCKS = {1: struct.Struct("<IIBIBI"), 2: struct.Struct("<IIBQBI")}
_HEADER = struct.Struct("<IIBI")

_MOST_XML = 512 << 20
_MOST_NAME = 1 << 16


def check_container(path: Path) -> None:
    """Refuse a file whose parts do not fit into it.

    Raises
    ------
    ImageError
        If it is truncated or damaged, or no LIF file but another of Leica's that begins the same.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as handle:
            version = _read_header(handle, size)
            _check_blocks(handle, size, _BLOCKS[version])
    except (struct.error, UnicodeDecodeError, OSError) as error:
        raise ImageError(f"{path}: its LIF header is damaged or truncated ({error})") from error
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None


def _read_header(handle: BinaryIO, size: int) -> int:
    """Check the XML, and return the version; the handle is then behind it."""
    part, _, item, characters = _HEADER.unpack(handle.read(_HEADER.size))
    if part != _PART or item != _ITEM:
        raise ImageError("its LIF header is damaged; copy it again")
    length = 2 * characters
    if _HEADER.size + length > size:
        raise ImageError(
            f"truncated: its LIF header claims {length} bytes, the file has {size}; copy it again"
        )
    if length > _MOST_XML:
        raise ImageError(f"its LIF header of {length} bytes is larger than any microscope writes: refused")
    xml = handle.read(length).decode("utf-16-le")
    if xml.startswith("LMS_Object_File"):
        raise ImageError("a Leica LOF file; save the image as LIF (LAS X) or OME-TIFF")
    if "<!ENTITY" in xml:  # a parser would expand them without bound
        raise ImageError("its LIF header defines entities, which no microscope writes: refused")
    found = re.search(r"<LMSDataContainerHeader\b[^>]*\bVersion\s*=\s*\"(\d{1,9})\"", xml[:4096])
    if found is None or int(found[1]) not in _BLOCKS:
        known = " or ".join(map(str, _BLOCKS))
        raise ImageError(
            f"LIF version {'unknown' if found is None else found[1]} is not known here, which is {known}; save the "
            "image as OME-TIFF"
        )
    return int(found[1])


def _check_blocks(handle: BinaryIO, size: int, block: struct.Struct) -> None:
    place = handle.tell()
    while place + block.size <= size:
        handle.seek(place)
        part, _, item, length, second, characters = block.unpack(handle.read(block.size))
        if (part, item, second) != (_PART, _ITEM, _ITEM):
            return  # what follows is no block; an image whose block is missing is refused by itself
        if characters > _MOST_NAME:
            raise ImageError(f"damaged: a block at byte {place} has a name of {characters} characters")
        end = place + block.size + 2 * characters + length
        if end > size:
            raise ImageError(
                f"truncated: a block of {length} bytes at byte {place} ends at byte {end} of {size}; copy it again"
            )
        place = end
