"""Disk cache of prepared volumes: `.npy` files named by a digest of their image's content and settings.

Only the same content and settings lead to a file again, so nothing in the cache can be out of date, and it may be
deleted at any time. Every volume has a small JSON file next to it, written after it, that describes the complete file:
a volume without one, or one that differs from it, counts as absent and is made again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repmode_cl.data.preprocessing.content_digest import FileStamp, content_digest, file_stamp
from repmode_cl.utils.atomic_files import TEMPORARY_MARK, canonical_json, replacing, sha256_file, write_json
from repmode_cl.utils.progress import track

__all__ = ["ContentDigests", "VolumeCache"]

#: Part of every key: raise it when the same settings make other voxels or another format of them.
FORMAT_VERSION = 2

#: A file that changed this recently (ns) may change again within one tick of its clock: its digest is not stored.
_SETTLED = 2_000_000_000


class VolumeCache:
    """Prepared volumes below one folder; safe to fill from several processes at once.

    Parameters
    ----------
    folder
        Made when the first volume is stored.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @staticmethod
    def key(made_from: Mapping[str, Any]) -> str:
        """Return the digest of the JSON values that decide every voxel of a volume."""
        text = canonical_json({"format": FORMAT_VERSION, **made_from})
        return hashlib.sha256(text.encode("ascii")).hexdigest()

    def path(self, key: str) -> Path:
        """Return the path of the volume of `key`, whether it exists or not."""
        return self.folder / key[:2] / f"{key}.npy"

    def find(self, key: str) -> tuple[int, int, int] | None:
        """Return the shape (Z, Y, X) of the volume of `key`, or None where it is absent, cut off or changed.

        Its bytes are read only if its time differs from the recorded one.
        """
        path = self.path(key)
        record = path.with_suffix(".json")
        try:
            about = json.loads(record.read_text(encoding="utf-8"))
            shape, size, digest = about["shape"], about["bytes"], about["sha256"]
            stat = path.stat()
            if stat.st_size != size:
                return None
            if stat.st_mtime_ns != about["mtime_ns"]:
                if sha256_file(path) != digest:
                    return None
                # Copied, for example: the bytes are the same.
                write_json(record, {**about, "mtime_ns": stat.st_mtime_ns})
            return int(shape[0]), int(shape[1]), int(shape[2])
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            return None

    def store(self, key: str, volume: NDArray[np.generic], about: Mapping[str, Any]) -> Path:
        """Write `volume` (Z, Y, X) under `key` and return its path.

        Parameters
        ----------
        key
            Made by `key`.
        volume
            Voxels as they are stored.
        about
            JSON values for people who look into the folder; not part of the key.
        """
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        try:
            with replacing(path) as temporary:
                np.save(temporary, np.ascontiguousarray(volume), allow_pickle=False)
        except PermissionError:
            # Windows does not replace a file that another process has mapped. Then that process holds the
            # same volume, unless the cache cannot be written at all.
            if self.find(key) is None:
                raise
            return path
        stat = path.stat()
        write_json(
            path.with_suffix(".json"),
            {
                **about,
                "shape": list(volume.shape),
                "bytes": stat.st_size,
                "mtime_ns": stat.st_mtime_ns,
                "sha256": sha256_file(path),
            },
        )
        return path


class ContentDigests:
    """SHA-256 of images (files or folders), stored by size and time, so that a collection is read through only once.

    Parameters
    ----------
    record
        JSON file that keeps them between runs; a missing or damaged one counts as empty.
    """

    def __init__(self, record: str | Path) -> None:
        self.record = Path(record)
        self._entries: dict[str, dict[str, Any]] = {}
        self._changed = False
        with suppress(OSError, ValueError):
            content = json.loads(self.record.read_text(encoding="utf-8"))
            if isinstance(content, dict):
                self._entries = {path: entry for path, entry in content.items() if isinstance(entry, dict)}

    def of(self, path: str | Path) -> str:
        """Return the SHA-256 of a file's bytes.

        Raises
        ------
        OSError
            If the file cannot be read.
        """
        path = Path(path).absolute()
        stamp = file_stamp(path)
        if (stored := self._stored_digest(path, stamp)) is not None:
            return stored
        digest = content_digest(path)
        if time.time_ns() - stamp.mtime_ns > _SETTLED:
            self._entries[str(path)] = {
                "bytes": stamp.size,
                "mtime_ns": stamp.mtime_ns,
                "sha256": digest,
            }
            self._changed = True
        return digest

    def read(self, paths: Iterable[str | Path], workers: int = 1) -> None:
        """Read files ahead of `of`, several at the same time, with a progress bar.

        Files that cannot be read are skipped: `of` raises their error, whose caller knows what they are for.
        """
        missing = [
            path for path in dict.fromkeys(Path(path).absolute() for path in paths) if self._lacks(path)
        ]
        # Threads, because hashing and reading let others run.
        with ThreadPoolExecutor(max(1, min(workers, len(missing)))) as pool:
            pending = [pool.submit(self._read_ahead, path) for path in missing]
            try:
                for _ in track(as_completed(pending), "reading images", len(missing)):
                    pass
            finally:
                for future in pending:
                    future.cancel()

    def _lacks(self, path: Path) -> bool:
        with suppress(OSError):
            return self._stored_digest(path, file_stamp(path)) is None
        return False

    def _read_ahead(self, path: Path) -> None:
        with suppress(OSError):
            self.of(path)

    def _stored_digest(self, path: Path, stamp: FileStamp) -> str | None:
        entry = self._entries.get(str(path), {})
        digest = entry.get("sha256")
        if (entry.get("bytes"), entry.get("mtime_ns")) != (stamp.size, stamp.mtime_ns):
            return None
        return digest if isinstance(digest, str) else None

    def save(self) -> None:
        """Write the record, if anything was added."""
        if self._changed:
            write_json(self.record, self._entries)
            self._changed = False


def _remove_leftovers(path: Path) -> None:
    """Remove temporary files that killed processes left of a volume; those of running processes are younger."""
    hour_ago = time.time() - 3600
    for leftover in path.parent.glob(f"{path.stem}{TEMPORARY_MARK}*"):
        with suppress(OSError):
            if leftover.stat().st_mtime < hour_ago:
                leftover.unlink()
