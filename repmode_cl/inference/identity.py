"""Identity of a prediction: the fingerprint of its input, its UUID, and whether a file holds it already."""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from repmode_cl.data.preprocessing.content_digest import file_stamp, image_files
from repmode_cl.inference.streaming.journal import PredictionJournal
from repmode_cl.inference.writers.image_metadata import NAMESPACE
from repmode_cl.utils.atomic_files import canonical_json

__all__ = ["prediction_uuid", "are_predicted", "input_fingerprint", "stored_uuid"]

#: Bytes at either end of each input file that its fingerprint covers.
_SAMPLE_BYTES = 1 << 16

#: Files of a folder (an OME-Zarr) that its fingerprint covers: its metadata come first.
_MAX_FILES = 1000


def input_fingerprint(path: Path | str) -> dict[str, Any]:
    """Return a fingerprint by which a changed image is noticed, without reading all of it.

    Parameters
    ----------
    path
        A file, a folder, or a URL (of which only the name is known).

    Returns
    -------
    dict
        ``bytes`` (their count), ``changed`` (the latest time of change, in ns) and ``sample`` (a digest).
    """
    if isinstance(path, str):
        return {"bytes": None, "changed": None, "sample": path}
    digest = hashlib.sha256()
    count = changed = 0
    for file in _first_files(path) if path.is_dir() else image_files(path):
        stat = file.stat()
        count, changed = count + stat.st_size, max(changed, stat.st_mtime_ns)
        if path.is_dir():
            digest.update(f"{file.relative_to(path).as_posix()} {stat.st_size}\n".encode())
            if file.suffix == ".json" or file.name in (".zarray", ".zattrs", ".zgroup"):
                digest.update(file.read_bytes()[:_SAMPLE_BYTES])
        else:
            with file.open("rb") as handle:
                digest.update(handle.read(_SAMPLE_BYTES))
                handle.seek(max(0, stat.st_size - _SAMPLE_BYTES))
                digest.update(handle.read(_SAMPLE_BYTES))
    return {"bytes": count, "changed": changed, "sample": digest.hexdigest()}


def _first_files(folder: Path) -> list[Path]:
    """Return the first files of a folder in an order that does not depend on the system, those high up first."""
    files: list[Path] = []
    level = [folder]
    while level and len(files) < _MAX_FILES:
        children = [child for parent in level for child in sorted(parent.iterdir())]
        files += [child for child in children if child.is_file()]
        level = [child for child in children if child.is_dir() and not child.is_symlink()][:_MAX_FILES]
    return files[:_MAX_FILES]


def prediction_uuid(request: Mapping[str, Any], structures: Sequence[str]) -> str:
    """Return the UUID of a prediction: the same for the same voxels, wherever they are written.

    Parameters
    ----------
    request
        Everything that decides a voxel, as `repmode_cl.inference.predict_file.FilePrediction` writes it.
    structures
        Names of the structures in the file.
    """
    content = {
        key: value for key, value in request.items() if key not in ("outputs", "structures", "targets")
    }
    content["input"] = {key: request["input"][key] for key in ("bytes", "sample")}
    text = canonical_json(
        {**content, "structures": {name: request["structures"][name] for name in structures}}
    )
    return f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, text)}"


def are_predicted(uuids: Mapping[Path, str], source: Path | str) -> bool:
    """Tell whether all paths are the whole predictions of these UUIDs, of an image that has not changed since.

    Of an image at a URL this is never known.
    """
    if isinstance(source, str) or not all(
        stored_uuid(path) == uuid and not PredictionJournal.folder_of(path).exists()
        for path, uuid in uuids.items()
    ):
        return False
    # The UUID covers both ends of the image; a change between them shows in the time of one of its files.
    return min(path.stat().st_mtime_ns for path in uuids) >= file_stamp(source).mtime_ns


def stored_uuid(path: Path) -> str | None:
    """Return the UUID in a predicted file; None of any other file, of a ``.npy``, or where there is none."""
    try:
        if path.is_dir():
            attributes = json.loads((path / "zarr.json").read_text(encoding="utf-8"))["attributes"]
            return str(attributes[NAMESPACE]["uuid"])
        if path.suffix.lower() not in (".tif", ".tiff") or not path.is_file():
            return None
        # Imported here for a fast start: most calls have no earlier file.
        import tifffile

        with tifffile.TiffFile(path) as tiff:
            match = re.search(r'<OME\b[^>]*\bUUID="([^"]+)"', tiff.ome_metadata or "") or re.search(
                r"^UUID: (.+)$", str((tiff.imagej_metadata or {}).get("Info", "")), re.MULTILINE
            )
    except Exception:  # whatever the file is, it is not the prediction
        return None
    return None if match is None else match[1]
