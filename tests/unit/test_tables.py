"""Comparisons in words, structures and budgets, from small runs worked by hand."""

from __future__ import annotations

import math

import pytest
from synthetic_run import make_run
from tabled_run import KINDS, LEVEL, STREAM, by_second, luck, make

from repmode_cl.errors import RepmodeError
from repmode_cl.report import (
    budget_table,
    comparison_table,
    strategy_table,
    structure_table,
    write_tables,
)
from repmode_cl.report.page import build_report
from repmode_cl.report.tables.comparisons import add_verdicts, our_strategy
from repmode_cl.results import ResultsTable, RunInfo, read_run_info


def test_six_seeds_that_agree_are_beyond_noise():
    rows = by_second(comparison_table(*make()))
    # Shorter budgets of ours belong to another table.
    assert list(rows) == ["multi", "fine", "joint"]
    multi = rows["multi"]
    assert (multi["first"], multi["structure"], multi["seeds"]) == ("ours", "all added", 6)
    assert multi["difference"] == pytest.approx(0.05)
    assert (multi["low"], multi["high"]) == pytest.approx((0.05, 0.05))
    assert multi["p"] == pytest.approx(2 / 64)
    assert multi["verdict"] == "ahead beyond noise"
    # b: 0.5 - 0.1 at the end, c: 0.4 - 0.42.
    assert rows["fine"]["difference"] == pytest.approx((0.4 - 0.02) / 2)
    assert rows["joint"]["verdict"] == "behind beyond noise"
    # By itself, not as one of three: 3 * 2 / 64 is above 0.05.
    assert multi["p_holm"] == pytest.approx(6 / 64)
    assert (multi["pairs"], multi["holds_corrected"]) == (3, False)
    named = comparison_table(*make(), pairs=[("ours", "multi")])
    assert named[0]["holds_corrected"] is True


def test_three_seeds_are_too_few_however_clear():
    row = by_second(comparison_table(*make(range(3))))["multi"]
    assert row["verdict"] == "too few seeds (n=3: no test can get below 0.25)"
    assert (row["seeds_for_test"], row["seeds_needed"]) == (6, 6)
    alone = by_second(comparison_table(*make(range(1))))["multi"]
    assert alone["low"] is None
    assert alone["difference"] == pytest.approx(0.05)


def test_errors_have_the_sign_of_what_is_better():
    rows = by_second(comparison_table(*make(), metric="mse"))
    assert rows["multi"]["difference"] == pytest.approx(0.05)
    assert rows["joint"]["verdict"] == "behind beyond noise"


def test_noise_is_called_noise():
    def jitter(title, seed, stream):
        return 0.2 * (-1) ** seed if title == "multi" else 0.0

    row = by_second(comparison_table(*make(jitter=jitter)))["multi"]
    assert row["verdict"] == "within noise"
    assert row["low"] < 0 < row["high"]
    assert row["seeds_needed"] > 6


def test_single_structures_and_every_pair():
    rows = comparison_table(*make(), pairs=[("ours", "fine")], per_structure=True)
    assert [(row["structure"], row["verdict"]) for row in rows] == [
        ("b", "ahead beyond noise"),
        ("c", "behind beyond noise"),
    ]
    assert rows[0]["p_holm"] == pytest.approx(4 / 64)
    assert len(comparison_table(*make(), pairs="all")) == 15
    with pytest.raises(RepmodeError, match=r"no strategy 'mult'.*did you mean 'multi'"):
        comparison_table(*make(), pairs=[("ours", "mult")])


def test_what_cannot_be_compared_is_said():
    table, info = make()
    info["finished"] = [entry for entry in info["finished"] if entry[0] != "multi"]
    rows = by_second(comparison_table(table, info))
    assert (rows["multi"]["verdict"], rows["multi"]["difference"]) == ("no seed that both finished", None)
    table.drop("fine", 2, from_step=2)
    for name in "abc":
        table.append("fine", 2, 2, name, "r2", math.nan)
    row = by_second(comparison_table(table, info))["fine"]
    assert row["verdict"] == "not comparable: a value is no number"
    assert row["holds_corrected"] is False


def test_streams_are_averaged_within_a_seed():
    def jitter(title, seed, stream):
        return {"order-1": 0.06, "order-2": -0.02}[stream] if title == "ours" else 0.0

    table, info = make(range(3), ("order-1", "order-2"), jitter)
    row = by_second(comparison_table(table, info))["multi"]
    # Two orders of three seeds are three pieces of evidence and not six.
    assert row["seeds"] == 3
    assert row["difference"] == pytest.approx(0.05 + 0.02)
    one = by_second(comparison_table(table, info, streams=["order-2"]))["multi"]
    assert one["difference"] == pytest.approx(0.03)
    ours = strategy_table(table, info)[0]
    assert ours["forward_r2"] == pytest.approx(0.07)
    assert ours["intransigence_r2"] == pytest.approx(0.05 - 0.02)
    # A seed counts where all the streams are finished.
    info["finished"].remove(["ours", "order-2", 1])
    assert strategy_table(table, info)[0]["seeds"] == 2
    assert strategy_table(table, info, streams=["order-1"])[0]["seeds"] == 3
    with pytest.raises(RepmodeError, match="no stream 'order-3'"):
        strategy_table(table, info, streams=["order-3"])


def test_other_numbers_of_images_are_never_averaged():
    table, info = make(range(2), ("order-1-images-2", "order-1-images-4", "order-2-images-2"))
    groups = RunInfo.of(info).stream_groups()
    assert groups == {"images-2": ("order-1-images-2", "order-2-images-2"), "images-4": ("order-1-images-4",)}
    arranged = {"streams": dict.fromkeys(("order-1", "order-12", "easiest-first"), STREAM)}
    assert RunInfo.of({**info, **arranged}).stream_groups() == {
        "": ("order-1", "order-12"),
        "easiest-first": ("easiest-first",),
    }
    info["finished"].remove(["ours", "order-1-images-4", 0])
    assert strategy_table(table, info)[0]["seeds"] == 2  # only of images-2


def test_the_strategy_table_has_all_measures():
    rows = {row["strategy"]: row for row in strategy_table(*make())}
    ours, multi, joint, fine = (rows[title] for title in ("ours", "multi", "joint", "fine"))
    assert ours["learned_r2"] == pytest.approx(0.45 + sum(luck(seed) for seed in range(6)) / 6)
    assert ours["forward_r2"] == pytest.approx(0.05)
    assert ours["forward_r2_ci"] == pytest.approx(0.0, abs=1e-12)
    assert multi["forward_r2"] == joint["intransigence_r2"] == 0.0
    assert ours["intransigence_r2"] == pytest.approx(0.05)
    assert fine["forward_r2"] == pytest.approx((0.30 - 0.45 + 0.42 - 0.35) / 2)
    assert (ours["added_steps"], ours["added_cpu_seconds"], ours["cpu_seconds"]) == (100, 10, 520)
    # Joint training adds nothing, and has nothing to forget.
    assert (joint["added_steps"], joint["forgetting_r2"], joint["area_r2"]) == (None, None, None)
    areas = {("ours", "", seed): {(0, "a"): 9.0, (1, "b"): 0.2, (2, "c"): 0.4} for seed in range(6)}
    assert strategy_table(*make(), areas=areas)[0]["area_r2"] == pytest.approx(0.3)


def test_averages_over_part_of_the_structures_are_not_shown_with_the_others():
    table, info = make()
    whole = ResultsTable([row for row in table if not (row.strategy == "multi" and row.structure == "a")])
    before, after = ({row["strategy"]: row for row in strategy_table(of, info)} for of in (table, whole))
    assert before["multi"]["final_r2"] is not None
    assert after["multi"]["final_r2"] is None
    assert after["multi"]["added_r2"] == before["multi"]["added_r2"]
    assert after["multi"]["forgetting_r2"] == 0.0
    # Nothing can be relative to an average that is not there; what is paired by structure stays.
    assert after["ours"]["improvement_r2"] is None
    assert after["ours"]["forward_r2"] == before["ours"]["forward_r2"] != 0.0
    assert (
        by_second(comparison_table(whole, info, "r2"))["multi"]
        == by_second(comparison_table(table, info, "r2"))["multi"]
    )


def test_a_structure_that_a_strategy_never_evaluated_leaves_its_cells_empty():
    table, info = make()
    without = ResultsTable([row for row in table if not (row.strategy == "fine" and row.structure == "c")])
    fine = next(row for row in strategy_table(without, info) if row["strategy"] == "fine")
    assert fine["added_r2"] is fine["learned_r2"] is fine["final_r2"] is None
    cells = {(row["structure"], row["strategy"]) for row in structure_table(without, info)}
    assert ("b", "fine") in cells
    assert ("c", "fine") not in cells
    # With some of the seeds: of those.
    some = ResultsTable(
        [row for row in table if row.seed < 4 or row.strategy != "fine" or row.structure != "c"]
    )
    rows = {(row["structure"], row["strategy"]): row for row in structure_table(some, info, metric="r2")}
    assert [rows[name, "fine"]["seeds"] for name in ("b", "c")] == [6, 4]
    assert rows["c", "fine"]["value"] == pytest.approx(LEVEL["fine"][1] + sum(map(luck, range(4))) / 4)


def test_verdicts_in_the_strategy_table_are_from_the_rows_point_of_view():
    rows = add_verdicts(strategy_table(*make()), comparison_table(*make()))
    verdicts = {row["strategy"]: row["verdict"] for row in rows}
    assert verdicts["multi"] == verdicts["fine"] == "behind beyond noise"
    assert verdicts["joint"] == "ahead beyond noise"
    assert verdicts["ours"] is None
    assert rows[3]["difference"] == pytest.approx(-0.05)
    assert our_strategy(RunInfo.of(make()[1])) == "ours"


def test_without_additions_ours_is_repmode_trained_jointly():
    _, info = make()
    plain = {"name": "joint", "bit_identical": None, "options": {"name": "joint", "kernel": 3}}
    others = {title: one for title, one in info["strategies"].items() if not title.startswith("ours")}
    info |= {"strategies": {"plain": plain, **others}}
    assert our_strategy(RunInfo.of(info)) is None
    info |= {"streams": {name: [["a", "b", "c"]] for name in info["streams"]}}
    assert our_strategy(RunInfo.of(info)) == "joint"


def test_the_structure_table():
    rows = structure_table(*make(range(2)), metric="r2")
    assert [row["structure"] for row in rows[:: len(KINDS)]] == ["a", "b", "c"]
    fine = next(row for row in rows if (row["structure"], row["strategy"]) == ("b", "fine"))
    mean = (luck(0) + luck(1)) / 2
    assert fine["value"] == pytest.approx(0.1 + mean)
    assert fine["learned"] == pytest.approx(0.3 + mean)
    assert fine["value_ci"] == pytest.approx(12.706 * abs(luck(0) - luck(1)) / 2, rel=1e-3)
    assert (fine["added"], rows[0]["added"]) == (True, False)


def test_titles_may_be_the_words_that_tables_use_themselves(tmp_path):
    kinds = dict.fromkeys(("structure", "added", "twice", "twice_ci", "1"), "fine_tuning")
    run = make_run(tmp_path / "run", kinds=kinds)
    write_tables(run, tmp_path / "tables")
    values = {
        (row["structure"], row["strategy"]): rf"${row['value']:.3f} \pm {row['value_ci']:.3f}$"
        for row in structure_table(ResultsTable.read(run / "results.csv"), read_run_info(run))
    }
    text = (tmp_path / "tables" / "structures.tex").read_text(encoding="utf-8")
    [shown] = [line for line in text.splitlines() if line.startswith("dna &")][:1]
    assert shown == " & ".join(["dna", *(values["dna", title] for title in kinds)]) + r" \\"
    page = build_report(run).read_text(encoding="utf-8")
    assert all(values["dna", title].strip("$").split()[0] in page for title in kinds)


def test_the_budget_that_reaches_multi_nets_quality():
    rows = {(row["family"], row["structure"]): row for row in budget_table(*make())}
    ours = rows["ours", "all added"]
    # 20 steps: 0.30, 50: 0.41, 100: 0.45; Multi-Net 0.40 with 100.
    assert (ours["reached_by"], ours["steps"], ours["steps_share"]) == ("ours_50steps", 50, 0.5)
    assert (ours["seconds"], ours["seconds_share"], ours["clock"]) == (5.0, 0.5, "processor")
    assert ours["difference"] == pytest.approx(0.01)
    assert ours["steady"] is True
    assert ours["tried"] == "; ".join(
        f"{steps}: {value + sum(map(luck, range(6))) / 6:.3f}"
        for steps, value in [(20, 0.3), (50, 0.41), (100, 0.45)]
    )
    assert rows["multi", "all added"]["steps_share"] == 1.0
    assert (rows["fine", "b"]["steps"], rows["fine", "b"]["steady"]) == (None, None)
    assert rows["fine", "c"]["steps"] == 100
    assert not any(family == "joint" for family, _ in rows)
    table, info = make()
    assert budget_table(table, {**info, "multi_net": None}) == []


def test_budgets_without_processor_time_say_so():
    table, info = make(range(1))
    old = ResultsTable(row for row in table if row.metric != "cpu_seconds")
    row = budget_table(old, info)[0]
    assert (row["clock"], row["seconds"]) == ("wall", 99.0)
