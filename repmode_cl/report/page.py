"""report.html: one page, readable without a network, that says who learned, who forgot and at what cost.

Everything is inside the file: style, script, pictures. Its content policy forbids any request, so that a
report that is sent around shows the same everywhere and tells nobody that it was opened.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from repmode_cl.evaluation.metrics import HIGHER_IS_BETTER
from repmode_cl.files import write_text
from repmode_cl.report import sections
from repmode_cl.report.charts import number
from repmode_cl.report.collect import Run, read_run
from repmode_cl.report.table import count_text, forgetting_text, seconds_text, strategy_table

__all__ = ["build_report"]

#: (key of the row, heading, digits, signed, does a larger value win, what the heading means)
_COLUMNS: tuple[tuple[str, str, int, bool, bool, str], ...] = (
    ("final_r2", "R²", 3, False, True, "after the last step, mean over all structures"),
    ("added_r2", "R² of added", 3, False, True, "after the last step, mean over those added to the base"),
    ("final_pearson", "Pearson", 3, False, True, "after the last step, mean over all structures"),
    ("final_mse", "MSE", 3, False, False, "after the last step, mean over all structures"),
    ("improvement_r2", "Δ R² %", 1, True, True, "relative improvement of the mean R² over Multi-Net"),
    ("forgetting_r2", "forgetting (R²)", 3, True, False, "best earlier R² minus final; positive is worse"),
    ("backward_r2", "backward transfer", 3, True, True, "final R² minus that just after learning"),
)


def build_report(run_dir: str | Path) -> Path:
    """Write ``report.html`` into a run's folder.

    Parameters
    ----------
    run_dir
        Folder that `repmode-cl bench` wrote. Needed are run.json and results.csv; whatever else is missing is
        said on the page.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    RepmodeError
        If run.json or results.csv is missing or wrong.
    """
    run = read_run(run_dir)
    target = Path(run_dir) / "report.html"
    write_text(target, _render(run))
    return target


def _render(run: Run) -> str:
    table = strategy_table(run.results, run.info)
    metrics = sections.shown_metrics(run)
    blocks, legend, first_blocks = sections.gate_blocks(run)
    pictures = sections.pictures(run)
    of_curves = {metric for curves in run.curves.values() for metric, _ in curves}
    curve_metrics = [metric for metric in sections.METRIC_NAMES if metric in of_curves]
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    here = resources.files("repmode_cl.report")
    template = environment.from_string((here / "page.jinja").read_text(encoding="utf-8"))
    return template.render(
        style=Markup((here / "page.css").read_text(encoding="utf-8")),
        script=Markup((here / "page.js").read_text(encoding="utf-8")),
        title=str(run.config.get("name") or run.folder.resolve().name),
        settings=sections.summary_of_config(run.config),
        base=[sections.spoken(name) for name in (run.info.experiences[0] if run.info.experiences else ())],
        added=[sections.spoken(name) for name in run.info.added],
        seeds=run.info.seeds,
        multi_net=run.info.multi_net,
        strategies=list(run.info.strategies),
        findings=_findings(table, run),
        headings=[(heading, meaning) for _, heading, _, _, _, meaning in _shown(table)],
        costs=_has_costs(table),
        rows=_rows(table),
        metric_names=sections.METRIC_NAMES,
        higher=HIGHER_IS_BETTER,
        metrics=metrics,
        forgetting={metric: sections.forgetting_charts(run, metric) for metric in metrics},
        has_stream=len(run.info.experiences) > 1,
        steps=[", ".join(sections.spoken(name) for name in names) for names in run.info.experiences],
        curve_metrics=curve_metrics,
        learning={metric: sections.learning_charts(run, metric) for metric in curve_metrics},
        maps={metric: sections.heat_maps(run, metric) for metric in metrics},
        blocks=blocks,
        legend=legend,
        first_blocks=first_blocks,
        pictures=pictures,
        config_text=run.config_text,
        facts=_facts(run.environment),
        notes=run.notes,
    )


def _shown(table: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, int, bool, bool, str]]:
    return [column for column in _COLUMNS if any(row[column[0]] is not None for row in table)]


def _has_costs(table: Sequence[Mapping[str, Any]]) -> bool:
    keys = ("added_parameters", "added_bytes", "train_seconds")
    return any(row[key] is not None for row in table for key in keys)


def _rows(table: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    best = {}
    for key, *_, larger, _meaning in _shown(table):
        values = [row[key] for row in table if row[key] is not None and math.isfinite(row[key])]
        best[key] = (max(values) if larger else min(values)) if values else None
    rows = []
    for style, row in enumerate(table):
        cells = []
        for key, _, digits, signed, _, _ in _shown(table):
            value, half = row[key], row[f"{key}_ci"]
            text, small = "–", ""  # noqa: RUF001 - what a reader expects in an empty cell
            if value is not None:
                text = ("+" if signed and value > 0 else "") + number(value, digits)
                small = "" if half is None or math.isnan(half) else f"±{number(half, digits)}"
                if key == "forgetting_r2" and forgetting_text(row).startswith("0.0"):
                    text, small = "0.0", forgetting_text(row).removeprefix("0.0").strip()
            # Of one strategy alone nothing is best.
            winner = len(table) > 1 and value is not None and value == best[key]
            cells.append({"text": text, "small": small, "best": winner})
        rows.append(
            {
                "strategy": row["strategy"],
                "style": style,
                "seeds": row["seeds"],
                "cells": cells,
                "parameters": count_text(row["added_parameters"]),
                "bytes": count_text(row["added_bytes"], "B"),
                "added_seconds": seconds_text(row["added_seconds"]),
                "train_seconds": seconds_text(row["train_seconds"]),
                "memory": count_text(row["peak_memory_bytes"], "B"),
            }
        )
    return rows


def _findings(table: Sequence[Mapping[str, Any]], run: Run) -> list[str]:
    """Say in a line per strategy what the table shows, so that nobody has to know its signs."""
    lines = []
    for row in table:
        value = row["forgetting_r2"]
        if value is None or not row["seeds"]:
            continue
        if row["name"] == "multi_net" and value == 0.0:
            lines.append(f"{row['strategy']}: one network per structure, so nothing to forget.")
        elif forgetting_text(row).startswith("0.0"):
            how = "bit for bit" if row["bit_identical"] else "to the last digit"
            lines.append(f"{row['strategy']}: what was learned before stayed the same {how}.")
        elif math.isnan(value):
            lines.append(f"{row['strategy']}: diverged; some of its predictions are no numbers.")
        elif value > 0:
            lines.append(
                f"{row['strategy']}: lost {number(value, 3)} R² on what it had learned before, "
                f"on average over {len(run.info.structures) - len(run.info.experiences[-1])} structures."
            )
        else:
            lines.append(f"{row['strategy']}: gained {number(-value, 3)} R² on what it had learned before.")
    return lines


def _facts(environment: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    facts: list[tuple[str, str]] = []
    for key, value in environment.items():
        if isinstance(value, Mapping):
            facts += _facts(value, f"{prefix}{key}.")
        else:
            facts.append((f"{prefix}{key}", str(value)))
    return facts
