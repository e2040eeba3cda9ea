"""Voxel metrics, the table of a run's results, and what a stream of structures did to them."""

from __future__ import annotations

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
from repmode_cl.evaluation.results import BASE, COSTS, Result, ResultsTable

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
    "final_average",
    "forgetting",
    "backward_transfer",
    "relative_improvement",
    "Summary",
    "summarise",
]
