"""The trials of a search as a table: for a terminal, and as a page that needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repmode_cl.report.html import render
from repmode_cl.results.search_table import SearchRow
from repmode_cl.utils.atomic_files import write_text
from repmode_cl.utils.number_format import count_text

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["build_search_report", "edge_lines", "render_search"]

#: What a reader has to know of a winner at the edge.
_EDGE = "at the edge of what was tried: values beyond it may be better"


def build_search_report(
    path: Path, rows: Sequence[SearchRow], *, title: str, rule: str, settings: Sequence[tuple[str, str]]
) -> None:
    """Write the trials of a search as a page.

    Parameters
    ----------
    path
        The page.
    rows
        All trials, by strategy and number.
    title
        Name of the search.
    rule
        What a trial is worth, in words.
    settings
        Facts at the head of the page, as (name, value).
    """
    text = render(
        "search/page.jinja",
        title=title,
        rule=rule,
        settings=settings,
        notes=edge_lines(rows),
        strategies=[
            {"title": title, "keys": list(own[0].values), "rows": [_cells(row) for row in own]}
            for title, own in _by_strategy(rows).items()
        ],
        seeds=list(rows[0].scores) if rows else [],
    )
    write_text(path, text)


def render_search(rows: Sequence[SearchRow], *, rule: str, title: str | None = None) -> Table:
    """Return the trials of a search for a terminal: a line for each strategy, with what was chosen.

    Parameters
    ----------
    rows, rule
        As for `build_search_report`.
    title
        A line above the table.
    """
    from rich import box
    from rich.table import Table

    shown = Table(
        title=title,
        box=box.SIMPLE_HEAD,
        title_justify="left",
        pad_edge=False,
        padding=(0, 1, 0, 0),
        caption=f"R2: {rule}\nsearch.csv has all trials",
        caption_justify="left",
    )
    shown.add_column("strategy", overflow="fold")
    shown.add_column("chosen", overflow="fold")
    for heading in ("R2", "R2 of all trials", "trial"):
        shown.add_column(heading, justify="right", overflow="fold")
    for strategy, own in _by_strategy(rows).items():
        scores = [row.score for row in own if row.score is not None]
        spread = f"{min(scores):.3f} to {max(scores):.3f}" if scores else "diverged"
        best = next((row for row in own if row.chosen), None)
        if best is None:
            shown.add_row(strategy, "none", "-", spread, "-")
            continue
        values = "\n".join(
            f"{key} {value}{' (edge)' if key in best.edges else ''}" for key, value in best.values.items()
        )
        shown.add_row(strategy, values, _score_text(best.score), spread, f"{best.number} of {len(own)}")
    return shown


def edge_lines(rows: Sequence[SearchRow]) -> list[str]:
    """Return a sentence for each winner at the edge of its range."""
    return [f"{row.strategy}: {key} {row.values[key]} is {_EDGE}" for row in rows for key in row.edges]


def _by_strategy(rows: Sequence[SearchRow]) -> dict[str, list[SearchRow]]:
    found: dict[str, list[SearchRow]] = {}
    for row in rows:
        found.setdefault(row.strategy, []).append(row)
    return found


def _cells(row: SearchRow) -> dict[str, Any]:
    return {
        "trial": row.title,
        "chosen": row.chosen,
        "values": [(str(value), key in row.edges) for key, value in row.values.items()],
        "score": _score_text(row.score),
        "scores": [_score_text(score) for score in row.scores.values()],
        "size": count_text(row.size, "B"),
    }


def _score_text(score: float | None) -> str:
    return "diverged" if score is None else f"{score:.4f}"
