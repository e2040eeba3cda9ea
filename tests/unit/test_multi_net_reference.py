"""References that strategies are held against: the run's common budget, and the better of several Multi-Nets."""

from __future__ import annotations

import csv
import json

import pytest

from repmode_cl.errors import RepmodeError
from repmode_cl.evaluation.learning_curve_area import read_areas
from repmode_cl.report import budget_table, comparison_table, strategy_table, write_tables
from repmode_cl.report.page import build_report
from repmode_cl.report.tables.budgets import budget_families
from repmode_cl.report.tables.comparisons import our_strategy
from repmode_cl.report.tables.multi_net_reference import References, references
from repmode_cl.report.tables.terminal import render_budgets, render_strategies
from repmode_cl.results import ResultsTable, RunInfo, read_run_info

STREAM = [["a", "b"], ["c"]]

#: Title -> (kind, steps if not the run's, R2 of a and b, R2 of c).
RUN = {
    "ours_40": ("experts_frozen", 40, 0.8, 0.40),
    "ours_200": ("experts_frozen", 200, 0.8, 0.60),
    "ours": ("experts_frozen", 100, 0.8, 0.50),
    "small": ("multi_net", None, 0.9, 0.30),
    "large": ("multi_net", 100, 0.7, 0.45),
    "large_50": ("multi_net", 50, 0.7, 0.90),
    "large_200": ("multi_net", 200, 0.7, 0.95),
}


def make(run=RUN, seeds=(0, 1), **document):
    """Return a run whose `run.json` holds the common steps, or what is given."""
    table = ResultsTable()
    for title, (_, steps, base, value) in run.items():
        for seed in seeds:
            for step, values in enumerate([{"a": base, "b": base}, {"a": base, "b": base, "c": value}]):
                for name, of in values.items():
                    if of is not None:
                        table.append(title, seed, step, name, "r2", of)
                        table.append(title, seed, step, name, "mse", 1 - of)
            table.append(title, seed, 1, "c", "steps", steps or 100)
    info = {
        "version": 2,
        "streams": {"": STREAM},
        "strategies": {
            title: {"name": kind, "options": {"name": kind, "kernel": title.split("_")[0], "steps": steps}}
            for title, (kind, steps, _, _) in run.items()
        },
        "seeds": list(seeds),
        "multi_net": next((title for title, (kind, *_) in run.items() if kind == "multi_net"), None),
        "finished": [[title, "", seed] for title in run for seed in seeds],
        "steps": 100,
    }
    return table, {**info, **document}


def write(folder, table, info, config=None):
    folder.mkdir()
    table.write(folder / "results.csv")
    (folder / "run.json").write_text(json.dumps(info), encoding="utf-8")
    if config is not None:
        (folder / "config.yaml").write_text(config, encoding="utf-8")
    return folder


def by_title(rows):
    return {row["strategy"]: row for row in rows}


# -- the common budget ------------------------------------------------------------------------------------------


def test_steps_that_spell_out_the_common_number_shorten_nothing():
    table, info = make()
    assert our_strategy(RunInfo.of(info)) == "ours"
    rows = comparison_table(table, info)
    assert [row["second"] for row in rows] == ["ours_200", "small", "large", "large_200"]
    assert budget_families(RunInfo.of(info)) == {
        "ours": ("ours_40", "ours_200", "ours"),
        "small": ("small",),
        "large": ("large", "large_50", "large_200"),
    }
    marks = {title: row["more_steps"] for title, row in by_title(strategy_table(table, info)).items()}
    assert {title: more for title, more in marks.items() if more} == {"ours_200": 200, "large_200": 200}


@pytest.mark.parametrize("first", ["ours", "ours_20steps"])
def test_families_that_would_share_a_name_keep_their_titles(first):
    run = {"ours": RUN["ours"], "ours_40steps": RUN["ours_40"], "ours_20steps": RUN["ours_40"]}
    run = {title: run[title] for title in sorted(run, key=lambda title: title != first)}
    table, info = make(run)
    for title, entry in info["strategies"].items():
        entry["options"]["kernel"] = title  # each differs in more than its steps
    families = {title: (title,) for title in run}
    assert budget_families(RunInfo.of(info)) == families
    assert {row["family"] for row in budget_table(table, {**info, "multi_net": "ours"})} <= set(families)
    del info["strategies"]["ours"]
    shared, kept = list(info["strategies"])
    assert budget_families(RunInfo.of(info)) == {"ours": (shared,), kept: (kept,)}


def test_without_a_common_number_any_steps_are_another_budget():
    table, info = make(steps=None)
    assert [row["second"] for row in comparison_table(table, info, pairs="ours")] == ["small"]
    assert not any(row["more_steps"] for row in strategy_table(table, info))
    assert our_strategy(RunInfo.of(info)) == "ours_40"
    with pytest.raises(RepmodeError, match="no description of a run"):
        RunInfo.of({**info, "steps": "many"})


def test_the_common_number_of_a_run_that_did_not_write_it_down_is_the_configurations(tmp_path):
    table, info = make()
    del info["steps"]
    run = write(tmp_path / "run", table, info, "training: {steps: 100}\n")
    assert read_run_info(run).steps == 100
    for text in ("training: {epochs: 3}\n", "training: 3\n", "- [", ""):
        (run / "config.yaml").write_text(text, encoding="utf-8")
        assert read_run_info(run).steps is None
    (run / "config.yaml").unlink()
    assert read_run_info(run).steps is None
    (run / "run.json").write_text(json.dumps({**info, "steps": None}), encoding="utf-8")
    (run / "config.yaml").write_text("training: {steps: 100}\n", encoding="utf-8")
    assert read_run_info(run).steps is None


# -- the Multi-Net that others are measured against -------------------------------------------------------------


def test_the_better_multi_net_with_the_common_steps_is_the_reference():
    table, info = make()
    # `large_50` and `large_200` reach more, with other budgets; `small` is better only on the base.
    assert references(table, RunInfo.of(info)) == References("large", "large")
    assert references(table, RunInfo.of(info), "mse") == References("large", "large")
    rows = by_title(strategy_table(table, info))
    assert rows["ours"]["forward_r2"] == pytest.approx(0.05)
    assert rows["large"]["improvement_r2"] == 0.0
    assert rows["ours"]["multi_net"] == rows["ours"]["multi_net_all"] == "large"
    budgets = {row["family"]: row for row in budget_table(table, info)}
    assert (budgets["ours"]["multi_net"], budgets["ours"]["target"]) == (
        "large",
        pytest.approx(0.45),
    )
    assert budgets["ours"]["reached_by"] == "ours"
    named = {row["family"]: row for row in budget_table(table, info, multi_net="small")}
    assert named["ours"]["reached_by"] == "ours_40"
    assert strategy_table(table, {**info, "multi_net": None})[0]["forward_r2"] is None


def test_only_seeds_that_all_of_them_finished_decide():
    table, info = make()
    for name, value in (("a", 0.7), ("b", 0.7), ("c", -3.0)):
        table.append("large", 2, 1, name, "r2", value)
    info["seeds"].append(2)
    info["finished"].append(["large", "", 2])
    assert references(table, RunInfo.of(info)).added == "large"
    info["finished"] = [unit for unit in info["finished"] if unit[0] != "large"]
    assert references(table, RunInfo.of(info)).added == "small"


def test_one_that_diverged_is_not_the_better_one():
    table, info = make({**RUN, "large": ("multi_net", None, 0.7, float("nan"))})
    assert references(table, RunInfo.of(info)).added == "small"


def test_without_networks_for_the_base_improvement_refers_to_the_best_that_has_them():
    table, info = make({**RUN, "large": ("multi_net", None, None, 0.45)})
    assert references(table, RunInfo.of(info)) == References("large", "small")
    rows = by_title(strategy_table(table, info))
    assert rows["ours"]["forward_r2"] == pytest.approx(0.05)
    small = (0.9 + 0.9 + 0.3) / 3
    assert rows["ours"]["improvement_r2"] == pytest.approx(100 * ((0.8 + 0.8 + 0.5) / 3 - small) / small)
    assert references(table, RunInfo.of(info), named="large_200") == References("large_200", "large_200")


def test_terminal_page_and_files_name_it(tmp_path):
    run = write(tmp_path / "run", *make({**RUN, "large": ("multi_net", None, None, 0.45)}))
    table, info = ResultsTable.read(run / "results.csv"), read_run_info(run)
    assert "Multi-Net: small" in str(render_strategies(strategy_table(table, info)).caption)
    assert "0.450 (large)" in str(render_budgets(budget_table(table, info)).caption)
    page = build_report(run).read_text(encoding="utf-8")
    assert "Forward transfer refers to large, the best Multi-Net with the common steps; relative" in page
    assert "is at least that of large, the best" in page
    assert "more steps: 200" in page
    for against, expected in ((None, ("large", "small")), ("large_200", ("large_200", "large_200"))):
        write_tables(run, tmp_path / "tables", against=against)
        with (tmp_path / "tables" / "strategies.csv").open(encoding="utf-8", newline="") as handle:
            rows = by_title(csv.DictReader(handle))
        assert (rows["ours"]["multi_net"], rows["ours"]["multi_net_all"]) == expected
        assert (rows["ours"]["more_steps"], rows["ours_200"]["more_steps"]) == ("", "200")
    assert r"ours\_200 (more steps: 200)" in (tmp_path / "tables" / "strategies.tex").read_text(
        encoding="utf-8"
    )


# -- memory and areas -------------------------------------------------------------------------------------------


def test_memory_of_the_base_stands_apart_and_is_empty_where_it_was_not_measured():
    table, info = make(seeds=(0,))
    for step, of, value in ((0, "base", 900.0), (1, "c", 200.0)):
        table.append("ours", 0, step, of, "peak_memory_bytes", value)
    table.append("small", 0, 0, "a", "peak_memory_bytes", 50.0)
    rows = by_title(strategy_table(table, info))
    keys = ("peak_memory_bytes", "base_peak_memory_bytes")
    assert [rows["ours"][key] for key in keys] == [200.0, 900.0]
    assert [rows["small"][key] for key in keys] == [None, 50.0]
    assert [rows["large"][key] for key in keys] == [None, None]


def test_areas_end_at_the_budget_where_training_stopped_before(tmp_path):
    table, info = make(seeds=(0,))
    run = write(tmp_path / "run", table, info)
    curve = "experience,structure,train_step,metric,value\n0,a,20,r2,0.7\n1,c,0,r2,0.0\n1,c,20,r2,0.4\n"
    for title in ("ours", "ours_200", "small"):
        (run / title / "seed-0").mkdir(parents=True)
        (run / title / "seed-0" / "learning.csv").write_text(curve, encoding="utf-8")

    def areas(**changed):
        return {
            unit[0]: found[1, "c"] for unit, found in read_areas(run, RunInfo.of({**info, **changed})).items()
        }

    # 20 steps of 0.2 on average, the rest of the budget at 0.4.
    assert areas() == pytest.approx({"ours": 0.36, "small": 0.36, "ours_200": 0.38})
    assert areas(steps=None) == pytest.approx({"ours": 0.36, "small": 0.2, "ours_200": 0.38})
    # What trained longer than it was said to is not cut.
    assert areas(steps=10)["small"] == pytest.approx(0.2)
    plain = {title: {"name": entry["name"]} for title, entry in info["strategies"].items()}
    assert areas(strategies=plain)["ours"] == pytest.approx(0.2)
