"""report.html: one page, readable without a network, that says who learned, who forgot and at what cost.

Everything is inside the file: style, script, pictures. Its content policy forbids any request, so that a
report that is sent around shows the same everywhere and tells nobody that it was opened. Without its script it shows
the first view of everything as it stands in the file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from repmode_cl.metrics import HIGHER_IS_BETTER
from repmode_cl.report.page import static_charts as sections
from repmode_cl.report.page.chart_data import (
    METRIC_NAMES,
    chart_data,
    curve_metrics,
    shown_metrics,
    spoken,
    stream_label,
)
from repmode_cl.report.page.gate_weights import gates_of
from repmode_cl.report.page.svg import COLOURS
from repmode_cl.report.page.tables import areas_of, scopes_of, shown_tables, strategy_rows
from repmode_cl.report.page.volume_mosaics import BUDGET, stacks_of
from repmode_cl.report.tables.number_format import forgetting_text, number
from repmode_cl.results.run_folder import Run, read_run
from repmode_cl.utils.atomic_files import write_text

__all__ = ["build_report", "LARGEST"]

#: Characters that a page is to stay below, whatever the run.
LARGEST = 9_900_000

#: Parts of the page's script, in the order in which they need each other.
_SCRIPT = ("page_base", "page_charts", "page_maps", "page_tables", "page_volumes", "page")


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
    scopes, areas = scopes_of(run), areas_of(run)
    metrics, curved = shown_metrics(run), curve_metrics(run)
    tables = shown_tables(run, scopes, areas)
    first = scopes[0].charts if scopes else ""
    gates = gates_of(run)
    title = str(run.config.get("name") or run.folder.resolve().name)
    data = _json(
        {
            **chart_data(run),
            "name": "".join(mark if mark.isalnum() or mark in "-_" else "-" for mark in title),
            "scopes": [
                {"label": scope.label, "file": scope.file, "charts": scope.charts} for scope in scopes
            ],
            "tables": {key: table.data() for key, table in tables.items()},
            "gates": None if gates is None else gates.data,
        }
    )
    # Pictures take what is left of the page.
    stacks = stacks_of(
        run.predictions, run.notes, budget=max(min(BUDGET, LARGEST - 700_000 - len(data)), 1_000_000)
    )
    pictures = sections.first_pictures(run)
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    here = resources.files("repmode_cl.report.page")
    template = environment.from_string((here / "templates" / "page.jinja").read_text(encoding="utf-8"))
    script = "\n".join((here / "static" / f"{part}.js").read_text(encoding="utf-8") for part in _SCRIPT)
    return template.render(
        style=Markup((here / "static" / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        data=data,
        stacks={name: _json(stack) for name, stack in stacks.items()},
        title=title,
        settings=sections.summary_of_config(run.config),
        base=[spoken(name) for name in (run.info.streams[first][0] if run.info.streams.get(first) else ())],
        added=[spoken(name) for name in run.info.added_of(first)],
        streams=len(run.info.streams),
        first_label=stream_label(next(iter(run.info.streams), "")),
        seeds=run.info.seeds,
        strategies=list(run.info.strategies),
        colours=COLOURS,
        structures={
            name: spoken(name) for stream in run.info.streams for name in run.info.structures_of(stream)
        },
        scopes=scopes,
        findings=_findings(strategy_rows(run, scopes[0], areas), run) if scopes else [],
        tables={key.split("|")[0]: table for key, table in reversed(tables.items()) if _first(key, metrics)},
        metric_names=METRIC_NAMES,
        higher=HIGHER_IS_BETTER,
        metrics=metrics,
        forgetting=sections.forgetting_charts(run, first, metrics[0]) if metrics else [],
        steps=[", ".join(spoken(name) for name in names) for names in run.info.streams.get(first, ())],
        learning=sections.learning_charts(run, first, curved[0]) if curved else [],
        maps=sections.heat_maps(run, first, metrics[0]) if metrics else [],
        gates=gates,
        pictures=pictures,
        config_text=run.config_text,
        facts=_facts(run.environment),
        notes=run.notes,
    )


def _json(value: Any) -> Markup:
    """Return JSON that may stand within a script element: nothing in it ends that."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def _first(key: str, metrics: Sequence[str]) -> bool:
    _, scope, metric = key.split("|")
    return scope == "0" and metric in ("", *metrics[:1])


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
