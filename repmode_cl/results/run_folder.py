"""A run's folder read as a whole, with a note on everything that is missing instead of an error."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from repmode_cl.results.gates import GATES, GateWeights, read_gates
from repmode_cl.results.learning_curves import CURVE, read_curve
from repmode_cl.results.predictions import prediction_path
from repmode_cl.results.results_table import ResultsTable
from repmode_cl.results.run_info import RunInfo, read_run_info
from repmode_cl.results.trial_record import Trial

__all__ = ["Run", "read_run", "Curve"]

#: (metric, structure) -> (train step, value), ascending.
Curve = Mapping[tuple[str, str], list[tuple[int, float]]]

#: How many trials a note names one by one; more are counted.
_NAMED = 6


@dataclass
class Run:
    """Contents of a run's folder.

    Attributes
    ----------
    folder
        The folder.
    info
        Its run.json.
    results
        Its results.csv.
    config, config_text
        Its config.yaml, as values and as text.
    environment
        Its environment.json.
    curves
        Trial -> validation curves.
    gates
        Title of the strategy -> gate weights, of its first trial that has them.
    predictions
        Structure -> title of the strategy -> file of its volumes, of the first trial that has one.
    notes
        Everything that was missing or could not be read.
    """

    folder: Path
    info: RunInfo
    results: ResultsTable
    config: dict[str, Any]
    config_text: str
    environment: dict[str, Any]
    curves: dict[Trial, Curve] = field(default_factory=dict)
    gates: dict[str, GateWeights] = field(default_factory=dict)
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
    for trial in _by_strategy(info):
        _read_trial(run, trial)
    notes += _unfinished(info)
    return run


def _by_strategy(info: RunInfo) -> list[Trial]:
    """Return all trials, those of one strategy together."""
    return [
        Trial(title, stream, seed)
        for title in info.strategies
        for stream in info.streams
        for seed in info.seeds
    ]


def _unfinished(info: RunInfo) -> list[str]:
    """Return notes on the trials that failed, and on those that have not ended."""
    notes = [f"failed: {_trial_text(trial)}: {message}" for trial, message in [*info.failed.items()][:_NAMED]]
    if len(info.failed) > _NAMED:
        notes.append(f"failed besides: {len(info.failed) - _NAMED} more runs")
    every = _by_strategy(info)
    missing = [trial for trial in every if trial not in info.finished and trial not in info.failed]
    if len(missing) > _NAMED:
        first = ", ".join(map(_trial_text, missing[:_NAMED]))
        notes.append(
            f"not run or not finished, so not in the tables: {len(missing)} of {len(every)} runs, such as {first}"
        )
    elif missing:
        named = ", ".join(map(_trial_text, missing))
        notes.append(f"not run or not finished, so not in the tables: {named}")
    return notes


def _trial_text(trial: Trial) -> str:
    return f"{trial.title}{f' on {trial.stream}' if trial.stream else ''} with seed {trial.seed}"


def _read_trial(run: Run, trial: Trial) -> None:
    folder, title = run.folder / trial.folder, trial.title
    # Joint training shares its steps among all structures: they are no steps of the one that came last.
    if title not in run.info.joint_titles and (folder / CURVE).exists():
        run.curves[trial] = _curves(folder / CURVE, run, trial.stream)
    if title not in run.gates and (folder / GATES).exists():
        try:
            run.gates[title] = read_gates(folder / GATES)
        except (OSError, ValueError) as error:
            run.notes.append(f"{(trial.folder / GATES).as_posix()} cannot be read: {error}")
    for structure in run.info.structures:
        path = prediction_path(folder, structure)
        if title not in run.predictions.get(structure, {}) and path.exists():
            run.predictions.setdefault(structure, {})[title] = path


def _curves(path: Path, run: Run, stream: str) -> Curve:
    """Read the curves of each structure while it is being learned; its later decline is the forgetting curve.

    Where a stream brings a structure back, its steps count on.
    """
    experiences = run.info.streams[stream]
    curves: dict[tuple[str, str], dict[int, list[tuple[int, float]]]] = {}
    try:
        for row in read_curve(path):
            number = row["experience"]
            if row["structure"] in experiences[number]:
                parts = curves.setdefault((row["metric"], row["structure"]), {})
                parts.setdefault(number, []).append((row["train_step"], row["value"]))
    except (OSError, IndexError, ValueError) as error:
        run.notes.append(f"{path.relative_to(run.folder).as_posix()} cannot be read: {error}")
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
