"""What an image is made of, whether it is one file or a folder of many, such as an OME-Zarr."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from repmode_cl.files import sha256_file

__all__ = ["Stamp", "content_digest", "stamp_of"]


class Stamp(NamedTuple):
    """By which it is told that nothing has changed: bytes in all, and the latest time (ns) of a change."""

    size: int
    mtime_ns: int


def stamp_of(path: str | Path) -> Stamp:
    """Return the stamp of a file, or of a folder with all that is in it.

    Raises
    ------
    OSError
        If it cannot be read.
    """
    path = Path(path)
    stat = path.stat()
    if not path.is_dir():
        return Stamp(stat.st_size, stat.st_mtime_ns)
    size, latest = 0, stat.st_mtime_ns
    for file in _files(path):
        stat = file.stat()
        size, latest = size + stat.st_size, max(latest, stat.st_mtime_ns)
    return Stamp(size, latest)


def content_digest(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes, or of the names and bytes of all files of a folder.

    Raises
    ------
    OSError
        If it cannot be read.
    """
    path = Path(path)
    if not path.is_dir():
        return sha256_file(path)
    digest = hashlib.sha256(b"folder")
    for file in _files(path):
        digest.update(f"{file.relative_to(path).as_posix()}\0{sha256_file(file)}\0".encode())
    return digest.hexdigest()


def _files(folder: Path) -> list[Path]:
    # Not Path.rglob, which passes over folders that it may not read: then the digest would be of another image.
    def refuse(error: OSError) -> None:
        raise error

    found = [Path(root, name) for root, _, names in os.walk(folder, onerror=refuse) for name in names]
    return sorted(found, key=lambda file: file.relative_to(folder).as_posix())
