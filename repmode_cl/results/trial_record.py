"""Trials of a benchmark, and ``unit.json``: the record of how a trial ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from repmode_cl.utils.atomic_files import read_json, write_json

__all__ = ["Trial", "TrialOutcome", "read_outcome", "write_outcome", "remove_outcome", "OUTCOME", "LOG"]

#: Written last into a trial's folder: how it ended.
OUTCOME = "unit.json"

#: In a trial's folder: its output, and the traceback of an error.
LOG = "log.txt"


class Trial(NamedTuple):
    """One strategy that learns one stream with one seed."""

    title: str
    """Title of the strategy."""
    stream: str
    """Name of the stream; ``""`` in a run of one stream."""
    seed: int

    @property
    def folder(self) -> Path:
        """Its folder, relative to the run's folder."""
        return Path(self.title, self.stream, f"seed-{self.seed}")

    def __str__(self) -> str:
        return " ".join(part for part in (self.title, self.stream, f"seed {self.seed}") if part)


@dataclass(frozen=True)
class TrialOutcome:
    """Outcome of a trial.

    Attributes
    ----------
    finished
        Whether it ran to its end.
    bit_identical
        Whether all that it stored stayed unchanged, bit for bit; None where that was not checked.
    message
        Why it failed; empty if it did not.
    seconds
        From its start, or its last resumption, to its end.
    environment
        What its figures depend on besides the configuration, where it ran.
    results
        SHA-256 of its results.csv, which tells a complete file from one that was cut off; None where it has none.
    """

    finished: bool
    bit_identical: bool | None = None
    message: str = ""
    seconds: float = 0.0
    environment: Mapping[str, Any] | None = None
    results: str | None = None


def write_outcome(folder: Path, outcome: TrialOutcome) -> None:
    """Write how the trial in `folder` ended; call it after everything else is written."""
    write_json(
        folder / OUTCOME,
        {
            "finished": outcome.finished,
            "bit_identical": outcome.bit_identical,
            "message": outcome.message,
            "seconds": round(outcome.seconds, 3),
            "environment": dict(outcome.environment or {}),
            "results": outcome.results,
        },
    )


def read_outcome(folder: Path) -> TrialOutcome | None:
    """Return how the trial in `folder` ended, or None if it has not ended."""
    remedy = "remove it, and --resume runs the trial again from its last checkpoint"
    try:
        return TrialOutcome(**read_json(folder / OUTCOME, remedy))
    except FileNotFoundError:
        return None


def remove_outcome(folder: Path) -> None:
    """Remove the outcome of the trial in `folder`, so that the trial counts as not ended."""
    (folder / OUTCOME).unlink(missing_ok=True)
