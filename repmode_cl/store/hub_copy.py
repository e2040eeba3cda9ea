"""Copies of models in the cache of the hub's library: told by their folder, and never changed."""

from __future__ import annotations

from pathlib import Path

from repmode_cl.errors import ModelError

__all__ = ["hub_title", "refuse_hub_copy"]


def hub_title(folder: Path) -> str | None:
    """Return ``owner/name@commit`` of a folder of the hub library's cache; None for any other folder."""
    repository = folder.parent.parent.name
    if folder.parent.name != "snapshots" or not repository.startswith("models--"):
        return None
    return f"{repository.removeprefix('models--').replace('--', '/', 1)}@{folder.name[:12]}"


def refuse_hub_copy(folder: Path) -> None:
    """Refuse to change a copy of what is on the hub: its files are shared by all that use the cache.

    Raises
    ------
    ModelError
        If the folder is one.
    """
    if (title := hub_title(folder)) is not None:
        raise ModelError(
            f"{folder} is the cached copy of hf://{title}, which is not changed: copy the folder (`cp -rL`), and "
            "change the copy"
        )
