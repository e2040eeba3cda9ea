"""Files and digest of an image: one file, a folder of many such as an OME-Zarr, or an OME-TIFF in several files."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import unescape

import tifffile

from repmode_cl.utils.atomic_files import sha256_file

__all__ = ["FileStamp", "content_digest", "image_files", "file_stamp"]

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

# Where OME-XML names the files of a set: those with planes and the one that describes them; and which one it is in.
_PLANES = re.compile(r"<(?:\w+:)?UUID\b[^>]*\bFileName\s*=\s*(?:\"([^\"]*)\"|'([^']*)')[^>]*>([^<]*)<")
_DESCRIBED = re.compile(r"\bMetadataFile\s*=\s*(?:\"([^\"]*)\"|'([^']*)')()")
_OWN = re.compile(r"<(?:\w+:)?OME\b[^>]*\bUUID\s*=\s*[\"']([^\"']*)[\"']")

_HEAD, _MOST_XML = 512, 256 << 20


class FileStamp(NamedTuple):
    """Total size in bytes and latest time of a change (ns), by which an unchanged image is recognised."""

    size: int
    mtime_ns: int


def file_stamp(path: str | Path) -> FileStamp:
    """Return the stamp of a file and all files of its set, or of a folder and all files in it.

    Raises
    ------
    OSError
        If it cannot be read.
    """
    path = Path(path)
    stat = path.stat()
    size, latest = 0, stat.st_mtime_ns
    for file in image_files(path):
        stat = file.stat()
        size, latest = size + stat.st_size, max(latest, stat.st_mtime_ns)
    return FileStamp(size, latest)


def content_digest(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes, or of the names and bytes of all files of a folder or set.

    Raises
    ------
    OSError
        If it cannot be read.
    """
    path = Path(path)
    files = image_files(path)
    if files == [path]:
        return sha256_file(path)
    root = path if path.is_dir() else path.parent
    digest = hashlib.sha256(b"folder" if path.is_dir() else b"set")
    for file in files:
        digest.update(f"{file.relative_to(root).as_posix()}\0{sha256_file(file)}\0".encode())
    return digest.hexdigest()


def image_files(path: Path) -> list[Path]:
    """Return the files of an image: those of a folder, of an OME-TIFF's set, or the file itself.

    They are the same for every file of a set; missing ones are skipped.

    Raises
    ------
    OSError
        If it cannot be read.
    """
    if path.is_dir():
        return _below(path)
    files = {path}
    new = _named(path)
    # A file of a set may name only the one that describes them all, which names the others.
    for _ in range(2):
        new = {file for file in new if file.is_file()} - files
        files |= new
        new = {other for file in new if file.suffix == ".ome" for other in _named(file)}
    return sorted(files)


def _named(path: Path) -> set[Path]:
    """Return the files beside a file that its OME-XML names; none where it has none."""
    with path.open("rb") as handle:
        head = handle.read(_HEAD)
    text = ""
    if head.startswith(_TIFF):
        try:
            with tifffile.TiffFile(path) as file:
                text = file.pages.first.description
        except Exception:  # a damaged file is reported where it is read
            return set()
    elif b"<OME" in head and path.stat().st_size <= _MOST_XML:
        text = path.read_text(encoding="utf-8", errors="replace")
    if "<OME" not in text and ":OME" not in text:
        return set()
    own = _OWN.search(text)
    # A file that was renamed still holds its earlier name, which means itself and not another file.
    names = {
        unescape(one or other)
        for one, other, uuid in (*_PLANES.findall(text), *_DESCRIBED.findall(text))
        if own is None or uuid.strip() != own.group(1)
    }
    return {path.parent / name for name in names if name and Path(name).name == name}


def _below(folder: Path) -> list[Path]:
    # Not Path.rglob, which skips folders that it may not read: then the digest would be of another image.
    def refuse(error: OSError) -> None:
        raise error

    files = [Path(root, name) for root, _, names in os.walk(folder, onerror=refuse) for name in names]
    return sorted(files, key=lambda file: file.relative_to(folder).as_posix())
