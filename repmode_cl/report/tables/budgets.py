"""The table of budgets: how many steps and seconds suffice for what Multi-Net reaches with all of them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from repmode_cl.evaluation.paired_differences import (
    Values,
    paired_differences,
    paired_trials,
    structure_values,
    trial_values,
)
from repmode_cl.evaluation.performance_matrix import mean_or_nan
from repmode_cl.evaluation.seeds_and_orders import compare_trials
from repmode_cl.evaluation.significance import PairedComparison, compare
from repmode_cl.evaluation.steps_to_target import TriedBudget, cost_per_structure, is_steady, smallest_budget
from repmode_cl.report.tables.comparisons import ALL_ADDED
from repmode_cl.report.tables.multi_net_reference import references
from repmode_cl.report.tables.selection import are_orders, chosen_streams, seeds_with_results
from repmode_cl.results.results_table import ResultsTable
from repmode_cl.results.run_info import RunInfo

__all__ = ["budget_families", "budget_table"]

#: Options that do not make another strategy of one that was trained with another budget.
_FREE = ("steps", "label")


def budget_families(info: RunInfo) -> dict[str, tuple[str, ...]]:
    """Return the strategies that differ only in their steps, by the title of the one with the common number.

    Joint training, which has no added structures, is left out. In files that hold no options, each strategy is
    a family by itself. Where what a title leaves without its number of steps names another family, it is kept whole.
    """
    members: dict[str, list[str]] = {}
    for title, kind in info.strategies.items():
        options = info.options.get(title)
        if title not in info.joint_titles:
            rest = {key: value for key, value in (options or {}).items() if key not in _FREE}
            same = json.dumps([kind, rest], sort_keys=True) if options else title
            members.setdefault(same, []).append(title)
    families: dict[str, tuple[str, ...]] = {}
    for titles in members.values():
        whole = next((title for title in titles if info.budget_of(title) == "common"), None)
        name = whole or re.sub(r"_\d+steps$", "", titles[0])
        if name in families or (name in info.strategies and name not in titles):
            name = titles[0]
        families[name] = tuple(titles)
    return families


def budget_table(
    results: ResultsTable,
    run_info: RunInfo | Mapping[str, Any],
    metric: str = "r2",
    *,
    streams: Collection[str] | None = None,
    multi_net: str | None = None,
) -> list[dict[str, Any]]:
    """Return for each family of budgets the smallest that reaches Multi-Net's quality with all its steps.

    Values are those just after learning: what a structure reached before anything later could spoil it.

    Parameters
    ----------
    results, run_info
        Of a run. Without Multi-Net there is nothing to reach, and no row.
    metric
        One of `HIGHER_IS_BETTER`.
    streams
        As in `strategy_table`.
    multi_net
        Title of the Multi-Net to reach; None takes the best one by the metric (`references`).

    Returns
    -------
    list of dict
        For each family whose steps were counted a row with the ``structure`` "all added" (values averaged over
        them), then one for each added structure. ``target``, ``target_steps`` and ``target_seconds`` are
        Multi-Net's. ``reached_by`` is the title of the smallest budget that reaches the target, None if none does;
        ``steps``, ``seconds`` and ``value`` are that budget's, ``steps_share`` and ``seconds_share`` relative to
        Multi-Net's, ``difference`` how far it is above the target (above 0: better), with its 95% interval
        ``low`` and ``high``. ``steady``: whether all larger budgets reach it too. ``clock``: "processor", or
        "wall" in runs that did not measure processor time. ``tried``: steps and value of every budget, as text.
        Besides, ``family``, ``name`` (kind), ``metric``, ``seeds`` and ``multi_net`` (title of that Multi-Net).
    """
    info = RunInfo.of(run_info)
    chosen = chosen_streams(info, streams)
    goal = references(results, info, metric, streams=chosen, named=multi_net).added
    if goal is None or not chosen:
        return []
    budgets = _Budgets(results, info, metric, chosen)
    reference = budgets.values(goal)
    if not reference:
        return []
    structures = list(dict.fromkeys(name for by_name in reference.values() for name in by_name))
    rows = []
    for family, titles in budget_families(info).items():
        titles = tuple(title for title in titles if budgets.values(title))
        if not titles:
            continue
        for names in (structures, *([name] for name in structures)) if len(structures) > 1 else [structures]:
            label = ALL_ADDED if names is structures else names[0]
            row = budgets.row(goal, titles, names)
            if not row["tried"]:
                continue  # a run that did not count its steps
            rows.append({"family": family, "name": info.strategies[titles[0]], "structure": label, **row})
    return rows


class _Budgets:
    def __init__(self, results: ResultsTable, info: RunInfo, metric: str, streams: tuple[str, ...]) -> None:
        self.results, self.info, self.metric = results, info, metric
        self.streams = {name: info.streams[name] for name in streams}
        self._values: dict[str, Values] = {}
        self._costs: dict[tuple[str, str, str, int], dict[str, float]] = {}
        measured = {row.strategy for row in results if row.metric == "cpu_seconds"}
        self.clock = "cpu_seconds" if measured >= set(results.strategies) else "train_seconds"

    def values(self, title: str) -> Values:
        if title not in self._values:
            seeds = seeds_with_results(self.results, self.info, title, tuple(self.streams))
            self._values[title] = structure_values(
                self.results, title, self.metric, self.streams, seeds, when="learned"
            )
        return self._values[title]

    def compare(self, title: str, multi_net: str, names: Sequence[str]) -> PairedComparison:
        """Compare two strategies by their values of the structures, over seeds and, if there are several, orders."""
        if not are_orders(self.info, tuple(self.streams)):
            ours, theirs = (_only(self.values(one), names) for one in (title, multi_net))
            return compare(paired_differences(ours, theirs, self.metric).values)
        trials = []
        for one in (title, multi_net):
            seeds = seeds_with_results(self.results, self.info, one, tuple(self.streams))
            of_orders = trial_values(
                self.results, one, self.metric, self.streams, seeds, when="learned", structures="added"
            )
            trials.append({stream: _only(values, names) for stream, values in of_orders.items()})
        first, second = trials
        return compare_trials(paired_trials(first, second, self.metric)[0])

    def cost(self, title: str, metric: str, names: Sequence[str]) -> float | None:
        """Return the mean over structures, streams and seeds; None where it was not measured."""
        costs: list[float] = []
        for seed in self.values(title):
            for stream, experiences in self.streams.items():
                key = (title, metric, stream, seed)
                if key not in self._costs:
                    self._costs[key] = cost_per_structure(
                        self.results, title, metric, stream, seed, experiences
                    )
                costs += [self._costs[key][name] for name in names if name in self._costs[key]]
        mean = mean_or_nan(costs)
        return None if math.isnan(mean) else mean

    def row(self, multi_net: str, titles: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
        reference = _only(self.values(multi_net), names)
        tried = []
        for title in titles:
            values = _only(self.values(title), names)
            seeds = [seed for seed in values if seed in reference]
            steps = self.cost(title, "steps", names)
            if not seeds or steps is None:
                continue
            tried.append(
                TriedBudget(
                    title,
                    steps,
                    self.cost(title, self.clock, names),
                    _mean({seed: values[seed] for seed in seeds}),
                    _mean({seed: reference[seed] for seed in seeds}),
                )
            )
        tried.sort(key=lambda budget: budget.steps)
        best = smallest_budget(tried, self.metric)
        against = self.compare(best.strategy, multi_net, names) if best is not None else None
        target_steps = self.cost(multi_net, "steps", names)
        target_seconds = self.cost(multi_net, self.clock, names)
        return {
            "metric": self.metric,
            "multi_net": multi_net,
            # Of the seeds that the chosen budget has too: what it was judged by.
            "target": best.target if best else _mean(reference),
            "target_steps": target_steps,
            "target_seconds": target_seconds,
            "reached_by": best and best.strategy,
            "steps": best and best.steps,
            "steps_share": _share(best.steps if best else None, target_steps),
            "seconds": best and best.seconds,
            "seconds_share": _share(best.seconds if best else None, target_seconds),
            "value": best and best.value,
            "difference": against and against.difference,
            "low": against and against.low,
            "high": against and against.high,
            "seeds": against.seeds if against else len(reference),
            "steady": is_steady(tried, self.metric),
            "clock": "processor" if self.clock == "cpu_seconds" else "wall",
            "tried": "; ".join(f"{budget.steps:.0f}: {budget.value:.3f}" for budget in tried),
        }


def _only(values: Values, names: Sequence[str]) -> dict[int, dict[str, float]]:
    return {
        seed: {name: by_name[name] for name in names if name in by_name} for seed, by_name in values.items()
    }


def _mean(values: Values) -> float:
    return mean_or_nan(value for by_name in values.values() for value in by_name.values())


def _share(value: float | None, whole: float | None) -> float | None:
    return value / whole if value is not None and whole else None
