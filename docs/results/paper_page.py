"""Make the tables of paper.md from the configurations and the results here: ``python docs/results/paper_page.py``.

Each study's ``paper.csv`` (every structure, with intervals of each improvement) and ``paper_orders.csv`` are made too.
A study that has been run has a folder here with its results.csv, or with a folder for each seed that holds one; rows
of a study that has neither say so.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from repmode_cl.config import load_config
from repmode_cl.data.pipeline import available_structures
from repmode_cl.evaluation.performance_matrix import relative_improvement
from repmode_cl.report.tables.csv_latex import to_csv
from repmode_cl.report.tables.paper_comparison import improvement_text, order_lines, order_table, paper_table
from repmode_cl.report.tables.paper_figures import PAPER_METRICS, paper_tables, systems_of_run
from repmode_cl.results import ResultsTable
from repmode_cl.results.run_info import RunInfo
from repmode_cl.results.trial_record import Trial
from repmode_cl.scenarios import stream_variants

HERE = Path(__file__).parent
PAGE = HERE / "paper.md"

#: Fewest seeds of which an interval is printed; fewer allow no p-value below .05.
MIN_SEEDS = 6

#: What stands in place of figures that are not there.
NOT_RUN = "not run yet"

#: Studies with a table each.
STUDIES = ("table1", "table1_incremental", "table2", "table3")

#: Figure of the paper, structure, and the run and section of its report that show it.
FIGURES = (
    *((6, name, "gates") for name in ("cell_membrane", "mitochondria", "nucleolus", "nuclear_envelope")),
    *((7, name, "side-by-side") for name in ("microtubule", "actin_filament", "dna")),
)

#: Figure of the paper -> where `figures.py` draws it.
DRAWN = {6: "paper_figure_6.svg", 7: "paper_figure_7.png"}


def study(name: str) -> tuple[RunInfo, ResultsTable | None]:
    """Return what a study is made of, and its results where they are here; what it has of them is finished."""
    config = load_config(name)
    info = RunInfo.of_run(
        config,
        {
            stream: variant.experiences
            for stream, variant in stream_variants(config.stream, available_structures(config)).items()
        },
        {},
        images={},
        file_digests={},
        joint_titles=[one.title for one in config.strategies if "joint" in (one.name, one.mode)],
        task_labels={},
    )
    results = results_of(name)
    if results is None:
        return info, None
    trials = {Trial(row.strategy, row.stream, row.seed) for row in results}
    return dataclasses.replace(info, finished=frozenset(trials & set(info.trials))), results


def results_of(name: str) -> ResultsTable | None:
    """Return the results of a study that are here, of all its seeds; None where there are none."""
    whole, seeds = HERE / name / "results.csv", sorted((HERE / name).glob("seed_*/results.csv"))
    if not whole.exists() and not seeds:
        return None
    results = ResultsTable()
    for path in [whole] if whole.exists() else seeds:
        for row in ResultsTable.read(path):
            results.append(*row)
    return results


def study_tables(name: str) -> dict[Path, str]:
    """Return the text of a study's ``paper.csv`` and ``paper_orders.csv``; none of a study that was not run."""
    info, results = study(name)
    if results is None:
        return {}
    run = sorted({row.seed for row in results})
    tables = {"paper": paper_table(results, info), "paper_orders": order_table(results, info)}
    return {
        HERE / name / f"{table}.csv": to_csv([_without_interval(row, run) for row in rows])
        for table, rows in tables.items()
        if rows
    }


def study_lines(name: str) -> list[str]:
    """Return the table of a study: a row for each strategy, in Table 3 for each of them and its structures."""
    info, results = study(name)
    run = [] if results is None else sorted({row.seed for row in results})
    found = systems_of_run(info, [""])
    if found is None:
        raise ValueError(f"{name}: repeats none of the paper's tables")
    table = found.table
    rows = {} if results is None else {
        (row["strategy"], row["structure"]): _without_interval(row, run) for row in paper_table(results, info)
    }  # fmt: skip
    many = table.number == 3
    structures = [name for _, name in table.figures] if many else ["all"]
    heads = ["in the paper", *(["structure"] if many else []), "command, and strategy in its tables"]
    heads += ["paper: MSE, MAE, R2", "here: MSE, MAE, R2"]
    heads += ["ΔImp (%) of MSE, MAE, R2: paper", "here [R2: 95%]"]
    lines = [*_seed_lines(info.seeds, run), _line(heads), _line(["---"] * len(heads))]
    for structure in dict.fromkeys(structures):
        for title, system in found.systems.items():
            row = rows.get((title, structure))
            lines.append(
                _line(
                    [
                        system,
                        *([structure.replace("_", " ")] if many else []),
                        f"`repmode-cl bench {name}`, `{title}`",
                        _printed(table.figures[system, structure]),
                        NOT_RUN if row is None else _printed(row),
                        _improvement(table.number, system, structure),
                        _improvement_here(row),
                    ]
                )
            )
    orders = (
        []
        if results is None
        else order_lines([_without_interval(row, run) for row in order_table(results, info)])
    )
    return [*lines, *([""] if orders else []), *(f"- {line}" for line in orders)]


def _seed_lines(planned: Sequence[int], run: Sequence[int]) -> list[str]:
    """Return what stands above a study's table: the seeds that were run, and what they allow."""
    if not run:
        return []
    which = f"Seeds run: {', '.join(map(str, run))}"
    open_ = [seed for seed in planned if seed not in run]
    still = f"; {', '.join(map(str, open_))} are open" if open_ else ""
    few = "" if len(run) >= MIN_SEEDS else f" Fewer than {MIN_SEEDS} seeds allow no interval."
    return [f"{which}{still}.{few}", ""]


def _without_interval(row: Mapping[str, Any], run: Sequence[int]) -> dict[str, Any]:
    """Return a row without its intervals where too few seeds were run."""
    if len(run) >= MIN_SEEDS:
        return dict(row)
    return {
        key: None if key in ("low", "high") or key.endswith(("_low", "_high")) else value
        for key, value in row.items()
    }


def _improvement_here(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    if row["strategy"] == row["reference"]:
        return "reference"
    others = [row[f"improvement_{metric}"] for metric in ("mse", "mae")]
    values = ["-" if value is None else f"{value:+.2f}" for value in others]
    return "&nbsp;".join([*values, improvement_text(row, "improvement_r2")])


def _improvement(number: int, system: str, structure: str) -> str:
    """Return the paper's improvements: printed, or of its figures."""
    table = paper_tables()[number]
    if system == table.reference:
        return "reference"
    if system in table.improvement:
        values = [table.improvement[system][metric] for metric in PAPER_METRICS]
    else:
        mine, reference = (table.figures[name, structure] for name in (system, table.reference))
        values = [relative_improvement(mine[metric], reference[metric], metric) for metric in PAPER_METRICS]
    return "&nbsp;".join(f"{value:+.2f}" for value in values)


def figure_lines() -> list[str]:
    """Return the table of both figures: a row for each structure that they show."""
    lines = [_line(["figure", "structure", "here", "command", "result"]), _line(["---"] * 5)]
    sections = {"gates": "Which experts a structure uses", "side-by-side": "The best rival and ours"}
    for number, structure, section in FIGURES:
        drawn = DRAWN[number]
        lines.append(
            _line(
                [
                    str(number),
                    structure.replace("_", " "),
                    f"section “{sections[section]}” of the run's page",
                    "`repmode-cl report runs/table1`",
                    f"[drawn]({drawn}), seed 2" if (HERE / drawn).exists() else NOT_RUN,
                ]
            )
        )
    return lines


def _printed(figures: Mapping[str, Any]) -> str:
    """Return the three metrics as the paper prints them, on one line."""
    values = (figures[metric] for metric in PAPER_METRICS)
    return "&nbsp;".join("-" if value is None else f"{value:.4f}".replace("0.", ".", 1) for value in values)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def updated(text: str) -> str:
    """Return the page with its tables made again; they stand between two comments that name them."""
    parts = {name: study_lines(name) for name in STUDIES} | {"figures": figure_lines()}
    for name, lines in parts.items():
        pattern = re.compile(rf"(<!-- {name}: made by paper_page.py -->\n).*?(<!-- end -->)", re.S)
        body = "\n".join(lines)
        text, count = pattern.subn(lambda match, body=body: f"{match[1]}\n{body}\n\n{match[2]}", text)
        if count != 1:
            raise ValueError(f"{PAGE}: has {count} places for {name}, and should have one")
    return text


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    for one in STUDIES:
        for path, text in study_tables(one).items():
            path.write_text(text, encoding="utf-8")
