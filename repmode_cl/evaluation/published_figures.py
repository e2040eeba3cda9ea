"""Comparison with published figures: improvement over a reference with its interval, and correlation of orders."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from repmode_cl.evaluation.performance_matrix import relative_improvement
from repmode_cl.evaluation.significance import ALPHA

__all__ = ["Estimate", "improvement_estimate", "rank_correlation", "rank_correlation_estimate"]

#: Draws of seeds for an interval.
_DRAWS = 10_000


@dataclass(frozen=True)
class Estimate:
    """A figure over seeds.

    Attributes
    ----------
    value
        Of the means over all seeds; None where it is not defined.
    low, high
        95% interval by the bootstrap over seeds; None with one seed, or where it is not defined for a draw of seeds.
    """

    value: float | None
    low: float | None = None
    high: float | None = None


def improvement_estimate(
    values: ArrayLike, references: ArrayLike, metric: str, *, draws: int = _DRAWS, seed: int = 0
) -> Estimate:
    """Return by how many per cent values are better than those of a reference (the paper's Delta_Imp).

    It is the improvement of the mean over seeds relative to the reference's mean. Seeds are drawn with replacement,
    for both alike, so that what a seed does to both cancels.

    Parameters
    ----------
    values, references
        One number for each seed, of the same seeds in the same order.
    metric
        One of `HIGHER_IS_BETTER`. R2 is relative to a reference above 0 only: the mean of a target, whose R2 is 0,
        predicts nothing that could be improved by a share.
    draws, seed
        Bootstrap samples, and the seed of their generator.

    Returns
    -------
    Estimate
        In per cent; above 0 is better, for metrics of either direction.
    """
    first, second = np.asarray(values, np.float64), np.asarray(references, np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(
            f"values and references are one number for each seed, got shapes {first.shape} and {second.shape}"
        )
    if not len(first) or not np.isfinite(np.concatenate([first, second])).all() or not second.mean() > 0:
        return Estimate(None)
    value = relative_improvement(float(first.mean()), float(second.mean()), metric)
    if len(first) < 2:
        return Estimate(value)
    chosen = _drawn_seeds(len(first), draws, seed)
    means, reference_means = first[chosen].mean(axis=1), second[chosen].mean(axis=1)
    if not (reference_means > 0).all():
        return Estimate(value)
    sign = math.copysign(1.0, relative_improvement(2.0, 1.0, metric))
    return Estimate(value, *_interval(100.0 * sign * (means - reference_means) / reference_means))


def rank_correlation(first: ArrayLike, second: ArrayLike) -> float | None:
    """Return Spearman's rank correlation of two lists of numbers; equal numbers share the mean of their ranks.

    Spearman, "The proof and measurement of association between two things", Am. J. Psychol. 1904.

    Returns
    -------
    float or None
        None of fewer than three pairs, of numbers that are not finite, and where all of a list are equal.
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(
            f"ranks are compared of two lists of equal length, got shapes {a.shape} and {b.shape}"
        )
    if len(a) < 3 or not np.isfinite(np.concatenate([a, b])).all():
        return None
    [value] = _correlations(_ranks(a[None]), _ranks(b[None]))
    return None if math.isnan(value) else float(value)


def rank_correlation_estimate(
    values: ArrayLike, published: ArrayLike, *, draws: int = _DRAWS, seed: int = 0
) -> Estimate:
    """Return the rank correlation of means over seeds with published figures, and how far it varies with the seeds.

    Parameters
    ----------
    values
        (seeds, systems).
    published
        A figure for each system.
    draws, seed
        Bootstrap samples, and the seed of their generator. The published figures stay as they are.
    """
    of_seeds, figures = np.asarray(values, np.float64), np.asarray(published, np.float64)
    if of_seeds.ndim != 2 or figures.shape != of_seeds.shape[1:]:
        raise ValueError(
            f"values are (seeds, systems) and figures one for each system, got shapes {of_seeds.shape} and "
            f"{figures.shape}"
        )
    if not len(of_seeds):
        return Estimate(None)
    value = rank_correlation(of_seeds.mean(axis=0), figures)
    if value is None or len(of_seeds) < 2:
        return Estimate(value)
    means = of_seeds[_drawn_seeds(len(of_seeds), draws, seed)].mean(axis=1)
    drawn = _correlations(_ranks(means), _ranks(figures[None]))
    return Estimate(value) if np.isnan(drawn).any() else Estimate(value, *_interval(drawn))


def _drawn_seeds(count: int, draws: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, count, size=(draws, count))


def _interval(drawn: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(drawn, [ALPHA / 2, 1 - ALPHA / 2])
    return float(low), float(high)


def _ranks(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the ranks within each row, (N, systems), from 1."""
    below = (rows[:, None, :] < rows[:, :, None]).sum(axis=2)
    equal = (rows[:, None, :] == rows[:, :, None]).sum(axis=2)
    ranks: NDArray[np.float64] = below + (equal + 1) / 2
    return ranks


def _correlations(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the correlation of each row; NaN where all of a row are equal."""
    a, b = (ranks - ranks.mean(axis=1, keepdims=True) for ranks in (first, second))
    size = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    with np.errstate(invalid="ignore"):
        correlations: NDArray[np.float64] = (a * b).sum(axis=1) / size
    return correlations
