"""Table of what became of images that were predicted: CSV, a row for each image and structure."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from repmode_cl.errors import RepmodeError
from repmode_cl.inference.image_task import ImageOutcome
from repmode_cl.inference.options import PredictedFile
from repmode_cl.utils.atomic_files import write_text

__all__ = [
    "TABLE_COLUMNS",
    "EarlierRows",
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
    "prediction",
)

#: Columns of tables of the first version, with which those of all versions begin.
_FIRST_COLUMNS = TABLE_COLUMNS[:10]

_METRICS = ("mse", "mae", "r2", "pearson")
_UNLIKE = ("unlike", "unlike_score", "unlike_limit")

#: Columns that say which image and structure a row is of.
_KEY = ("input", "scene", "t", "structure")
#: Values of these, as text.
_RowKey = tuple[str, str, str, str]


class EarlierRows:
    """Rows of an earlier table: figures of what was predicted then.

    Parameters
    ----------
    rows
        Its rows, of whatever status.
    """

    def __init__(self, rows: Sequence[Mapping[str, str]] = ()) -> None:
        self._rows = [
            row
            for row in rows
            if set(_FIRST_COLUMNS) <= set(row) and row["status"] in ("predicted", "already there")
        ]
        self._by_content = {(row.get("prediction", ""), row["structure"]): row for row in self._rows}

    def of(self, file: PredictedFile) -> Mapping[str, str]:
        """Return the row of the very prediction that a file holds; empty where there is none.

        A table of the first versions does not say what a file held: there it is found by the file's name.
        """
        if row := self._by_content.get((file.uuid, file.structure)):
            return row
        named = [
            row for row in self._rows if (row["output"], row["structure"]) == (str(file.path), file.structure)
        ]
        return named[-1] if named and "prediction" not in named[-1] else {}

    def measured(self, targets: Mapping[str, str | int]) -> frozenset[tuple[str, str]]:
        """Return UUID and structure of the predictions whose figures it has: of these targets and no others."""
        return frozenset(
            (content, name)
            for (content, name), row in self._by_content.items()
            if content and name in targets and row.get("mse") and row.get("target") == str(targets[name])
        )

    def besides(self, written: Collection[_RowKey], planned: Collection[_RowKey]) -> list[Mapping[str, str]]:
        """Return the rows of planned images and structures of which nothing is written yet."""
        keys = {key: row for row in self._rows if (key := _key_of(row)) in planned and key not in written}
        return list(keys.values())


def _key_of(row: Mapping[str, str]) -> _RowKey:
    found, scene, t, structure = (row.get(column) or "" for column in _KEY)
    return found, scene, t, structure


def _row_key(outcome: ImageOutcome, structure: str) -> _RowKey:
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


def read_prediction_table(table: Path) -> EarlierRows:
    """Return the predicted rows of an earlier table; none if it is no such table."""
    try:
        return EarlierRows(list(csv.DictReader(table.read_text(encoding="utf-8").splitlines())))
    except (OSError, ValueError, csv.Error):
        return EarlierRows()


def write_prediction_table(
    table: Path,
    outcomes: Sequence[ImageOutcome],
    structures: Sequence[str],
    earlier: EarlierRows,
    targets: Mapping[str, str | int],
    waiting: Sequence[ImageOutcome] = (),
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
    waiting
        Images whose turn comes later: their earlier rows stay, so that a call that ends early loses no figures.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, TABLE_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for outcome in outcomes:
        files = {file.structure: file for file in outcome.files}
        for name in structures:
            row: dict[str, object] = dict(zip(_KEY, _row_key(outcome, name), strict=True))
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
                    figures = earlier.of(file)
                row |= {column: figures.get(column, "") for column in (*_METRICS, *_UNLIKE, "target")}
                row["prediction"] = file.uuid
            row["seconds"] = f"{outcome.seconds:.2f}"
            writer.writerow(row)
    written, later = (
        {_row_key(one, name) for one in part for name in structures} for part in (outcomes, waiting)
    )
    for kept in earlier.besides(written, later):
        writer.writerow({column: kept.get(column, "") for column in TABLE_COLUMNS})
    write_text(table, text.getvalue())


def _unlike_columns(file: PredictedFile) -> dict[str, object]:
    """Return the columns on how unlike the training images an image is: yes, no, or unknown."""
    score = file.unlike
    if score is None:
        return {"unlike": "unknown"}
    answer = {None: "unknown", True: "yes", False: "no"}[score.unlike]
    limit = "" if score.limit is None else f"{score.limit:.4g}"
    return {"unlike": answer, "unlike_score": f"{score.score:.4g}", "unlike_limit": limit}
