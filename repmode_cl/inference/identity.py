"""What was asked of a prediction: told apart from another one, and named by it."""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from repmode_cl.data.preprocessing.content_digest import files_of
from repmode_cl.data.readers.region import shape_text
from repmode_cl.errors import ImageError, RepmodeError
from repmode_cl.inference.streaming.journal import PredictionJournal
from repmode_cl.inference.windows import WindowGrid
from repmode_cl.inference.writers.image_metadata import NAMESPACE
from repmode_cl.utils.atomic_files import canonical_json

__all__ = ["content_of", "is_there", "micrometres", "three_sizes", "uuid_in", "uuid_of", "window_grid"]


#: Bytes at either end of the input whose digest tells whether it is still the same file.
_SAMPLE = 1 << 16

#: Files of a folder (an OME-Zarr) that are looked at for the same purpose: its metadata come first.
_FILES = 1000


def content_of(path: Path | str) -> dict[str, Any]:
    """Return what tells whether an image is still the same, without reading all of it."""
    digest = hashlib.sha256()
    if isinstance(path, str):
        return {"bytes": None, "changed": None, "sample": path}
    if path.is_dir():
        count = changed = 0
        for file in _files(path):
            stat = file.stat()
            count, changed = count + stat.st_size, max(changed, stat.st_mtime_ns)
            digest.update(f"{file.relative_to(path).as_posix()} {stat.st_size}\n".encode())
            if file.suffix == ".json" or file.name in (".zarray", ".zattrs", ".zgroup"):
                digest.update(file.read_bytes()[:_SAMPLE])
        return {"bytes": count, "changed": changed, "sample": digest.hexdigest()}
    count = changed = 0
    for file in files_of(path):
        stat = file.stat()
        count, changed = count + stat.st_size, max(changed, stat.st_mtime_ns)
        with file.open("rb") as handle:
            digest.update(handle.read(_SAMPLE))
            handle.seek(max(0, stat.st_size - _SAMPLE))
            digest.update(handle.read(_SAMPLE))
    return {"bytes": count, "changed": changed, "sample": digest.hexdigest()}


def _files(folder: Path) -> list[Path]:
    """Return the first files of a folder in an order that does not depend on the system, those high up first."""
    found: list[Path] = []
    level = [folder]
    while level and len(found) < _FILES:
        inside = [child for one in level for child in sorted(one.iterdir())]
        found += [child for child in inside if child.is_file()]
        level = [child for child in inside if child.is_dir() and not child.is_symlink()][:_FILES]
    return found[:_FILES]


def uuid_of(call: Mapping[str, Any], names: Sequence[str]) -> str:
    """Return a name for the prediction itself: the same for the same voxels, wherever they are written.

    Parameters
    ----------
    call
        What decides every voxel, as `predict_file` puts it.
    names
        The structures that one file shows.
    """
    content = {key: value for key, value in call.items() if key not in ("outputs", "structures", "targets")}
    content["input"] = {key: call["input"][key] for key in ("bytes", "sample")}
    text = canonical_json({**content, "structures": {name: call["structures"][name] for name in names}})
    return f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, text)}"


def micrometres(size: Sequence[float]) -> tuple[float, float, float]:
    """Return a voxel size (z, y, x) in um.

    Raises
    ------
    RepmodeError
        If these are not three positive numbers.
    """
    if len(size) != 3 or not all(0 < float(one) < float("inf") for one in size):
        raise RepmodeError(
            f"voxel size {', '.join(map(str, size))}: three positive numbers in um (z, y, x) are needed"
        )
    z, y, x = (float(one) for one in size)
    return z, y, x


def three_sizes(window: Sequence[int]) -> tuple[int, int, int]:
    """Return the voxels (z, y, x) of a window.

    Raises
    ------
    RepmodeError
        If these are not three positive numbers.
    """
    if len(window) != 3 or not all(int(size) >= 1 for size in window):
        raise RepmodeError(f"window {tuple(window)}: three positive whole numbers (z, y, x) are needed")
    z, y, x = (int(size) for size in window)
    return z, y, x


def window_grid(
    shape: Sequence[int], grid: Sequence[int], window: Sequence[int], overlap: float, least: int
) -> WindowGrid:
    """Return the windows that cover a volume.

    Parameters
    ----------
    shape
        Voxels (z, y, x) of the image.
    grid
        What they are at the model's voxel size.
    window
        Voxels (z, y, x) of a window.
    overlap
        Part of a window that its neighbour repeats.
    least
        Fewest voxels along an axis that the network takes.

    Raises
    ------
    ImageError
        If the image is smaller along an axis.
    RepmodeError
        If the window is.
    """
    if min(grid) < least:
        after = "" if tuple(grid) == tuple(shape) else f", after resampling {shape_text(grid)}"
        raise ImageError(
            f"the image is too small: {shape_text(shape)} voxels (z, y, x){after}; the model's network takes "
            f"no fewer than {least} along each axis"
        )
    if min(window) < least:
        raise RepmodeError(
            f"window {shape_text(window)} (z, y, x) is too small: the model's network takes no fewer than {least} "
            "voxels along each axis"
        )
    return WindowGrid(grid, window, overlap)


def is_there(path: Path, uuid: str, source: Path | str) -> bool:
    """Tell whether `path` is the whole prediction `uuid` of an image that has not changed since.

    Of an image at a URL nobody can tell.
    """
    if isinstance(source, str) or PredictionJournal.folder_of(path).exists() or uuid_in(path) != uuid:
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
