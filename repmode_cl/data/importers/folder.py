"""Import of a folder of single-channel files, paired by the common part of their names."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from repmode_cl.data.importers.common import (
    ImportedRows,
    Skipped,
    check_targets,
    listed_names,
    structure_from_channel,
)
from repmode_cl.data.manifest import Row
from repmode_cl.errors import ManifestError

__all__ = ["import_folder"]

_FIELD = re.compile(r"\{(\w*)\}|(\*)")
#: Fields that a pattern may name.
_FIELDS = ("id", "channel", "group")


@dataclass(frozen=True)
class _Key:
    group: str | None
    id: str

    def __str__(self) -> str:
        return self.id if self.group is None else f"{self.group}, {self.id}"


def import_folder(
    folder: str | Path,
    pattern: str,
    *,
    signal: str,
    targets: Mapping[str, str] | None = None,
    voxel_size: tuple[float, float, float] | None = None,
) -> ImportedRows:
    """Return a row for each pair of a signal and a target file with one ``{id}``.

    Parameters
    ----------
    folder
        Searched, with the folders that the pattern names.
    pattern
        Path of a file below `folder`, with ``{id}`` and ``{channel}``, and ``{group}`` if rows of one group must
        stay in one split; ``*`` stands for anything. Each stands for one character or more except ``/``; where names
        can be cut in several ways, the last piece is the shortest.
    signal
        The ``{channel}`` of transmitted light.
    targets
        ``{channel}`` by structure; None takes all, each a structure of its name.
    voxel_size
        (z, y, x) in um, written into every row; None takes what the files say.

    Returns
    -------
    ImportedRows
        `skipped` holds files without a partner.

    Raises
    ------
    ManifestError
        If the pattern is not valid, or no file fits it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ManifestError(f"{folder}: there is no such folder")
    structures = check_targets(targets)
    if signal in structures:
        raise ManifestError(f"the channel {signal!r} is the signal, and the target of {structures[signal]}")
    expression = _expression(pattern, [signal, *structures] if structures else [])
    imported, channels = ImportedRows(), set()
    files: dict[_Key, dict[str, Path]] = defaultdict(dict)
    unmatched: list[str] = []
    for path in _walk(folder, pattern.count("/")):
        name = path.relative_to(folder).as_posix()
        match = expression.fullmatch(name)
        if match is None:
            if not path.name.startswith("."):
                unmatched.append(name)
            continue
        values = match.groupdict()
        key, channel = _Key(values.get("group"), values["id"]), values["channel"]
        channels.add(channel)
        other = files[key].setdefault(channel, path)
        if other != path:
            imported.skipped.append(
                Skipped(str(path), f"the channel {channel!r} of {key} is {other} already")
            )
    if not files:
        raise ManifestError(f"{folder}: no file fits the pattern {pattern!r}")
    if unmatched:
        imported.notes.append(f"{folder}: the pattern does not fit {listed_names(unmatched, 'file')}")
    if signal not in channels:
        raise ManifestError(
            f"{folder}: no file has the channel {signal!r} (--signal) where the pattern {pattern!r} says {{channel}}; "
            f"there are {', '.join(sorted(channels))}"
        )
    if not structures:
        structures = {channel: structure_from_channel(channel) for channel in sorted(channels - {signal})}
        _refuse_same(structures)
        imported.notes += [f"channel {channel!r}: structure {name}" for channel, name in structures.items()]
    for channel in sorted(set(structures) - channels):
        reason = f"no file has the channel {channel!r} of {structures[channel]}"
        imported.skipped.append(Skipped(str(folder), reason))
    for key in sorted(files, key=str):
        by_channel = files[key]
        signal_file = by_channel.get(signal)
        target_channels = [channel for channel in structures if channel in by_channel]
        if signal_file is None:
            imported.skipped += [
                Skipped(str(by_channel[channel]), f"there is no signal {signal!r} of {key}")
                for channel in sorted(by_channel)
            ]
        elif not target_channels:
            imported.skipped.append(Skipped(str(signal_file), f"there is no target of {key}"))
        else:
            for channel in target_channels:
                imported.rows.append(
                    Row(
                        0, structures[channel], signal_file, None, by_channel[channel], None,
                        group=key.group, voxel_size=voxel_size,
                    )
                )  # fmt: skip
    return imported


def _refuse_same(structures: Mapping[str, str]) -> None:
    names: dict[str, str] = {}
    for channel, name in structures.items():
        if names.setdefault(name, channel) != channel:
            raise ManifestError(
                f"the channels {names[name]!r} and {channel!r} would both be {name}: use --target"
            )


def _expression(pattern: str, channels: list[str]) -> re.Pattern[str]:
    """Return the regular expression of a pattern.

    Raises
    ------
    ManifestError
        If it names something unknown, or lacks ``{id}`` or ``{channel}``.
    """
    parts, place, named = [], 0, set()
    known = "|".join(re.escape(channel) for channel in sorted(channels, key=len, reverse=True))
    for match in _FIELD.finditer(pattern):
        parts.append(re.escape(pattern[place : match.start()]))
        place = match.end()
        name = match[1]
        if match[2]:
            parts.append("[^/]*")
        elif name not in _FIELDS:
            allowed = ", ".join(f"{{{field}}}" for field in _FIELDS)
            raise ManifestError(f"pattern {pattern!r}: {{{name}}} is unknown; known are {allowed} and *")
        elif name in named:
            parts.append(f"(?P={name})")
        else:
            named.add(name)
            parts.append(f"(?P<{name}>{known if name == 'channel' and known else '[^/]+'})")
    parts.append(re.escape(pattern[place:]))
    for name in ("id", "channel"):
        if name not in named:
            raise ManifestError(
                f"pattern {pattern!r}: {{{name}}} is missing; a pattern is such as {{id}}_{{channel}}.tif"
            )
    return re.compile("".join(parts))


def _walk(folder: Path, depth: int) -> list[Path]:
    """Return the files, and folders that may be images, `depth` folders below `folder`."""
    paths: list[Path] = []
    for root, folders, files in os.walk(folder):
        below = len(Path(root).relative_to(folder).parts)
        if below == depth:
            paths += [
                Path(root, name) for name in [*files, *(name for name in folders if name.endswith(".zarr"))]
            ]
            folders.clear()
        folders.sort()
    return sorted(paths)
