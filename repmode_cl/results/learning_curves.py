"""learning.csv of each run of a strategy: validation figures while it learned."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from repmode_cl.utils.atomic_files import write_text

__all__ = ["write_curve"]


CURVE_COLUMNS = ("experience", "structure", "train_step", "metric", "value")


def write_curve(path: Path, curve: Sequence[Mapping[str, Any]]) -> None:
    """Write validation figures as CSV, one number a line."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, CURVE_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "value": repr(float(row["value"]))} for row in curve)
    write_text(path, text.getvalue())
