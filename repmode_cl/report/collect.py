"""Reading what a run's folder holds for the page, and saying what is not there instead of failing on it."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from repmode_cl.errors import RepmodeError
from repmode_cl.evaluation.results import ResultsTable
from repmode_cl.report.images import Prediction, read_prediction
from repmode_cl.report.run_info import RunInfo, read_run_info

__all__ = ["Run", "Curve", "read_run"]

#: (metric, structure) -> (train step, value), ascending.
Curve = Mapping[tuple[str, str], list[tuple[int, float]]]


@dataclass
class Run:
    """Everything that the page is made of.

    Attributes
    ----------
    curves
        (strategy, seed) -> validation curves.
    gates
        strategy -> structure -> block -> expert -> mean gate weight, of the first seed that has them.
    predictions
        structure -> strategy -> volumes, of the first seed that has them.
    notes
        What was missing or could not be read.
    """

    folder: Path
    info: RunInfo
    results: ResultsTable
    config: dict[str, Any]
    config_text: str
    environment: dict[str, Any]
    curves: dict[tuple[str, int], Curve] = field(default_factory=dict)
    gates: dict[str, dict[str, dict[str, dict[str, float]]]] = field(default_factory=dict)
    predictions: dict[str, dict[str, Prediction]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_run(folder: str | Path) -> Run:
    """Read a run's folder.

    Raises
    ------
    RepmodeError
        If run.json or results.csv is missing or wrong. Anything else that is missing or cannot be read
        becomes one of the run's notes.
    """
    folder = Path(folder)
    info = read_run_info(folder)
    results = ResultsTable.read(folder / "results.csv")
    notes: list[str] = []
    config_text = _text(folder / "config.yaml", notes)
    config: Any = {}
    try:
        config = yaml.safe_load(config_text) or {}
    except yaml.YAMLError:
        notes.append("config.yaml is no YAML")
    environment = _json(folder / "environment.json", notes) if (folder / "environment.json").exists() else {}
    run = Run(
        folder,
        info,
        results,
        config if isinstance(config, dict) else {},
        config_text,
        environment if isinstance(environment, dict) else {},
        notes=notes,
    )
    for title in info.strategies:
        for seed in info.seeds:
            _read_seed(run, title, seed, folder / title / f"seed-{seed}")
    unfinished = [
        f"{title} with seed {seed}"
        for title in info.strategies
        for seed in info.seeds
        if (title, seed) not in info.finished
    ]
    if unfinished:
        notes.append(f"not finished, so not in the table: {', '.join(unfinished)}")
    return run


def _read_seed(run: Run, title: str, seed: int, folder: Path) -> None:
    if (folder / "learning.csv").exists():
        run.curves[title, seed] = _curves(folder / "learning.csv", run)
    if title not in run.gates and (folder / "gates.json").exists():
        gates = _json(folder / "gates.json", run.notes)
        try:
            run.gates[title] = {
                structure: {
                    block: {expert: float(weight) for expert, weight in weights.items()}
                    for block, weights in blocks.items()
                }
                for structure, blocks in gates.items()
            }
        except (AttributeError, TypeError, ValueError) as error:
            run.notes.append(f"{title}/seed-{seed}/gates.json is of another form: {error}")
    for structure in run.info.structures:
        path = folder / "predictions" / f"{structure}.npz"
        if title not in run.predictions.get(structure, {}) and path.exists():
            try:
                run.predictions.setdefault(structure, {})[title] = read_prediction(path)
            except RepmodeError as error:
                run.notes.append(str(error))


def _curves(path: Path, run: Run) -> Curve:
    learned = {name: step for step, names in enumerate(run.info.experiences) for name in names}
    curves: dict[tuple[str, str], list[tuple[int, float]]] = {}
    try:
        with path.open(encoding="utf-8", newline="") as handle:
            for row in csv.DictReader(handle):
                # Only while it was being learned: its later decline is the forgetting curve.
                if int(row["experience"]) == learned.get(row["structure"]):
                    point = (int(row["train_step"]), float(row["value"]))
                    curves.setdefault((row["metric"], row["structure"]), []).append(point)
    except (OSError, KeyError, TypeError, ValueError) as error:
        run.notes.append(f"{path.relative_to(run.folder).as_posix()} cannot be read: {error!r}")
    return {key: sorted(points) for key, points in curves.items()}


def _text(path: Path, notes: list[str]) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        notes.append(f"{path.name} is missing or cannot be read")
        return ""


def _json(path: Path, notes: list[str]) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        notes.append(f"{path.name} cannot be read: {error}")
        return {}
