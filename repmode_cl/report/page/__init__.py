"""The page of a run, report.html: who learned, who forgot and at what cost, readable without a network.

Everything is inside the file: style, script, pictures. Its content policy forbids any request, so that a
report that is sent around shows the same everywhere and tells nobody that it was opened. Every chart is drawn here;
the page's script chooses which are visible. Without the script the page shows its first view.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from repmode_cl.report.html import page_part, render
from repmode_cl.report.page.chart_data import (
    METRIC_NAMES,
    evaluated_metrics,
    readable,
    stream_label,
    validated_metrics,
)
from repmode_cl.report.page.charts import (
    ChartView,
    HeatMapView,
    forgetting_charts,
    heat_maps,
    learning_charts,
)
from repmode_cl.report.page.difference_boxes import side_by_side
from repmode_cl.report.page.frontier import frontier_charts
from repmode_cl.report.page.gate_figure import gate_figures
from repmode_cl.report.page.gate_weights import gate_charts
from repmode_cl.report.page.slices import first_slices
from repmode_cl.report.page.tables import Scope, page_tables, read_curve_areas, scopes_of, strategy_rows
from repmode_cl.report.page.volume_mosaics import BUDGET, volume_mosaics
from repmode_cl.report.tables.paper_figures import systems_of_run
from repmode_cl.results.run_folder import Run, read_run
from repmode_cl.utils.atomic_files import write_text
from repmode_cl.utils.number_format import forgetting_text, number

__all__ = ["build_report", "LARGEST"]

#: Characters that a page is to stay below, whatever the run.
LARGEST = 9_900_000

#: Characters that its charts may take, and those that pictures may take in any case.
_LARGEST_CHARTS, _SMALLEST_PICTURES = 6_000_000, 1_000_000

#: Parts of the page's script, in the order in which they need each other.
_SCRIPT = ("page_base", "page_views", "page_tables", "page_volumes", "page")


def build_report(run_dir: str | Path) -> Path:
    """Write ``report.html`` into a run's folder.

    Parameters
    ----------
    run_dir
        Folder that `repmode-cl bench` wrote. It needs run.json and results.csv; the page says what else is
        missing.

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
    info = run.info
    scopes, areas = scopes_of(run), read_curve_areas(run)
    metrics, validated = evaluated_metrics(run), validated_metrics(run)
    tables = page_tables(run, scopes, areas)
    first = scopes[0].charts if scopes else ""
    rows = strategy_rows(run, scopes[0], areas) if scopes else []
    # The view that the page shows first stands first.
    streams = sorted(info.streams, key=lambda stream: stream != first)
    structures = {name: readable(name) for stream in info.streams for name in info.structures_of(stream)}
    title = str(run.config.get("name") or run.folder.resolve().name)
    data = {
        "name": "".join(mark if mark.isalnum() or mark in "-_" else "-" for mark in title),
        "strategies": list(info.strategies),
        "structures": structures,
        "metrics": {metric: METRIC_NAMES[metric] for metric in metrics},
        "validated": validated,
        "streams": [
            {"name": name, "label": stream_label(name), "steps": [list(names) for names in steps]}
            for name, steps in info.streams.items()
        ],
        "scopes": [{"label": scope.label, "file": scope.file, "charts": scope.charts} for scope in scopes],
        "tables": {key: table.data() for key, table in tables.items()},
    }
    values: dict[str, Any] = {
        "script": Markup("\n".join(page_part(f"page/static/{part}.js") for part in _SCRIPT)),
        "data": _json(data),
        "title": title,
        "settings": _settings(run.config),
        "base": [readable(name) for name in (info.streams[first][0] if info.streams.get(first) else ())],
        "added": [readable(name) for name in info.added_of(first)],
        "streams": len(info.streams),
        "first_label": stream_label(next(iter(info.streams), "")),
        "seeds": info.seeds,
        "strategies": list(info.strategies),
        "structures": structures,
        "scopes": scopes,
        "findings": _findings(rows, run),
        "frontiers": frontier_charts(rows),
        "tables": {
            key.split("|")[0]: table
            for key, table in reversed(tables.items())
            if _in_first_view(key, metrics)
        },
        "metric_names": METRIC_NAMES,
        "metrics": metrics,
        "steps": [", ".join(readable(name) for name in names) for names in info.streams.get(first, ())],
        "forgetting": [forgetting_charts(run, stream, metric) for stream in streams for metric in metrics],
        "learning": [learning_charts(run, stream, metric) for stream in streams for metric in validated],
        "maps": [heat_maps(run, stream, metric) for stream in streams for metric in metrics],
        "gates": gate_charts(run),
        "gate_figures": gate_figures(run),
        "side_by_side": side_by_side(run),
        "paper_number": _paper_number(run, scopes),
        "pictures": first_slices(run),
        "config_text": run.config_text,
        "facts": _facts(run.environment),
        "notes": run.notes,
    }
    _drop_views(values, run.notes)
    # Pictures take what is left of the page.
    size = len(render("page/templates/page.jinja", stacks={}, **values))
    budget = max(min(BUDGET, LARGEST - 300_000 - size), _SMALLEST_PICTURES)
    stacks = volume_mosaics(run.predictions, run.notes, budget=budget)
    encoded = {name: _json(stack) for name, stack in stacks.items()}
    return render("page/templates/page.jinja", stacks=encoded, **values)


def _paper_number(run: Run, scopes: Sequence[Scope]) -> int | None:
    """Return the number of the paper's table that the run repeats."""
    found = systems_of_run(run.info, scopes[0].streams) if scopes else None
    return None if found is None else found.table.number


def _json(value: Any) -> Markup:
    """Return JSON that may stand within a script element: nothing in it ends that."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def _in_first_view(key: str, metrics: Sequence[str]) -> bool:
    _, scope, metric = key.split("|")
    return scope == "0" and metric in ("", *metrics[:1])


def _drop_views(values: dict[str, Any], notes: list[str]) -> None:
    """Leave out the charts that the page has no room for, those of the last streams first."""
    room, dropped = _LARGEST_CHARTS, set()
    for kind in ("maps", "forgetting", "learning"):
        within: list[ChartView | HeatMapView] = []
        for view in values[kind]:
            room -= _size(view)
            if room >= 0 or not within:
                within.append(view)
            else:
                dropped.add(stream_label(view.stream))
        values[kind] = within
    if dropped:
        notes.append(
            f"the page has no room for all charts: some of {', '.join(sorted(dropped))} are missing; "
            "results.csv and learning.csv have their values"
        )


def _size(view: ChartView | HeatMapView) -> int:
    """Return about how many characters a view takes."""
    if isinstance(view, ChartView):
        return sum(len(chart.svg) for chart in view.charts)
    return sum(100 * len(cells) for heat_map in view.maps for _, cells in heat_map.rows)


def _findings(rows: Sequence[Mapping[str, Any]], run: Run) -> list[str]:
    """Return a line per strategy that says what the table shows, so that nobody has to know its signs."""
    lines = []
    for row in rows:
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


def _settings(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the settings that a reader asks for first, as (name, value); those that the configuration has."""

    def get(*keys: str) -> Any:
        value: Any = config
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def size(value: Any) -> str | None:
        times = " \N{MULTIPLICATION SIGN} "
        return times.join(str(part) for part in value) if isinstance(value, list) else None

    manifest, fields = get("data", "manifest"), get("data", "simulate", "fields")
    width, depth = get("network", "width"), get("network", "depth")
    budget = f"{get('training', 'steps')} steps" if get("training", "steps") else None
    if get("training", "epochs"):
        budget = f"{get('training', 'epochs')} epochs"
    base_steps = get("training", "base_steps")
    settings = [
        ("images", manifest or (f"{fields} simulated fields" if fields else None)),
        ("field (z, y, x)", None if manifest else size(get("data", "simulate", "shape"))),
        ("network", f"width {width}, depth {depth}" if width and depth else None),
        ("patch", size(get("patch", "size"))),
        ("batch", get("training", "batch_size")),
        ("budget", f"{budget}, base {base_steps}" if budget and base_steps else budget),
        ("learning rate", get("training", "learning_rate")),
        ("schedule", get("training", "schedule")),
    ]
    return [(name, str(value)) for name, value in settings if value is not None]


def _facts(environment: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return the environment as (name, value), nested names joined by dots."""
    facts: list[tuple[str, str]] = []
    for key, value in environment.items():
        if isinstance(value, Mapping):
            facts += _facts(value, f"{prefix}{key}.")
        else:
            facts.append((f"{prefix}{key}", str(value)))
    return facts
