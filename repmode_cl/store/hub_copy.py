"""Copies of models in the cache of the hub's library: told by their folder, and never changed."""

from __future__ import annotations

from pathlib import Path

from repmode_cl.errors import ModelError

__all__ = ["hub_title", "refuse_hub_copy"]


def hub_title(folder: Path) -> str | None:
    """Return ``owner/name@commit`` of a folder of the hub library's cache, however it is named; None for any other.

    Parameters
    ----------
    folder
        The folder, ``.`` within it, or a link to it. Files in it that are links, as those of the cache are, do not
        count: in a folder of one's own they are replaced, not written to.
    """
    # As it is named, too: the folder of a repository may be a link to another disk.
    for place in (folder.resolve(), folder.absolute()):
        repository = place.parent.parent.name
        if place.parent.name == "snapshots" and repository.startswith("models--"):
            return f"{repository.removeprefix('models--').replace('--', '/', 1)}@{place.name[:12]}"
    return None


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
