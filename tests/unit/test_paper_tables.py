"""A run next to the paper's figures: which system a strategy is, improvement, order, gates and boxes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from paper_run import of_few, paper_page, results_of, run_info
from synthetic_run import make_run

from repmode_cl.report.page import build_report
from repmode_cl.report.page.difference_boxes import difference_boxes
from repmode_cl.report.page.gate_figure import stacked_columns
from repmode_cl.report.tables import write_tables
from repmode_cl.report.tables.paper_comparison import order_lines, order_table, paper_table
from repmode_cl.report.tables.paper_figures import paper_tables, systems_of_run
from repmode_cl.results.run_info import write_run_info


def test_the_papers_figures_are_whole_and_give_its_improvements() -> None:
    tables = paper_tables()
    assert [len(tables[number].systems) for number in (1, 2, 3)] == [9, 15, 3]
    assert len(tables[1].figures) == 9 * 13
    reference = tables[1].figures["Multi-Net", "all"]
    for system in tables[1].systems:
        for metric, sign in (("mse", -1), ("mae", -1), ("r2", 1)):
            value = tables[1].figures[system, "all"][metric]
            computed = 100 * sign * (value - reference[metric]) / reference[metric]
            # Printed figures have four digits, of which one unit is 0.024 per cent.
            assert tables[1].improvement[system][metric] == pytest.approx(computed, abs=0.03)
    assert tables[1].figures["RepMode", "all"] == {"mse": 0.4956, "mae": 0.4078, "r2": 0.4735}


@pytest.mark.parametrize(
    ("name", "number", "rows"), [("table1", 1, 17), ("table1_incremental", 1, 10), ("table2", 2, 15)]
)
def test_each_strategy_of_the_studies_is_a_system_of_the_paper(name: str, number: int, rows: int) -> None:
    info = run_info(name)
    found = systems_of_run(info, [""])
    assert found is not None
    assert found.table.number == number
    assert list(found.systems) == list(info.strategies)
    assert len(found.systems) == rows
    assert set(found.systems.values()) == set(found.table.systems)


def test_table3_is_known_and_other_studies_are_none() -> None:
    found = systems_of_run(run_info("table3"), [""])
    assert found is not None
    assert (found.table.number, found.table.when) == (3, "learned")
    assert systems_of_run(run_info("twelve_structures"), [""]) is None
    assert systems_of_run(run_info("quickstart"), [""]) is None


def test_improvements_are_relative_to_the_best_multi_net() -> None:
    info = of_few(run_info("table1"))
    level = dict.fromkeys(info.strategies, 0.3) | {"multi_net_k5": 0.40, "RepMode": 0.50}
    rows = paper_table(results_of(info, level), info)
    assert {row["reference"] for row in rows} == {"multi_net_k5"}
    assert [row["structure"] for row in rows[:17]] == ["all"] * 17
    assert len(rows) == 17 * 4
    ours = next(row for row in rows if row["strategy"] == "RepMode")
    # By hand, of two seeds: R2 0.505 against 0.405, MSE 0.495 against 0.595.
    assert ours["r2"] == pytest.approx(0.505)
    assert ours["reference_mse"] == pytest.approx(0.595)
    assert ours["improvement_r2"] == pytest.approx(100 * 0.1 / 0.405)
    assert ours["improvement_mse"] == pytest.approx(100 * 0.1 / 0.595)
    assert ours["improvement_r2_low"] == pytest.approx(100 * 0.1 / 0.41)
    assert ours["improvement_r2_high"] == pytest.approx(25.0)
    # The paper's as printed, of the whole; of a structure from its figures.
    assert (ours["paper_r2"], ours["paper_improvement_r2"]) == (0.4735, 9.176)
    dna = next(row for row in rows if row["strategy"] == "RepMode" and row["structure"] == "dna")
    assert dna["paper_improvement_mse"] == pytest.approx(100 * (0.5806 - 0.4852) / 0.5806)
    assert next(row for row in rows if row["strategy"] == "tsns_k3_joint")["improvement_r2"] < 0


def test_the_order_is_compared_for_each_kernel() -> None:
    info = of_few(run_info("table1"))
    found = systems_of_run(info, [""])
    assert found is not None
    # Kernels of 3 in the order of the paper, those of 5 in the opposite one but for RepMode, which is in both.
    level = {}
    for title, system in found.systems.items():
        r2 = found.table.figures[system, "all"]["r2"]
        level[title] = 0.9 - r2 if title.endswith(("_k5", "_k5_joint")) else r2
    rows = order_table(results_of(info, level), info)
    of_all = {(row["variant"], row["metric"]): row for row in rows if row["structure"] == "all"}
    assert {variant for variant, _ in of_all} == {"kernel 3", "kernel 5"}
    assert of_all["kernel 3", "r2"]["correlation"] == pytest.approx(1.0)
    assert of_all["kernel 3", "r2"]["systems"] == 9
    # Eight in the opposite order, and the first still first: 1 - 6 * 168 / (9 * 80).
    assert of_all["kernel 5", "r2"]["correlation"] == pytest.approx(1 - 6 * 168 / 720)
    assert of_all["kernel 5", "r2"]["strategies"].split(", ")[0] == "RepMode"
    line = next(line for line in order_lines(rows) if "R²" in line and "kernel 5" in line)
    assert line == (
        "order by R² here and in the paper's Table 1, kernel 5: rank correlation -0.40 [-0.40, -0.40], n = 9"
    )


def test_both_settings_are_compared_apart() -> None:
    info = run_info("table1_incremental", (0,))
    level = dict(zip(info.strategies, np.linspace(0.2, 0.5, len(info.strategies)), strict=True))
    rows = order_table(results_of(info, level), info)
    assert {row["variant"] for row in rows} == {"setting small", "setting best"}
    assert {row["low"] for row in rows} == {None}


def test_table2_refers_to_the_original() -> None:
    info = of_few(run_info("table2"))
    rows = paper_table(results_of(info, dict.fromkeys(info.strategies, 0.4)), info)
    assert {row["reference"] for row in rows} == {"RepMode"}
    assert {row["structure"] for row in rows} == {"all"}
    sigmoid = next(row for row in rows if row["strategy"] == "Sigmoid")
    assert sigmoid["improvement_r2"] == 0.0
    assert sigmoid["paper_improvement_r2"] == pytest.approx(100 * (0.4698 - 0.4735) / 0.4735)


def test_a_folder_of_tables_holds_both(tmp_path: Path) -> None:
    info = of_few(run_info("table2"), ["RepMode", "only in decoder", "Sigmoid"])
    level = {title: 0.2 + 0.01 * place for place, title in enumerate(info.strategies)}
    results_of(info, level).write(tmp_path / "results.csv")
    write_run_info(tmp_path, info)
    names = {path.name for path in write_tables(tmp_path, tmp_path / "tables")}
    assert {"paper.csv", "paper.tex", "paper_orders.csv", "paper_orders.tex"} <= names
    lines = (tmp_path / "tables" / "paper.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("table,strategy,system,reference,structure,seeds,mse,reference_mse,")
    assert lines[1].startswith("2,RepMode,RepMode,RepMode,all,2,")
    assert len(lines) == 4


def test_columns_add_up_and_stand_in_the_order_of_the_network() -> None:
    blocks = {
        "encoder.0.0": {"conv5": 0.5, "conv1": 0.5},
        "encoder.0.1": {"conv5": 0.25, "conv1": 0.75},
        "decoder.0.0": {"conv5": 0.2, "conv1": 0.2, "dna": 0.6},
    }
    drawn = str(stacked_columns(blocks, {"conv5": 0, "conv1": 1}, "dna"))
    paths = dict(re.findall(r'<path class="(\w+)" d="([^"]+)"', drawn))
    assert set(paths) == {"e0", "e1", "efresh"}

    def bars(kind: str) -> list[list[float]]:
        return [
            [float(number) for number in re.findall(r"-?[\d.]+", bar)] for bar in paths[kind].split("M")[1:]
        ]

    # x, top, width and height of each: columns of 102 units in all.
    heights = [[bar[3] for bar in bars(kind)] for kind in ("e0", "e1")]
    assert heights[0] == pytest.approx([51.0, 25.5, 20.4])
    assert heights[1] == pytest.approx([51.0, 76.5, 20.4])
    assert [bar[3] for bar in bars("efresh")] == pytest.approx([61.2])
    lefts = [bar[0] for bar in bars("e0")]
    assert lefts == sorted(lefts)
    # Between encoder and decoder there is more room than within a part.
    assert lefts[2] - lefts[1] > 1.3 * (lefts[1] - lefts[0])
    assert [bar[1] for bar in bars("e1")] == pytest.approx([6.0, 6.0, 6.0 + 61.2])
    assert "conv5: 20 to 50 %" in drawn
    assert "decoder.0.0 dna" in drawn


def test_boxes_lie_where_two_predictions_differ_most_whoever_is_nearer() -> None:
    truth = np.zeros((40, 64), np.float32)
    ours, rival = truth.copy(), truth.copy()
    rival[5:15, 50:60] += 1.0  # the rival's worst place
    ours[25:35, 10:20] += 0.8  # and ours
    first, second = difference_boxes(ours, rival, truth)
    assert (first.name, first.y, first.x, first.side) == ("A", 5, 50, 10)
    assert (first.ours, first.rival) == (0.0, pytest.approx(1.0))
    assert first.text.endswith("ours is nearer")
    assert (second.y, second.x) == (25, 10)
    assert second.text.endswith("the rival is nearer")
    # A difference of less than half of the first has no box.
    assert len(difference_boxes(ours / 4, rival, truth)) == 1
    assert difference_boxes(ours, ours, truth) == ()
    assert difference_boxes(np.full_like(ours, np.nan), rival, truth) == ()


def test_the_squares_of_a_naive_search_are_found() -> None:
    random = np.random.default_rng(0)
    ours, rival, truth = random.normal(size=(3, 24, 20)).astype(np.float32)
    side = 5
    means = {
        (y, x): float(np.abs(ours.astype(float) - rival)[y : y + side, x : x + side].mean())
        for y in range(24 - side + 1)
        for x in range(20 - side + 1)
    }
    boxes = difference_boxes(ours, rival, truth)
    assert (boxes[0].y, boxes[0].x) == max(means, key=lambda place: means[place])
    apart = {
        place: mean
        for place, mean in means.items()
        if abs(place[0] - boxes[0].y) > side or abs(place[1] - boxes[0].x) > side
    }
    assert (boxes[1].y, boxes[1].x) == max(apart, key=lambda place: apart[place])


def test_the_page_of_such_a_run_has_the_papers_table_and_both_figures(tmp_path: Path) -> None:
    text = paper_page(tmp_path).read_text(encoding="utf-8")
    assert "Next to the paper's Table 1" in text
    side = text[text.index('id="side-by-side"') : text.index('id="gates"')]
    # Of the rivals the better one; microtubule and DNA are in the paper's figure, so they come first.
    assert "multi_net_k3 and RepMode" in side
    assert re.findall(r'data-structure="(\w+)"', side) == ["microtubule", "dna", "nucleolus"]
    assert side.count('<div class="boxed">') == 3 * 4
    assert side.count('<rect class="under"') == side.count("<b style=") > 0
    assert len(re.findall(r"MSE [\d.]+ \(ours\), [\d.]+ \(rival\)", side)) * 3 == side.count("<b style=")
    gates = text[text.index('id="gates"') : text.index('id="settings"')]
    assert gates.count('<svg class="gate-figure"') == 3
    assert gates.count("<details") == 1
    # Whatever is shown is in the files too, which the page carries.
    assert '"paper_orders|0|"' in text


def test_the_page_of_another_run_has_neither(tmp_path: Path) -> None:
    text = build_report(make_run(tmp_path / "run", seeds=(0,))).read_text(encoding="utf-8")
    assert 'id="paper"' not in text
    assert 'id="side-by-side"' not in text
    assert '<svg class="gate-figure"' in text
