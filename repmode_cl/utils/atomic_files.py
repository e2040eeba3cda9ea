"""Writing files so that nothing is ever half-written: beside, fsync, replace.

A reader sees the old content or the new one, whatever instant the process dies at.
"""

from __future__ import annotations

import abc
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from repmode_cl.errors import RepmodeError

__all__ = [
    "Closing",
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


#: Part of the name of every temporary file made here, so that left-overs of a killed process can be told.
TEMPORARY_MARK = ".writing-"


def canonical_json(value: Any) -> str:
    """Serialise `value` so that equal values give equal text: sorted keys, no spaces, ASCII, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on leaving, fsync it and put it in place of `path`.

    On an exception the temporary file is removed and `path` is untouched; an OSError names `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix is kept last, because writers choose a format by it.
    beside = path.with_name(f"{path.stem}{TEMPORARY_MARK}{secrets.token_hex(4)}{path.suffix}")
    try:
        yield beside
        put_in_place(beside, path)
    except BaseException as error:
        with suppress(FileNotFoundError):
            beside.unlink()
        if isinstance(error, OSError) and error.filename is None:
            # A disk that is full says so when something is written, without saying to which file.
            error.filename = str(path)
        raise


def put_in_place(beside: Path, path: Path) -> None:
    """Make the finished file `beside` become `path`: fsync it, replace, fsync the folder."""
    with beside.open("rb+") as handle:
        os.fsync(handle.fileno())
    beside.replace(path)
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
    with replacing(path) as beside:
        beside.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    r"""Write `text` to `path` as UTF-8 with ``\n`` line ends, whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def json_text(value: Any) -> str:
    """Return `value` as indented JSON with sorted keys: the one text that `write_json` writes of it."""
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys, whole or not at all."""
    write_text(path, json_text(value))


def read_json(path: str | Path, remedy: str) -> dict[str, Any]:
    """Read an object that was written as JSON.

    Parameters
    ----------
    path
        The file.
    remedy
        For the message: what to do where it is damaged.

    Raises
    ------
    FileNotFoundError
        If there is none.
    RepmodeError
        If it cannot be read, is cut off, or holds something else.
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
    """Return the SHA-256 of a file's bytes, read in pieces of 4 MiB."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as handle:
        while piece := handle.read(1 << 22):
            digest.update(piece)
            if progress is not None:
                progress(len(piece))
    return digest.hexdigest()


class Closing(abc.ABC):
    """Something that is closed at the end of its ``with`` block, whatever happened in it."""

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of what is held; doing so again changes nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
