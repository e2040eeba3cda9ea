"""Table of what became of images that were predicted: CSV, a row for each image and structure."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from repmode_cl.errors import RepmodeError
from repmode_cl.inference.image_task import ImageOutcome
from repmode_cl.inference.options import PredictedFile
from repmode_cl.utils.atomic_files import write_text

__all__ = [
    "TABLE_COLUMNS",
    "RowKey",
    "row_key",
    "check_prediction_table",
    "read_prediction_table",
    "write_prediction_table",
]

#: Columns of the table of results.
TABLE_COLUMNS = (
    "input",
    "structure",
    "output",
    "status",
    "seconds",
    "mse",
    "mae",
    "r2",
    "pearson",
    "message",
    "verdict",
    "unlike",
    "unlike_score",
    "unlike_limit",
    "scene",
    "t",
    "target",
)

#: Columns of tables of the first version, with which those of all versions begin.
_FIRST_COLUMNS = TABLE_COLUMNS[:10]

_METRICS = ("mse", "mae", "r2", "pearson")
_UNLIKE = ("unlike", "unlike_score", "unlike_limit")

#: Input, scene, time point and structure of a row, as text.
RowKey = tuple[str, str, str, str]


def row_key(outcome: ImageOutcome, structure: str) -> RowKey:
    """Return what a row of an outcome is found by."""
    return str(outcome.source), outcome.place, "" if outcome.t is None else str(outcome.t), structure


def check_prediction_table(table: Path) -> None:
    """Refuse a name at which a table of results would replace something else.

    Raises
    ------
    RepmodeError
        If it does not end in .csv, is a folder, or a file that is no table of results is there.
    """
    if table.suffix.lower() != ".csv":
        raise RepmodeError(f"{table}: a table of results ends in .csv")
    if table.is_dir():
        raise RepmodeError(f"{table}: is a folder; give the name of a file")
    if not table.exists():
        return
    with table.open("rb") as file:
        header = file.readline(1000).strip()
    first = ",".join(_FIRST_COLUMNS).encode()
    if header and header != first and not header.startswith(first + b","):
        raise RepmodeError(
            f"{table}: is no table of results, and is not replaced; give another name, or remove it"
        )


def read_prediction_table(table: Path) -> dict[RowKey, dict[str, str]]:
    """Return the predicted rows of an earlier table, by what they are of; none if it is no such table."""
    try:
        rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    except (OSError, ValueError, csv.Error):
        return {}
    return {
        (row["input"], row.get("scene") or "", row.get("t") or "", row["structure"]): row
        for row in rows
        if set(_FIRST_COLUMNS) <= set(row) and row["status"] in ("predicted", "already there")
    }


def write_prediction_table(
    table: Path,
    outcomes: Sequence[ImageOutcome],
    structures: Sequence[str],
    earlier: Mapping[RowKey, Mapping[str, str]],
    targets: Mapping[str, str | int],
) -> None:
    """Write the outcomes of images as CSV, one row for each image and structure, whole or not at all.

    Parameters
    ----------
    table
        The file.
    outcomes
        Of the images so far.
    structures
        Their names.
    earlier
        Rows of an earlier call: figures of its predictions, and the targets that these are of, are copied from there.
    targets
        For each structure whose truth is in the images, its channel.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, TABLE_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for outcome in outcomes:
        files = {file.structure: file for file in outcome.files}
        for name in structures:
            key = row_key(outcome, name)
            row: dict[str, object] = dict(zip(("input", "scene", "t", "structure"), key, strict=True))
            file = files.get(name)
            if file is None:
                row |= {"output": "", "status": "failed", "message": outcome.error}
            else:
                status = "already there" if file.existed else "predicted"
                notes = "; ".join(file.notes + file.trust_notes)
                row |= {"output": str(file.path), "status": status, "message": notes}
                row["verdict"] = "" if file.verdict is None else str(file.verdict.level)
                figures: Mapping[str, object] = {**(file.metrics or {}), **_unlike_columns(file)}
                figures = {**figures, "target": targets.get(name, "")}
                if file.existed:
                    figures = earlier.get(key, {})
                row |= {column: figures.get(column, "") for column in (*_METRICS, *_UNLIKE, "target")}
            row["seconds"] = f"{outcome.seconds:.2f}"
            writer.writerow(row)
    write_text(table, text.getvalue())


def _unlike_columns(file: PredictedFile) -> dict[str, object]:
    """Return the columns on how unlike the training images an image is: yes, no, or unknown."""
    score = file.unlike
    if score is None:
        return {"unlike": "unknown"}
    answer = {None: "unknown", True: "yes", False: "no"}[score.unlike]
    limit = "" if score.limit is None else f"{score.limit:.4g}"
    return {"unlike": answer, "unlike_score": f"{score.score:.4g}", "unlike_limit": limit}
