"""learning.csv of each run of a strategy: validation figures while it learned."""

from __future__ import annotations

import csv
from pathlib import Path

from repmode_cl.errors import RepmodeError
from repmode_cl.evaluation.learning import learning_areas
from repmode_cl.report.run_info import RunInfo, Unit, unit_folder

__all__ = ["Areas", "read_areas"]

#: (title, stream, seed) -> (experience, structure) -> area under the validation curve.
Areas = dict[Unit, dict[tuple[int, str], float]]


def read_areas(run_dir: str | Path, info: RunInfo, metric: str = "r2") -> Areas:
    """Read the validation curves of all finished runs and return the areas under them.

    Runs without a curve are left out.

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
                areas[unit] = learning_areas(csv.DictReader(handle), metric)
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise RepmodeError(
                f"{path}: is no table of experience, structure, train_step, metric, value "
                f"({type(error).__name__}: {error}); `repmode-cl bench` writes it: remove it to do without this curve"
            ) from error
    return areas
