"""Page of an evaluation: what the model's structures reach on new images; it loads nothing from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from repmode_cl.report.html import render
from repmode_cl.report.page.chart_data import readable
from repmode_cl.report.page.slices import Panel, Slices, slices_of
from repmode_cl.results.evaluation import ImageFigures, StructureEvaluation, read_evaluation
from repmode_cl.results.predictions import Prediction
from repmode_cl.utils.atomic_files import write_text
from repmode_cl.utils.number_format import number, r2_text

__all__ = ["build_evaluation", "picture_values"]

#: (figure, heading, digits, what the heading means)
_COLUMNS = (
    ("r2", "R²", 3, "1 is perfect, 0 is predicting the mean"),
    ("pearson", "Pearson", 3, "correlation; does not see a wrong scale"),
    ("mse", "MSE", 3, "where each image has its own z-score 1 minus R²"),
    ("mae", "MAE", 3, "mean absolute error, z-score units"),
    ("psnr", "PSNR", 1, "dB, of the range of the truth"),
    ("ssim", "SSIM", 3, "structural similarity, 1 is perfect"),
    ("microssim", "MicroSSIM", 3, "structural similarity without offset and scale, 1 is perfect"),
    (
        "spectral_pcc",
        "spectral r",
        3,
        "correlation of the spectra, weighted by the truth's power above its noise",
    ),
    (
        "fsc_xy",
        "FSC xy",
        2,
        "finest detail that truth and prediction share in a plane, µm (voxels where none is known)",
    ),
    ("fsc_z", "FSC z", 2, "the same along z"),
    ("dice", "Dice", 3, "overlap after the same segmentation, 1 is perfect"),
    ("iou", "IoU", 3, "intersection over union after the same segmentation, 1 is perfect"),
    ("coverage", "coverage", 3, "share of voxels whose truth lies in the interval of predict --confidence"),
    ("interval_width", "interval", 2, "mean width of these intervals, z-score units; narrow is sharp"),
)
#: Pairs of figures of objects: (truth, prediction, heading, digits, meaning)
_PAIRS = (
    ("objects_truth", "objects_prediction", "objects", 1, "connected components: truth, prediction"),
    ("size_truth", "size_prediction", "size", 0, "mean voxels of an object: truth, prediction"),
)
#: Rows of a structure's table of images; the CSV has all.
_MOST_ROWS = 50
_FEATURES = {
    "area": "area",
    "mean": "mean intensity",
    "deviation": "deviation of intensity",
    "texture": "texture",
}


def build_evaluation(folder: str | Path) -> Path:
    """Write ``report.html`` into an evaluation's folder.

    Parameters
    ----------
    folder
        What `repmode-cl evaluate` wrote.

    Returns
    -------
    Path
        The page; it holds everything it shows, and its content policy forbids any request.

    Raises
    ------
    RepmodeError
        If the folder holds no evaluation.
    """
    evaluation = read_evaluation(folder)
    found = {name for one in evaluation.structures for name in one.means}
    columns = [column for column in _COLUMNS if column[0] in found]
    pairs = [pair for pair in _PAIRS if {pair[0], pair[1]} & found]
    text = render(
        "evaluation/page.jinja",
        title=evaluation.model,
        manifest=evaluation.manifest,
        settings=evaluation.settings,
        notes=evaluation.notes,
        columns=[(heading, meaning) for _, heading, _, meaning in columns]
        + [(heading, meaning) for *_, heading, _, meaning in pairs],
        structures=[_structure(one, columns, pairs) for one in evaluation.structures],
        features=_FEATURES,
        most=_MOST_ROWS,
    )
    write_text(evaluation.report, text)
    return evaluation.report


def picture_values(volumes: Prediction) -> dict[str, Any]:
    """Return slices of one image, as JSON values that the page shows later."""
    return asdict(slices_of({"prediction": volumes}))


def _pictures(value: Mapping[str, Any], heading: str) -> Slices:
    return Slices(heading, tuple(Panel(**panel) for panel in value["panels"]), value["caption"])


def _structure(one: StructureEvaluation, columns: list[Any], pairs: list[Any]) -> dict[str, Any]:
    verdict = one.verdict
    rows = [
        {
            "line": image.line,
            "image": image.image,
            "cells": _cells(image.figures, columns, pairs),
            "notes": image.notes,
        }
        for image in one.images
    ]
    return {
        "name": readable(one.structure),
        "images": len(one.images),
        "level": str(verdict.level),
        "verdict": _typeset(verdict.text),
        "model_verdict": _typeset(one.model_verdict),
        "cells": _cells(one.means, columns, pairs),
        "fewer": {
            heading: one.counts[name]
            for name, heading, _, _ in columns
            if name in one.counts and one.counts[name] < len(one.images)
        },
        "rows": rows[:_MOST_ROWS],
        "more": max(0, len(rows) - _MOST_ROWS),
        "pictures": [
            _pictures(image.pictures, f"line {image.line}: {image.image}")
            for image in one.images
            if image.pictures is not None
        ],
        "correlations": {name: number(value, 3) for name, value in one.correlations.items()},
        "cell_count": one.cells,
        "has_cells": any(_has_cells(image) for image in one.images),
    }


def _has_cells(image: ImageFigures) -> bool:
    return image.cells is not None


def _cells(figures: Mapping[str, float], columns: list[Any], pairs: list[Any]) -> list[str]:
    cells = []
    for name, _, digits, _ in columns:
        value = figures.get(name)
        if value is None:
            cells.append("–")  # noqa: RUF001
        else:
            cells.append(r2_text(value) if name == "r2" else number(value, digits))
    for truth, prediction, _, digits, _ in pairs:
        both = [figures.get(name) for name in (truth, prediction)]
        cells.append(", ".join("–" if value is None else number(value, digits) for value in both))  # noqa: RUF001
    return cells


def _typeset(text: str) -> str:
    """Return text of the terminal with a true minus sign and R² where it means those."""
    return re.sub(r"(?<=[ (])-(?=\d)", "\N{MINUS SIGN}", text).replace("R2 ", "R² ")
