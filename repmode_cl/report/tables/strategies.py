"""The table of a benchmark, one row per strategy: who learned, who forgot, at what cost.

The terminal, the page, CSV and LaTeX show the same rows, computed here once from results.csv.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from repmode_cl.evaluation.performance_matrix import (
    PerformanceMatrix,
    backward_transfer,
    final_average,
    forgetting,
    mean_or_nan,
    performance_matrix,
    relative_improvement,
    summarise,
)
from repmode_cl.evaluation.seeds_and_orders import summarise_trials
from repmode_cl.evaluation.transfer import forward_transfer, intransigence, learned_values
from repmode_cl.metrics import HIGHER_IS_BETTER
from repmode_cl.report.tables.csv_latex import to_csv
from repmode_cl.report.tables.multi_net_reference import References, references
from repmode_cl.report.tables.selection import are_orders, chosen_streams, seeds_with_results
from repmode_cl.results.results_table import Result, ResultsTable
from repmode_cl.results.run_info import RunInfo
from repmode_cl.results.trial_record import Trial
from repmode_cl.utils.atomic_files import write_text

__all__ = ["strategy_table", "write_table_csv", "QUANTITIES", "csv_keys"]


#: Keys of a row that are numbers, with what they mean. Each comes with a `<key>_ci`.
QUANTITIES: Mapping[str, str] = {
    "final_r2": "R2 after the last step, averaged over all structures",
    "final_mse": "MSE after the last step, averaged over all structures",
    "final_mae": "MAE after the last step, averaged over all structures",
    "final_pearson": "Pearson's r after the last step, averaged over all structures",
    "added_r2": "R2 after the last step, averaged over the structures that were added to the base",
    "added_mse": "MSE after the last step, averaged over the structures that were added to the base",
    "added_pearson": "Pearson's r after the last step, averaged over the structures that were added to the base",
    "learned_r2": "R2 just after learning, averaged over the structures that were added to the base",
    "forgetting_r2": "best R2 of earlier steps minus the final one, averaged; positive is worse",
    "forgetting_mse": "final MSE minus the best of earlier steps, averaged; positive is worse",
    "backward_r2": "final R2 minus that just after learning, averaged; positive is better",
    "forward_r2": "R2 just after learning minus Multi-Net's, averaged over those added; positive is better",
    "intransigence_r2": "joint training's R2 minus that just after learning, averaged over those added; "
    "positive is worse",
    "area_r2": "mean height of the validation R2 curve over the budget, averaged over those added",
    "improvement_r2": "relative improvement of final_r2 over Multi-Net in per cent",
    "improvement_mse": "relative improvement of final_mse over Multi-Net in per cent; positive is better",
    "added_parameters": "parameters added per structure after the base",
    "added_bytes": "bytes added on disk per structure after the base",
    "added_steps": "training steps per structure after the base",
    "added_seconds": "training seconds per structure after the base",
    "added_cpu_seconds": "processor seconds of training per structure after the base",
    "train_seconds": "training seconds of the whole stream",
    "cpu_seconds": "processor seconds of training of the whole stream",
    "peak_memory_bytes": "largest memory of the steps after the base",
    "base_peak_memory_bytes": "largest memory while the base was trained",
    "buffer_bytes": "largest size of what is kept of earlier images",
    "buffer_images": "largest number of images that something is kept of",
    "kept_bytes": "largest size of what else is kept: importances, anchors, an old network",
}

#: Cost metric -> key of its mean per structure after the base.
_PER_ADDED = {
    "added_parameters": "added_parameters",
    "added_bytes": "added_bytes",
    "steps": "added_steps",
    "train_seconds": "added_seconds",
    "cpu_seconds": "added_cpu_seconds",
}


def strategy_table(
    results: ResultsTable,
    run_info: RunInfo | Mapping[str, Any],
    *,
    streams: Collection[str] | None = None,
    areas: Mapping[Trial, Mapping[tuple[int, str], float]] | None = None,
    multi_net: str | None = None,
) -> list[dict[str, Any]]:
    """Compute the table of a run.

    Parameters
    ----------
    results
        The rows of results.csv.
    run_info
        Contents of run.json. Strategies stand in its order; only seeds named as finished are counted.
    streams
        Streams to average over, within each seed; None takes those of `chosen_streams`. A seed counts where all
        of them are finished.
    areas
        Areas under learning curves (`repmode_cl.evaluation.learning_curve_area.read_areas`).
    multi_net
        Title of the Multi-Net that improvement and forward transfer refer to; None takes the best one by R2
        (`references`).

    Returns
    -------
    list of dict
        For each strategy ``strategy`` (title), ``name`` (kind), ``seeds`` (number of finished seeds),
        ``orders`` (above 1: intervals are over seeds and orders, see `summarise_trials`), ``bit_identical`` (True,
        False, or None where not checked), ``more_steps`` (those of each experience, where they are more than the run's
        common ones; else None), and for each key of `QUANTITIES` the mean over seeds, with half the width of its 95%
        interval as ``<key>_ci`` (None below two seeds). A quantity that does not exist is None: forgetting where
        nothing was added, improvement and forward transfer without Multi-Net, intransigence without joint training.
        These pair equal seeds and streams. In every row
        ``multi_net`` is the title that forward transfer refers to, and ``multi_net_all`` the one that improvement
        does, which has networks for all structures.
    """
    info = RunInfo.of(run_info)
    chosen = chosen_streams(info, streams)
    against = references(results, info, streams=chosen, named=multi_net)
    units = _Units(results, info, areas or {}, against)
    orders = are_orders(info, chosen)
    rows = []
    for title in info.strategies:
        row: dict[str, Any] = {
            "strategy": title,
            "name": info.strategies[title],
            "seeds": 0,
            "orders": len(chosen) if orders else 1,
            "bit_identical": info.bit_identical.get(title),
            "more_steps": info.more_steps(title),
            "multi_net": against.added,
            "multi_net_all": against.whole,
        }
        by_trial = [
            [units.numbers(title, stream, seed) for stream in chosen]
            for seed in seeds_with_results(results, info, title, chosen)
        ]
        row["seeds"] = len(by_trial)
        for key in QUANTITIES:
            # Of a seed what it has with all streams.
            values = [
                [numbers[key] for numbers in of_streams]
                for of_streams in by_trial
                if all(key in numbers for numbers in of_streams)
            ]
            summary = summarise_trials(values) if orders and values else summarise(map(_mean, values))
            row[key] = summary.mean if values else None
            row[f"{key}_ci"] = summary.half_width
        rows.append(row)
    return rows


def _mean(values: list[float]) -> float:
    """Average over streams."""
    return mean_or_nan(values) if len(values) > 1 else values[0]


class _Units:
    """Numbers of single runs; matrices of the references are needed again and again."""

    def __init__(
        self,
        results: ResultsTable,
        info: RunInfo,
        areas: Mapping[Trial, Mapping[tuple[int, str], float]],
        against: References,
    ) -> None:
        self.results, self.info, self.areas, self.against = results, info, areas, against
        self._matrices: dict[tuple[str, str, str, int], PerformanceMatrix | None] = {}

    def matrix(self, metric: str, title: str | None, stream: str, seed: int) -> PerformanceMatrix | None:
        """Return the matrix of a finished run that has the metric, else None."""
        if title is None or Trial(title, stream, seed) not in self.info.finished:
            return None
        key = (metric, title, stream, seed)
        if key not in self._matrices:
            known = self.results.select(strategy=title, stream=stream, seed=seed, metric=metric)
            experiences = self.info.streams[stream]
            self._matrices[key] = (
                performance_matrix(self.results, title, metric, seed, experiences, stream) if known else None
            )
        return self._matrices[key]

    def numbers(self, title: str, stream: str, seed: int) -> dict[str, float]:
        """Return what exists of `QUANTITIES` for one run."""
        added = self.info.added_of(stream)
        numbers: dict[str, float] = {}
        for metric in HIGHER_IS_BETTER:
            matrix = self.matrix(metric, title, stream, seed)
            if matrix is None:
                continue
            # An average over only some of the structures would not compare with the others'.
            whole = set(self.info.structures_of(stream)) <= set(matrix.structures)
            if whole:
                numbers[f"final_{metric}"] = final_average(matrix)
            complete = set(added) <= set(matrix.structures)
            if metric != "mae" and added and complete:
                numbers[f"added_{metric}"] = final_average(matrix, added)
            if metric in ("r2", "mse"):
                _put_mean(numbers, f"forgetting_{metric}", forgetting(matrix))
                reference = self.matrix(metric, self.against.whole, stream, seed)
                if whole and reference is not None and set(reference.structures) == set(matrix.structures):
                    numbers[f"improvement_{metric}"] = relative_improvement(
                        numbers[f"final_{metric}"], final_average(reference), metric
                    )
            if metric == "r2":
                _put_mean(numbers, "backward_r2", backward_transfer(matrix))
                if complete:
                    self._put_learning(numbers, matrix, title, stream, seed, added)
        rows = self.results.select(strategy=title, stream=stream, seed=seed)
        # Joint training adds nothing: what it learned in its one step is the whole stream.
        _put_costs(numbers, rows, 0 if title in self.info.joint_titles else len(added))
        return numbers

    def _put_learning(
        self,
        numbers: dict[str, float],
        matrix: PerformanceMatrix,
        title: str,
        stream: str,
        seed: int,
        added: Collection[str],
    ) -> None:
        _put_mean(numbers, "learned_r2", learned_values(matrix), added)
        multi_net = self.matrix("r2", self.against.added, stream, seed)
        if multi_net is not None:
            _put_mean(numbers, "forward_r2", forward_transfer(matrix, multi_net), added)
        joint = self.matrix("r2", self.info.joint, stream, seed)
        if joint is not None:
            _put_mean(numbers, "intransigence_r2", intransigence(matrix, joint), added)
        experiences = self.info.streams[stream]
        if title not in self.info.joint_titles:  # its curve is that of another, longer training
            under = {
                f"{step} {name}": area
                for (step, name), area in self.areas.get(Trial(title, stream, seed), {}).items()
                if 0 < step < len(experiences) and name in experiences[step]
            }
            _put_mean(numbers, "area_r2", under)


def _put_mean(
    numbers: dict[str, float],
    key: str,
    per_structure: Mapping[str, float],
    names: Collection[str] | None = None,
) -> None:
    values = [value for name, value in per_structure.items() if names is None or name in names]
    if values:
        numbers[key] = mean_or_nan(values)


def _put_costs(numbers: dict[str, float], rows: Iterable[Result], added: int) -> None:
    costs: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        costs.setdefault(row.metric, []).append((row.step, row.value))
    for metric, key in _PER_ADDED.items():
        later = [value for step, value in costs.get(metric, ()) if step > 0]
        if later and added:
            numbers[key] = math.fsum(later) / added
    # The base is often larger, and taken from another strategy: its memory says nothing of what adding takes.
    memory = costs.pop("peak_memory_bytes", [])
    for key, values in (
        ("peak_memory_bytes", [value for step, value in memory if step > 0]),
        ("base_peak_memory_bytes", [value for step, value in memory if step == 0]),
    ):
        if values:
            numbers[key] = max(values)
    whole: tuple[tuple[str, Callable[[Iterable[float]], float]], ...] = (
        ("train_seconds", math.fsum),
        ("cpu_seconds", math.fsum),
        ("buffer_bytes", max),
        ("buffer_images", max),
        ("kept_bytes", max),
    )
    for metric, read in whole:
        if metric in costs:
            numbers[metric] = read([value for _, value in costs[metric]])


def csv_keys() -> list[str]:
    """Return the columns of rows of `strategy_table` as a file has them."""
    keys = ["strategy", "name", "seeds", "orders", "bit_identical", "more_steps"]
    keys += [part for key in QUANTITIES for part in (key, f"{key}_ci")]
    return [*keys, "multi_net", "multi_net_all"]


def write_table_csv(table: Iterable[Mapping[str, Any]], path: str | Path) -> None:
    """Write the rows of `strategy_table` as CSV; what does not exist is left empty."""
    write_text(path, to_csv(list(table), csv_keys()))
