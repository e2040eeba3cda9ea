"""repmode_cl.results.trial_record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from repmode_cl.results.run_info import unit_folder
from repmode_cl.utils.atomic_files import read_json, write_json

__all__ = ["OUTCOME", "Trial", "TrialOutcome", "forget_outcome", "read_outcome", "write_outcome"]


#: Written last into a unit's folder: how it ended.
OUTCOME = "unit.json"


class Trial(NamedTuple):
    """One strategy with one stream and one seed."""

    title: str
    stream: str
    seed: int

    @property
    def folder(self) -> Path:
        """Its folder below that of the whole run."""
        return unit_folder(*self)

    def __str__(self) -> str:
        return " ".join(part for part in (self.title, self.stream, f"seed {self.seed}") if part)


@dataclass(frozen=True)
class TrialOutcome:
    """How a unit ended.

    Attributes
    ----------
    finished
        Whether it ran to its end.
    bit_identical
        Whether what it stored was found unchanged, bit for bit; None where that was not checked.
    message
        Why it failed; empty if it did not.
    seconds
        From its start, or its last resumption, to its end.
    environment
        What its figures depend on besides the configuration, where it ran.
    results
        SHA-256 of its results.csv, which nothing else would tell from one that was cut off; None of what has none.
    """

    finished: bool
    bit_identical: bool | None = None
    message: str = ""
    seconds: float = 0.0
    environment: Mapping[str, Any] | None = None
    results: str | None = None


def write_outcome(folder: Path, outcome: TrialOutcome) -> None:
    """Write down how the unit in `folder` ended; after all else."""
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
    """Return how the unit in `folder` ended, or None if it has not."""
    again = "remove it, and --resume does the unit again from its last checkpoint"
    try:
        return TrialOutcome(**read_json(folder / OUTCOME, again))
    except FileNotFoundError:
        return None


def forget_outcome(folder: Path) -> None:
    """Make as if the unit in `folder` had not ended."""
    (folder / OUTCOME).unlink(missing_ok=True)
