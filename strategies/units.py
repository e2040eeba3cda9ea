"""What a benchmark consists of: one strategy learning one stream with one seed, and the bases that they share.

Each leaves its figures in its own folder, whole, and says last that it is finished: a benchmark's tables are made of
what is finished, whichever process, machine or day it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from repmode_cl.scenarios import StreamVariant
from repmode_cl.strategies.shared_base import base_folder

from repmode_cl.config import Config
from repmode_cl.errors import RepmodeError
from repmode_cl.evaluation.results import Result, ResultsTable
from repmode_cl.files import read_json, sha256_file, write_json
from repmode_cl.report.run_info import unit_folder

__all__ = [
    "Base",
    "Outcome",
    "Unit",
    "base_stream",
    "collect",
    "forget",
    "read_outcome",
    "units_of",
    "write_outcome",
]

#: Written last into a unit's folder: how it ended.
OUTCOME = "unit.json"


class Unit(NamedTuple):
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


class Base(NamedTuple):
    """A base that several strategies begin with, trained before them."""

    key: str
    """`StructureStrategy.base_key`."""
    stream: str
    seed: int
    title: str
    """A strategy that can train it."""

    @property
    def folder(self) -> Path:
        """Its folder below that of the whole run."""
        return base_folder(self.key, self.stream, self.seed)

    def __str__(self) -> str:
        return " ".join(part for part in ("base", self.key, self.stream, f"seed {self.seed}") if part)


@dataclass(frozen=True)
class Outcome:
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


def units_of(config: Config, streams: Iterable[str]) -> list[Unit]:
    """Return all units in the order in which they run where they run one after another, and stand in tables."""
    streams = list(streams)
    return [
        Unit(options.title, stream, seed)
        for seed in config.seeds
        for stream in streams
        for options in config.strategies
    ]


def base_stream(streams: Mapping[str, StreamVariant], name: str) -> str:
    """Return the first stream that begins with the same structures: strategies share bases over streams too."""
    first = streams[name].experiences[0]
    return next(other for other, variant in streams.items() if variant.experiences[0] == first)


def write_outcome(folder: Path, outcome: Outcome) -> None:
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


def read_outcome(folder: Path) -> Outcome | None:
    """Return how the unit in `folder` ended, or None if it has not."""
    again = "remove it, and --resume does the unit again from its last checkpoint"
    try:
        return Outcome(**read_json(folder / OUTCOME, again))
    except FileNotFoundError:
        return None


def forget(folder: Path) -> None:
    """Make as if the unit in `folder` had not ended."""
    (folder / OUTCOME).unlink(missing_ok=True)


def collect(folder: Path, units: Iterable[Unit]) -> tuple[ResultsTable, dict[Unit, Outcome]]:
    """Read what the units of a run have come to.

    Parameters
    ----------
    folder
        The run's.
    units
        In the order in which their figures are to stand.

    Returns
    -------
    ResultsTable
        Figures of the finished ones.
    dict
        How each ended that did.
    """
    results, outcomes = ResultsTable(), {}
    for unit in units:
        outcome = read_outcome(folder / unit.folder)
        if outcome is None:
            continue
        outcomes[unit] = outcome
        if outcome.finished:
            path = folder / unit.folder / "results.csv"
            if outcome.results is not None and sha256_file(path) != outcome.results:
                raise RepmodeError(
                    f"{path}: is not what was measured, but cut off or changed: remove {path.with_name(OUTCOME)}, and "
                    "--resume does the unit again from its last checkpoint"
                )
            for row in ResultsTable.read(path):
                results.append(*Result(*row))
    return results, outcomes
