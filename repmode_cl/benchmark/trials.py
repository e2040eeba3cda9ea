"""Trials of a benchmark (one strategy, one stream, one seed), the bases that they share, and their results together.

A trial writes its figures to its own folder, and last that it is finished. A benchmark's tables are made of the
finished trials, whichever process, machine or day they ran in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from repmode_cl.benchmark.shared_base import base_folder
from repmode_cl.config import Config
from repmode_cl.errors import RepmodeError
from repmode_cl.results.results_table import Result, ResultsTable
from repmode_cl.results.trial_record import OUTCOME, Trial, TrialOutcome, read_outcome
from repmode_cl.scenarios import StreamVariant
from repmode_cl.utils.atomic_files import sha256_file
from repmode_cl.utils.process_pool import workers_here

__all__ = ["trials_of", "threads_of_trial", "BaseTrial", "base_stream", "collect_results"]


class BaseTrial(NamedTuple):
    """A base that several strategies start from, trained before them."""

    key: str
    """`StructureStrategy.base_key`."""
    stream: str
    seed: int
    title: str
    """A strategy that can train it."""

    @property
    def folder(self) -> Path:
        """Its folder, relative to the run's folder."""
        return base_folder(self.key, self.stream, self.seed)

    def __str__(self) -> str:
        return " ".join(part for part in ("base", self.key, self.stream, f"seed {self.seed}") if part)


def trials_of(config: Config, streams: Iterable[str]) -> list[Trial]:
    """Return all trials in the order in which they run one after another, which is that of the tables."""
    streams = list(streams)
    return [
        Trial(options.title, stream, seed)
        for seed in config.seeds
        for stream in streams
        for options in config.strategies
    ]


def threads_of_trial(jobs: int) -> int:
    """Return how many threads each trial has, unless it is said: torch's, divided among `jobs` that run at once."""
    return torch.get_num_threads() if jobs == 1 else max(1, workers_here() // jobs)


def base_stream(streams: Mapping[str, StreamVariant], name: str) -> str:
    """Return the first stream that starts with the same structures: strategies share bases over streams too."""
    first = streams[name].experiences[0]
    return next(other for other, variant in streams.items() if variant.experiences[0] == first)


def collect_results(folder: Path, trials: Iterable[Trial]) -> tuple[ResultsTable, dict[Trial, TrialOutcome]]:
    """Read the outcomes of a run's trials, and the figures of those that are finished.

    Parameters
    ----------
    folder
        The run's folder.
    trials
        Trials, in the order of their figures in the table.

    Returns
    -------
    ResultsTable
        Figures of the finished trials.
    dict
        Outcome of each trial that has ended.

    Raises
    ------
    RepmodeError
        If the figures of a finished trial are not those that it wrote.
    """
    results, outcomes = ResultsTable(), {}
    for trial in trials:
        outcome = read_outcome(folder / trial.folder)
        if outcome is None:
            continue
        outcomes[trial] = outcome
        if outcome.finished:
            path = folder / trial.folder / "results.csv"
            if outcome.results is not None and sha256_file(path) != outcome.results:
                raise RepmodeError(
                    f"{path}: is not what was measured, but cut off or changed: remove {path.with_name(OUTCOME)}, and "
                    "--resume runs the trial again from its last checkpoint"
                )
            for row in ResultsTable.read(path):
                results.append(*Result(*row))
    return results, outcomes
