"""Charts of quality against cost: which strategies are on the edge, and what is drawn."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from repmode_cl.report.page.frontier import _log_ticks, frontier_charts, upper_left_edge

POINTS = st.lists(st.tuples(st.integers(1, 6), st.integers(-3, 3)), max_size=8)


@given(POINTS)
def test_the_edge_is_all_that_nothing_beats(points):
    def beaten(point):
        return any(other != point and other[0] <= point[0] and other[1] >= point[1] for other in points)

    edge = upper_left_edge(points)
    assert {points[k] for k in edge} == {point for point in points if not beaten(point)}
    assert len(edge) == sum(not beaten(point) for point in points)
    assert [points[k][0] for k in edge] == sorted(points[k][0] for k in edge)


def row(title, value, size, seconds):
    return {"strategy": title, "added_r2": value, "added_bytes": size, "added_cpu_seconds": seconds}


def test_each_cost_has_a_chart_and_says_who_is_missing():
    rows = [
        row("small & cheap", 0.4, 1e4, 9.0),
        row("copy", 0.5, 1e6, 8.0),
        row("worse", -2.0, 2e6, 50.0),
        row("joint", 0.5, None, 80.0),
        row("unfinished", None, None, None),
    ]
    size, seconds = frontier_charts(rows)
    assert size.on_edge == ("small & cheap", "copy")
    assert size.left_out == ("joint", "unfinished")
    assert (seconds.on_edge, seconds.left_out) == (("copy",), ("unfinished",))
    assert "<title>small &amp; cheap: R2 0.400, 10.0 kB</title>" in size.svg
    assert size.svg.count("<circle") == 3
    # Worse than predicting the mean: the dot stays in the frame, its title has the value.
    assert "worse: R2 \N{MINUS SIGN}2.000, 2.00 MB" in size.svg
    assert max(float(part.split('"')[0]) for part in size.svg.split('cy="')[1:]) <= 240


def test_one_strategy_is_no_frontier():
    assert frontier_charts([row("ours", 0.5, 100, 1.0)]) == []
    # Of no cost there is no place on a log scale.
    assert frontier_charts([row("a", 0.5, 0, None), row("b", 0.4, 0, None)]) == []


@given(st.floats(-2, 9), st.floats(0.05, 8))
def test_an_axis_has_a_few_round_numbers_within_it(low, length):
    ticks = _log_ticks(low, low + length)
    assert 1 <= len(ticks) <= 6
    assert all(10 ** (low - 1e-9) <= tick <= 10 ** (low + length + 1e-9) for tick in ticks)
