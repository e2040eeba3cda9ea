"""The page of the paper's tables and figures: up to date, whole, and each of its commands runs what its row names."""

from __future__ import annotations

import csv
import importlib.util
import io
import re
from pathlib import Path
from types import ModuleType

import pytest

from repmode_cl.benchmark import DryRun, run_benchmark
from repmode_cl.benchmark.check_strategies import check_strategies
from repmode_cl.config import load_config, shipped_config_names
from repmode_cl.data.pipeline import available_structures
from repmode_cl.report.tables.paper_figures import paper_tables
from repmode_cl.results import ResultsTable
from repmode_cl.scenarios import stream_variants

FOLDER = Path(__file__).parents[2] / "docs" / "results"

STUDIES = ("table1", "table1_incremental", "table2", "table3")

#: So small that a network is built and computes in no time; which strategies there are stays.
SMALL = ["network.width=2", "network.depth=1", "patch.size=[4, 8, 8]", "training.batch_size=2"]


@pytest.fixture(scope="module")
def page() -> str:
    return (FOLDER / "paper.md").read_text(encoding="utf-8")


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("paper_page", FOLDER / "paper_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def numbers_of(text: str) -> dict[tuple[int, str], float]:
    """Return the numbers of a CSV by line and column; what is no number is part of its key."""
    found = {}
    for line, row in enumerate(csv.DictReader(io.StringIO(text))):
        for key, value in row.items():
            try:
                found[line, key] = float(value)
            except ValueError:
                found[line, f"{key}: {value}"] = 0.0
    return found


def rows_of(page: str, name: str) -> list[list[str]]:
    """Return the cells of a table's rows, without its head."""
    part = page[page.index(f"<!-- {name}:") :]
    lines = [line for line in part[: part.index("<!-- end -->")].splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_page_is_what_its_script_makes(page: str) -> None:
    assert script().updated(page) == page


@pytest.mark.parametrize("name", STUDIES)
def test_each_structures_improvements_are_those_of_the_results(name: str) -> None:
    tables = script().study_tables(name)
    assert {path.name for path in tables} >= {"paper.csv"}
    for path, text in tables.items():
        # Another processor sums in another order.
        assert numbers_of(path.read_text(encoding="utf-8")) == pytest.approx(numbers_of(text), nan_ok=True)
    rows = list(csv.DictReader(io.StringIO(tables[FOLDER / name / "paper.csv"])))
    structures = {row.structure for row in ResultsTable.read(next((FOLDER / name).rglob("results.csv")))}
    assert {row["structure"] for row in rows} <= {"all", *structures}
    # Six seeds allow an interval, fewer do not.
    many = max(int(row["seeds"]) for row in rows) >= 6
    for metric in ("mse", "mae", "r2"):
        given = [row for row in rows if row[f"improvement_{metric}"] and row["strategy"] != row["reference"]]
        assert given
        # Of R2 there is none where a drawn reference is not above 0.
        known = [bool(row[f"improvement_{metric}_low"]) for row in given]
        assert (any if metric == "r2" else all)(known) == many


@pytest.mark.parametrize("name", STUDIES)
def test_every_row_of_a_table_is_a_strategy_that_its_command_runs(page: str, name: str) -> None:
    rows = rows_of(page, name)
    table = paper_tables()[int(name[5])]
    assert {row[0] for row in rows} == set(table.systems)
    of_structure = name == "table3"
    titles = []
    for row in rows:
        command = re.fullmatch(r"`repmode-cl bench (\w+)`, `(.+)`", row[1 + of_structure])
        assert command is not None, row
        assert command[1] == name
        titles.append(command[2])
        # The paper's figures in the row are those of its system and structure.
        structure = row[1].replace(" ", "_") if of_structure else "all"
        printed = [float(number) for number in row[2 + of_structure].split("&nbsp;")]
        assert printed == list(table.figures[row[0], structure].values())
    assert set(titles) == {one.title for one in load_config(name).strategies}


def test_every_structure_of_both_figures_has_a_command_of_a_study(page: str) -> None:
    rows = rows_of(page, "figures")
    assert [row[0] for row in rows] == ["6"] * 4 + ["7"] * 3
    structures = {name.replace("_", " ") for name in load_config("table1").stream.base}
    for row in rows:
        assert row[1] in structures
        command = re.fullmatch(r"`repmode-cl report runs/(\w+)`", row[3])
        assert command is not None, row
        assert command[1] in shipped_config_names()


def test_results_may_be_in_a_folder_for_each_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, of_seeds = script(), {}
    for row in ResultsTable.read(FOLDER / "table3" / "results.csv"):
        of_seeds.setdefault(row.seed, ResultsTable()).append(*row)
    assert len(of_seeds) == 12
    expected = made.study_lines("table3")
    monkeypatch.setattr(made, "HERE", tmp_path)
    assert made.NOT_RUN in "".join(made.study_lines("table3"))
    for seed, results in of_seeds.items():
        (tmp_path / "table3" / f"seed_{seed}").mkdir(parents=True)
        results.write(tmp_path / "table3" / f"seed_{seed}" / "results.csv")
    assert made.study_lines("table3") == expected


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_passes_the_checks_before_a_run(name: str) -> None:
    config = load_config(name)
    check_strategies(config, stream_variants(config.stream, available_structures(config)))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*STUDIES, "tuning_table1", "tuning_table1_incremental"])
def test_a_dry_run_rehearses_every_row(name: str) -> None:
    config = load_config(name, SMALL)
    estimate = run_benchmark(config.model_copy(update={"search": None}), dry_run=True)
    assert isinstance(estimate, DryRun)
    assert len(estimate.lines) == 1 + len(config.strategies)
    assert estimate.seconds > 0
