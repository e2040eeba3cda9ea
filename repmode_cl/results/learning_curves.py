"""``learning.csv``: the validation figures of one trial while it learned."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from repmode_cl.utils.atomic_files import write_text

__all__ = ["CURVE", "CURVE_COLUMNS", "read_curve", "write_curve"]

#: Name of the file in a trial's folder.
CURVE = "learning.csv"

CURVE_COLUMNS = ("experience", "structure", "train_step", "metric", "value")


def write_curve(path: Path, curve: Sequence[Mapping[str, Any]]) -> None:
    """Write validation figures as CSV, one number a line.

    Parameters
    ----------
    path
        The file.
    curve
        Rows with the keys `CURVE_COLUMNS`.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, CURVE_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "value": repr(float(row["value"]))} for row in curve)
    write_text(path, text.getvalue())


def read_curve(path: Path) -> list[dict[str, Any]]:
    """Read what `write_curve` wrote.

    Returns
    -------
    list of dict
        Rows with the keys `CURVE_COLUMNS`: whole numbers for experience and train_step, a float for value.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If a column is missing or a line holds something else; the message names it.
    """
    rows = []
    with path.open(encoding="utf-8", newline="") as handle:
        reader = csv.DictReader(handle)
        missing = [column for column in CURVE_COLUMNS if column not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"no column {', '.join(missing)}")
        for row in reader:
            try:
                rows.append(
                    {
                        "experience": int(row["experience"]),
                        "structure": row["structure"],
                        "train_step": int(row["train_step"]),
                        "metric": row["metric"],
                        "value": float(row["value"]),
                    }
                )
            except (TypeError, ValueError) as error:
                raise ValueError(f"line {reader.line_num}: {error}") from error
    return rows
