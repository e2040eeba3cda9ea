"""Difficulty of each structure: a stored R2, by which a stream may be sorted."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from repmode_cl.data.csv_dialect import detect_delimiter
from repmode_cl.errors import ConfigError

__all__ = ["read_difficulty"]

_COLUMNS = ("structure", "r2")


def read_difficulty(path: str | Path | None, structures: Sequence[str]) -> dict[str, float]:
    """Read the R2 of each of `structures` from a table of difficulty; the higher, the easier.

    Parameters
    ----------
    path
        CSV with the columns ``structure`` and ``r2``, separated as in a manifest; others are not read, nor lines that
        begin with ``#``.
        ``None`` reads the table that comes with the package, measured on simulated images.
    structures
        Structures that the table must have.

    Raises
    ------
    ConfigError
        If the file cannot be read, a column or a structure is missing or given twice, or a value is no finite
        number.
    """
    if path is None:
        shipped = resources.files("repmode_cl.configs") / "difficulty.csv"
        text, source = shipped.read_text(encoding="utf-8"), "the shipped difficulty.csv"
    else:
        source = f"stream.difficulty {path}"
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{source} cannot be read: {error}") from error
    lines = ("" if line.lstrip().startswith("#") else line for line in text.splitlines())
    text, separator = detect_delimiter("\n".join(lines))
    rows = [
        (number, [field.strip() for field in next(csv.reader([line], delimiter=separator))])
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip()
    ]
    columns = rows[0][1] if rows else []
    if missing := [column for column in _COLUMNS if column not in columns]:
        raise ConfigError(
            f"{source}: no column {' and '.join(missing)}; the first line must name structure and r2, and "
            f"names {', '.join(columns) or 'nothing'}"
        )
    r2_of: dict[str, float] = {}
    for number, fields in rows[1:]:
        row = dict(zip(columns, fields, strict=False))
        name, value = row.get("structure", ""), row.get("r2", "")
        if name in r2_of:
            raise ConfigError(f"{source}, line {number}: {name} stands twice")
        try:
            r2_of[name] = float(value)
        except ValueError:
            r2_of[name] = math.nan
        if not math.isfinite(r2_of[name]):
            raise ConfigError(
                f"{source}, line {number}: the r2 of {name or 'a structure'} is {value!r}: a finite number is needed"
            )
    if absent := list(dict.fromkeys(name for name in structures if name not in r2_of)):
        raise ConfigError(
            f"{source}: no r2 of {', '.join(absent)}, by which the stream is sorted; it has "
            f"{', '.join(r2_of) or 'none'}: add a line for each, or name another file in stream.difficulty"
        )
    return {name: r2_of[name] for name in structures}
