"""Atomic writes: to a temporary file in the same folder, fsynced, which then replaces the target.

A reader sees the old content or the new one, whenever the process dies.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from repmode_cl.errors import RepmodeError

__all__ = [
    "TEMPORARY_MARK",
    "canonical_json",
    "json_text",
    "put_in_place",
    "read_json",
    "replacing",
    "sha256_file",
    "write_bytes",
    "write_json",
    "write_text",
]


#: Part of the name of every temporary file made here, by which leftovers of a killed process are recognised.
TEMPORARY_MARK = ".writing-"


def canonical_json(value: Any) -> str:
    """Serialise `value` so that equal values give equal text: sorted keys, no spaces, ASCII, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; at the end, fsync it and replace `path` by it.

    On an exception the temporary file is removed and `path` is not touched; an OSError names `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays at the end, because writers choose a format by it.
    temporary = path.with_name(f"{path.stem}{TEMPORARY_MARK}{secrets.token_hex(4)}{path.suffix}")
    try:
        yield temporary
        put_in_place(temporary, path)
    except BaseException as error:
        with suppress(FileNotFoundError):
            temporary.unlink()
        if isinstance(error, OSError) and error.filename is None:
            # The error of a full disk comes from a write, and does not name the file.
            error.filename = str(path)
        raise


def put_in_place(temporary: Path, path: Path) -> None:
    """Replace `path` by the finished file `temporary`: fsync it, replace, fsync the folder."""
    with temporary.open("rb+") as handle:
        os.fsync(handle.fileno())
    temporary.replace(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows has no handle on a folder to sync
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    r"""Write `text` to `path` as UTF-8 with ``\n`` line ends, whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def json_text(value: Any) -> str:
    """Return `value` as indented JSON with sorted keys, exactly as `write_json` writes it."""
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys, whole or not at all."""
    write_text(path, json_text(value))


def read_json(path: str | Path, remedy: str) -> dict[str, Any]:
    """Read a JSON object from a file.

    Parameters
    ----------
    path
        The file.
    remedy
        For the message: what to do if the file is damaged.

    Raises
    ------
    FileNotFoundError
        If there is no file.
    RepmodeError
        If it cannot be read, is cut off, or holds another value.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise RepmodeError(f"{path}: cannot be read ({error}): {remedy}") from error
    if not isinstance(value, dict):
        raise RepmodeError(f"{path}: holds {type(value).__name__} where an object is expected: {remedy}")
    return value


def sha256_file(path: str | Path, progress: Callable[[int], None] | None = None) -> str:
    """Return the SHA-256 of a file's bytes, read in chunks of 4 MiB; `progress` gets the bytes of each chunk."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as handle:
        while chunk := handle.read(1 << 22):
            digest.update(chunk)
            if progress is not None:
                progress(len(chunk))
    return digest.hexdigest()
