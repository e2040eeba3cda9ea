"""The tables of a run as files, in the terminal, and from runs that are old or damaged."""

from __future__ import annotations

import csv
import json
import math

import pytest
from tabled_run import KINDS, make
from typer.testing import CliRunner

from repmode_cl.cli.app import app
from repmode_cl.cli.report import show_results
from repmode_cl.errors import RepmodeError
from repmode_cl.report import strategy_table, to_csv, to_latex, write_tables
from repmode_cl.report.tables.csv_latex import Column, cell_text, escape_latex
from repmode_cl.results import ResultsTable, RunInfo, read_run_info


def test_latex_and_csv():
    rows = [
        {"name": "a_b & 50%", "value": 0.4837, "value_ci": 0.0121, "n": 3},
        {"name": "[c]", "value": -0.2, "value_ci": None, "n": None},
    ]
    columns = [Column("name", "name"), Column("value", "R²"), Column("n", "n")]
    text = to_latex(rows, columns, caption="50% more")
    assert r"name & R$^2$ & n \\" in text
    assert r"a\_b \& 50\% & $0.484 \pm 0.012$ & $3$ \\" in text
    assert r"{[c]} & $-0.200$ & -- \\" in text
    assert r"\caption{50\% more}" in text
    assert text.count("{") == text.count("}")
    assert escape_latex("a\\b\n~^#$<") == r"a\textbackslash{}b \textasciitilde{}\textasciicircum{}\#\$$<$"
    assert cell_text({"value": math.nan}, columns[1]) == "-"
    with pytest.raises(RepmodeError):
        to_latex(rows, [])
    assert to_csv(rows) == "name,value,value_ci,n\na_b & 50%,0.4837,0.0121,3\n[c],-0.2,,\n"


def write_run(folder, table, info):
    folder.mkdir()
    table.write(folder / "results.csv")
    (folder / "run.json").write_text(json.dumps(info), encoding="utf-8")
    return folder


def test_every_table_as_files(tmp_path):
    run = write_run(tmp_path / "run", *make())
    seed = run / "ours" / "seed-0"
    seed.mkdir(parents=True)
    (seed / "learning.csv").write_text(
        "experience,structure,train_step,metric,value\n1,b,10,r2,0.25\n", encoding="utf-8"
    )
    written = write_tables(run, tmp_path / "tables")
    names = ("strategies", "structures", "comparisons", "budgets")
    assert [path.name for path in written] == [f"{name}.{kind}" for name in names for kind in ("csv", "tex")]
    with (tmp_path / "tables" / "strategies.csv").open(encoding="utf-8", newline="") as handle:
        ours, *_, joint = csv.DictReader(handle)
    assert float(ours["area_r2"]) == 0.25
    assert (ours["verdict"], joint["verdict"]) == ("", "ahead beyond noise")
    with (tmp_path / "tables" / "structures.csv").open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert {"r2", "r2_ci", "mse", "mse_ci"} <= set(rows[0])
    assert len(rows) == 3 * len(KINDS)
    assert r"\pm" in (tmp_path / "tables" / "structures.tex").read_text(encoding="utf-8")
    (seed / "learning.csv").write_text("experience\n1\n", encoding="utf-8")
    with pytest.raises(RepmodeError, match=r"learning.csv: is no table"):
        write_tables(run, tmp_path / "tables")


def test_what_a_diverged_run_forgot_is_a_dash(tmp_path, capsys):
    table, info = make(range(2))
    diverged = ResultsTable(
        row._replace(value=math.nan)
        if (row.strategy, row.step) == ("fine", 2) and row.metric in ("r2", "mse")
        else row
        for row in table
    )
    run = write_run(tmp_path / "run", diverged, info)
    write_tables(run, tmp_path / "tables")
    show_results(run)
    text = (tmp_path / "tables" / "strategies.tex").read_text(encoding="utf-8")
    [row] = [line for line in text.splitlines() if line.startswith("fine &")]
    assert row.startswith("fine & -- & -- & -- & -- & -- &")
    assert "nan" not in text
    assert "fine: R2 -, forgetting -\n" in capsys.readouterr().out


def test_numbers_of_images_have_tables_of_their_own(tmp_path):
    run = write_run(tmp_path / "run", *make(range(1), ("images-2", "images-4")))
    places = {path.parent.name for path in write_tables(run, tmp_path / "tables")}
    assert places == {"images-2", "images-4"}


def test_the_terminal_says_it_all(tmp_path, capsys):
    show_results(write_run(tmp_path / "run", *make()))
    shown = " ".join(capsys.readouterr().out.split())
    assert "ours against the others" in shown
    assert "beyond noise" in shown
    assert "20: 0.295; 50: 0.405" in shown
    assert "failed: fine with seed 9: out of memory" in shown
    assert "[0.050, 0.050]" in shown


def test_an_old_run_without_versions_streams_or_options(tmp_path, capsys):
    table, info = make(range(2))
    info["experiences"] = info.pop("streams")[""]
    info["finished"] = [[title, seed] for title, _, seed in info["finished"]]
    for key in ("version", "joint", "failed"):
        del info[key]
    for entry in info["strategies"].values():
        del entry["options"]
    run = write_run(tmp_path / "run", table, info)
    lines = (run / "results.csv").read_text(encoding="utf-8").splitlines()
    lines = [",".join(part for place, part in enumerate(line.split(",")) if place != 1) for line in lines]
    (run / "results.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    show_results(run)
    assert "ours: R2" in capsys.readouterr().out
    assert strategy_table(ResultsTable.read(run / "results.csv"), info)[0]["seeds"] == 2
    read = read_run_info(run)
    assert read.experiences == read.streams[""] == (("a",), ("b",), ("c",))
    assert (read.structures, read.added) == (("a", "b", "c"), ("b", "c"))
    assert ("ours", "", 1) in read.finished


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 3}, "version 3, written by a newer"),
        ({"streams": ["a"]}, "no description of a run"),
        ({"streams": {}}, "run.json: is no description of a run .*no stream"),
        ({"streams": {"": [["a"], []]}}, "a step of one without a structure"),
        ({"finished": [["x", "y", "z", 0]]}, "no description of a run"),
        ({"failed": [["x"]]}, "no description of a run"),
    ],
)
def test_run_json_that_is_not_understood_is_refused(change, message):
    with pytest.raises(RepmodeError, match=message):
        RunInfo.of({**make(range(1))[1], **change})


def test_several_runs_need_a_folder_of_their_own():
    found = CliRunner().invoke(app, ["report", "one", "two"])
    assert found.exit_code == 2
    assert "--out" in found.output
