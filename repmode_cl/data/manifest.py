"""Manifest: a CSV with one row for each pair of an image and a structure, read whole and strictly.

It is the one place where a user states what belongs together, so all mistakes in it are reported at once, each with
its line: a misspelt optional column that is quietly ignored would put test images into training.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from repmode_cl.data.csv_dialect import detect_delimiter
from repmode_cl.data.readers.location import is_url
from repmode_cl.data.readers.region import Region
from repmode_cl.data.readers.registry import image_format
from repmode_cl.errors import ManifestError, RepmodeError, UnknownStructureError, did_you_mean
from repmode_cl.structures import check_structure_name
from repmode_cl.utils.atomic_files import write_text

__all__ = [
    "Manifest",
    "Row",
    "Problem",
    "SPLITS",
    "COLUMNS",
    "read_manifest",
    "parse_manifest",
    "as_written",
    "read_csv_text",
    "write_manifest",
]


SPLITS = ("train", "val", "test")

#: Columns that every manifest has.
REQUIRED = ("structure", "signal", "target")
#: Every known column, in the order they are written.
COLUMNS = (
    "structure", "signal", "signal_channel", "target", "target_channel",
    "split", "group", "region", "mask", "mask_channel", "scene", "t", "voxel_size_zyx", "labels", "labels_channel",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One structure in one image.

    Attributes
    ----------
    number
        Line of the manifest, the header being line 1; 0 for a row that was not read from a file.
    structure
        Name of the structure that the target shows.
    signal, target
        Files of the transmitted light and of the fluorescence.
    signal_channel, target_channel
        Name or number (from 0) of the channel; None where the file has only one. A number is a name first, as
        everything that a user writes (`as_written`).
    split
        "train", "val" or "test"; None leaves it to `repmode_cl.data.splits`.
    group
        Rows of one group stay in one split; None takes the content of the signal image.
    region
        Part of the file that the row stands for, in voxels of the file; None is all of it.
    mask, mask_channel
        Image whose non-zero voxels count in loss and metrics; None counts all.
    scene, t
        Scene (name, or number from 0) and time point (from 0) of the files that hold several.
    voxel_size
        (z, y, x) in um, in place of what the files say.
    labels, labels_channel
        Image with the number of the cell that each voxel belongs to (0 for none); `repmode-cl evaluate` compares cells.
    """

    number: int
    structure: str
    signal: Path
    signal_channel: str | int | None
    target: Path
    target_channel: str | int | None
    split: str | None = None
    group: str | None = None
    region: Region | None = None
    mask: Path | None = None
    scene: int | str | None = None
    t: int | None = None
    voxel_size: tuple[float, float, float] | None = None
    mask_channel: str | int | None = None
    # Not in the text of a row, by which trainings are recognised when they are resumed: they learn nothing from labels.
    labels: Path | None = field(default=None, repr=False)
    labels_channel: str | int | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Problem:
    """One mistake in a manifest, or in an image that it names.

    Attributes
    ----------
    row
        Line of the manifest; 1 is the header, 0 the file as a whole.
    column
        Column concerned, or "" where it is the row as a whole.
    message
        What was found, and what to do.
    severity
        "error", or "warning" for something that a person should look at and that may be in order.
    kind
        Sort of problem, for machines: "manifest" where the line itself is wrong, "image", "split",
        "duplicate", and the names of warnings.
    """

    row: int
    column: str
    message: str
    severity: str = "error"
    kind: str = "manifest"

    def __str__(self) -> str:
        path_text = f"line {self.row}" if self.row else "file"
        return (
            f"{path_text}, {self.column}: {self.message}" if self.column else f"{path_text}: {self.message}"
        )


@dataclass(frozen=True)
class Manifest:
    """The rows of one manifest file."""

    path: Path
    rows: tuple[Row, ...]

    @property
    def structures(self) -> tuple[str, ...]:
        """Names of the structures, in the order they first appear."""
        return tuple(dict.fromkeys(row.structure for row in self.rows))

    def for_structure(self, name: str) -> tuple[Row, ...]:
        """Return the rows of one structure.

        Raises
        ------
        UnknownStructureError
            If no row has it.
        """
        rows = tuple(row for row in self.rows if row.structure == name)
        if not rows:
            raise UnknownStructureError(name, self.structures, f"the manifest {self.path}")
        return rows


def read_manifest(path: str | Path) -> Manifest:
    """Read a manifest; files that rows point to are not opened (see `repmode_cl.data.validation.manifest_check`).

    Comma, semicolon or tab may separate the columns (or what a first line such as ``sep=;`` names), and a byte-order
    mark may stand first, as spreadsheets write it. Relative paths are relative to the manifest's folder.

    Raises
    ------
    ManifestError
        If anything is wrong; the message lists all problems with their lines.
    """
    path = Path(path)
    rows, problems = parse_manifest(path)
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ManifestError(f"{path}: {count}\n{listed}")
    return Manifest(path, tuple(rows))


def parse_manifest(path: str | Path) -> tuple[list[Row], list[Problem]]:
    """Parse a manifest into the rows whose images are understood, and all problems.

    A row with an unknown split, structure or voxel size is among both.

    Raises
    ------
    ManifestError
        If the file cannot be read at all.
    """
    path = Path(path)
    text, delimiter = detect_delimiter(read_csv_text(path))
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True
    )
    rows: list[Row] = []
    problems: list[Problem] = []
    header: list[str] | None = None
    line = 0
    try:
        for cells in reader:
            line, first = reader.line_num, line + 1
            values = [cell.strip() for cell in cells]
            if not any(values):
                continue
            if header is None:
                header = values
                problems += _check_header(header, first)
                if problems:
                    return [], problems
                continue
            if len(values) > len(header) and any(values[len(header) :]):
                message = (
                    f"{len(values)} values for {len(header)} columns; quote values that hold {delimiter!r}"
                )
                problems.append(Problem(first, "", message))
                continue
            fields = dict(zip(header, values, strict=False))
            row, wrong = _parse_row(fields, first, path)
            problems += wrong
            if row is not None:
                rows.append(row)
    except csv.Error as error:
        problems.append(Problem(reader.line_num, "", f"not readable as CSV ({error}); check the quotes"))
    if header is None:
        named = ", ".join(COLUMNS[:5])
        problems.append(Problem(0, "", f"the file is empty; its first line names the columns: {named}"))
    elif not rows and not problems:
        problems.append(Problem(0, "", "there is no row below the header"))
    return rows, problems


def read_csv_text(path: Path) -> str:
    """Return the text of a CSV, without a byte-order mark.

    Raises
    ------
    ManifestError
        If it cannot be read, is an image or a workbook, or is no UTF-8.
    """
    try:
        with path.open("rb") as handle:
            head = handle.read(16)
            # An image may have gigabytes.
            data = head if (kind := image_format(head)) else head + handle.read()
    except FileNotFoundError:
        raise ManifestError(f"{path}: there is no such manifest") from None
    except OSError as error:
        what = f"cannot be read ({error.strerror or error})"
        if path.is_dir():
            what = "this is a folder, not a CSV file"
        raise ManifestError(f"{path}: {what}") from None
    if kind:
        raise ManifestError(
            f"{path}: this is an image ({kind}), not a manifest; a manifest is a table of images, saved as "
            "'CSV UTF-8', and `repmode-cl data import` writes one"
        )
    if head.startswith(b"PK\3\4") or head.startswith(b"\xd0\xcf\x11\xe0"):
        raise ManifestError(f"{path}: this is a workbook or an archive; save the table as 'CSV UTF-8'")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ManifestError(
            f"{path}: not UTF-8 text (byte {error.start}); save it as 'CSV UTF-8' from the spreadsheet"
        ) from None


def _check_header(header: list[str], line: int) -> list[Problem]:
    problems = []
    for name in header:
        if name not in COLUMNS:
            hint = did_you_mean(name, COLUMNS)
            message = f"unknown column {name!r}{hint}; known are {', '.join(COLUMNS)}"
            problems.append(Problem(line, name, message))
    for name in sorted({name for name in header if header.count(name) > 1}):
        problems.append(Problem(line, name, f"column {name!r} stands twice"))
    for name in REQUIRED:
        if name not in header:
            problems.append(Problem(line, name, f"column {name!r} is missing"))
    return problems


def _parse_row(fields: dict[str, str], line: int, path: Path) -> tuple[Row | None, list[Problem]]:
    problems: list[Problem] = []

    def parse_field(column: str, parse: Callable[[str], Any]) -> Any:
        text = fields.get(column, "")
        if not text:
            if column in REQUIRED:
                problems.append(Problem(line, column, "is empty"))
            return None
        try:
            return parse(text)
        except RepmodeError as error:
            problems.append(Problem(line, column, str(error)))
            return None

    def to_path(text: str) -> Path:
        if is_url(text):
            raise ManifestError(
                f"{text!r} is a URL: images to learn from are digested, split and prepared by their content; copy "
                "them, or mount where they lie"
            )
        if "\0" in text:
            raise ManifestError(f"{text!r} is no path: it holds a NUL character")
        return path.parent / text

    row = Row(
        number=line,
        structure=parse_field("structure", check_structure_name) or fields.get("structure", ""),
        signal=parse_field("signal", to_path),
        signal_channel=parse_field("signal_channel", _parse_channel),
        target=parse_field("target", to_path),
        target_channel=parse_field("target_channel", _parse_channel),
        split=parse_field("split", _parse_split),
        group=parse_field("group", str),
        region=parse_field("region", Region.parse),
        mask=parse_field("mask", to_path),
        scene=parse_field("scene", _parse_channel),
        t=parse_field("t", _parse_number),
        voxel_size=parse_field("voxel_size_zyx", _parse_voxel_size),
        mask_channel=parse_field("mask_channel", _parse_channel),
        labels=parse_field("labels", to_path),
        labels_channel=parse_field("labels_channel", _parse_channel),
    )
    if row.mask_channel is not None and not fields.get("mask"):
        problems.append(Problem(line, "mask_channel", "names a channel, but there is no mask"))
    if row.labels_channel is not None and not fields.get("labels"):
        problems.append(Problem(line, "labels_channel", "names a channel, but there are no labels"))
    # A row whose images are known can still be checked; without its region it would be another image.
    harmless = {"structure", "split", "voxel_size_zyx"}
    usable = all(problem.column in harmless for problem in problems)
    return (row if usable else None), problems


def as_written(cell: str | int | None) -> str | None:
    """Return the channel or scene of a row as text, which readers look up as a name before they take it as a number."""
    return None if cell is None else str(cell)


def _parse_channel(text: str) -> str | int:
    # Not "01", which would no longer be the name "01".
    is_number = text.isascii() and text.isdigit() and text == str(int(text))
    return int(text) if is_number else text


def _parse_split(text: str) -> str:
    if text not in SPLITS:
        lower = text.lower()
        hint = " (did you mean 'val'?)" if lower.startswith("val") else did_you_mean(lower, SPLITS)
        raise ManifestError(f"unknown split {text!r}{hint}; allowed are train, val, test, or nothing")
    return text


def _parse_number(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ManifestError(f"{text!r} is no whole number counted from 0")
    return int(text)


def _parse_voxel_size(text: str) -> tuple[float, float, float]:
    parts = text.replace(",", " ").replace(";", " ").split()
    try:
        sizes = tuple(float(part) for part in parts)
    except ValueError:
        sizes = ()
    if len(sizes) != 3 or not all(math.isfinite(size) and size > 0 for size in sizes):
        raise ManifestError(
            f"{text!r} is no voxel size: three positive numbers z y x in um, such as '0.29 0.11 0.11'"
        )
    return sizes[0], sizes[1], sizes[2]


def write_manifest(path: str | Path, rows: Iterable[Row]) -> None:
    """Write rows as a manifest, whole or not at all.

    Optional columns that no row uses are left out. Paths below the manifest's folder are written relative to
    it, with ``/``, so that the folder can be moved as a whole; others are absolute.
    """
    path = Path(path)
    table = [_format_row(row, path.parent) for row in rows]
    used = [name for name in COLUMNS if name in COLUMNS[:5] or any(line[name] for line in table)]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, used, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    write_text(path, text.getvalue())


def _format_row(row: Row, folder: Path) -> dict[str, str]:
    def text(value: object) -> str:
        return "" if value is None else str(value)

    def path_text(file: Path | None) -> str:
        if file is None:
            return ""
        # Not Path.resolve: it would follow links out of the folder that the user sees.
        absolute, root = Path(os.path.abspath(file)), Path(os.path.abspath(folder))  # noqa: PTH100
        return (absolute.relative_to(root) if absolute.is_relative_to(root) else absolute).as_posix()

    return {
        "structure": row.structure,
        "signal": path_text(row.signal),
        "signal_channel": text(row.signal_channel),
        "target": path_text(row.target),
        "target_channel": text(row.target_channel),
        "split": text(row.split),
        "group": text(row.group),
        "region": text(row.region),
        "mask": path_text(row.mask),
        "mask_channel": text(row.mask_channel),
        "scene": text(row.scene),
        "t": text(row.t),
        "voxel_size_zyx": " ".join(repr(float(size)) for size in row.voxel_size or ()),
        "labels": path_text(row.labels),
        "labels_channel": text(row.labels_channel),
    }
