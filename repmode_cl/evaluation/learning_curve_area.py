"""Area under a validation curve: a measure of how fast a structure was learned."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from repmode_cl.errors import RepmodeError
from repmode_cl.results.learning_curves import CURVE, read_curve
from repmode_cl.results.run_info import RunInfo
from repmode_cl.results.trial_record import Trial

__all__ = ["area_under_curve", "learning_areas", "read_areas", "Areas"]

#: Trial -> (experience, structure) -> area under the validation curve.
Areas = dict[Trial, dict[tuple[int, str], float]]


def area_under_curve(points: Iterable[tuple[float, float]], budget: float | None = None) -> float:
    """Return the mean height of a learning curve over its budget of training steps.

    The area by the trapezoidal rule, divided by the budget, so that it has the unit of the metric. Nothing is
    measured before the first validation: its value stands for the steps before it. Likewise the last value
    stands for the steps between the last validation and the end of the budget.

    Parameters
    ----------
    points
        (train step, value), in any order.
    budget
        Steps of the whole training; None takes the last point's. Later points do not count.

    Returns
    -------
    float
        NaN of no point, or where a value that counts is NaN.

    Raises
    ------
    RepmodeError
        If a step stands twice, or is below 0, or the budget is not above 0.
    """
    curve = sorted(points)
    if not curve:
        return math.nan
    steps = [step for step, _ in curve]
    if len(set(steps)) < len(steps) or steps[0] < 0:
        raise RepmodeError(f"a learning curve has each train step once, from 0 on, found {steps}")
    end = float(steps[-1] if budget is None else budget)
    if not end > 0:
        raise RepmodeError(f"the budget of a learning curve must be above 0 steps, found {end:g}")
    area, before, height = 0.0, 0.0, curve[0][1]
    for step, value in curve:
        if step > end:
            # Only the part of this piece that lies within the budget.
            value = height + (value - height) * (end - before) / (step - before)
            step = end
        area += (step - before) * (height + value) / 2
        before, height = step, value
        if step == end:
            break
    area += (end - before) * height
    return area / end


def learning_areas(
    curve: Iterable[Mapping[str, Any]], metric: str = "r2", budgets: Mapping[int, float] | None = None
) -> dict[tuple[int, str], float]:
    """Return the area under each validation curve of one trial.

    Parameters
    ----------
    curve
        Rows of learning.csv: experience, structure, train_step, metric, value.
    metric
        Which figure.
    budgets
        Experience -> training steps; None takes the last validation of each, which is at the end of the budget.

    Returns
    -------
    dict
        (experience, structure) -> area.
    """
    points: dict[tuple[int, str], list[tuple[float, float]]] = {}
    for row in curve:
        if row["metric"] == metric:
            key = (int(row["experience"]), str(row["structure"]))
            points.setdefault(key, []).append((float(row["train_step"]), float(row["value"])))
    return {key: area_under_curve(one, (budgets or {}).get(key[0])) for key, one in points.items()}


def read_areas(run_dir: str | Path, info: RunInfo, metric: str = "r2") -> Areas:
    """Read the validation curves of all finished trials and return the areas under them.

    Each is taken over the whole budget of its experience. Where training stopped before that, the last value stands
    for the rest. Trials without a curve are left out.

    Raises
    ------
    RepmodeError
        If a learning.csv has another form; the message names it.
    """
    areas: Areas = {}
    for trial in sorted(info.finished):
        path = Path(run_dir) / trial.folder / CURVE
        if not path.exists():
            continue
        try:
            rows = read_curve(path)
            areas[trial] = learning_areas(rows, metric, _budgets(rows, trial, info))
        except (OSError, KeyError, ValueError) as error:
            raise RepmodeError(
                f"{path}: is no table of experience, structure, train_step, metric, value "
                f"({type(error).__name__}: {error}); `repmode-cl bench` writes it: remove it to do without this curve"
            ) from error
    return areas


def _budgets(rows: Sequence[Mapping[str, Any]], trial: Trial, info: RunInfo) -> dict[int, float]:
    """Return the steps of each experience: of one structure those of the configuration, else those trained."""
    options = info.options.get(trial.title) or {}
    budgets: dict[int, float] = {}
    for row in rows:
        step = row["experience"]
        budgets[step] = max(budgets.get(step, 0.0), float(row["train_step"]))
    for step, names in enumerate(info.streams[trial.stream]):
        own = options.get("steps") if step else None
        # Without options, in files of the first form, a strategy's own number of steps is not known.
        given = own or (info.steps if options and len(names) == 1 else None)
        if step in budgets and given is not None:
            budgets[step] = max(budgets[step], float(given))
    return budgets
