"""Tables as CSV, with every digit, and as LaTeX, as a paper prints them."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from repmode_cl.errors import RepmodeError

__all__ = ["Column", "cell_text", "escape_latex", "to_csv", "to_latex"]

RowValues = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """One column of a table that people read.

    Attributes
    ----------
    key
        Of the row.
    heading
        Plain text.
    digits
        Of a float, after the point.
    signed
        Whether numbers above 0 have a plus sign.
    text
        Writes the cell instead, as plain text, from the whole row.
    """

    key: str
    heading: str
    digits: int = 3
    signed: bool = False
    text: Callable[[RowValues], str] | None = None


def cell_text(row: RowValues, column: Column) -> str:
    """Return a cell as plain text; a float with its interval (``<key>_ci``), a dash for what does not exist."""
    if column.text is not None:
        return column.text(row)
    value = row.get(column.key)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, float):
        return str(value)
    text = f"{value:{'+' if column.signed else ''}.{column.digits}f}"
    half = row.get(f"{column.key}_ci")
    return text if half is None or math.isnan(half) else f"{text} ±{half:.{column.digits}f}"


def to_csv(rows: Sequence[RowValues], keys: Sequence[str] | None = None) -> str:
    """Return rows as CSV, floats with all their digits; what does not exist is left empty.

    Parameters
    ----------
    rows
        Of any of the tables.
    keys
        Columns, in order; None takes the keys of all rows in order of appearance.
    """
    if keys is None:
        keys = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(keys)
    for row in rows:
        writer.writerow([_plain(row.get(key)) for key in keys])
    return text.getvalue()


def _plain(value: Any) -> str:
    if value is None:
        return ""
    return repr(float(value)) if isinstance(value, float) else str(value)


def to_latex(rows: Sequence[RowValues], columns: Sequence[Column], caption: str | None = None) -> str:
    """Return rows as a LaTeX table in the style of the package booktabs.

    Parameters
    ----------
    rows
        Of any of the tables.
    columns
        What to show. The first is set flush left, the others right.
    caption
        Plain text; with it the table floats.

    Raises
    ------
    RepmodeError
        If there is no column.
    """
    if not columns:
        raise RepmodeError("a LaTeX table needs at least one column")
    lines = [rf"\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}", r"\toprule"]
    lines += [" & ".join(escape_latex(column.heading) for column in columns) + r" \\", r"\midrule"]
    lines += [" & ".join(_latex(cell_text(row, column)) for column in columns) + r" \\" for row in rows]
    lines += [r"\bottomrule", r"\end{tabular}"]
    if caption is not None:
        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape_latex(caption)}}}",
            *lines,
            r"\end{table}",
        ]
    return "\n".join(lines) + "\n"


#: A number, perhaps with its interval; nothing else is set in mathematics.
_NUMBER = re.compile(r"([+-]?\d+(?:\.\d+)?)(?: ±(\d+(?:\.\d+)?))?")

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "²": r"$^2$",
    "Δ": r"$\Delta$",
    **{mark: f"${mark}$" for mark in "<>|"},
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
}


def escape_latex(text: str) -> str:
    """Return plain text so that LaTeX prints it as it is."""
    # Brackets too: at the beginning of a row LaTeX takes them for the option of the line break before.
    escaped = "".join(_SPECIAL.get(mark, mark) for mark in " ".join(text.split()))
    return f"{{{escaped}}}" if escaped.startswith(("[", "*")) else escaped


def _latex(text: str) -> str:
    if text == "-":
        return "--"
    match = _NUMBER.fullmatch(text)
    if match is None:
        return escape_latex(text)
    return f"${match[1]}$" if match[2] is None else rf"${match[1]} \pm {match[2]}$"
