"""Claims that a few seeds allow: intervals, an exact test, and the number of seeds that a claim needs.

The seed is the unit of everything here. Structures learned with one seed share a base, weights and images, so
they are one piece of evidence and not several: differences are averaged over structures first, and
seeds are resampled, flipped and counted.

SciPy gives the power of the t test. Its `bootstrap` and `permutation_test` were tried on the 433 sets of differences
that the published results hold, and are not used. All p-values were the same, but 56 intervals differed in their last
digit; sums that are equal but for rounding are not always counted as equal (10 of 3000 sets of tenths and thousandths);
above 16 seeds other signs are drawn; and a table waits 0.6 s for ``scipy.stats``. SciPy has no correction by Holm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "ALPHA",
    "PairedComparison",
    "SeedsNeeded",
    "bootstrap_interval",
    "compare",
    "holm",
    "seeds_needed",
    "sign_flip_test",
    "smallest_p",
]

#: Level of the tests, and of the 95% intervals.
ALPHA = 0.05

#: Up to this many seeds all sign flips are enumerated (65,536 of them); above, as many are drawn.
ENUMERATED = 16

#: More seeds than anybody will run: beyond it, `seeds_needed` says so instead of a number.
MOST_SEEDS = 1000


@dataclass(frozen=True)
class SeedsNeeded:
    """Number of seeds that a claim needs.

    Attributes
    ----------
    test
        For the sign-flip test to be able to fall below the level at all, however clear the difference.
    power
        For a paired t test to find the observed difference with a probability of 80%, if it is real and the
        spread over seeds is the observed one. None: more than 1000, or it cannot be told (one seed, or no
        difference at all).
    """

    test: int
    power: int | None

    @property
    def needed(self) -> int | None:
        """The larger of the two."""
        return None if self.power is None else max(self.test, self.power)


@dataclass(frozen=True)
class PairedComparison:
    """Two strategies by their paired differences.

    Attributes
    ----------
    difference
        Mean over structures and seeds.
    low, high
        95% interval by the bootstrap over seeds; None with one seed.
    p
        Two-sided, of the sign-flip test over seeds; NaN where a difference is NaN.
    seeds
        Number of seeds.
    needed
        How many the claim needs.
    orders
        Number of orders with each seed; above 1 interval and p are over seeds and orders (`compare_trials`).
    """

    difference: float
    low: float | None
    high: float | None
    p: float
    seeds: int
    needed: SeedsNeeded
    orders: int = 1


def bootstrap_interval(
    differences: ArrayLike, *, draws: int = 10_000, seed: int = 0, level: float = 1 - ALPHA
) -> tuple[float, float] | None:
    """Return a percentile interval of the mean difference, from a bootstrap clustered by seed.

    Seeds are drawn with replacement, each with all its structures (Cameron, Gelbach and Miller,
    "Bootstrap-based improvements for inference with clustered errors", 2008). With few seeds such an interval is
    too narrow: `sign_flip_test` is the guard.

    Parameters
    ----------
    differences
        (seeds, structures), or one number per seed.
    draws
        Number of bootstrap samples.
    seed
        Of the generator: the same differences give the same interval.
    level
        Probability that the interval is meant to cover.

    Returns
    -------
    tuple or None
        (low, high); None below two seeds; NaN where a difference is NaN.
    """
    per_seed = _per_seed(differences)
    if len(per_seed) < 2:
        return None
    if not np.isfinite(per_seed).all():
        return math.nan, math.nan
    chosen = np.random.default_rng(seed).integers(0, len(per_seed), size=(draws, len(per_seed)))
    low, high = np.quantile(per_seed[chosen].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def sign_flip_test(differences: ArrayLike, *, seed: int = 0) -> float:
    """Return the two-sided p-value of "no difference" by flipping the signs of seeds.

    If the two strategies were alike, each seed's difference could as well have had the other sign. p is the
    share of all 2^n assignments of signs whose mean is at least as far from 0 as the observed one: exact, without
    any assumption of a distribution, and never below ``smallest_p(n)`` (Fisher's randomisation test for
    pairs; Good, "Permutation, parametric and bootstrap tests of hypotheses", 2005). Above 16 seeds 65,536
    assignments are drawn, and the observed one is counted among them.

    Parameters
    ----------
    differences
        (seeds, structures), or one number per seed.
    seed
        Of the generator, above 16 seeds.

    Returns
    -------
    float
        1 of no seed; NaN where a difference is NaN.
    """
    per_seed = _per_seed(differences)
    n = len(per_seed)
    if not n:
        return 1.0
    if not np.isfinite(per_seed).all():
        return math.nan
    if n <= ENUMERATED:
        signs = 1.0 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
    else:
        signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(2**ENUMERATED, n))
        signs[0] = 1.0
    sums = np.abs(signs @ per_seed)
    # Sums of the same numbers in another order differ by rounding: they count as equal.
    return float(np.mean(sums >= sums[0] - 1e-12 * np.abs(per_seed).sum()))


def smallest_p(seeds: int) -> float:
    """Return the smallest p-value that the sign-flip test can give with that many seeds: 2 / 2^n."""
    return min(1.0, 2.0 ** (1 - seeds))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for being several, so that all claims together hold at the level.

    Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 1979. NaN stays NaN and
    is counted: a claim of which nothing can be said must not make the others easier.
    """
    corrected = [math.nan] * len(p_values)
    known = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    largest = 0.0
    for rank, (p, place) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(p_values) - rank)))
        corrected[place] = largest
    return corrected


def seeds_needed(differences: ArrayLike, alpha: float = ALPHA, power: float = 0.8) -> SeedsNeeded:
    """Return how many seeds it takes to claim a difference like the observed one.

    Parameters
    ----------
    differences
        (seeds, structures), or one number per seed, of the seeds that there are.
    alpha
        Level of the claim. For one of m claims under Holm's correction, divide by m.
    power
        Probability of finding the difference.

    Returns
    -------
    SeedsNeeded
        The observed effect is itself an estimate: from few seeds, this number is a rough one.
    """
    at_all = max(1, math.ceil(1 - math.log2(alpha)))
    per_seed = _per_seed(differences)
    if len(per_seed) < 2 or not np.isfinite(per_seed).all():
        return SeedsNeeded(at_all, None)
    # Equal numbers have no spread: rounding of their mean would invent one.
    spread = 0.0 if per_seed.min() == per_seed.max() else float(per_seed.std(ddof=1))
    effect = abs(float(per_seed.mean()))
    if effect == 0:
        return SeedsNeeded(at_all, None)
    if spread == 0:
        return SeedsNeeded(at_all, 2)
    if _power(MOST_SEEDS, effect / spread, alpha) < power:
        return SeedsNeeded(at_all, None)
    low, high = 1, MOST_SEEDS  # power grows with the number of seeds: halve
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _power(middle, effect / spread, alpha) >= power else (middle, high)
    return SeedsNeeded(at_all, high)


def compare(differences: ArrayLike, alpha: float = ALPHA) -> PairedComparison:
    """Summarise paired differences, (seeds, structures) or one number per seed."""
    per_seed = _per_seed(differences)
    interval = bootstrap_interval(per_seed, level=1 - alpha)
    return PairedComparison(
        difference=float(per_seed.mean()) if len(per_seed) else math.nan,
        low=interval and interval[0],
        high=interval and interval[1],
        p=sign_flip_test(per_seed),
        seeds=len(per_seed),
        needed=seeds_needed(per_seed, alpha),
    )


def _power(seeds: int, effect: float, alpha: float) -> float:
    """Return the power of a two-sided paired t test; `effect` is the mean divided by the standard deviation."""
    # Here, because a table of one seed must not pay for importing it.
    from scipy.special import nctdtr, stdtrit

    critical = float(stdtrit(seeds - 1, 1 - alpha / 2))
    shift = effect * math.sqrt(seeds)
    upper = float(nctdtr(seeds - 1, shift, critical))
    lower = float(nctdtr(seeds - 1, shift, -critical))
    # Far from 0 SciPy's series gives up; by then all of the distribution is beyond the critical value.
    return 1.0 if math.isnan(upper) else 1.0 - upper + (0.0 if math.isnan(lower) else lower)


def _per_seed(differences: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(differences, np.float64)
    if values.ndim > 2:
        raise ValueError(f"differences are (seeds, structures) or one per seed, got shape {values.shape}")
    return values.mean(axis=1) if values.ndim == 2 and values.size else values.reshape(-1)
