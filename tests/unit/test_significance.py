"""Intervals, tests and numbers of seeds: by hand, by brute force, and against SciPy."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from scipy import stats

from repmode_cl.evaluation import (
    bootstrap_interval,
    compare,
    holm,
    paired_differences,
    seeds_needed,
    sign_flip_test,
    smallest_p,
)

NAN = math.nan


@pytest.mark.parametrize("seed", range(4))
def test_the_sign_flip_test_is_every_assignment_of_signs(seed):
    values = np.random.default_rng(seed).normal(0.3, 1, size=7)
    means = [abs(np.mean(np.array(signs) * values)) for signs in product((-1, 1), repeat=7)]
    by_hand = np.mean([mean >= abs(values.mean()) - 1e-12 for mean in means])
    assert sign_flip_test(values) == by_hand
    scipys = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
    )
    assert sign_flip_test(values) == pytest.approx(scipys.pvalue)


def test_no_test_gets_below_what_its_seeds_allow():
    # Every seed agrees: nothing can be clearer.
    for n, p in [(1, 1.0), (2, 0.5), (3, 0.25), (5, 0.0625), (6, 0.03125), (10, 2 / 1024)]:
        assert sign_flip_test(np.linspace(1, 2, n)) == smallest_p(n) == p
    assert sign_flip_test([]) == smallest_p(0) == 1.0
    assert sign_flip_test([0.0, 0.0, 0.0]) == 1.0
    assert sign_flip_test([1.0, -1.0]) == 1.0
    assert math.isnan(sign_flip_test([0.1, NAN]))


def test_rounding_does_not_change_the_test():
    # Sums that are equal differ in their last bits: these tenths must give what whole numbers give.
    tenths = [7, -6, -8, 7, -9, 1]
    assert sign_flip_test(np.array(tenths) / 10) == sign_flip_test(tenths) == 0.71875
    assert sign_flip_test([0.1] * 6) == 2 / 64


def test_many_seeds_are_drawn_and_not_enumerated():
    values = np.random.default_rng(0).normal(0.35, 1, size=30)
    assert sign_flip_test(values) == pytest.approx(stats.ttest_1samp(values, 0).pvalue, abs=0.01)
    assert sign_flip_test(np.ones(40)) == pytest.approx(2**-16)


def test_the_unit_is_the_seed_and_not_the_structure():
    # Twelve structures that all tell the same of each of three seeds are three pieces of evidence.
    seeds = np.array([0.1, 0.2, 0.4])
    spread = np.linspace(-1, 1, 12)
    table = seeds[:, None] + spread - spread.mean()
    assert sign_flip_test(table) == sign_flip_test(seeds) == 0.25
    assert bootstrap_interval(table) == pytest.approx(bootstrap_interval(seeds))
    assert compare(table).seeds == 3
    # Structures differ widely, seeds do not: no width at all.
    low, high = bootstrap_interval(np.tile(spread, (3, 1)) + 0.5)
    assert (low, high) == pytest.approx((0.5, 0.5))


def test_the_interval_is_the_percentiles_of_resampled_seeds():
    # Two seeds: the mean of a sample is 0.1, 0.2 or 0.3 with probability 1/4, 1/2, 1/4.
    assert bootstrap_interval([0.1, 0.3]) == pytest.approx((0.1, 0.3))
    values = np.random.default_rng(1).normal(0.2, 0.1, size=5)
    every = [np.mean(sample) for sample in product(values, repeat=5)]
    low, high = np.quantile(every, [0.025, 0.975])
    assert bootstrap_interval(values) == pytest.approx((low, high), abs=0.005)
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_interval([0.4]) is None
    assert all(math.isnan(end) for end in bootstrap_interval([0.4, NAN]))


def test_holms_correction_by_hand():
    # 0.01 * 3; 0.02 * 2 = 0.04; 0.03 * 1, not below the one before; NaN does not count.
    # What could not be tested stays one of the claims.
    assert holm([0.03, NAN, 0.01, 0.02])[:1] == pytest.approx([0.06])
    assert holm([0.03, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert math.isnan(holm([NAN])[0])


@pytest.mark.parametrize(("effect", "seeds"), [(0.5, 34), (0.8, 15), (1.0, 10), (2.0, 5)])
def test_seeds_for_a_power_of_80_percent_are_the_textbooks(effect, seeds):
    # Paired t test, two-sided 0.05 (Cohen's d_z): the figures of G*Power.
    needed = seeds_needed([effect - 1, effect, effect + 1])
    assert (needed.test, needed.power) == (6, seeds)
    assert needed.needed == max(6, seeds)


def test_seeds_that_cannot_be_told():
    assert seeds_needed([0.3]).needed is None
    assert seeds_needed([0.1, -0.1]).needed is None
    assert seeds_needed([0.001, -1.0, 1.001]).power is None  # more than 1000
    assert seeds_needed([0.1, NAN]).needed is None
    assert seeds_needed([0.1] * 3).needed == 6
    # One claim of eight under Holm's correction: 2 / 2^9 = 0.0039 is the first below 0.05 / 8.
    assert seeds_needed([0.1, 0.2], alpha=0.05 / 8).test == 9


def test_pairs_are_of_equal_seeds_and_structures():
    ours = {0: {"a": 0.5, "b": 0.3}, 1: {"a": 0.6, "b": 0.1}, 2: {"a": 0.9, "b": 0.9}}
    other = {1: {"a": 0.4, "b": 0.2, "c": 0.0}, 0: {"a": 0.4, "b": 0.4, "c": 0.0}}
    paired = paired_differences(ours, other, "r2")
    assert (paired.seeds, paired.structures) == ((0, 1), ("a", "b"))
    np.testing.assert_allclose(paired.values, [[0.1, -0.1], [0.2, -0.1]])
    # Of errors, the smaller is better.
    np.testing.assert_allclose(paired_differences(ours, other, "mse").values, -paired.values)
    assert paired_differences(ours, {5: {"a": 1.0}}, "r2").values.shape == (0, 0)
    assert compare(paired_differences(ours, {}, "r2").values).seeds == 0
