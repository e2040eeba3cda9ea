"""Parts that all importers share: imported rows, skipped images, and the writing of the manifest."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from repmode_cl.data.csv_dialect import detect_delimiter
from repmode_cl.data.manifest import Row, read_csv_text, write_manifest
from repmode_cl.errors import ManifestError, StructureError, counted
from repmode_cl.structures import check_structure_name

__all__ = [
    "ImportedRows",
    "Skipped",
    "check_imported",
    "check_targets",
    "listed_names",
    "read_table",
    "skipped_lines",
    "structure_from_channel",
    "write_imported",
]

#: Things that a message lists at most.
_MOST_LISTED = 50
#: Names that a note lists at most.
_MOST_NAMES = 10


@dataclass(frozen=True)
class Skipped:
    """A file, or a line of a list, that cannot be imported.

    Attributes
    ----------
    place
        The file, or the file and its line.
    reason
        Why it cannot be imported.
    """

    place: str
    reason: str

    @classmethod
    def of(cls, path: Path, error: Exception) -> Skipped:
        """Return a file that an error came from, whose message may begin with the file already."""
        return cls(str(path), str(error).removeprefix(f"{path}: "))

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


@dataclass
class ImportedRows:
    """Result of an import.

    Attributes
    ----------
    rows
        Of the manifest.
    skipped
        What cannot be imported: an error, unless the user chooses to continue without it.
    notes
        Remarks for the user.
    """

    rows: list[Row] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def write_imported(
    path: str | Path, imported: ImportedRows, *, keep_going: bool = False, overwrite: bool = False
) -> None:
    """Write the manifest of an import.

    Parameters
    ----------
    path
        The manifest.
    imported
        Its rows.
    keep_going
        Skip what cannot be imported.
    overwrite
        Replace an existing file.

    Raises
    ------
    ManifestError
        If there is nothing to write, something cannot be imported and `keep_going` is not given, or the file exists.
        Nothing is written then.
    """
    check_imported(path, imported, keep_going=keep_going, overwrite=overwrite)
    write_manifest(path, imported.rows)


def check_imported(
    path: str | Path, imported: ImportedRows, *, keep_going: bool = False, overwrite: bool = False
) -> None:
    """Raise what `write_imported` would raise, for importers that write images before the manifest.

    Raises
    ------
    ManifestError
        As `write_imported`.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise ManifestError(f"{path} is there already: choose another name, or give --overwrite")
    if imported.skipped and not keep_going:
        if len(imported.skipped) == 1:
            raise ManifestError(f"{imported.skipped[0]} (--keep-going leaves it out)")
        lines = [f"  {line}" for line in skipped_lines(imported.skipped)]
        count = f"{len(imported.skipped)} things cannot be imported (--keep-going leaves them out):"
        raise ManifestError("\n".join([count, *lines]))
    if not imported.rows:
        why = f"; left out was everything, first {imported.skipped[0]}" if imported.skipped else ""
        raise ManifestError(f"nothing was found that a manifest could list; nothing was written{why}")


def skipped_lines(skipped: Sequence[Skipped]) -> list[str]:
    """Return lines that list what was skipped; files of one folder that share a reason share a line."""
    groups: dict[tuple[Path, str], list[str]] = {}
    for one in skipped:
        place = Path(one.place)
        groups.setdefault((place.parent, one.reason), []).append(place.name)
    lines = []
    for (folder, reason), names in groups.items():
        if len(names) == 1:
            lines.append(f"{folder / names[0]}: {reason}")
        else:
            more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
            listed = ", ".join(names[:_MOST_LISTED]) + more
            lines.append(f"{len(names)} in {folder} ({listed}): {reason}")
    if len(lines) > _MOST_LISTED:
        lines = [*lines[:_MOST_LISTED], f"and {len(lines) - _MOST_LISTED} more lines like these"]
    return lines


def listed_names(names: Sequence[str], what: str) -> str:
    """Return a count with the first names, such as ``2 files (a.txt, b.txt)``."""
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return f"{counted(len(names), what)} ({', '.join(names[:_MOST_NAMES])}{more})"


def structure_from_channel(name: str, option: str = "--target") -> str:
    """Make a structure's name from a channel's: ``EGFP 488`` becomes ``egfp_488``.

    Raises
    ------
    StructureError
        If none can be made from it.
    """
    structure = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    try:
        return check_structure_name(structure)
    except StructureError:
        raise StructureError(
            f"no structure's name can be made of the channel {name!r}: name it, such as {option} dna={name}"
        ) from None


def check_targets(targets: Mapping[str, str] | None) -> dict[str, str]:
    """Check the channels given for structures and return the structure of each channel.

    Raises
    ------
    ManifestError
        If a channel is given twice.
    StructureError
        If a structure's name is not valid.
    """
    structure_of: dict[str, str] = {}
    for structure, channel in (targets or {}).items():
        check_structure_name(structure)
        if channel in structure_of:
            raise ManifestError(
                f"the channel {channel!r} is the target of {structure_of[channel]} and of {structure}"
            )
        structure_of[channel] = structure
    return structure_of


def read_table(path: Path, needed: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Return the lines of a CSV, with their numbers, as values by column.

    Raises
    ------
    ManifestError
        If it cannot be read, lacks a needed column, or a line holds other than one value for each column.
    """
    text, delimiter = detect_delimiter(read_csv_text(path))
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True
    )
    header: list[str] | None = None
    lines: list[tuple[int, dict[str, str]]] = []
    try:
        for cells in reader:
            values = [cell.strip() for cell in cells]
            if not any(values):
                continue
            if header is None:
                header = values
                missing = [name for name in needed if name not in header]
                if missing:
                    raise ManifestError(
                        f"{path}: column {missing[0]!r} is missing; needed are {', '.join(needed)}, and there are "
                        f"{', '.join(map(repr, header))}"
                    )
            elif len(values) != len(header):
                held = f"{counted(len(values), 'value')} for {counted(len(header), 'column')}"
                raise ManifestError(f"{path}, line {reader.line_num}: {held}")
            else:
                lines.append((reader.line_num, dict(zip(header, values, strict=True))))
    except csv.Error as error:
        raise ManifestError(f"{path}, line {reader.line_num}: not readable as CSV ({error})") from None
    if header is None:
        raise ManifestError(f"{path}: the file is empty; needed are the columns {', '.join(needed)}")
    return lines
