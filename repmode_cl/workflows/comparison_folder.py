"""Folder of a comparison: it holds only that comparison, and one process at a time works in it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from repmode_cl.errors import ConfigError
from repmode_cl.utils.atomic_files import write_json
from repmode_cl.utils.locks import exclusive
from repmode_cl.workflows.train_one_experience import changed_settings, with_present_defaults

__all__ = ["exclusive_comparison"]

#: File with what decides the figures; it marks a folder as a comparison's.
_REQUEST = "compare-request.json"
_LOCK = "compare.lock"
_HOLDER = "compare.lock.holder"


@contextmanager
def exclusive_comparison(folder: Path, request: Mapping[str, Any], *, restart: bool) -> Iterator[None]:
    """Lock `folder` for one comparison, and write the request to it.

    Parameters
    ----------
    folder
        New, empty, or the folder of a comparison.
    request
        What decides the figures.
    restart
        Whether to remove a comparison that it holds first.

    Raises
    ------
    ConfigError
        If it holds anything else or a comparison with another request, or another process is at work there.
    """
    _refuse_other_content(folder)
    busy = (
        f"{folder}: another process is at work on a comparison there ({{holder}}): wait until it is done, or give "
        "another folder with --out"
    )
    with exclusive(folder / _LOCK, busy, error=ConfigError, holder=folder / _HOLDER):
        _record_request(folder, request, restart=restart)
        yield


def _refuse_other_content(folder: Path) -> None:
    """Refuse a folder that holds files but no comparison."""
    if (folder / _REQUEST).exists() or not folder.exists():
        return
    if not folder.is_dir() or any(item.name not in (_LOCK, _HOLDER) for item in folder.iterdir()):
        raise ConfigError(f"{folder} holds something other than a comparison: give a new folder with --out")


def _record_request(folder: Path, request: Mapping[str, Any], *, restart: bool) -> None:
    """Write the request to `folder`, cleared on a restart; refuse a comparison with another request."""
    _refuse_other_content(folder)
    path = folder / _REQUEST
    if path.exists() and not restart:
        try:
            earlier = with_present_defaults(json.loads(path.read_text(encoding="utf-8")))
            differing = ", ".join(key for key in request if earlier.get(key) != request[key])
        except (OSError, ValueError, AttributeError) as error:
            raise ConfigError(f"{path} cannot be read ({error}): start again with --restart") from error
        if differing:
            [first, *_] = changed_settings(earlier, request)
            raise ConfigError(
                f"{folder} holds a comparison with other settings ({differing}), first {first}: give another folder "
                "with --out, or start again with --restart"
            )
        return
    # The request last: it marks a folder that is only half cleared as a comparison's.
    for item in sorted(folder.iterdir(), key=lambda item: item.name == _REQUEST):
        if item.is_dir() and not item.is_symlink():
            shutil.rmtree(item)
        elif item.name not in (_LOCK, _HOLDER):
            item.unlink()
    write_json(path, dict(request))
