"""Measures of continual learning: performance matrix, forgetting, transfer, statistics."""

from __future__ import annotations

from repmode_cl.evaluation.learning_curve_area import area_under_curve, learning_areas
from repmode_cl.evaluation.paired_differences import (
    PairedDifferences,
    paired_differences,
    paired_trials,
    structure_values,
    trial_values,
)
from repmode_cl.evaluation.performance_matrix import (
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
from repmode_cl.evaluation.seeds_and_orders import (
    TwoWayMean,
    bootstrap_interval_over_both,
    bootstrap_test_over_both,
    compare_trials,
    summarise_trials,
    two_way_mean,
)
from repmode_cl.evaluation.significance import (
    PairedComparison,
    SeedsNeeded,
    bootstrap_interval,
    compare,
    holm,
    seeds_needed,
    sign_flip_test,
    smallest_p,
)
from repmode_cl.evaluation.steps_to_target import TriedBudget, cost_per_structure, is_steady, smallest_budget
from repmode_cl.evaluation.transfer import forward_transfer, intransigence, learned_values

__all__ = [
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
    "trial_values",
    "paired_trials",
    "PairedComparison",
    "compare",
    "compare_trials",
    "summarise_trials",
    "two_way_mean",
    "TwoWayMean",
    "bootstrap_interval_over_both",
    "bootstrap_test_over_both",
    "bootstrap_interval",
    "sign_flip_test",
    "smallest_p",
    "holm",
    "SeedsNeeded",
    "seeds_needed",
]
