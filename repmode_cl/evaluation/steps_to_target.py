"""How little training suffices: the smallest budget that reaches what Multi-Net reaches with all its steps.

Each budget is a run of its own with a whole learning-rate schedule. A point in the middle of a longer run is no
such budget: its learning rate has not come down yet, and it looks worse than it need be.
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
        Multi-Net's with all its steps, averaged over the same structures and seeds.
    """

    strategy: str
    steps: float
    seconds: float | None
    value: float
    target: float

    def reaches(self, metric: str) -> bool:
        """Tell whether the value is at least as good as the target; NaN is not."""
        return self.value >= self.target if HIGHER_IS_BETTER[metric] else self.value <= self.target


def smallest_budget(tried: Iterable[TriedBudget], metric: str) -> TriedBudget | None:
    """Return the budget of fewest steps that reaches its target, or None if none does."""
    return min(
        (budget for budget in tried if budget.reaches(metric)), key=lambda budget: budget.steps, default=None
    )


def is_steady(tried: Iterable[TriedBudget], metric: str) -> bool | None:
    """Tell whether every budget above the smallest that reaches its target reaches it too; None if none does."""
    budgets = list(tried)
    found = smallest_budget(budgets, metric)
    if found is None:
        return None
    return all(budget.reaches(metric) for budget in budgets if budget.steps >= found.steps)


def cost_per_structure(
    results: ResultsTable,
    strategy: str,
    metric: str,
    stream: str,
    seed: int,
    experiences: Sequence[Sequence[str]],
) -> dict[str, float]:
    """Return what the (first) learning of each structure after the base cost in one run.

    Where several structures were learned jointly in a step, each takes an equal part of it.

    Parameters
    ----------
    results, strategy, metric, stream, seed
        Which rows; `metric` is one of `COSTS`.
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
        here = {row.structure: row.value for row in rows if row.step == step}
        for name in names if step else ():
            if name in here and (len(names) == 1 or len(here) > 1):
                cost = here[name]  # its own row, also where several were learned one by one in this step
            else:
                cost = math.fsum(here.values()) / len(names) if here else math.nan
            costs.setdefault(name, cost)
    return costs
