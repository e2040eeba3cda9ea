"""Page of a comparison: what each method gives, damages and costs; it loads nothing from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from markupsafe import Markup

from repmode_cl.errors import ImageError, RepmodeError
from repmode_cl.report.comparison.text import (
    change_text,
    damage_text,
    findings,
    likeness_text,
    lost_text,
    metric_text,
    stored_text,
    verdict_lines,
)
from repmode_cl.report.html import render
from repmode_cl.report.page.chart_data import LOWEST_LEARNING, readable
from repmode_cl.report.page.slices import Slices, slices_of
from repmode_cl.report.page.svg import Line, line_chart, nice_ticks
from repmode_cl.results.comparison import (
    FINE_TUNING,
    Comparison,
    MethodResult,
    PredictionChange,
    read_comparison,
)
from repmode_cl.results.predictions import read_prediction
from repmode_cl.utils.atomic_files import write_text
from repmode_cl.utils.number_format import count_text, number, r2_text, seconds_text

__all__ = ["build_comparison"]

#: (metric, heading, whether a larger value wins, what the heading means)
_METRICS = (
    ("r2", "R²", True, "1 is perfect, 0 is predicting the mean"),
    ("pearson", "Pearson", True, "correlation; does not see a wrong scale"),
    ("mse", "MSE", False, "for z-scored images 1 minus R²"),
)


def build_comparison(folder: str | Path) -> Path:
    """Write ``report.html`` into a comparison's folder.

    Parameters
    ----------
    folder
        What `repmode-cl compare` wrote. Pictures that are missing or cannot be read are said on the page.

    Returns
    -------
    Path
        The page; it holds everything it shows, and its content policy forbids any request.

    Raises
    ------
    RepmodeError
        If the folder holds no comparison.
    """
    comparison = read_comparison(folder)
    notes = list(comparison.notes)
    pictures = _pictures(comparison, notes)
    changed_pictures = _changed_pictures(comparison, notes)
    text = render(
        "comparison/page.jinja",
        title=readable(comparison.structure),
        known=[readable(name) for name in comparison.known],
        settings=[*_data(comparison), *comparison.settings],
        findings=[_typeset(line) for line in (*findings(comparison), *verdict_lines(comparison))],
        metrics=[(heading, meaning) for _, heading, _, meaning in _METRICS],
        rows=_rows(comparison),
        has_truth=any(
            change.truth_before is not None for method in comparison.methods for change in method.changes
        ),
        held_out={"test": "test", "val": "validation"}.get(comparison.held_out, comparison.held_out),
        images=comparison.images,
        methods=[method.title for method in comparison.methods],
        below=number(LOWEST_LEARNING["r2"])
        if any(r2 < LOWEST_LEARNING["r2"] for method in comparison.methods for _, r2 in method.curve)
        else None,
        changed=_changed(comparison),
        changed_pictures=changed_pictures,
        curves=_curves(comparison),
        pictures=pictures,
        notes=notes,
    )
    write_text(comparison.report, text)
    return comparison.report


def _data(comparison: Comparison) -> list[tuple[str, str]]:
    rates = [f"{method.learning_rate:g}" for method in comparison.methods]
    same = len(set(rates)) == 1
    return [
        ("learned from", f"{comparison.training_images} images"),
        ("measured on", f"{comparison.images} images"),
        ("learning rate" if same else "learning rates", rates[0] if same else ", ".join(rates)),
    ]


def _rows(comparison: Comparison) -> list[dict[str, Any]]:
    best = {}
    for metric, _, larger, _ in _METRICS:
        values = [method.metrics[metric] for method in comparison.methods if metric in method.metrics]
        best[metric] = (max(values) if larger else min(values)) if values else None
    rows = []
    for style, method in enumerate(comparison.methods):
        cells = []
        for metric, *_ in _METRICS:
            value = method.metrics.get(metric)
            # What the terminal shows, with the signs of a page.
            text = metric_text(method, metric).replace("-", "–" if value is None else "\N{MINUS SIGN}")  # noqa: RUF001
            cells.append({"text": text, "best": value is not None and value == best[metric]})
        difference, more = damage_text(method)
        rows.append(
            {
                "style": style,
                "method": method.title,
                "cells": cells,
                "unharmed": method.identical,
                "damage": difference,
                "of": _typeset(more),
                "lost": _signed(method.lost),
                "seconds": seconds_text(method.seconds),
                "steps": method.steps,
                "stored": stored_text(method),
                "parameters": count_text(method.parameters),
            }
        )
    return rows


def _typeset(text: str) -> str:
    """Return text of the terminal with a true minus sign and R² where it means those."""
    return re.sub(r"(?<=[ (])-(?=\d)", "\N{MINUS SIGN}", text).replace("R2 ", "R² ")


def _signed(value: float | None) -> str:
    if value is None:
        return "–"  # noqa: RUF001 - what a reader expects in an empty cell
    if value == 0:
        return "0"
    return lost_text(value) if value > 1 else f"{'+' if value > 0 else ''}{number(value, 3)}"


def _changed(comparison: Comparison) -> list[dict[str, Any]]:
    """Return one row per structure of the model, with one cell per method that has to do with the model."""
    methods = [(style, method) for style, method in enumerate(comparison.methods) if method.changes]
    rows = []
    for place, name in enumerate(comparison.known):
        cells = [_change(style, method, method.changes[place]) for style, method in methods]
        before = next((method.changes[place].truth_before for _, method in methods), None)
        images = next((method.changes[place].images for _, method in methods), 0)
        rows.append(
            {
                "structure": readable(name),
                "images": images,
                "before": None if before is None else r2_text(before),
                "cells": cells,
            }
        )
    return rows


def _change(style: int, method: MethodResult, change: PredictionChange) -> dict[str, Any]:
    kept = 1.0 if change.identical else 0.0 if change.r2 is None else min(max(change.r2, 0.0), 1.0)
    return {
        "style": style,
        "method": method.title,
        "identical": change.identical,
        "width": f"{100 * kept:.1f}%",
        "r2": "1.000" if change.identical else likeness_text(change).removeprefix("R2 "),
        "difference": change_text(change)[0],
        "after": None if change.truth_after is None else r2_text(change.truth_after),
        "lost": _signed(change.lost).removeprefix("+"),
    }


def _curves(comparison: Comparison) -> list[tuple[str, Markup]]:
    """Draw validation R2 against steps and against seconds of training: equal steps cost unequal time."""
    methods = [(style, method) for style, method in enumerate(comparison.methods) if len(method.curve) > 1]
    if not methods:
        return []
    values = [r2 for _, method in methods for _, r2 in method.curve]
    low, high = max(min(*values, 0.0), LOWEST_LEARNING["r2"]), max(*values, 0.05)
    margin = 0.05 * (high - low)
    charts = []
    for heading, by_time in (("optimiser steps", False), ("seconds of training", True)):
        lines = []
        for style, method in methods:
            pace = method.seconds / method.steps if by_time and method.steps else 1.0
            points = tuple((step * pace, r2) for step, r2 in method.curve)
            lines.append(Line(style, method.title, points))
        end = max(x for line in lines for x, _ in line.points)
        svg = line_chart(
            lines[::-1],
            x_range=(0.0, end),
            y_range=(low - margin, high + margin),
            x_ticks=[(x, f"{x:g}") for x in nice_ticks(0.0, end, 4)],
            clamp=True,
            description=f"validation R² of {readable(comparison.structure)} against {heading}",
        )
        charts.append((heading, svg))
    return charts


def _pictures(comparison: Comparison, notes: list[str]) -> Slices | None:
    predictions = {}
    for method in comparison.methods:
        try:
            predictions[method.title] = read_prediction(comparison.folder / method.key / "prediction.npz")
        except RepmodeError as error:
            notes.append(str(error))
    try:
        return slices_of(predictions) if predictions else None
    except ImageError as error:
        notes.append(f"no pictures of {comparison.structure}: {error}")
        return None


def _changed_pictures(comparison: Comparison, notes: list[str]) -> Slices | None:
    """Return the structure that fine-tuning changed most, before and after."""
    method = comparison[FINE_TUNING]
    if method.identical:
        return None
    for path in sorted((comparison.folder / method.key).glob("worst-*.npz")):
        name = path.stem.removeprefix("worst-")
        if comparison.methods[0].identical:
            before = f"and, bit for bit, after adding {readable(comparison.structure)}"
        else:
            before = "what the model predicts"
        try:
            return slices_of(
                {"after fine-tuning": read_prediction(path)},
                f"{readable(name)}, which fine-tuning changed most",
                truth=("before", before),
                others="after",
            )
        except RepmodeError as error:
            notes.append(f"no pictures of {name}: {error}")
            return None
    return None
