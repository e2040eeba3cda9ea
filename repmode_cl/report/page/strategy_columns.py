"""The page's tables of strategies: what they reached and forgot, and what that cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from repmode_cl.report.page.table_cells import DASH, PageTable, TableCell, TableRow, best_of, sortable
from repmode_cl.report.tables import STRATEGY_COLUMNS
from repmode_cl.report.tables.csv_latex import to_csv, to_latex
from repmode_cl.utils.number_format import count_text, forgetting_text, number, seconds_text

__all__ = ["costs_table", "quality_table"]


def quality_table(rows: Sequence[Mapping[str, Any]]) -> PageTable:
    """Return what rows of `strategy_table` say of quality."""
    table = _strategies(rows, _QUALITY)
    return table if not rows else replace(table, caption=_references(rows[0]))


def _references(row: Mapping[str, Any]) -> str:
    if row["multi_net"] is None:
        return ""
    text = f"Forward transfer refers to {row['multi_net']}, the best Multi-Net with the common steps"
    if row["multi_net_all"] not in (None, row["multi_net"]):
        return f"{text}; relative improvement to {row['multi_net_all']}, which has networks for the base too."
    return f"{text}{'' if row['multi_net_all'] is None else ', and so does relative improvement'}."


def costs_table(rows: Sequence[Mapping[str, Any]]) -> PageTable:
    """Return what rows of `strategy_table` say of costs."""
    return _strategies(rows, _COSTS)


@dataclass(frozen=True)
class _Column:
    """A column of strategies: `better` is +1 where a larger value wins, -1 where a smaller one does, 0 for neither."""

    key: str
    heading: str
    meaning: str
    better: int = 1
    digits: int = 3
    signed: bool = False
    text: Callable[[float | None], str] | None = None
    below: Callable[[Mapping[str, Any]], str] = field(default=lambda row: "")


_QUALITY = (
    _Column("final_r2", "R², all", "after the last step, mean over all structures"),
    _Column("added_r2", "R², added", "after the last step, mean over those added to the base"),
    _Column("final_pearson", "Pearson", "after the last step, mean over all structures"),
    _Column("final_mse", "MSE", "after the last step, mean over all structures; lower is better", -1),
    _Column(
        "improvement_r2",
        "Δ R² %",
        "relative improvement of the mean R² over Multi-Net",
        digits=1,
        signed=True,
    ),
    _Column("forgetting_r2", "forgetting", "best earlier R² minus final; positive is worse", -1, signed=True),
    _Column("backward_r2", "backward transfer", "final R² minus that just after learning", signed=True),
    _Column("forward_r2", "forward transfer", "R² just after learning minus Multi-Net's", signed=True),
    _Column(
        "intransigence_r2",
        "intransi\N{SOFT HYPHEN}gence",
        "R² of joint training minus that just after learning; positive is worse",
        -1,
        signed=True,
    ),
    _Column("area_r2", "area under curve", "mean height of the validation R² curve over the budget"),
)

_COSTS = (
    _Column("added_parameters", "parameters", "added per structure after the base", -1, text=count_text),
    _Column(
        "added_bytes", "bytes", "added per structure after the base", -1, text=lambda n: count_text(n, "B")
    ),
    _Column(
        "added_steps",
        "steps",
        "optimiser steps per structure after the base",
        0,
        text=lambda n: count_text(n),
    ),
    _Column(
        "added_seconds",
        "training",
        "wall-clock time per structure after the base; below: of the whole stream",
        -1,
        text=seconds_text,
        below=lambda row: f"{seconds_text(row['train_seconds'])} in all",
    ),
    _Column(
        "added_cpu_seconds",
        "processor time",
        "of training per structure after the base; below: of the whole stream",
        -1,
        text=seconds_text,
        below=lambda row: f"{seconds_text(row['cpu_seconds'])} in all",
    ),
    _Column(
        "peak_memory_bytes",
        "memory",
        "largest while learning what came after the base; below: while learning the base",
        -1,
        text=lambda value: count_text(value, "B"),
        below=lambda row: (
            ""
            if row["base_peak_memory_bytes"] is None
            else f"base {count_text(row['base_peak_memory_bytes'], 'B')}"
        ),
    ),
    _Column(
        "buffer_bytes",
        "kept images",
        "largest size of what is kept of earlier images",
        0,
        text=lambda value: count_text(value, "B"),
        below=lambda row: "" if row["buffer_images"] is None else f"{row['buffer_images']:.0f} images",
    ),
    _Column(
        "kept_bytes",
        "kept besides",
        "largest size of what else is kept: importances, anchors, an old network",
        0,
        text=lambda value: count_text(value, "B"),
    ),
)


def _strategies(rows: Sequence[Mapping[str, Any]], columns: Sequence[_Column]) -> PageTable:
    filled = [column for column in columns if any(row[column.key] is not None for row in rows)]
    best = {column.key: best_of((row[column.key] for row in rows), column.better) for column in filled}
    page_rows = []
    for style, row in enumerate(rows):
        seeds = f"{row['seeds']} seed{'' if row['seeds'] == 1 else 's'}" if row["seeds"] else "unfinished"
        if row["more_steps"] is not None:
            seeds += f", more steps: {row['more_steps']}"
        name = TableCell(row["strategy"], seeds, row["strategy"])
        cells = (_strategy_cell(row, column, best[column.key]) for column in filled)
        page_rows.append(TableRow((name, *cells), style, (style,)))
    keys = {"strategy", "seeds", *(column.key for column in filled)}
    of_quality = columns is _QUALITY
    exported = [
        column
        for column in STRATEGY_COLUMNS
        if column.key in keys or (of_quality and column.key.startswith("added_") and "_r2" in column.key)
    ]
    every = ["strategy", "name", "seeds", "bit_identical", "more_steps"]
    for column in filled:
        every += [column.key, f"{column.key}_ci"]
    if not of_quality:
        besides = ("train_seconds", "cpu_seconds", "base_peak_memory_bytes", "buffer_images")
        every += [key for key in besides if key not in every]
    else:
        every += ["multi_net", "multi_net_all"]
    return PageTable(
        (
            ("strategy", "in the order of the configuration", None),
            *((c.heading, c.meaning, None) for c in filled),
        ),
        tuple(page_rows),
        to_csv(rows, every),
        to_latex(rows, exported),
    )


def _strategy_cell(row: Mapping[str, Any], column: _Column, best: float | None) -> TableCell:
    value, half = row[column.key], row[f"{column.key}_ci"]
    if value is None:
        return TableCell(DASH)
    if column.text is not None:
        text, small = column.text(value), column.below(row)
    else:
        text = ("+" if column.signed and value > 0 else "") + number(value, column.digits)
        small = "" if half is None or math.isnan(half) else f"±{number(half, column.digits)}"
    if column.key == "forgetting_r2" and forgetting_text(row).startswith("0.0"):
        text, small = "0.0", forgetting_text(row).removeprefix("0.0").strip()
    return TableCell(text, small, sortable(value), "best" if value == best else "")
