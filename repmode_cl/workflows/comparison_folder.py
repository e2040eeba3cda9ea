"""The folder of a comparison: one comparison's alone, and one process's at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from repmode_cl.errors import ConfigError
from repmode_cl.utils.atomic_files import write_json

__all__ = ["exclusive_comparison"]

#: What was asked for: by it the folder of a comparison is known.
_REQUEST = "compare-request.json"
_LOCK = "compare.lock"


@contextmanager
def exclusive_comparison(folder: Path, request: Mapping[str, Any], *, restart: bool) -> Iterator[None]:
    """Make `folder` one comparison's, and this process's while it is at work there.

    Parameters
    ----------
    folder
        New, empty, or a comparison's.
    request
        What decides the figures.
    restart
        Whether a comparison that it holds goes first.

    Raises
    ------
    ConfigError
        If it holds anything else, a comparison with another request, or another process is at work there.
    """
    _check_free(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # The file stays when all is done: removing it would let two processes lock two files of one name.
    lock = FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(
            f"{folder}: another process is at work on a comparison there: wait until it is done, or give another "
            "folder with --out"
        ) from None
    try:
        _claim(folder, request, restart=restart)
        yield
    finally:
        lock.release()


def _check_free(folder: Path) -> None:
    """Refuse a folder with anything in it that is no comparison's."""
    if (folder / _REQUEST).exists() or not folder.exists():
        return
    if not folder.is_dir() or any(item.name != _LOCK for item in folder.iterdir()):
        raise ConfigError(f"{folder} holds something else than a comparison: give a new folder with --out")


def _claim(folder: Path, request: Mapping[str, Any], *, restart: bool) -> None:
    _check_free(folder)
    path = folder / _REQUEST
    if path.exists() and not restart:
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            differing = ", ".join(key for key in request if before.get(key) != request[key])
        except (OSError, ValueError, AttributeError) as error:
            raise ConfigError(f"{path} cannot be read ({error}): begin anew with --restart") from error
        if differing:
            raise ConfigError(
                f"{folder} holds a comparison with other settings ({differing}): give another folder with --out, or "
                "begin anew with --restart"
            )
        return
    # The request last: by it a folder that was half cleared is still known for a comparison's.
    for item in sorted(folder.iterdir(), key=lambda item: item.name == _REQUEST):
        if item.is_dir() and not item.is_symlink():
            shutil.rmtree(item)
        elif item.name != _LOCK:
            item.unlink()
    write_json(path, dict(request))
