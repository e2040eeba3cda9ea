"""Reading what a run's folder holds for the page, and saying what is not there instead of failing on it."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from repmode_cl.results.results_table import ResultsTable
from repmode_cl.results.run_info import RunInfo, Unit, read_run_info, unit_folder

__all__ = ["LEFT_OUT", "Curve", "Run", "read_run"]

#: (metric, structure) -> (train step, value), ascending.
Curve = Mapping[tuple[str, str], list[tuple[int, float]]]

#: How many runs a note names one by one; more are counted.
_NAMED = 6


@dataclass
class Run:
    """Everything that the page is made of.

    Attributes
    ----------
    curves
        (strategy, stream, seed) -> validation curves.
    gates
        strategy -> structure -> block -> expert -> mean gate weight, of the first run that has them.
    predictions
        structure -> strategy -> file of its volumes, of the first run that has one.
    notes
        What was missing or could not be read.
    """

    folder: Path
    info: RunInfo
    results: ResultsTable
    config: dict[str, Any]
    config_text: str
    environment: dict[str, Any]
    curves: dict[Unit, Curve] = field(default_factory=dict)
    gates: dict[str, dict[str, dict[str, dict[str, float]]]] = field(default_factory=dict)
    predictions: dict[str, dict[str, Path]] = field(default_factory=dict)
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
        for stream in info.streams:
            for seed in info.seeds:
                _read_unit(run, (title, stream, seed))
    notes += _unfinished(info)
    return run


def unit_text(unit: Unit) -> str:
    """Return how a note names one run."""
    title, stream, seed = unit
    return f"{title}{f' on {stream}' if stream else ''} with seed {seed}"


def _unfinished(info: RunInfo) -> list[str]:
    every = [
        (title, stream, seed) for title in info.strategies for stream in info.streams for seed in info.seeds
    ]
    missing = [unit for unit in every if unit not in info.finished and unit not in info.failed]
    notes = [f"failed: {unit_text(unit)}: {message}" for unit, message in [*info.failed.items()][:_NAMED]]
    if len(info.failed) > _NAMED:
        notes.append(f"failed besides: {len(info.failed) - _NAMED} more runs")
    if len(missing) > _NAMED:
        first = ", ".join(unit_text(unit) for unit in missing[:_NAMED])
        notes.append(
            f"not run or not finished, so not in the tables: {len(missing)} of {len(every)} runs, such as {first}"
        )
    elif missing:
        named = ", ".join(unit_text(unit) for unit in missing)
        notes.append(f"not run or not finished, so not in the tables: {named}")
    return notes


def _read_unit(run: Run, unit: Unit) -> None:
    title, stream, _ = unit
    below = unit_folder(*unit)
    folder = run.folder / below
    # Joint training shares its steps among all structures: they are no steps of the one that came last.
    if title not in run.info.at_once and (folder / "learning.csv").exists():
        run.curves[unit] = _curves(folder / "learning.csv", run, stream)
    if title not in run.gates and (folder / "gates.json").exists():
        gates = _json(folder / "gates.json", run.notes)
        try:
            run.gates[title] = {
                structure: {
                    block: {expert: float(weight) for expert, weight in weights.items()}
                    for block, weights in blocks.items()
                    if None not in weights.values()  # of a training that diverged
                }
                for structure, blocks in gates.items()
            }
        except (AttributeError, TypeError, ValueError) as error:
            run.notes.append(f"{below.as_posix()}/gates.json is of another form: {error}")
    for structure in run.info.structures:
        path = folder / "predictions" / f"{structure}.npz"
        if title not in run.predictions.get(structure, {}) and path.exists():
            run.predictions.setdefault(structure, {})[title] = path


def _curves(path: Path, run: Run, stream: str) -> Curve:
    """Read the curves of each structure while it is being learned; its later decline is the forgetting curve.

    Where a stream brings a structure back, its steps count on.
    """
    experiences = run.info.streams[stream]
    curves: dict[tuple[str, str], dict[int, list[tuple[int, float]]]] = {}
    try:
        with path.open(encoding="utf-8", newline="") as handle:
            for row in csv.DictReader(handle):
                number = int(row["experience"])
                if row["structure"] in experiences[number]:
                    point = (int(row["train_step"]), float(row["value"]))
                    parts = curves.setdefault((row["metric"], row["structure"]), {})
                    parts.setdefault(number, []).append(point)
    except (OSError, IndexError, KeyError, TypeError, ValueError) as error:
        run.notes.append(f"{path.relative_to(run.folder).as_posix()} cannot be read: {error!r}")
    return {key: _joined(parts) for key, parts in curves.items()}


def _joined(parts: Mapping[int, list[tuple[int, float]]]) -> list[tuple[int, float]]:
    joined: list[tuple[int, float]] = []
    for _, points in sorted(parts.items()):
        before = joined[-1][0] if joined else 0
        joined += [(before + step, value) for step, value in sorted(points)]
    return joined


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


#: File of a run that lists the rows of the manifest which it does without.
LEFT_OUT = "left_out.csv"
