"""Tables as the page shows them: cells that people read and sort, with the CSV and LaTeX of the whole."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from repmode_cl.utils.number_format import number

__all__ = ["DASH", "TableCell", "TableRow", "PageTable", "best_of", "signed_text", "sortable"]

DASH = "–"  # noqa: RUF001 - what a reader expects in an empty cell


@dataclass(frozen=True)
class TableCell:
    """Cell of a table: its text, the smaller line below it, its value for sorting, and its CSS class."""

    text: str
    small: str = ""
    value: float | str | None = None
    kind: str = ""


@dataclass(frozen=True)
class TableRow:
    """Row of a table: the number of the strategy whose colour it has, all that must be chosen for it, its structure."""

    cells: tuple[TableCell, ...]
    key: int | None = None
    of: tuple[int, ...] = ()
    structure: str = ""


@dataclass(frozen=True)
class PageTable:
    """A table with its files.

    Attributes
    ----------
    columns
        (heading, what it means, number of the strategy that it is about or None).
    """

    columns: tuple[tuple[str, str, int | None], ...]
    rows: tuple[TableRow, ...]
    csv: str
    tex: str
    caption: str = ""

    def data(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "columns": [list(column) for column in self.columns],
            "rows": [
                {
                    "key": row.key,
                    "of": list(row.of),
                    "structure": row.structure,
                    "cells": [[cell.text, cell.small, cell.value, cell.kind] for cell in row.cells],
                }
                for row in self.rows
            ],
            "csv": self.csv,
            "tex": self.tex,
            "caption": self.caption,
        }


def best_of(values: Iterable[float | None], better: int) -> float | None:
    """Return the largest value, with `better` -1 the smallest; None where most are equal, and with `better` 0."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known or not better:
        return None
    best = max(known) if better > 0 else min(known)
    # What most of them have distinguishes none.
    return best if known.count(best) <= len(known) / 2 else None


def sortable(value: float | None) -> float | None:
    """Return what a script sorts a number by; None for what is no number."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.7g}")


def signed_text(value: float | None) -> str:
    """Return a difference with its sign; a dash for what does not exist."""
    if value is None or math.isnan(value):
        return DASH
    return ("+" if value > 0 else "") + number(value, 3)
