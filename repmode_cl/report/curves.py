"""learning.csv of each run of a strategy: validation figures while it learned."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from repmode_cl.errors import RepmodeError
from repmode_cl.evaluation.learning import learning_areas
from repmode_cl.report.run_info import RunInfo, Unit, unit_folder

__all__ = ["Areas", "read_areas"]

#: (title, stream, seed) -> (experience, structure) -> area under the validation curve.
Areas = dict[Unit, dict[tuple[int, str], float]]


def read_areas(run_dir: str | Path, info: RunInfo, metric: str = "r2") -> Areas:
    """Read the validation curves of all finished runs and return the areas under them.

    Each over the whole budget of its experience, also where training stopped before that: what was reached then
    stands for the rest. Runs without a curve are left out.

    Raises
    ------
    RepmodeError
        If a learning.csv has another form; the message names it.
    """
    areas: Areas = {}
    for unit in sorted(info.finished):
        path = Path(run_dir) / unit_folder(*unit) / "learning.csv"
        if not path.exists():
            continue
        try:
            with path.open(encoding="utf-8", newline="") as handle:
                rows = list(csv.DictReader(handle))
            areas[unit] = learning_areas(rows, metric, _budgets(rows, unit, info))
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise RepmodeError(
                f"{path}: is no table of experience, structure, train_step, metric, value "
                f"({type(error).__name__}: {error}); `repmode-cl bench` writes it: remove it to do without this curve"
            ) from error
    return areas


def _budgets(rows: Sequence[Mapping[str, str]], unit: Unit, info: RunInfo) -> dict[int, float]:
    """Return the steps of each experience: of one structure those of the configuration, else those trained."""
    title, stream, _ = unit
    options = info.options.get(title) or {}
    budgets: dict[int, float] = {}
    for row in rows:
        step = int(row["experience"])
        budgets[step] = max(budgets.get(step, 0.0), float(row["train_step"]))
    for step, names in enumerate(info.streams[stream]):
        own = options.get("steps") if step else None
        # Without options, in files of the first form, a strategy's own number of steps is not known.
        given = own or (info.steps if options and len(names) == 1 else None)
        if step in budgets and given is not None:
            budgets[step] = max(budgets[step], float(given))
    return budgets
