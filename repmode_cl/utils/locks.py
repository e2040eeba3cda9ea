"""Locks between processes: files in folders that only one process may work in at a time."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from repmode_cl.errors import RepmodeError

__all__ = ["exclusive", "is_locked"]


@contextmanager
def exclusive(
    file: Path,
    busy: str | Callable[[], str],
    *,
    error: type[RepmodeError],
    timeout: float = 0,
    advice: str = "use a folder on another disk",
    holder: Path | None = None,
) -> Iterator[None]:
    """Hold the lock of `file` within the block.

    Parameters
    ----------
    file
        Made with its folder. It stays: removing it would let two processes lock two files of one name.
    busy
        Message where another process holds the lock; a function is called then. ``{holder}`` in it becomes the process
        that holds it, where that wrote a file `holder`.
    error
        Class of the errors.
    timeout
        Seconds to wait for another process.
    advice
        What to do where the file system has no locks.
    holder
        File that names this process within the block, for the messages of others; None writes none.

    Raises
    ------
    RepmodeError
        Of class `error`, if another process holds the lock or the file system has none.
    OSError
        If the file cannot be made, or not be locked by this user.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    # Not of one thread: a prediction is locked by the thread that computes, and may be released by the one that writes.
    lock = FileLock(file, timeout=timeout, thread_local=False)
    try:
        lock.acquire()
    except Timeout as reason:
        message = busy if isinstance(busy, str) else busy()
        raise error(message.replace("{holder}", _read_holder(holder))) from reason
    except NotImplementedError as reason:
        raise error(f"{file.parent} is on a file system without locks ({reason}): {advice}") from reason
    try:
        # Only waiting processes read it: a disk too full for a line of text may still have room for the work.
        with suppress(OSError):
            if holder is not None:
                holder.write_text(_this_process(), encoding="utf-8")
        yield
    finally:
        with suppress(OSError):
            if holder is not None:
                holder.unlink(missing_ok=True)
        lock.release()


def is_locked(file: Path) -> bool | None:
    """Return whether a process holds the lock of `file`; None where that cannot be found out."""
    if not file.exists():
        return False
    try:
        with FileLock(file, timeout=0):
            return False
    except Timeout:
        return True
    except (OSError, NotImplementedError):  # not to be locked by this user, or on this file system
        return None


def _this_process() -> str:
    since = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return f"process {os.getpid()} on {platform.node() or 'an unnamed machine'}, since {since}"


def _read_holder(holder: Path | None) -> str:
    unknown = "another process"
    try:
        return unknown if holder is None else holder.read_text("utf-8", errors="replace")[:200] or unknown
    except OSError:  # the holder has only just got the lock
        return unknown
