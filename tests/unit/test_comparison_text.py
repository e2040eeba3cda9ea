"""Words of a comparison in place of numbers that say nothing: diverged, constant, and not yet learned."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from repmode_cl.report.comparison.page import build_comparison
from repmode_cl.report.comparison.text import findings, render_terminal
from repmode_cl.results.comparison import (
    METHODS,
    Comparison,
    MethodResult,
    PredictionChange,
    write_comparison,
)
from repmode_cl.workflows.prediction_changes import _r2


def change(
    structure: str, r2: float | None, difference: float | None = 1.5, **more: float
) -> PredictionChange:
    return PredictionChange(structure, 2, False, r2, difference, **more)  # type: ignore[arg-type]


def comparison(
    r2: tuple[float, float, float], *changes: PredictionChange, folder: Path = Path(), low: float = 0.1
) -> Comparison:
    ways = tuple(
        MethodResult(
            key=key,
            title=key.replace("_", " "),
            metrics={"r2": value, "pearson": 0.1, "mse": 1 - value, "mae": 0.8},
            changes={"adding": (PredictionChange("dna", 2, True, 1.0, 0.0),), "fine_tuning": changes}.get(
                key, ()
            ),
            steps=4,
            selected_step=4,
            learning_rate=0.1,
            seconds=1.0,
            parameters=100,
            bytes=400,
            curve=((1, low), (2, 0.2), (4, 0.3)),
        )
        for key, value in zip(METHODS, r2, strict=True)
    )
    known = tuple(one.structure for one in changes) or ("dna",)
    return Comparison("nucleolus", known, "val", 2, 5, ways, folder=folder)


def printed(found: Comparison) -> str:
    console = Console(width=120, no_color=True)
    with console.capture() as shown:
        console.print(render_terminal(found))
    return shown.get() + "\n".join(findings(found))


def test_absurd_numbers_are_words(tmp_path: Path) -> None:
    found = comparison(
        (0.4, -1240.972, 0.5),
        change("dna", -1240.972, 40.0, truth_images=2, truth_before=0.5, truth_after=-900.0),
        folder=tmp_path,
        low=-1240.972,
    )
    write_comparison(found)
    page = build_comparison(tmp_path).read_text(encoding="utf-8").replace("\N{MINUS SIGN}", "-")
    page = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    for text in (printed(found), page):
        assert "1240" not in text
        assert "1241" not in text
        assert "900" not in text
        assert "below -1" in text
        assert "below 0 against before" in text
        assert "more than 1 R" in text
        assert "2 validation images" in text
    assert "fine tuning: R2 below -1, below adding; " in printed(found)


@pytest.mark.parametrize("value", [0.004, -0.2, -50.0])
def test_a_comparison_says_when_none_has_learned(value: float) -> None:
    lines = findings(comparison((value, -0.3, -2.0), change("dna", 0.5)))
    assert lines[-1].startswith(
        "None of the three has learned nucleolus yet: R2 on held-out images is at most "
    )
    assert not any(
        line.startswith("None") for line in findings(comparison((value, 0.05, -2.0), change("dna", 0.5)))
    )


def test_a_constant_prediction_is_not_what_changed_most() -> None:
    found = comparison((0.4, 0.4, 0.4), change("er", None), change("dna", 0.3))
    worst = found["fine_tuning"].worst
    assert worst is not None
    assert worst.structure == "dna"
    alone = printed(comparison((0.4, 0.4, 0.4), change("er", None)))
    assert "er most of all (its prediction before was constant, changed by up to 1.5 z-score units)" in alone
    assert "constant before" in alone
    diverged = comparison((0.4, 0.4, 0.4), change("er", None), change("dna", None, None))
    assert diverged["fine_tuning"].worst == change("dna", None, None)
    assert "no finite numbers any more" in printed(diverged)


def test_r2_against_a_nearly_constant_prediction_is_undefined() -> None:
    noise = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(0)).numpy()
    assert _r2(np.float32(0.5) + np.float32(0.01) * noise, noise) is None
    assert _r2(noise, noise) == 1.0


def test_curves_stay_in_the_plot(tmp_path: Path) -> None:
    found = comparison((0.4, 0.3, 0.5), change("dna", 0.5), folder=tmp_path, low=-30.0)
    write_comparison(found)
    page = build_comparison(tmp_path).read_text(encoding="utf-8")
    charts = re.findall(r'<svg class="chart".*?</svg>.*?</svg>', page, flags=re.DOTALL)
    assert len(charts) == 2
    for chart in charts:
        [box] = re.findall(r'<svg class="lines".*? viewBox="([^"]+)"', chart)
        _, top, _, height = (float(part) for part in box.split())
        lines = re.findall(r'<g data-strategy.*?<path class="line s\d" d="([^"]+)"', chart)
        values = [float(point.split()[1]) for line in lines for point in re.split("[ML]", line)[1:]]
        assert len(values) == 9
        # The y axis of the frame points down.
        assert all(top <= -value <= top + height for value in values)
        # One triangle for each method's first point.
        assert chart.count('z"/>') == 3
    assert "A triangle on the lower edge stands for R² below" in page
    inside = comparison((0.4, 0.3, 0.5), change("dna", 0.5), folder=tmp_path)
    write_comparison(inside)
    assert "A triangle" not in build_comparison(tmp_path).read_text(encoding="utf-8")
