"""``search.csv``: every trial of a search, what it is worth, and which was chosen."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from repmode_cl.utils.atomic_files import write_text

__all__ = ["SEARCH_TABLE", "SearchRow", "write_search_table"]

#: Name of the file in the search's folder.
SEARCH_TABLE = "search.csv"


@dataclass(frozen=True)
class SearchRow:
    """One trial of a search.

    Attributes
    ----------
    strategy
        Title of the strategy.
    number
        Number of the trial among those of the strategy, from 0.
    title
        Its title in the search's run: its folder, and its name in results.csv.
    values
        Key -> the value that it tried.
    score
        What it is worth, the mean over seeds and streams; None where its training diverged.
    scores
        Seed -> the mean over streams; None where it diverged.
    size
        Bytes that it costs; they decide where two trials are worth the same.
    chosen
        Whether it is the best of its strategy.
    edges
        Keys of which the chosen value lies at the edge of what was tried; empty for other trials.
    """

    strategy: str
    number: int
    title: str
    values: Mapping[str, bool | int | float | str]
    score: float | None
    scores: Mapping[int, float | None] = field(default_factory=dict)
    size: int = 0
    chosen: bool = False
    edges: tuple[str, ...] = ()


def write_search_table(path: Path, rows: Sequence[SearchRow]) -> None:
    """Write trials as CSV: one a line, a column for each seed and for each key that any strategy tried.

    Parameters
    ----------
    path
        The file.
    rows
        Trials. Numbers are written with all their digits; what does not exist is left empty.
    """
    keys = list(dict.fromkeys(key for row in rows for key in row.values))
    seeds = list(dict.fromkeys(seed for row in rows for seed in row.scores))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [
            *("strategy", "trial", "title", "chosen", "edge", "score"),
            *(f"score_seed_{seed}" for seed in seeds),
            *("bytes", *keys),
        ]
    )
    for row in rows:
        writer.writerow(
            [
                *(row.strategy, row.number, row.title, "yes" if row.chosen else "", " ".join(row.edges)),
                *(_cell(score) for score in (row.score, *(row.scores.get(seed) for seed in seeds))),
                *(row.size, *(_cell(row.values.get(key)) for key in keys)),
            ]
        )
    write_text(path, text.getvalue())


def _cell(value: bool | int | float | str | None) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)
