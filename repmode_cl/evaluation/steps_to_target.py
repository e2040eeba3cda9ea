"""Smallest budget of training that reaches what Multi-Net reaches with all its steps.

Each budget is a separate run with a whole learning-rate schedule. A point in the middle of a longer run does not
count as a budget: its learning rate has not come down yet, and its value is worse than it could be.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from repmode_cl.metrics import HIGHER_IS_BETTER
from repmode_cl.results.results_table import ResultsTable

__all__ = ["TriedBudget", "cost_per_structure", "is_steady", "smallest_budget"]


@dataclass(frozen=True)
class TriedBudget:
    """One strategy that was trained with one budget.

    Attributes
    ----------
    strategy
        Its title.
    steps
        Training steps per added structure.
    seconds
        Training seconds per added structure; None where not measured.
    value
        Just after learning, averaged over structures and seeds.
    target
        Value of Multi-Net with all its steps, averaged over the same structures and seeds.
    """

    strategy: str
    steps: float
    seconds: float | None
    value: float
    target: float

    def reaches(self, metric: str) -> bool:
        """Return whether the value is at least as good as the target; NaN is not."""
        return self.value >= self.target if HIGHER_IS_BETTER[metric] else self.value <= self.target


def smallest_budget(tried: Iterable[TriedBudget], metric: str) -> TriedBudget | None:
    """Return the budget of fewest steps that reaches its target, or None if none does."""
    return min(
        (budget for budget in tried if budget.reaches(metric)), key=lambda budget: budget.steps, default=None
    )


def is_steady(tried: Iterable[TriedBudget], metric: str) -> bool | None:
    """Return whether all budgets above the smallest that reaches its target reach it too; None if none does."""
    budgets = list(tried)
    smallest = smallest_budget(budgets, metric)
    if smallest is None:
        return None
    return all(budget.reaches(metric) for budget in budgets if budget.steps >= smallest.steps)


def cost_per_structure(
    results: ResultsTable,
    strategy: str,
    metric: str,
    stream: str,
    seed: int,
    experiences: Sequence[Sequence[str]],
) -> dict[str, float]:
    """Return the cost of the (first) learning of each structure after the base, in one trial.

    Where several structures were learned jointly in a step, each has an equal part of it.

    Parameters
    ----------
    results, strategy, metric, stream, seed
        Strategy, metric, stream and seed of the rows; `metric` is one of `COSTS`.
    experiences
        Structures of each step.

    Returns
    -------
    dict
        Structure -> cost; NaN for those without a row.
    """
    rows = results.select(strategy=strategy, stream=stream, seed=seed, metric=metric)
    costs: dict[str, float] = {}
    for step, names in enumerate(experiences):
        step_costs = {row.structure: row.value for row in rows if row.step == step}
        for name in names if step else ():
            if name in step_costs and (len(names) == 1 or len(step_costs) > 1):
                cost = step_costs[
                    name
                ]  # its own row, also where several were learned one by one in this step
            else:
                cost = math.fsum(step_costs.values()) / len(names) if step_costs else math.nan
            costs.setdefault(name, cost)
    return costs
