"""Intervals and tests over two crossed factors: seeds, and orders in which structures arrive.

A trial is a seed with an order. Trials of one seed share weights and images, those of one order share what is learned
before what; so neither all trials nor the seeds by themselves are independent evidence about other seeds *and* other
orders. The model is that of two crossed random factors, ``value[i, j] = mean + seed[i] + order[j] + rest[i, j]``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from repmode_cl.evaluation.performance_matrix import Summary, mean_or_nan, summarise
from repmode_cl.evaluation.significance import (
    ALPHA,
    PairedComparison,
    bootstrap_interval,
    compare,
    seeds_needed,
    sign_flip_test,
)

__all__ = [
    "TwoWayMean",
    "bootstrap_interval_over_both",
    "bootstrap_test_over_both",
    "compare_trials",
    "summarise_trials",
    "two_way_mean",
]


@dataclass(frozen=True)
class TwoWayMean:
    """Mean of trials, and how far it may be from that of all seeds and orders.

    Attributes
    ----------
    mean
        Arithmetic mean of all trials.
    standard_error
        Its standard error over seeds and orders.
    degrees
        Degrees of freedom of that (Satterthwaite's); at least those of the factor with fewer levels.
    """

    mean: float
    standard_error: float
    degrees: float


def two_way_mean(values: ArrayLike) -> TwoWayMean:
    """Return the mean of trials with its standard error over both factors.

    With the mean squares A of seeds, B of orders and E of the rest, ``(A + B - E) / trials`` estimates the variance of
    the mean without bias (Searle, Casella and McCulloch, *Variance Components*, 1992; the same sum as of two-way
    clusters in Cameron, Gelbach and Miller, 2011). Where one factor seems to have no own variance, that is where
    this is less than A or B, the larger of those is taken: the interval is never narrower than over the seeds or over
    the orders only.

    Parameters
    ----------
    values
        (seeds, orders), at least two of each, all finite.

    Raises
    ------
    ValueError
        If there are fewer.
    """
    table = _table(values)
    seeds, orders = table.shape
    if min(seeds, orders) < 2:
        raise ValueError(f"two seeds and two orders are needed, got {seeds} and {orders}")
    mean = table.mean()
    of_seeds, of_orders = table.mean(axis=1), table.mean(axis=0)
    rest = table - of_seeds[:, None] - of_orders + mean
    free = (seeds - 1, orders - 1, (seeds - 1) * (orders - 1))
    a = orders * float(np.square(of_seeds - mean).sum()) / free[0]
    b = seeds * float(np.square(of_orders - mean).sum()) / free[1]
    e = float(np.square(rest).sum()) / free[2]
    variance, degrees = max((a, float(free[0])), (b, float(free[1])))
    if a + b - e > variance:
        variance = a + b - e
        spread = a**2 / free[0] + b**2 / free[1] + e**2 / free[2]
        degrees = max(variance**2 / spread, float(min(free[:2])))
    return TwoWayMean(float(mean), math.sqrt(variance / table.size), degrees)


def summarise_trials(values: ArrayLike) -> Summary:
    """Summarise trials, (seeds, orders): the mean over both, with half its 95% interval.

    With one order it is `summarise` of the seeds. With one seed there is no interval: how much seeds vary is unknown.
    """
    table = _table(values)
    over_seeds = summarise(mean_or_nan(row) for row in table)
    if table.shape[1] < 2 or over_seeds.half_width is None or not np.isfinite(table).all():
        return over_seeds
    if table.min() == table.max():  # rounding of a mean would invent a spread
        return over_seeds
    from scipy.special import stdtrit  # a table of one order does not need it

    found = two_way_mean(table)
    half = float(stdtrit(found.degrees, 1 - ALPHA / 2)) * found.standard_error
    return Summary(over_seeds.mean, half, over_seeds.n)


def bootstrap_interval_over_both(
    differences: ArrayLike, *, draws: int = 10_000, seed: int = 0, level: float = 1 - ALPHA
) -> tuple[float, float] | None:
    """Return a percentile interval of the mean difference, from a bootstrap of seeds and of orders.

    Seeds are drawn with replacement, and so are orders, independently of them; a sample holds each drawn seed with each
    drawn order (the pigeonhole bootstrap: Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 2007). With
    few seeds or few orders it is too narrow. With one order it is `bootstrap_interval`.

    Parameters
    ----------
    differences
        (seeds, orders).
    draws, seed, level
        As of `bootstrap_interval`.

    Returns
    -------
    tuple or None
        (low, high); None below two seeds; NaN where a difference is NaN.
    """
    table = _table(differences)
    if min(table.shape) < 2 or not np.isfinite(table).all():
        return bootstrap_interval(table, draws=draws, seed=seed, level=level)
    low, high = np.quantile(_samples(table, draws, seed), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_test_over_both(differences: ArrayLike, *, draws: int = 10_000, seed: int = 0) -> float:
    """Return the two-sided p-value of "no difference" that belongs to `bootstrap_interval_over_both`.

    It is twice the share of samples whose mean is not on the side of the greater part of them, the observed mean
    counted among them: below 0.05 where the 95% interval leaves out 0.

    Parameters
    ----------
    differences
        (seeds, orders), at least two of each.
    draws, seed
        As of `bootstrap_interval`.

    Returns
    -------
    float
        NaN where a difference is NaN.
    """
    table = _table(differences)
    if not np.isfinite(table).all():
        return math.nan
    samples = _samples(table, draws, seed)
    beyond = min(int((samples <= 0).sum()), int((samples >= 0).sum()))
    return min(1.0, 2 * (1 + beyond) / (1 + draws))


def _samples(table: NDArray[np.float64], draws: int, seed: int) -> NDArray[np.float64]:
    """Return the means of bootstrap samples of whole seeds and whole orders."""
    seeds, orders = table.shape
    generator = np.random.default_rng(seed)
    chosen = generator.integers(0, seeds, size=(draws, seeds, 1))
    with_orders = generator.integers(0, orders, size=(draws, 1, orders))
    means: NDArray[np.float64] = table[chosen, with_orders].mean(axis=(1, 2))
    return means


def compare_trials(differences: ArrayLike, alpha: float = ALPHA) -> PairedComparison:
    """Summarise paired differences of trials, (seeds, orders), each a mean over structures.

    With one order it is `compare`. With several, the interval is that of `bootstrap_interval_over_both`, and p the
    larger of the sign-flip test over seeds, which takes the orders as given and knows how few seeds there are, and of
    `bootstrap_test_over_both`. With one seed there is neither interval nor evidence.
    """
    table = _table(differences)
    seeds, orders = table.shape
    if min(seeds, orders) < 2:
        return compare(table, alpha)
    interval = bootstrap_interval_over_both(table, level=1 - alpha)
    p = sign_flip_test(table)
    return PairedComparison(
        difference=float(table.mean()),
        low=interval and interval[0],
        high=interval and interval[1],
        p=math.nan if math.isnan(p) else max(p, bootstrap_test_over_both(table)),
        seeds=seeds,
        needed=seeds_needed(table, alpha),
        orders=orders,
    )


def _table(values: ArrayLike) -> NDArray[np.float64]:
    table = np.asarray(values, np.float64)
    if table.ndim != 2:
        raise ValueError(f"trials are (seeds, orders), got shape {table.shape}")
    return table
