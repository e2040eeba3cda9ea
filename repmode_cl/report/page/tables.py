"""The page's tables: rows of the run's tables as cells that people read and sort, with the CSV and LaTeX of each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from repmode_cl.errors import RepmodeError
from repmode_cl.evaluation.learning_curve_area import Areas, read_areas
from repmode_cl.metrics import HIGHER_IS_BETTER
from repmode_cl.report.page.chart_data import METRIC_NAMES, evaluated_metrics, readable, stream_label
from repmode_cl.report.page.paper_tables import improvements_table, orders_table
from repmode_cl.report.page.strategy_columns import costs_table, quality_table
from repmode_cl.report.page.table_cells import (
    DASH,
    PageTable,
    TableCell,
    TableRow,
    best_of,
    signed_text,
    sortable,
)
from repmode_cl.report.tables import BUDGET_COLUMNS, COMPARISON_COLUMNS, PLANNED_COLUMNS
from repmode_cl.report.tables.budgets import budget_table
from repmode_cl.report.tables.comparisons import AHEAD, ALL, ALL_ADDED, BEHIND, comparison_table
from repmode_cl.report.tables.csv_latex import to_csv, to_latex
from repmode_cl.report.tables.planned import HOLDS, HOLDS_NOT, planned_table
from repmode_cl.report.tables.strategies import strategy_table
from repmode_cl.report.tables.structures import structure_table, wide_structures
from repmode_cl.results.run_folder import Run
from repmode_cl.utils.number_format import number, p_text, seconds_text

__all__ = ["Scope", "read_curve_areas", "scopes_of", "page_tables", "strategy_rows"]


@dataclass(frozen=True)
class Scope:
    """Streams that tables are about, and the one of them that charts show."""

    label: str
    file: str
    streams: tuple[str, ...]
    charts: str


def scopes_of(run: Run) -> list[Scope]:
    """Return what a reader may choose to see: each group of streams that may be averaged, then each stream."""
    scopes = []
    for name, streams in run.info.stream_groups().items():
        if len(streams) > 1:
            images = f", {stream_label(name)}" if name else ""
            scopes.append(
                Scope(f"all {len(streams)} orders{images}", f"all{name and '-'}{name}", streams, streams[0])
            )
    scopes += [Scope(stream_label(name), name or "stream", (name,), name) for name in run.info.streams]
    return scopes


def read_curve_areas(run: Run) -> Areas:
    """Return the areas under the learning curves; of a run with a damaged curve none, with a note."""
    try:
        return read_areas(run.folder, run.info)
    except RepmodeError as error:
        run.notes.append(f"no areas under learning curves: {error}")
        return {}


def strategy_rows(run: Run, scope: Scope, areas: Areas) -> list[dict[str, Any]]:
    """Return the rows of `strategy_table` for a scope."""
    return strategy_table(run.results, run.info, streams=scope.streams, areas=areas)


def page_tables(run: Run, scopes: Sequence[Scope], areas: Areas) -> dict[str, PageTable]:
    """Return every table of the page, by ``kind|number of the scope|metric`` (no metric: whatever is chosen)."""
    tables: dict[str, PageTable] = {}
    planned = _planned(run)
    for k, scope in enumerate(scopes):
        rows = strategy_rows(run, scope, areas)
        tables[f"strategies|{k}|"] = quality_table(rows)
        tables[f"costs|{k}|"] = costs_table(rows)
        tables[f"paper|{k}|"] = improvements_table(run, scope.streams)
        tables[f"paper_orders|{k}|"] = orders_table(run, scope.streams)
        tables[f"planned|{k}|"] = planned
        for metric in evaluated_metrics(run):
            tables[f"structures|{k}|{metric}"] = _structures(run, scope, metric)
            tables[f"comparisons|{k}|{metric}"] = _comparisons(run, scope, metric)
            tables[f"budgets|{k}|{metric}"] = _budgets(run, scope, metric)
    return {key: table for key, table in tables.items() if table.rows and len(table.columns) > 1}


def _structures(run: Run, scope: Scope, metric: str) -> PageTable:
    long = structure_table(run.results, run.info, metric, streams=scope.streams)
    wide, columns = wide_structures(long)
    keys = {column.heading: column.key for column in columns[1:]}
    titles = [title for title in run.info.strategies if title in keys]
    page_rows = []
    for row in wide:
        best = best_of((row.get(keys[title]) for title in titles), 1 if HIGHER_IS_BETTER[metric] else -1)
        cells = [
            TableCell(
                readable(row["structure"]), "added" if row["added"] else "base", readable(row["structure"])
            )
        ]
        for title in titles:
            value, half = row.get(keys[title]), row.get(f"{keys[title]}_ci")
            small = "" if half is None or math.isnan(half) else f"±{number(half, 3)}"
            kind = "best" if value is not None and value == best else ""
            cells.append(TableCell(DASH if value is None else number(value, 3), small, sortable(value), kind))
        page_rows.append(TableRow(tuple(cells), structure=row["structure"]))
    order = list(run.info.strategies)
    heads = tuple((title, "after the last step, mean over seeds", order.index(title)) for title in titles)
    return PageTable(
        (("structure", "in the order of arrival", None), *heads),
        tuple(page_rows),
        to_csv(long),
        to_latex(wide, columns) if wide else "",
    )


def _comparisons(run: Run, scope: Scope, metric: str) -> PageTable:
    rows = [
        row
        for apart in (False, True)
        for row in comparison_table(run.results, run.info, metric, streams=scope.streams, per_structure=apart)
        if row["seeds"]
    ]
    order = list(run.info.strategies)
    page_rows = [
        TableRow(
            (
                TableCell(row["first"], readable(row["structure"]), row["first"]),
                TableCell(row["second"], "", row["second"], "left"),
                TableCell(
                    signed_text(row["difference"]),
                    "" if row["low"] is None else f"{signed_text(row['low'])} to {signed_text(row['high'])}",
                    sortable(row["difference"]),
                ),
                TableCell(p_text(row["p"]), f"Holm {p_text(row['p_holm'])}", sortable(row["p"])),
                TableCell(
                    str(row["seeds"]) + (f" x {row['orders']} orders" if row["orders"] > 1 else ""),
                    DASH if row["seeds_needed"] is None else f"{row['seeds_needed']} needed",
                    row["seeds"],
                ),
                TableCell(
                    row["verdict"], _corrected(row), row["verdict"], f"left {_verdict_kind(row['verdict'])}"
                ),
            ),
            order.index(row["first"]),
            (order.index(row["first"]), order.index(row["second"])),
            "" if row["structure"] in (ALL_ADDED, ALL) else row["structure"],
        )
        for row in rows
    ]
    name, averages = METRIC_NAMES[metric], sum(not row.structure for row in page_rows)
    orders = any(row["orders"] > 1 for row in rows)
    units = "seed, order and structure" if orders else "seed and structure"
    caption = (
        f"Differences of final {name}, turned so that above 0 the first is better, paired by {units}; "
        f"95% intervals from 10,000 bootstrap draws of whole seeds{' and of whole orders' if orders else ''}; "
        "two-sided p of the sign-flip test over seeds"
        f"{', or of that bootstrap where it is larger' if orders else ''}; "
        f"Holm: corrected over the {averages} averages, or for a structure chosen, over all "
        f"{len(page_rows) - averages} of them. Needed: seeds for the test to get below 0.05 at all, and to find a "
        "difference of this size and spread with a probability of 80%."
    )
    heads = ("strategy", "against", "difference", "p", "seeds", "verdict")
    meanings = (
        "",
        "",
        "above 0: the first is better; below: 95% interval",
        "two-sided",
        "that both finished",
        "",
    )
    return PageTable(
        tuple(zip(heads, meanings, (None,) * 6, strict=True)),
        tuple(page_rows),
        to_csv(rows),
        to_latex(rows, COMPARISON_COLUMNS),
        caption,
    )


def _corrected(row: Mapping[str, Any]) -> str:
    if row["verdict"] not in (AHEAD, BEHIND):
        return ""
    return "after correction too" if row["holds_corrected"] else "not after correction"


def _verdict_kind(verdict: str) -> str:
    return {AHEAD: "ahead", BEHIND: "behind"}.get(verdict, "unclear")


def _planned(run: Run) -> PageTable:
    """Return the table of planned comparisons, which name their own streams: the same for every scope."""
    rows = planned_table(run.results, run.info)
    order = list(run.info.strategies)
    kinds = {HOLDS: "ahead", HOLDS_NOT: "behind"}
    page_rows = [
        TableRow(
            (
                TableCell(row["claim"], "", row["claim"]),
                TableCell(
                    DASH if row["difference"] is None else signed_text(row["difference"]),
                    "" if row["low"] is None else f"{signed_text(row['low'])} to {signed_text(row['high'])}",
                    sortable(row["difference"]),
                ),
                TableCell(
                    DASH if row["p_holm"] is None else p_text(row["p_holm"]),
                    "" if row["p"] is None else f"by itself {p_text(row['p'])}",
                    sortable(row["p_holm"]),
                ),
                *(
                    TableCell(DASH if row[key] is None else f"{100 * row[key]:.0f} %", "", sortable(row[key]))
                    for key in ("bytes_share", "seconds_share")
                ),
                TableCell(str(row["seeds"]), "", row["seeds"]),
                TableCell(row["verdict"], "", row["verdict"], f"left {kinds.get(row['verdict'], 'unclear')}"),
            ),
            order.index(row["first"]),
            (order.index(row["first"]), order.index(row["second"])),
        )
        for row in rows
    ]
    heads = ("claim", "difference", "p (Holm)", "bytes", "seconds", "seeds", "verdict")
    meanings = (
        "as the configuration has it",
        "of R² of the structures after the base; below: 95% interval",
        "corrected over the planned claims of being ahead",
        "of an added structure, as a share of the second's",
        "processor time of an added structure, as a share of the second's",
        "that both finished",
        "",
    )
    return PageTable(
        tuple(zip(heads, meanings, (None,) * 7, strict=True)),
        tuple(page_rows),
        to_csv(rows),
        to_latex(rows, PLANNED_COLUMNS),
    )


def _budgets(run: Run, scope: Scope, metric: str) -> PageTable:
    rows = budget_table(run.results, run.info, metric, streams=scope.streams)
    # A run in which nothing has another budget has nothing to say here.
    if not any(";" in row["tried"] for row in rows):
        rows = []
    order = list(run.info.strategies)
    page_rows = []
    for row in rows:
        key = order.index(row["family"]) if row["family"] in order else None
        page_rows.append(
            TableRow(
                (
                    TableCell(row["family"], readable(row["structure"]), row["family"]),
                    TableCell(number(row["target"], 3), "", sortable(row["target"])),
                    *_reached(row),
                    TableCell("; ".join(row["tried"].split("; ")), "", None, "left tried"),
                ),
                key,
                () if key is None else (key,),
                "" if row["structure"] in (ALL_ADDED, ALL) else row["structure"],
            )
        )
    clock = next((row["clock"] for row in rows), "processor")
    goal = next((row["multi_net"] for row in rows), "")
    caption = (
        "Each budget is a separate run with a whole schedule, not the middle of a longer one. The smallest whose "
        f"{METRIC_NAMES[metric]} just after learning, averaged over the added structures, is at least that of "
        f"{goal}, the best Multi-Net with the common steps; seconds are {clock} time per structure."
    )
    heads = (
        ("strategy", "with every budget that was tried"),
        ("Multi-Net", "what is to be reached"),
        ("steps", "the smallest budget that reaches it; below: share of Multi-Net's"),
        ("seconds", "of that budget; below: share of Multi-Net's"),
        ("reached", "its value; below: whether all larger budgets reach it too"),
        ("tried", "steps: value"),
    )
    return PageTable(
        tuple((heading, meaning, None) for heading, meaning in heads),
        tuple(page_rows),
        to_csv(rows),
        to_latex(rows, BUDGET_COLUMNS),
        caption,
    )


def _reached(row: Mapping[str, Any]) -> tuple[TableCell, TableCell, TableCell]:
    if row["steps"] is None:
        return TableCell("none", "", None, "unclear"), TableCell(DASH), TableCell(DASH)

    def share(key: str) -> str:
        return "" if row[key] is None else f"{100 * row[key]:.0f} %"

    return (
        TableCell(f"{row['steps']:.0f}", share("steps_share"), sortable(row["steps"])),
        TableCell(seconds_text(row["seconds"]), share("seconds_share"), sortable(row["seconds"])),
        TableCell(number(row["value"], 3), "" if row["steady"] else "not steady", sortable(row["value"])),
    )
