"""The table of a benchmark, one row per strategy: who learned, who forgot, at what cost.

The terminal, the page and CSV show the same rows, computed here once from results.csv.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repmode_cl.evaluation.matrix import (
    PerformanceMatrix,
    backward_transfer,
    final_average,
    forgetting,
    mean_or_nan,
    performance_matrix,
    relative_improvement,
    summarise,
)
from repmode_cl.evaluation.metrics import HIGHER_IS_BETTER
from repmode_cl.evaluation.results import ResultsTable
from repmode_cl.files import write_text
from repmode_cl.report.run_info import RunInfo

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "strategy_table",
    "render_terminal",
    "seconds_text",
    "summary_lines",
    "write_table_csv",
    "number_text",
    "count_text",
    "forgetting_text",
    "seeds_with_results",
    "QUANTITIES",
]

#: Keys of a row that are numbers, with what they mean. Each has a `<key>_ci` beside it.
QUANTITIES: Mapping[str, str] = {
    "final_r2": "R2 after the last step, averaged over all structures",
    "final_mse": "MSE after the last step, averaged over all structures",
    "final_mae": "MAE after the last step, averaged over all structures",
    "final_pearson": "Pearson's r after the last step, averaged over all structures",
    "added_r2": "R2 after the last step, averaged over the structures that were added to the base",
    "forgetting_r2": "best R2 of earlier steps minus the final one, averaged; positive is worse",
    "forgetting_mse": "final MSE minus the best of earlier steps, averaged; positive is worse",
    "backward_r2": "final R2 minus that just after learning, averaged; positive is better",
    "improvement_r2": "relative improvement of final_r2 over Multi-Net in per cent",
    "improvement_mse": "relative improvement of final_mse over Multi-Net in per cent; positive is better",
    "added_parameters": "parameters added per structure after the base",
    "added_bytes": "bytes added on disk per structure after the base",
    "added_seconds": "training seconds per structure after the base",
    "train_seconds": "training seconds of the whole stream",
    "peak_memory_bytes": "largest memory of the stream",
}


def seeds_with_results(results: ResultsTable, info: RunInfo, title: str) -> tuple[int, ...]:
    """Return the seeds with which the strategy ran to its end, in the order of the run."""
    have = set(results.seeds(title))
    return tuple(seed for seed in info.seeds if seed in have and (title, seed) in info.finished)


def strategy_table(results: ResultsTable, run_info: RunInfo | Mapping[str, Any]) -> list[dict[str, Any]]:
    """Compute the table of a run.

    Parameters
    ----------
    results
        The rows of results.csv.
    run_info
        Contents of run.json. Strategies stand in its order; only seeds named as finished are counted.

    Returns
    -------
    list of dict
        For each strategy ``strategy`` (title), ``name`` (kind), ``seeds`` (number of finished seeds),
        ``bit_identical`` (True, False, or None where not checked), and for each key of `QUANTITIES` the mean
        over seeds, with half the width of its 95% interval as ``<key>_ci`` (None below two seeds). A quantity
        that does not exist is None: forgetting where nothing was added, improvement without Multi-Net. The
        improvement pairs equal seeds.
    """
    info = RunInfo.of(run_info)
    per_seed: dict[str, dict[int, dict[str, float]]] = {
        title: {
            seed: _one_seed(results, info, title, seed) for seed in seeds_with_results(results, info, title)
        }
        for title in info.strategies
    }
    reference = per_seed.get(info.multi_net or "", {})
    rows = []
    for title, by_seed in per_seed.items():
        for seed, numbers in by_seed.items():
            for metric in ("r2", "mse"):
                key = f"final_{metric}"
                if key in numbers and key in reference.get(seed, {}):
                    numbers[f"improvement_{metric}"] = relative_improvement(
                        numbers[key], reference[seed][key], metric
                    )
        row: dict[str, Any] = {
            "strategy": title,
            "name": info.strategies[title],
            "seeds": len(by_seed),
            "bit_identical": info.bit_identical.get(title),
        }
        for key in QUANTITIES:
            values = [numbers[key] for numbers in by_seed.values() if key in numbers]
            summary = summarise(values)
            row[key] = summary.mean if values else None
            row[f"{key}_ci"] = summary.half_width
        rows.append(row)
    return rows


def _one_seed(results: ResultsTable, info: RunInfo, title: str, seed: int) -> dict[str, float]:
    rows = results.select(strategy=title, seed=seed)
    measured = {row.metric for row in rows}
    numbers: dict[str, float] = {}
    for metric in HIGHER_IS_BETTER:
        if metric not in measured:
            continue
        matrix = performance_matrix(results, title, metric, seed, info.experiences)
        numbers[f"final_{metric}"] = final_average(matrix)
        if metric == "r2" and info.added:
            numbers["added_r2"] = final_average(matrix, info.added)
        if metric in ("r2", "mse"):
            _put_mean(numbers, f"forgetting_{metric}", forgetting, matrix)
        if metric == "r2":
            _put_mean(numbers, "backward_r2", backward_transfer, matrix)
    costs = {
        metric: [(row.step, row.value) for row in rows if row.metric == metric]
        for metric in ("added_parameters", "added_bytes", "train_seconds", "peak_memory_bytes")
    }
    for metric, key in {
        "added_parameters": "added_parameters",
        "added_bytes": "added_bytes",
        "train_seconds": "added_seconds",
    }.items():
        added = [value for step, value in costs[metric] if step > 0]
        if added:
            numbers[key] = mean_or_nan(added)
    if costs["train_seconds"]:
        numbers["train_seconds"] = math.fsum(value for _, value in costs["train_seconds"])
    if costs["peak_memory_bytes"]:
        numbers["peak_memory_bytes"] = max(value for _, value in costs["peak_memory_bytes"])
    return numbers


def _put_mean(
    numbers: dict[str, float],
    key: str,
    read: Callable[[PerformanceMatrix], dict[str, float]],
    matrix: PerformanceMatrix,
) -> None:
    per_structure = read(matrix)
    if per_structure:
        numbers[key] = mean_or_nan(per_structure.values())


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
    if value is None:
        return "-"
    text = f"{value:{'+' if sign else ''}.{digits}f}"
    return text if half_width is None else f"{text} ±{half_width:.{digits}f}"


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


def render_terminal(table: Sequence[Mapping[str, Any]], title: str | None = None) -> Table:
    """Return the table for a terminal: print it with a rich console.

    Parameters
    ----------
    table
        Rows of `strategy_table`.
    title
        A line above it.
    """
    from rich import box
    from rich.table import Table

    shown = Table(
        title=title,
        box=box.SIMPLE_HEAD,
        title_justify="left",
        pad_edge=False,
        padding=(0, 1, 0, 0),
        caption="added: per structure after the base"
        + ("; ±: 95% interval over seeds" if any(row["seeds"] > 1 for row in table) else ""),
        caption_justify="left",
    )

    def number(key: str, digits: int, sign: bool = False) -> Callable[[Mapping[str, Any]], str]:
        return lambda row: number_text(row[key], row[f"{key}_ci"], digits, sign)

    # Without MSE, which says for z-scored targets what R2 says: the rest has to fit into 80 characters.
    columns: list[tuple[str, Callable[[Mapping[str, Any]], str]]] = [
        ("R2\n(all)", number("final_r2", 3)),
        ("R2\n(added)", number("added_r2", 3)),
        ("Pearson\n(all)", number("final_pearson", 3)),
        ("forgetting\n(R2)", forgetting_text),
        ("vs Multi-\nNet, %", number("improvement_r2", 1, sign=True)),
        ("params\nadded", lambda row: count_text(row["added_parameters"])),
        ("seconds\nadded", lambda row: number_text(row["added_seconds"], None, 0)),
    ]
    # A column that nothing stands in says nothing.
    columns = [column for column in columns if any(column[1](row) != "-" for row in table)]
    shown.add_column("strategy", overflow="fold")
    for heading, _ in columns:
        shown.add_column(heading, justify="right", overflow="fold")
    for row in table:
        note = "" if row["seeds"] else " (unfinished)"
        # Broken here, because the terminal would break names and words to fit a long cell into 80 characters.
        cells = [text(row).replace(" ±", "\n±").replace(" (", "\n(") for _, text in columns]
        shown.add_row(f"{row['strategy']}{note}", *cells)
    return shown


def summary_lines(table: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return one plain line per finished strategy, for logs and narrow terminals."""
    lines = []
    for row in table:
        if row["seeds"]:
            forgot = "" if row["forgetting_r2"] is None else f", forgetting {forgetting_text(row)}"
            final = number_text(row["final_r2"], row["final_r2_ci"], 3)
            lines.append(f"{row['strategy']}: R2 {final}{forgot}")
    return lines


def write_table_csv(table: Iterable[Mapping[str, Any]], path: str | Path) -> None:
    """Write the rows of `strategy_table` as CSV; what does not exist is left empty."""
    keys = ["strategy", "name", "seeds", "bit_identical"]
    for key in QUANTITIES:
        keys += [key, f"{key}_ci"]
    text = io.StringIO()
    writer = csv.DictWriter(text, keys, lineterminator="\n")
    writer.writeheader()
    for row in table:
        writer.writerow(
            {
                key: "" if row[key] is None else repr(row[key]) if isinstance(row[key], float) else row[key]
                for key in keys
            }
        )
    write_text(path, text.getvalue())
