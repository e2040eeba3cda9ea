"""Models on the Hugging Face hub: ``hf://owner/name@revision`` becomes a folder of the hub library's own cache.

Only files that a model directory names are fetched, each by its exact name: ``registry.json``, ``model.json``, the
base, the structures' files, signatures and the card. Nothing else of a repository is downloaded, and no pickle is
among them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from repmode_cl.errors import ModelError
from repmode_cl.store import record_files as records
from repmode_cl.store.registry import REGISTRY, Registry
from repmode_cl.store.signatures import SIGNATURES
from repmode_cl.store.verify import verify_model
from repmode_cl.utils.extras import require_library

__all__ = ["fetch_model", "is_hub_address", "local_model"]

# One slash or two: a command's argument was a path before it came here, and a path has no double slashes.
_ADDRESS = re.compile(r"hf:/{1,2}([\w.-]{1,96})/([\w.-]{1,96})(?:@([\w./-]{1,255}))?")
_CARD = "README.md"


def is_hub_address(path: str | Path) -> bool:
    """Return whether this is no folder but the address of a model on the hub, ``hf://...``."""
    return _text(path).startswith("hf:/")


def local_model(path: str | Path) -> Path:
    """Return the folder of a model: `path`, or the copy that `fetch_model` makes of what is on the hub."""
    return fetch_model(path) if is_hub_address(path) else Path(path)


def fetch_model(address: str | Path) -> Path:
    """Fetch a model from the hub, unless this revision is in the cache already, and check its files.

    Parameters
    ----------
    address
        ``hf://owner/name@revision``, with a branch, a tag, or best a commit; without one the branch ``main``.

    Returns
    -------
    Path
        The folder in the cache of the hub's library; it must not be changed.

    Raises
    ------
    ModelError
        If the address is wrong, the repository or revision is not there or is no model, or a file is not the one that
        its registry states.
    RepmodeError
        If huggingface-hub is not installed.
    """
    found = _ADDRESS.fullmatch(_text(address))
    if found is None:
        raise ModelError(f"{address}: the address of a model is hf://owner/name@revision")
    repository, revision = f"{found[1]}/{found[2]}", found[3] or "main"
    shown = f"hf://{repository}@{revision}"
    folder = _download(repository, revision, REGISTRY, shown).parent
    # Everything else is of the same commit, whatever happens to the branch meanwhile.
    commit = folder.name
    _download(repository, commit, records.MODEL, shown)
    # It refuses files that are not a model's own: they are fetched by these names.
    registry = Registry.read(folder)
    for file in dict.fromkeys(entry.file for entry in registry.versions):
        _download(repository, commit, file, shown)
    _download_optional(repository, commit, _CARD, shown)
    number = 1
    while _download_optional(repository, commit, f"{SIGNATURES}/{number:04d}.json", shown):
        number += 1
    report = verify_model(folder, "files")
    if not report.ok:
        failed = next(result for result in (*report.results, *report.earlier) if not result.ok)
        raise ModelError(
            f"{shown}: {failed.detail}; if the copy in {folder} is at fault, remove that folder and fetch it again"
        )
    return folder


def _text(path: str | Path) -> str:
    return str(path).replace("\\", "/")


def _download(repository: str, revision: str, file: str, shown: str) -> Path:
    library: Any = require_library("huggingface_hub", "hub", "a model on the hub")
    errors: Any = require_library("huggingface_hub.errors", "hub", "a model on the hub")
    try:
        return Path(library.hf_hub_download(repository, file, revision=revision, library_name="repmode-cl"))
    except errors.LocalEntryNotFoundError as error:  # a kind of EntryNotFoundError, too
        raise ModelError(f"{shown}: cannot be fetched ({_first(error)})") from error
    except errors.EntryNotFoundError as error:
        raise _MissingFileError(
            f"{shown}: has no file {file}, so that it is no whole model ({_first(error)})"
        ) from error
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        raise ModelError(f"{shown}: cannot be fetched ({_first(error)})") from error


def _download_optional(repository: str, revision: str, file: str, shown: str) -> bool:
    library: Any = require_library("huggingface_hub", "hub", "a model on the hub")
    # Known from an earlier time, so that a model in the cache can be used without a network.
    if library.try_to_load_from_cache(repository, file, revision=revision) is library._CACHED_NO_EXIST:
        return False
    try:
        _download(repository, revision, file, shown)
    except _MissingFileError:
        return False
    return True


class _MissingFileError(ModelError):
    """A file is not in the repository."""


def _first(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
