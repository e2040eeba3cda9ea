"""Numbers as text, for commands, tables and pages."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

__all__ = [
    "DIVERGED",
    "count_text",
    "difference_text",
    "forgetting_text",
    "number",
    "number_text",
    "p_text",
    "r2_text",
    "seconds_text",
    "title_text",
]


#: Below this R2 a prediction has twice the error of the mean, or more: it diverged, whatever the number.
DIVERGED = -1.0


def title_text(row: Mapping[str, Any]) -> str:
    """Return a strategy's title, with a mark where it had more steps than the others."""
    more = row.get("more_steps")
    return str(row["strategy"]) if more is None else f"{row['strategy']} (more steps: {more})"


def forgetting_text(row: Mapping[str, Any], digits: int = 4) -> str:
    """Return a row's forgetting in words: ``0.0 (bit-identical)`` only where both were found.

    A number that is not exactly 0 is shown as it is, whatever run.json claims.
    """
    value = row["forgetting_r2"]
    if value is None:
        return "-"
    if value == 0.0 and row["forgetting_r2_ci"] in (None, 0.0):
        return "0.0 (bit-identical)" if row["bit_identical"] else "0.0"
    return number_text(value, row["forgetting_r2_ci"], digits, sign=True)


def number_text(value: float | None, half_width: float | None, digits: int, sign: bool = False) -> str:
    """Return a number with its interval, ``0.484 ±0.012``; a dash for what does not exist."""
    if value is None or math.isnan(value):
        return "-"
    text = f"{value:{'+' if sign else ''}.{digits}f}"
    return text if half_width is None or math.isnan(half_width) else f"{text} ±{half_width:.{digits}f}"


def count_text(value: float | None, unit: str = "") -> str:
    """Return a large number with three digits: 1.56 M, 332 k."""
    if value is None:
        return "-"
    if not math.isfinite(value):
        return str(value)
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:
            scaled = value / size
            digits = 0 if scaled >= 99.95 else 1 if scaled >= 9.995 else 2
            return f"{scaled:.{digits}f} {letter}{unit}"
    return f"{value:.0f} {unit}".rstrip()


def seconds_text(value: float | None) -> str:
    """Return a duration: 4.2 s, 34 s, 12 min, 3.1 h; a dash for what does not exist."""
    if value is None:
        return "-"
    if value < 600:
        return f"{value:.0f} s" if value >= 10 else f"{value:.1f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"


def p_text(value: float | None) -> str:
    """Return a p-value: 0.031; a dash for what does not exist."""
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"


def difference_text(row: Mapping[str, Any], digits: int = 3) -> str:
    """Return a comparison's difference with its interval, ``+0.013 [0.008, 0.019]``; a dash for none."""
    if row["difference"] is None or math.isnan(row["difference"]):
        return "-"
    text = f"{row['difference']:+.{digits}f}"
    if row["low"] is None or math.isnan(row["low"]):
        return text
    return f"{text} [{row['low']:.{digits}f}, {row['high']:.{digits}f}]"


def r2_text(value: float, digits: int = 3) -> str:
    """Return an R2 as `number` does; in words where the prediction is so wrong that the number says nothing."""
    return "below \N{MINUS SIGN}1" if value < DIVERGED else number(value, digits)


def number(value: float, digits: int = 2) -> str:
    """Return a number with a true minus sign, and a dash for NaN."""
    if math.isnan(value):
        return "–"  # noqa: RUF001 - what a reader expects in an empty cell
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("-", "\N{MINUS SIGN}")
