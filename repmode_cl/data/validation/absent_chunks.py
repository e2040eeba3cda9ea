"""Chunks of an image that are not stored, and read as blank: some programs leave them out, an interrupted copy too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from repmode_cl.data.manifest import Row, as_written
from repmode_cl.data.readers import Region, open_image
from repmode_cl.errors import ImageError

__all__ = ["absent_chunks_note", "absent_chunks_notes"]

#: Share of an image's chunks that must be missing for a note: a program may leave out single blank ones.
_SMALLEST_SHARE = 0.1


def absent_chunks_note(image: str | Path, absent: int, chunks: int) -> str | None:
    """Return a note on an image of which so many chunks are absent; None where they are few.

    Parameters
    ----------
    image
        Its name.
    absent, chunks
        Of `ImageReader.absent_parts`.
    """
    if not absent or absent < _SMALLEST_SHARE * chunks:
        return None
    return (
        f"{image}: {absent} of {chunks} chunks are missing, and read as blank: some programs leave out blank "
        "chunks, but a folder that was not copied whole looks the same; compare it with its source, or copy it again"
    )


def absent_chunks_notes(rows: Iterable[Row]) -> list[str]:
    """Return a note for each image of `rows` of which many chunks are absent; only images in folders have chunks.

    Images that cannot be opened have none: they are refused where they are prepared.
    """
    notes: dict[str, None] = {}  # a set in order
    for image in dict.fromkeys(image for row in rows for image in _images_in_folders(row)):
        try:
            with open_image(image.path, scene=image.scene) as reader:
                channel = reader.channel_index(image.channel)
                time = image.t if reader.times > 1 else None
                note = absent_chunks_note(image.path, *reader.absent_parts(channel, image.region, time))
        except (ImageError, OSError):
            continue  # said where the image is prepared
        if note is not None:
            notes[note] = None
    return list(notes)


class _Image(NamedTuple):
    path: Path
    channel: str | None
    scene: str | None
    t: int | None
    region: Region | None


def _images_in_folders(row: Row) -> Iterator[_Image]:
    columns = [
        (row.signal, row.signal_channel),
        (row.target, row.target_channel),
        (row.mask, row.mask_channel),
    ]
    for path, channel in columns:
        if path is not None and path.is_dir():
            yield _Image(path, as_written(channel), as_written(row.scene), row.t, row.region)
