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

__all__ = ["ImportedRows", "check_targets", "read_table", "structure_from_channel", "write_imported"]

#: Things that a message lists at most.
_MOST_LISTED = 50


@dataclass
class ImportedRows:
    """Result of an import.

    Attributes
    ----------
    rows
        Of the manifest.
    skipped
        What cannot be imported, one sentence each: an error, unless the user chooses to continue without it.
    notes
        Remarks for the user.
    """

    rows: list[Row] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def write_imported(
    path: str | Path, found: ImportedRows, *, keep_going: bool = False, overwrite: bool = False
) -> None:
    """Write the manifest of an import.

    Parameters
    ----------
    path
        The manifest.
    found
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
    path = Path(path)
    if path.exists() and not overwrite:
        raise ManifestError(f"{path} is there already: choose another name, or give --overwrite")
    if found.skipped and not keep_going:
        more = (
            [f"  and {len(found.skipped) - _MOST_LISTED} more"] if len(found.skipped) > _MOST_LISTED else []
        )
        lines = [f"  {what}" for what in found.skipped[:_MOST_LISTED]] + more
        raise ManifestError(
            "\n".join(
                [f"{len(found.skipped)} things cannot be taken (--keep-going leaves them out):", *lines]
                if len(found.skipped) > 1
                else [f"{found.skipped[0]} (--keep-going leaves it out)"]
            )
        )
    if not found.rows:
        why = "; left out was everything, first " + found.skipped[0] if found.skipped else ""
        raise ManifestError(f"nothing was found that a manifest could list; nothing was written{why}")
    write_manifest(path, found.rows)


def structure_from_channel(name: str, option: str = "--target") -> str:
    """Make a structure's name from a channel's: ``EGFP 488`` becomes ``egfp_488``.

    Raises
    ------
    StructureError
        If none can be made from it.
    """
    made = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    try:
        return check_structure_name(made)
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
    found: dict[str, str] = {}
    for structure, channel in (targets or {}).items():
        check_structure_name(structure)
        if channel in found:
            raise ManifestError(
                f"the channel {channel!r} is the target of {found[channel]} and of {structure}"
            )
        found[channel] = structure
    return found


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
