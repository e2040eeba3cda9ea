"""Locks between processes: files in folders that only one process may work in at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
) -> Iterator[None]:
    """Hold the lock of `file` within the block.

    Parameters
    ----------
    file
        Made with its folder. It stays: removing it would let two processes lock two files of one name.
    busy
        Message where another process holds the lock; a function is called then.
    error
        Class of the errors.
    timeout
        Seconds to wait for another process.
    advice
        What to do where the file system has no locks.

    Raises
    ------
    RepmodeError
        Of class `error`, if another process holds the lock or the file system has none.
    OSError
        If the file cannot be made, or not be locked by this user.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file, timeout=timeout)
    try:
        lock.acquire()
    except Timeout as reason:
        raise error(busy if isinstance(busy, str) else busy()) from reason
    except NotImplementedError as reason:
        raise error(f"{file.parent} is on a file system without locks ({reason}): {advice}") from reason
    try:
        yield
    finally:
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
