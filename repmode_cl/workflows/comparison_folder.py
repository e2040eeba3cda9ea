"""Folder of a comparison, an advice or an evaluation: it holds nothing else, and one process at a time works in it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from repmode_cl.errors import ConfigError
from repmode_cl.utils.atomic_files import TEMPORARY_MARK, write_json
from repmode_cl.utils.locks import exclusive
from repmode_cl.workflows.train_one_experience import changed_settings, with_present_defaults

__all__ = ["exclusive_comparison"]

#: Kind of a folder -> beginning of the names of its files. The request decides the figures, and marks the folder.
_PREFIXES = {"comparison": "compare", "advice": "advise", "evaluation": "evaluate"}
Kind = Literal["comparison", "advice", "evaluation"]

#: Kind of a folder -> patterns of what it holds besides its request. A restart removes nothing else.
_CONTENTS = {
    "comparison": (
        "adding", "fine_tuning", "own_network", "compare.*", "images.json", "measured-images.json", "report.html",
        "cache",
    ),
    "advice": ("small-*", "best-*", "advice.json", "images.json", "cache"),
    "evaluation": ("evaluation.*", "cells.csv", "measured-images.json", "report.html", "images", "cache"),
}  # fmt: skip


def _request_file(kind: Kind) -> str:
    return f"{_PREFIXES[kind]}-request.json"


def _lock_files(kind: Kind) -> tuple[str, str]:
    return f"{_PREFIXES[kind]}.lock", f"{_PREFIXES[kind]}.lock.holder"


@contextmanager
def exclusive_comparison(
    folder: Path, request: Mapping[str, Any], *, restart: bool, kind: Kind = "comparison"
) -> Iterator[None]:
    """Lock `folder` for one comparison, and write the request to it.

    Parameters
    ----------
    folder
        New, empty, or the folder of a comparison.
    request
        What decides the figures.
    restart
        Whether to remove a comparison that it holds first. Other files in the folder stay.
    kind
        What the folder is of: a comparison of methods, an advice, or an evaluation.

    Raises
    ------
    ConfigError
        If it holds anything else or a comparison with another request, or another process is at work there.
    """
    _refuse_other_content(folder, kind)
    lock, holder = _lock_files(kind)
    busy = (
        f"{folder}: another process is at work on {_named(kind)} there ({{holder}}): wait until it is done, or give "
        "another folder with --out"
    )
    with exclusive(folder / lock, busy, error=ConfigError, holder=folder / holder):
        _record_request(folder, request, restart=restart, kind=kind)
        yield


def _named(kind: Kind) -> str:
    return f"{'a' if kind == 'comparison' else 'an'} {kind}"


def _refuse_other_content(folder: Path, kind: Kind) -> None:
    """Refuse a folder that holds files but nothing of this kind."""
    if (folder / _request_file(kind)).exists() or not folder.exists():
        return
    if not folder.is_dir() or any(item.name not in _lock_files(kind) for item in folder.iterdir()):
        raise ConfigError(f"{folder} holds something other than {_named(kind)}: give a new folder with --out")


def _is_ours(name: str, kind: Kind) -> bool:
    patterns = (_request_file(kind), f"*{TEMPORARY_MARK}*", *_CONTENTS[kind])
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _record_request(folder: Path, request: Mapping[str, Any], *, restart: bool, kind: Kind) -> None:
    """Write the request to `folder`, cleared on a restart; refuse a comparison with another request."""
    _refuse_other_content(folder, kind)
    path = folder / _request_file(kind)
    if path.exists() and not restart:
        try:
            earlier = with_present_defaults(json.loads(path.read_text(encoding="utf-8")))
            differing = ", ".join(key for key in request if earlier.get(key) != request[key])
        except (OSError, ValueError, AttributeError) as error:
            raise ConfigError(f"{path} cannot be read ({error}): start again with --restart") from error
        if differing:
            [first, *_] = changed_settings(earlier, request)
            raise ConfigError(
                f"{folder} holds {_named(kind)} with other settings ({differing}), first {first}: give another folder "
                "with --out, or start again with --restart"
            )
        return
    # The request last: it marks a folder that is only half cleared as one of this kind.
    for item in sorted(folder.iterdir(), key=lambda item: item.name == _request_file(kind)):
        if item.name in _lock_files(kind) or not _is_ours(item.name, kind):
            continue
        if item.is_dir() and not item.is_symlink():
            shutil.rmtree(item)
        else:
            item.unlink()
    write_json(path, dict(request))
