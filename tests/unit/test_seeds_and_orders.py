"""Intervals and tests over seeds and orders, each against another computation."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from scipy import stats
from tabled_run import by_second, make

from repmode_cl.evaluation import (
    bootstrap_interval,
    bootstrap_interval_over_both,
    bootstrap_test_over_both,
    compare,
    compare_trials,
    sign_flip_test,
    summarise,
    summarise_trials,
    two_way_mean,
)
from repmode_cl.report.tables import comparison_table, strategy_table, structure_table


def trials(seeds=6, orders=4, of_seed=0.05, of_order=0.03, rest=0.01, generator=0):
    random = np.random.default_rng(generator)
    return (
        0.1
        + random.normal(0, of_seed, (seeds, 1))
        + random.normal(0, of_order, (1, orders))
        + random.normal(0, rest, (seeds, orders))
    )


def clustered_variance(values):
    """Return the variance of the mean as sums over all pairs of trials that share a seed, an order, or both.

    Cameron, Gelbach and Miller (2011), with the small-sample factor of each clustering.
    """
    seeds, orders = values.shape
    means = {0: values.mean(axis=1, keepdims=True), 1: values.mean(axis=0, keepdims=True)}
    residual = values - values.mean()
    total = 0.0
    for axis, groups in ((0, seeds), (1, orders)):
        sums = [np.take(residual, group, axis).sum() for group in range(groups)]
        total += groups / (groups - 1) * sum(one**2 for one in sums)
    both = residual - (means[0] - values.mean()) - (means[1] - values.mean())
    total -= seeds * orders / ((seeds - 1) * (orders - 1)) * sum(one**2 for one in both.flat)
    return total / values.size**2


@pytest.mark.parametrize("generator", range(5))
def test_the_standard_error_is_that_of_two_way_clusters(generator):
    values = trials(generator=generator)
    found = two_way_mean(values)
    assert found.mean == pytest.approx(values.mean())
    assert found.standard_error**2 == pytest.approx(clustered_variance(values))
    # Satterthwaite's: between the factor with fewer levels and all that is free.
    assert 3 <= found.degrees < 23
    half = stats.t.ppf(0.975, found.degrees) * found.standard_error
    assert summarise_trials(values).half_width == pytest.approx(half)


def test_satterthwaites_degrees_by_hand():
    # Seeds +-1, orders +-2, nothing else: A = 2 * 2, B = 2 * 8, E = 0; (4 + 16)^2 / (16 + 256).
    values = np.array([[-3.0, 1.0], [-1.0, 3.0]])
    found = two_way_mean(values)
    assert found.mean == 0.0
    assert found.standard_error == pytest.approx(math.sqrt(20 / 4))
    assert found.degrees == pytest.approx(400 / 272)


def test_it_is_never_narrower_than_over_one_factor():
    for generator in range(20):
        values = trials(of_order=0.0, generator=generator)
        over_seeds = summarise(values.mean(axis=1)).half_width
        found = two_way_mean(values)
        error = np.std(values.mean(axis=1), ddof=1) / math.sqrt(6)
        assert found.standard_error >= error - 1e-12
        if found.standard_error == pytest.approx(error):  # the orders seem to be alike
            assert found.degrees == 5
            assert summarise_trials(values).half_width == pytest.approx(over_seeds)
    # Orders that differ widen it: without them it is far too narrow.
    wide = summarise_trials(trials(of_order=0.2))
    assert wide.half_width > 3 * summarise(trials(of_order=0.2).mean(axis=1)).half_width


def test_intervals_cover_the_mean_over_other_seeds_and_orders():
    """Of 400 experiments with both kinds of luck; over seeds only, the mean is missed much more often."""
    missed = {"both": 0, "seeds": 0, "bootstrap": 0}
    for generator in range(400):
        values = trials(seeds=6, orders=6, of_seed=0.03, of_order=0.06, generator=generator) - 0.1
        for key, summary in (
            ("both", summarise_trials(values)),
            ("seeds", summarise(values.mean(axis=1))),
        ):
            missed[key] += abs(summary.mean) > summary.half_width
        low, high = bootstrap_interval_over_both(values, draws=400)
        missed["bootstrap"] += not low < 0 < high
    assert missed["both"] <= 0.08 * 400
    assert missed["bootstrap"] <= 0.13 * 400  # percentiles of six are narrow, as over seeds
    assert missed["seeds"] > 0.15 * 400


def test_the_bootstrap_draws_seeds_and_orders_apart():
    # Every choice of two seeds with every choice of two orders, which is as likely as any other.
    values = np.array([[0.0, 1.0], [3.0, 7.0]])
    every = [
        values[np.ix_(seeds, orders)].mean()
        for seeds in product(range(2), repeat=2)
        for orders in product(range(2), repeat=2)
    ]
    for level in (0.5, 0.8):
        expected = np.quantile(every, [(1 - level) / 2, (1 + level) / 2], method="nearest")
        assert bootstrap_interval_over_both(values, level=level) == pytest.approx(tuple(expected), abs=0.3)
    large = trials(5, 4)
    sampled = [
        large[np.ix_(random.integers(0, 5, 5), random.integers(0, 4, 4))].mean()
        for random in [np.random.default_rng(9)]
        for _ in range(20_000)
    ]
    assert bootstrap_interval_over_both(large) == pytest.approx(
        tuple(np.quantile(sampled, [0.025, 0.975])), abs=0.003
    )


def test_one_order_or_one_seed_is_as_before():
    one = trials(orders=1)
    assert summarise_trials(one) == summarise(one[:, 0])
    assert bootstrap_interval_over_both(one) == bootstrap_interval(one[:, 0])
    assert compare_trials(one) == compare(one)
    assert summarise_trials(one.T).half_width is None
    assert compare_trials(one.T).low is None
    assert compare_trials(np.empty((0, 0))).seeds == 0


def test_p_is_that_of_the_harder_test():
    seeds_differ = trials(of_seed=0.07, of_order=0.001)
    orders_differ = trials(of_seed=0.001, of_order=0.2)
    for values, harder in ((seeds_differ, sign_flip_test), (orders_differ, bootstrap_test_over_both)):
        found = compare_trials(values)
        assert found.p == harder(values) == max(sign_flip_test(values), bootstrap_test_over_both(values))
        assert (found.seeds, found.orders) == (6, 4)
        assert found.low < found.difference < found.high
        assert found.difference == pytest.approx(values.mean())
    assert compare_trials(orders_differ).p > 5 * sign_flip_test(orders_differ)
    same = np.full((6, 2), 0.1)
    assert compare_trials(same).p == pytest.approx(2 / 2**6)
    assert bootstrap_test_over_both(same) == pytest.approx(2 / 10_001)
    assert bootstrap_test_over_both(np.zeros((3, 3))) == 1.0
    same[2, 1] = math.nan
    assert math.isnan(compare_trials(same).p)
    assert math.isnan(summarise_trials(same).half_width)


def test_the_bootstraps_p_belongs_to_its_interval():
    for generator in range(30):
        values = trials(3, 3, of_order=0.06, generator=generator)
        low, high = bootstrap_interval_over_both(values)
        p = bootstrap_test_over_both(values)
        if not 0.045 < p < 0.055:
            assert (p <= 0.05) == (low > 0 or high < 0)


def test_tables_pair_seeds_and_orders():
    """The difference of two strategies in each trial is known: it decides interval and p of every table."""
    luck = trials(5, 3, generator=4) - 0.1

    def jitter(title, seed, stream):
        return luck[seed, int(stream[-1])] if title == "ours" else 0.0

    table, info = make(range(5), ("order-0", "order-1", "order-2"), jitter)
    row = by_second(comparison_table(table, info))["multi"]
    expected = compare_trials(0.05 + luck)
    assert (row["seeds"], row["orders"]) == (5, 3)
    assert row["difference"] == pytest.approx(expected.difference)
    assert (row["low"], row["high"]) == pytest.approx((expected.low, expected.high))
    assert row["p"] == pytest.approx(expected.p)
    each = comparison_table(table, info, pairs=[("ours", "multi")], per_structure=True)
    assert [one["structure"] for one in each] == ["b", "c"]
    assert [one["p"] for one in each] == pytest.approx([expected.p] * 2)
    ours = strategy_table(table, info)[0]
    assert ours["orders"] == 3
    assert ours["forward_r2_ci"] == pytest.approx(summarise_trials(0.05 + luck).half_width)
    cells = {row["structure"]: row for row in structure_table(table, info) if row["strategy"] == "ours"}
    own = 0.4 + luck + np.array([0.01 * (-1) ** seed * (1 + seed) for seed in range(5)])[:, None]
    assert cells["c"]["value"] == pytest.approx(own.mean())
    assert cells["c"]["value_ci"] == pytest.approx(summarise_trials(own).half_width)
    # Of one order, and of streams that are no orders of one experiment, it is over seeds.
    alone = by_second(comparison_table(table, info, streams=["order-1"]))["multi"]
    assert (alone["orders"], alone["p"]) == (1, pytest.approx(compare(0.05 + luck[:, [1]]).p))
    images, other = make(range(5), ("images-0", "images-1"), jitter)
    both = by_second(comparison_table(images, other, streams=["images-0", "images-1"]))["multi"]
    assert both["orders"] == 1
    assert both["low"] == pytest.approx(compare(0.05 + luck[:, :2].mean(axis=1)).low)
