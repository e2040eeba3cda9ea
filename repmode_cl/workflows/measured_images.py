"""Content of the images that a finished evaluation or comparison measured: its figures are of no others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from repmode_cl.data.manifest import Row
from repmode_cl.data.preprocessing.volume_cache import ContentDigests
from repmode_cl.data.sample import digest_of
from repmode_cl.errors import ConfigError
from repmode_cl.utils.atomic_files import write_json
from repmode_cl.utils.progress import report_line

__all__ = ["record_measured", "refuse_other_images"]

#: File in the folder of figures: line of the manifest -> digest of its files.
_MEASURED = "measured-images.json"
#: Lines that a message names at most.
_LISTED = 5


def record_measured(folder: Path, rows: Sequence[Row], digests: ContentDigests, workers: int = 1) -> None:
    """Write digests of the files of `rows`, which are about to be measured, to `folder`."""
    write_json(folder / _MEASURED, _contents(rows, digests, workers))


def refuse_other_images(
    folder: Path, rows: Sequence[Row], kind: str, cache: str | Path | None = None, workers: int = 1
) -> None:
    """Refuse to show the figures of a finished evaluation or comparison for images that changed since.

    A line says that nothing is measured again.

    Parameters
    ----------
    folder
        Its folder.
    rows
        Rows of the manifest; those that were not measured are passed over.
    kind
        What the folder holds, for messages, such as ``an evaluation``.
    cache
        Folder of prepared images, which knows the digests of files that it has seen.
    workers
        Threads that read.

    Raises
    ------
    ConfigError
        Naming the lines whose files changed or cannot be read.
    """
    path = folder / _MEASURED
    if not path.is_file():
        report_line(
            f"{folder}: already measured, by a version of this software that did not record the content of the images, "
            "so that it is not known whether they are the same (--restart measures again)",
            always=True,
        )
        return
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))
        earlier = {str(int(line)): digest for line, digest in recorded.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): start again with --restart") from error
    # Of a cache only the digests are read: it may be gone, and is not made for this.
    digests = ContentDigests(Path(cache if cache is not None else folder / "cache") / "contents.json")
    now = _contents([row for row in rows if str(row.number) in earlier], digests, workers)
    differing = sorted((line for line in earlier if earlier[line] != now.get(line)), key=int)
    if differing:
        more = f" and {len(differing) - _LISTED} more" if len(differing) > _LISTED else ""
        raise ConfigError(
            f"{folder} holds {kind} of other images: since then the content of the files in line "
            f"{', '.join(differing[:_LISTED])}{more} of the manifest changed, or they cannot be read: put them back, "
            "give another folder with --out, or measure again with --restart"
        )
    report_line(f"{folder}: already measured, of the same images (--restart measures again)", always=True)


def _contents(rows: Sequence[Row], digests: ContentDigests, workers: int) -> dict[str, str]:
    """Return the digest of each row's files: signal, target, mask and labels."""
    files = {str(row.number): (row.signal, row.target, row.mask, row.labels) for row in rows}
    digests.read([path for paths in files.values() for path in paths if path is not None], workers)

    def content(path: Path | None) -> str:
        try:
            return "" if path is None else digests.of(path)
        except OSError:
            return (
                "unreadable"  # differs from any digest; of rows that are left out the target may be missing
            )

    return {line: digest_of(*map(content, paths)).hex() for line, paths in files.items()}
