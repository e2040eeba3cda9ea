"""Whether a prediction is there already: its file says which one it is."""

from __future__ import annotations

import json
import re
from pathlib import Path

from repmode_cl.inference.picture import NAMESPACE
from repmode_cl.inference.scratch import Scratch

__all__ = ["is_there", "uuid_in"]


def is_there(path: Path, uuid: str, source: Path | str) -> bool:
    """Tell whether `path` is the whole prediction `uuid` of an image that has not changed since.

    Of an image at a URL nobody can tell.
    """
    if isinstance(source, str) or Scratch.folder_of(path).exists() or uuid_in(path) != uuid:
        return False
    # The UUID knows both ends of the image; a change between them tells by its time.
    return path.stat().st_mtime_ns >= source.stat().st_mtime_ns


def uuid_in(path: Path) -> str | None:
    """Return the UUID that a file of ours states; None of any other, of a ``.npy``, or where nothing is."""
    try:
        if path.is_dir():
            attributes = json.loads((path / "zarr.json").read_text(encoding="utf-8"))["attributes"]
            return str(attributes[NAMESPACE]["uuid"])
        if path.suffix.lower() not in (".tif", ".tiff") or not path.is_file():
            return None
        # Imported here, because most calls find nothing.
        import tifffile

        with tifffile.TiffFile(path) as tiff:
            found = re.search(r'<OME\b[^>]*\bUUID="([^"]+)"', tiff.ome_metadata or "")
    except Exception:  # whatever is there, it is not what was to be predicted
        return None
    return None if found is None else found[1]
