"""Voxel metrics, the table of a run's results, and what a stream of structures did to them."""

from __future__ import annotations

from repmode_cl.evaluation.budgets import TriedBudget, cost_per_structure, is_steady, smallest_budget
from repmode_cl.evaluation.learning import area_under_curve, learning_areas
from repmode_cl.evaluation.matrix import (
    PerformanceMatrix,
    Summary,
    backward_transfer,
    final_average,
    final_values,
    forgetting,
    performance_matrix,
    relative_improvement,
    summarise,
)
from repmode_cl.evaluation.metrics import HIGHER_IS_BETTER, image_metrics, mean_metrics
from repmode_cl.evaluation.pairs import PairedDifferences, paired_differences, structure_values
from repmode_cl.evaluation.results import BASE, COSTS, Result, ResultsTable
from repmode_cl.evaluation.statistics import (
    Comparison,
    SeedsNeeded,
    bootstrap_interval,
    compare,
    holm,
    seeds_needed,
    sign_flip_test,
    smallest_p,
)
from repmode_cl.evaluation.transfer import forward_transfer, intransigence, learned_values

__all__ = [
    "image_metrics",
    "mean_metrics",
    "HIGHER_IS_BETTER",
    "Result",
    "ResultsTable",
    "BASE",
    "COSTS",
    "PerformanceMatrix",
    "performance_matrix",
    "final_values",
    "learned_values",
    "final_average",
    "forgetting",
    "backward_transfer",
    "forward_transfer",
    "intransigence",
    "relative_improvement",
    "area_under_curve",
    "learning_areas",
    "TriedBudget",
    "smallest_budget",
    "is_steady",
    "cost_per_structure",
    "Summary",
    "summarise",
    "PairedDifferences",
    "structure_values",
    "paired_differences",
    "Comparison",
    "compare",
    "bootstrap_interval",
    "sign_flip_test",
    "smallest_p",
    "holm",
    "SeedsNeeded",
    "seeds_needed",
]
