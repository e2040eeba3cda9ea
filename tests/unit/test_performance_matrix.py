from __future__ import annotations

import csv
import math

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from repmode_cl.errors import RepmodeError
from repmode_cl.evaluation import (
    backward_transfer,
    final_average,
    forgetting,
    performance_matrix,
    relative_improvement,
    summarise,
)
from repmode_cl.report.tables.strategies import strategy_table, write_table_csv
from repmode_cl.report.tables.terminal import render_strategies, summary_lines
from repmode_cl.results import ResultsTable
from repmode_cl.utils.number_format import forgetting_text

EXPERIENCES = [["a", "b"], ["c"], ["d"]]
NAN = math.nan

# Worked by hand: rows are steps, columns a, b, c, d.
R2 = [[0.8, -0.2, NAN, NAN], [0.9, -0.5, 0.4, NAN], [0.5, -0.4, 0.45, 0.3]]
MSE = [[0.2, 1.2, NAN, NAN], [0.1, 1.5, 0.6, NAN], [0.5, 1.4, 0.55, 0.7]]


def results_of(matrices, strategy="x", seed=0, table=None):
    table = ResultsTable() if table is None else table
    for metric, matrix in matrices.items():
        for step, row in enumerate(matrix):
            for name, value in zip("abcd", row, strict=True):
                if not math.isnan(value):
                    table.append(strategy, seed, step, name, metric, value)
    return table


def test_the_matrix_is_nan_where_a_structure_was_unseen():
    matrix = performance_matrix(results_of({"r2": R2}), "x", "r2", 0)
    assert matrix.structures == ("a", "b", "c", "d")
    assert matrix.learned == (0, 0, 1, 2)
    np.testing.assert_array_equal(matrix.values, R2)


@pytest.mark.parametrize(("metric", "values"), [("r2", R2), ("mse", MSE)])
def test_forgetting_and_transfer_have_one_sign_for_both_directions(metric, values):
    matrix = performance_matrix(results_of({metric: values}), "x", metric, 0, EXPERIENCES)
    # a: best 0.9 (after c), final 0.5. b: best -0.2, final -0.4, both below zero. c: improved. d: the last.
    assert forgetting(matrix) == pytest.approx({"a": 0.4, "b": 0.2, "c": -0.05})
    assert backward_transfer(matrix) == pytest.approx({"a": -0.3, "b": -0.2, "c": 0.05})


def test_the_final_average_is_over_all_or_over_those_named():
    matrix = performance_matrix(results_of({"r2": R2}), "x", "r2", 0)
    assert final_average(matrix) == pytest.approx((0.5 - 0.4 + 0.45 + 0.3) / 4)
    assert final_average(matrix, ["c", "d"]) == pytest.approx(0.375)


def test_an_untouched_structure_forgets_exactly_nothing():
    same = [[0.1 + 0.2, 0.7, NAN, NAN], [0.1 + 0.2, 0.7, 0.4, NAN], [0.1 + 0.2, 0.7, 0.4, 0.2]]
    assert set(forgetting(performance_matrix(results_of({"r2": same}), "x", "r2", 0)).values()) == {0.0}


def test_nan_is_carried_not_hidden():
    matrix = performance_matrix(results_of({"r2": R2}), "x", "r2", 0)
    matrix.values[2, 0] = NAN
    assert math.isnan(forgetting(matrix)["a"])
    assert math.isnan(final_average(matrix))


def test_values_before_learning_are_not_a_best_to_fall_from():
    table = results_of({"r2": R2})
    table.append("x", 0, 0, "c", "r2", 0.99)
    matrix = performance_matrix(table, "x", "r2", 0, EXPERIENCES)
    assert math.isnan(matrix.values[0, 2])
    assert forgetting(matrix)["c"] == pytest.approx(-0.05)


def test_a_single_step_has_no_forgetting():
    matrix = performance_matrix(results_of({"r2": R2[:1]}), "x", "r2", 0, EXPERIENCES)
    assert forgetting(matrix) == backward_transfer(matrix) == {}
    assert matrix.structures == ("a", "b")


@pytest.mark.parametrize(("metric", "strategy"), [("r3", "x"), ("steps", "x"), ("r2", "y")])
def test_a_matrix_that_does_not_exist_is_refused(metric, strategy):
    with pytest.raises(RepmodeError):
        performance_matrix(results_of({"r2": R2}), strategy, metric, 0)


@pytest.mark.parametrize(
    ("metric", "reference", "value", "percent"),
    [("mse", 0.5341, 0.4956, 7.209), ("mae", 0.4269, 0.4078, 4.482), ("r2", 0.4337, 0.4735, 9.176)],
)
def test_relative_improvement_is_that_of_the_papers_table_1(metric, reference, value, percent):
    # The paper computed from unrounded averages: its own rounding allows 0.02.
    assert relative_improvement(value, reference, metric) == pytest.approx(percent, abs=0.02)


def test_relative_improvement_over_a_negative_or_zero_reference():
    assert relative_improvement(0.1, -0.1, "r2") == pytest.approx(200.0)
    assert math.isnan(relative_improvement(0.1, 0.0, "r2"))


def test_a_summary_is_students_interval():
    values = [0.41, 0.47, 0.44]
    summary = summarise(values)
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert summary.mean == pytest.approx(np.mean(values))
    assert summary.half_width == pytest.approx((high - low) / 2)
    assert summarise([0.3]).half_width is None
    assert summarise([0.1] * 3) == summarise([0.1] * 3)
    assert (summarise([0.1] * 3).mean, summarise([0.1] * 3).half_width) == (0.1, 0.0)
    assert math.isnan(summarise([]).mean)


@pytest.fixture
def run():
    table = ResultsTable()
    frozen = [[0.8, 0.6, NAN, NAN], [0.8, 0.6, 0.4, NAN], [0.8, 0.6, 0.4, 0.3]]
    for seed in (0, 1):
        results_of({"r2": R2, "mse": MSE}, "fine_tuning", seed, table)
        results_of({"r2": frozen}, "experts_frozen", seed, table)
        results_of({"r2": np.array(frozen) / 2}, "multi_net_k3", seed, table)
        for step, name in enumerate(["base", "c", "d"]):
            table.append("experts_frozen", seed, step, name, "train_seconds", 10.0 * (3 - step))
            added = (5_000_000, 300_000, 320_000)[step]
            table.append("experts_frozen", seed, step, name, "added_parameters", added)
    info = {
        "experiences": EXPERIENCES,
        "strategies": {
            "experts_frozen": {"name": "experts_frozen", "bit_identical": True},
            "fine_tuning": {"name": "fine_tuning", "bit_identical": False},
            "multi_net_k3": {"name": "multi_net", "bit_identical": None},
        },
        "seeds": [0, 1],
        "multi_net": "multi_net_k3",
        "finished": [["experts_frozen", 0], ["experts_frozen", 1], ["fine_tuning", 0], ["multi_net_k3", 0]],
    }
    return table, info


def test_the_table_of_a_run(run):
    ours, fine, multi = strategy_table(*run)
    assert ours["final_r2"] == pytest.approx(0.525)
    assert ours["added_r2"] == pytest.approx(0.35)
    assert ours["improvement_r2"] == pytest.approx(100.0)
    assert multi["improvement_r2"] == 0.0
    assert (ours["added_parameters"], ours["added_seconds"], ours["train_seconds"]) == (310_000, 15.0, 60.0)
    assert (ours["seeds"], fine["seeds"]) == (2, 1)
    assert fine["forgetting_r2"] == pytest.approx((0.4 + 0.2 - 0.05) / 3)
    assert fine["forgetting_r2_ci"] is None
    assert fine["peak_memory_bytes"] is None


def test_forgetting_is_called_bit_identical_only_where_both_were_found(run):
    results, info = run
    assert [forgetting_text(row) for row in strategy_table(*run)] == ["0.0 (bit-identical)", "+0.1833", "0.0"]
    info["strategies"]["fine_tuning"]["bit_identical"] = True
    assert forgetting_text(strategy_table(results, info)[1]) == "+0.1833"
    line = summary_lines(strategy_table(*run))[0]
    assert line == "experts_frozen: R2 0.525 ±0.000, forgetting 0.0 (bit-identical)"


def test_the_table_in_a_terminal_of_80_characters(run):
    console = Console(width=80)
    with console.capture() as capture:
        console.print(render_strategies(strategy_table(*run), "quickstart"))
    shown = capture.get()
    assert "…" not in shown
    assert "310 k" in shown
    assert "experts_frozen" in shown


def test_the_table_says_of_how_many_seeds_each_row_is(run):
    results, info = run

    def caption(finished):
        info["finished"] = finished
        return str(render_strategies(strategy_table(results, info)).caption)

    both = [[title, seed] for title in info["strategies"] for seed in (0, 1)]
    assert caption(both).endswith("\nseeds: 2\nMulti-Net: multi_net_k3")
    assert "\nseeds: 2; fine_tuning 1\n" in caption([one for one in both if one != ["fine_tuning", 1]])
    assert "seeds: 2\n" in caption([one for one in both if one[0] != "fine_tuning"])
    assert "seed" not in caption([one for one in both if one[1] == 0])


def test_a_strategy_that_did_not_finish_is_said_so(run):
    results, info = run
    info["finished"] = [["fine_tuning", 0]]
    ours = strategy_table(results, info)[0]
    assert ours["final_r2"] is None
    console = Console(width=120)
    with console.capture() as capture:
        console.print(render_strategies(strategy_table(results, info)))
    assert "experts_frozen (unfinished)" in capture.get()


def test_the_table_as_csv(run, tmp_path):
    write_table_csv(strategy_table(*run), tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["strategy"] for row in rows] == ["experts_frozen", "fine_tuning", "multi_net_k3"]
    assert float(rows[0]["forgetting_r2"]) == 0.0
    assert rows[1]["forgetting_r2_ci"] == ""


def test_run_json_of_another_form_is_refused(run):
    results, info = run
    del info["seeds"]
    with pytest.raises(RepmodeError, match="seeds"):
        strategy_table(results, info)
