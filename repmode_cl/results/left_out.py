"""``left_out.csv``: rows of the manifest that a run does without, with the reason."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from repmode_cl.utils.atomic_files import write_text

__all__ = ["LEFT_OUT", "read_left_out", "write_left_out"]

#: Name of the file in a run's folder.
LEFT_OUT = "left_out.csv"


def write_left_out(folder: Path, rows: Iterable[tuple[int, str]]) -> None:
    """Write line of the manifest and reason of each row; without rows, remove the file."""
    rows = sorted(rows)
    if not rows:
        # An earlier attempt may have written it, before the images were corrected.
        (folder / LEFT_OUT).unlink(missing_ok=True)
        return
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([("line", "reason"), *rows])
    write_text(folder / LEFT_OUT, text.getvalue())


def read_left_out(folder: Path) -> list[tuple[int, str]]:
    """Return line and reason of each row that the run in `folder` does without."""
    path = folder / LEFT_OUT
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as handle:
        return [(int(row["line"]), row["reason"]) for row in csv.DictReader(handle)]
