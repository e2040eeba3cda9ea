"""What a benchmark consists of: one strategy learning one stream with one seed, and the bases that they share.

Each leaves its figures in its own folder, whole, and says last that it is finished: a benchmark's tables are made of
what is finished, whichever process, machine or day it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from repmode_cl.benchmark.shared_base import base_folder
from repmode_cl.config import Config
from repmode_cl.errors import RepmodeError
from repmode_cl.results.results_table import Result, ResultsTable
from repmode_cl.results.trial_record import OUTCOME, Trial, TrialOutcome, read_outcome
from repmode_cl.scenarios import StreamVariant
from repmode_cl.utils.atomic_files import sha256_file

__all__ = ["BaseTrial", "base_stream", "collect_results", "trials_of"]


class BaseTrial(NamedTuple):
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


def trials_of(config: Config, streams: Iterable[str]) -> list[Trial]:
    """Return all units in the order in which they run where they run one after another, and stand in tables."""
    streams = list(streams)
    return [
        Trial(options.title, stream, seed)
        for seed in config.seeds
        for stream in streams
        for options in config.strategies
    ]


def base_stream(streams: Mapping[str, StreamVariant], name: str) -> str:
    """Return the first stream that begins with the same structures: strategies share bases over streams too."""
    first = streams[name].experiences[0]
    return next(other for other, variant in streams.items() if variant.experiences[0] == first)


def collect_results(folder: Path, units: Iterable[Trial]) -> tuple[ResultsTable, dict[Trial, TrialOutcome]]:
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
