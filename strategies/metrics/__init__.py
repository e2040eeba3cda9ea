"""Metrics of dense regression for Avalanche's `EvaluationPlugin`: of volumes, and of forgetting and transfer.

Avalanche 0.6 has none: its default evaluator reports an accuracy, and its `forgetting_metrics` and `bwt_metrics` are of
accuracy too, which means nothing for volumes. These work in its own strategies as in those of `repmode_cl`.
"""

from repmode_cl.strategies.metrics.regression import mae_metrics, mse_metrics, pearson_metrics, r2_metrics
from repmode_cl.strategies.metrics.transfer import bwt_of, forgetting_of, forward_transfer_of

__all__ = [
    "mse_metrics",
    "mae_metrics",
    "r2_metrics",
    "pearson_metrics",
    "forgetting_of",
    "bwt_of",
    "forward_transfer_of",
]
