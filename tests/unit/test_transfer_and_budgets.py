"""Transfer, intransigence, learning curves and budgets, against matrices worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from repmode_cl.errors import RepmodeError
from repmode_cl.evaluation import (
    TriedBudget,
    area_under_curve,
    backward_transfer,
    cost_per_structure,
    forgetting,
    forward_transfer,
    intransigence,
    is_steady,
    learned_values,
    learning_areas,
    performance_matrix,
    smallest_budget,
)
from repmode_cl.results import ResultsTable

NAN = math.nan
EXPERIENCES = [["a", "b"], ["c"], ["d"]]

# Rows are steps, columns a, b, c, d. R2 of b is negative; MSE is 1 - R2.
OURS = [[0.8, -0.2, NAN, NAN], [0.9, -0.5, 0.4, NAN], [0.5, -0.4, 0.45, 0.3]]
ALONE = [[0.7, -0.4, NAN, NAN], [0.7, -0.4, 0.5, NAN], [0.7, -0.4, 0.5, 0.1]]
JOINT = [[NAN] * 4, [NAN] * 4, [0.85, -0.1, 0.45, 0.25]]


def matrix(values, metric="r2", experiences=EXPERIENCES, names="abcd"):
    table = ResultsTable()
    for step, row in enumerate(values):
        for name, value in zip(names, row, strict=True):
            if not math.isnan(value):
                table.append("x", 0, step, name, metric, value)
    return performance_matrix(table, "x", metric, 0, experiences)


def both(values):
    """The same knowledge as R2 and as MSE."""
    return [
        ("r2", matrix(values)),
        ("mse", matrix([[1 - value for value in row] for row in values], "mse")),
    ]


@pytest.mark.parametrize("place", [0, 1])
def test_forward_transfer_is_against_a_separate_network(place):
    (_, ours), (_, alone) = both(OURS)[place], both(ALONE)[place]
    # Just after learning: a 0.8, b -0.2, c 0.4, d 0.3; alone 0.7, -0.4, 0.5, 0.1. What came later does not count.
    expected = {"a": 0.1, "b": 0.2, "c": -0.1, "d": 0.2}
    assert forward_transfer(ours, alone) == pytest.approx(expected)
    assert set(forward_transfer(alone, alone).values()) == {0.0}


@pytest.mark.parametrize("place", [0, 1])
def test_intransigence_is_against_joint_training(place):
    (_, ours), (_, joint) = both(OURS)[place], both(JOINT)[place]
    assert intransigence(ours, joint) == pytest.approx({"a": 0.05, "b": 0.1, "c": 0.05, "d": -0.05})
    assert set(intransigence(joint, joint).values()) == {0.0}


def test_joint_training_learns_everything_in_its_last_step():
    joint = matrix(JOINT)
    assert joint.learned == (2, 2, 2, 2)
    assert learned_values(joint) == pytest.approx({"a": 0.85, "b": -0.1, "c": 0.45, "d": 0.25})
    assert forgetting(joint) == backward_transfer(joint) == {}


def test_transfer_carries_nan_and_leaves_out_what_the_other_does_not_know():
    ours = matrix(OURS)
    alone = matrix([row[:3] for row in ALONE], experiences=EXPERIENCES[:2], names="abc")
    alone.values[1, 2] = NAN
    found = forward_transfer(ours, alone)
    assert list(found) == ["a", "b", "c"]
    assert math.isnan(found["c"])
    assert found["a"] == pytest.approx(0.1)


def test_metrics_are_not_mixed():
    with pytest.raises(RepmodeError, match="r2 cannot be compared with mse"):
        forward_transfer(matrix(OURS), both(ALONE)[1][1])
    with pytest.raises(RepmodeError, match="r2 cannot be compared with mse"):
        intransigence(matrix(OURS), both(JOINT)[1][1])


def test_a_structure_that_comes_back():
    again = [["a"], ["b"], ["c"], ["b"]]
    values = [[0.8, NAN, NAN], [0.7, 0.3, NAN], [0.6, 0.2, 0.5], [0.5, 0.45, 0.4]]
    found = matrix(values, experiences=again, names="abc")
    assert found.structures == ("a", "b", "c")
    assert (found.learned, found.last_learned) == ((0, 1, 2), (0, 3, 2))
    # b was learned again in the last step: it had no time to be forgotten.
    assert forgetting(found) == pytest.approx({"a": 0.3, "c": 0.1})
    assert backward_transfer(found) == pytest.approx({"a": -0.3, "c": -0.1})
    # Knowing a was worth what b reached the first time; how much it could not learn, what it reached the last.
    assert learned_values(found)["b"] == 0.3
    assert intransigence(found, matrix([[0.9, 0.5, 0.6]], experiences=[["a", "b", "c"]], names="abc"))[
        "b"
    ] == pytest.approx(0.05)
    # Learned again before the last step: what it lost since its best, and since it was last learned.
    later = matrix([*values, [0.5, 0.25, 0.4]], experiences=[*again, ["d"]], names="abc")
    assert forgetting(later)["b"] == pytest.approx(0.2)
    assert backward_transfer(later)["b"] == pytest.approx(-0.2)


@pytest.mark.parametrize(
    ("points", "budget", "area"),
    [
        ([(0, 0.0), (10, 1.0)], None, 0.5),
        ([(10, 1.0), (0, 0.0)], 10, 0.5),
        ([(0, -1.0), (10, 1.0)], None, 0.0),
        # The first value stands for the steps before it: 5 * 0.4 + 5 * 0.6.
        ([(5, 0.4), (10, 0.8)], None, 0.5),
        # The last one for those after it: 5 + 10 * 0.8.
        ([(5, 0.4), (10, 0.8)], 20, 0.65),
        # Half of the last piece: 5 * 0.4 + 2.5 * 0.5.
        ([(5, 0.4), (10, 0.8)], 7.5, 3.25 / 7.5),
        ([(5, 0.4)], 2, 0.4),
        ([(5, -0.3)], None, -0.3),
    ],
)
def test_the_area_under_a_learning_curve(points, budget, area):
    assert area_under_curve(points, budget) == pytest.approx(area)


def test_areas_that_do_not_exist():
    assert math.isnan(area_under_curve([]))
    assert math.isnan(area_under_curve([(0, 0.1), (5, NAN), (10, 0.4)]))
    for points, budget in [([(0, 1.0)], None), ([(5, 1.0), (5, 2.0)], None), ([(5, 1.0)], -1)]:
        with pytest.raises(RepmodeError):
            area_under_curve(points, budget)


def test_areas_of_a_run_are_of_each_experience_and_structure():
    rows = [
        {"experience": "0", "structure": "a", "train_step": "5", "metric": "r2", "value": "0.4"},
        {"experience": "0", "structure": "a", "train_step": "10", "metric": "r2", "value": "0.8"},
        {"experience": "0", "structure": "a", "train_step": "10", "metric": "mse", "value": "9"},
        {"experience": "1", "structure": "b", "train_step": "5", "metric": "r2", "value": "0.1"},
    ]
    assert learning_areas(rows) == pytest.approx({(0, "a"): 0.5, (1, "b"): 0.1})
    assert learning_areas(rows, budgets={0: 20}) == pytest.approx({(0, "a"): 0.65, (1, "b"): 0.1})


def tried(*values, target=0.5):
    return [
        TriedBudget(f"x{steps}", steps, 1.0, value, target)
        for steps, value in zip((100, 200, 300), values, strict=True)
    ]


def test_the_smallest_budget_that_reaches_the_target():
    found = smallest_budget(reversed(tried(0.4, 0.5, 0.6)), "r2")
    assert found is not None
    assert found.steps == 200  # equal is reached
    assert smallest_budget(tried(0.1, NAN, 0.4), "r2") is None
    # The same numbers as MSE: lower is better, so the smallest budget reaches it.
    assert smallest_budget(tried(0.4, 0.5, 0.6), "mse").steps == 100
    assert smallest_budget(tried(-0.4, -0.2, -0.1, target=-0.2), "r2").steps == 200


def test_a_larger_budget_may_fall_back():
    assert is_steady(tried(0.4, 0.5, 0.6), "r2") is True
    assert is_steady(tried(0.5, 0.4, 0.6), "r2") is False
    assert is_steady(tried(0.1, 0.2, 0.3), "r2") is None


def test_what_a_structure_cost():
    table = ResultsTable()
    stream = [["a", "b"], ["c"], ["d", "e"], ["c"]]
    for step, structure, value in [(0, "base", 900), (1, "c", 100), (2, "base", 300), (3, "c", 50)]:
        table.append("ours", 0, step, structure, "steps", value, "order-1")
    # Joint learning is shared; of a structure that comes back the first learning counts.
    expected = {"c": 100.0, "d": 150.0, "e": 150.0}
    assert cost_per_structure(table, "ours", "steps", "order-1", 0, stream) == expected
    for step, structure, value in [(0, "a", 1), (0, "b", 2), (1, "c", 3), (2, "d", 4), (2, "e", 5)]:
        table.append("alone", 0, step, structure, "steps", value)
    assert cost_per_structure(table, "alone", "steps", "", 0, stream[:3]) == {"c": 3.0, "d": 4.0, "e": 5.0}
    missing = cost_per_structure(table, "alone", "cpu_seconds", "", 0, stream[:3])
    np.testing.assert_equal(list(missing.values()), [NAN] * 3)
