"""Improvement over a reference and correlation of orders: against other computations, and numbers by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from repmode_cl.evaluation.published_figures import (
    improvement_estimate,
    rank_correlation,
    rank_correlation_estimate,
)


def test_an_improvement_is_that_of_the_means_and_its_interval_that_of_paired_seeds() -> None:
    # By hand: means 0.45 and 0.5, so 10 per cent less error, and 10 per cent less R2.
    ours, theirs = [0.40, 0.50], [0.48, 0.52]
    estimate = improvement_estimate(ours, theirs, "mse")
    assert estimate.value == pytest.approx(10.0)
    # A draw holds the first seed twice, the second twice, or both.
    assert estimate.low == pytest.approx(100 * 0.02 / 0.52)
    assert estimate.high == pytest.approx(100 * 0.08 / 0.48)
    assert improvement_estimate(ours, theirs, "r2").value == pytest.approx(-10.0)


def test_what_a_seed_does_to_both_cancels_in_the_interval() -> None:
    luck = np.array([0.8, 1.0, 1.3])
    estimate = improvement_estimate(0.9 * luck, luck, "mae")
    assert (estimate.low, estimate.high) == (pytest.approx(10.0), pytest.approx(10.0))


def test_one_seed_has_no_interval_and_r2_no_share_of_nothing() -> None:
    estimate = improvement_estimate([0.3], [0.2], "r2")
    assert (estimate.value, estimate.low, estimate.high) == (pytest.approx(50.0), None, None)
    assert improvement_estimate([0.3, 0.2], [-0.1, 0.1], "r2").value is None
    # The mean is above 0, but not that of every draw.
    partly = improvement_estimate([0.3, 0.2], [-0.1, 0.3], "r2")
    assert partly.value == pytest.approx(150.0)
    assert partly.low is None
    assert improvement_estimate([np.nan, 0.2], [0.1, 0.1], "mse").value is None
    with pytest.raises(ValueError, match="one number for each seed"):
        improvement_estimate([0.1], [0.1, 0.2], "mse")


def test_the_rank_correlation_is_that_of_scipy_with_ties_too() -> None:
    random = np.random.default_rng(3)
    for n in (3, 9, 15):
        for digits in (1, 6):
            a, b = random.normal(size=(2, n)).round(digits)
            assert rank_correlation(a, b) == pytest.approx(float(spearmanr(a, b).statistic))
    # Five in one order, then two neighbours swapped: 1 - 6 * 2 / (5 * 24).
    assert rank_correlation([1, 2, 3, 4, 5], [10, 20, 40, 30, 50]) == pytest.approx(0.9)


def test_no_order_has_no_correlation() -> None:
    assert rank_correlation([1, 2], [1, 2]) is None
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None
    assert rank_correlation([1, 2, np.nan], [1, 2, 3]) is None


def test_the_interval_of_a_correlation_varies_the_seeds_only() -> None:
    published = [1.0, 2.0, 3.0, 4.0]
    steady = rank_correlation_estimate([[1, 2, 3, 4], [2, 3, 4, 5]], published)
    assert (steady.value, steady.low, steady.high) == (1.0, 1.0, 1.0)
    # Of the two seeds one has the order, the other the opposite one: draws of the second seed twice are -1.
    mixed = rank_correlation_estimate([[1, 2, 3, 4], [2.5, 2.2, 1.9, 1.6]], published)
    assert (mixed.value, mixed.low, mixed.high) == (1.0, -1.0, 1.0)
    assert rank_correlation_estimate([[1, 2, 3, 4]], published).low is None
    with pytest.raises(ValueError, match=r"\(seeds, systems\)"):
        rank_correlation_estimate([[1, 2, 3]], published)
