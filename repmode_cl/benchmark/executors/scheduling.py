"""Which unit comes when, where several are at work: bases first, a killed one again, a failed one alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from repmode_cl.benchmark.trials import BaseTrial
from repmode_cl.results.trial_record import Trial, TrialOutcome

__all__ = ["TrialEnded", "Executor", "ScheduledTrial", "RETRIES", "run_jobs"]

#: Times that a unit is begun again whose process was killed.
RETRIES = 3


@dataclass(frozen=True)
class ScheduledTrial:
    """A unit, or a base, and the base that must be there first."""

    item: Trial | BaseTrial
    needs: BaseTrial | None = None


class TrialEnded(NamedTuple):
    """What an executor knows of a process that ended."""

    item: Trial | BaseTrial
    how: str
    """For people, where it left no word: ``its process was killed (signal 9)``."""
    again: bool = True
    """Whether it may be tried again."""


class Executor(Protocol):
    """Where units are at work: processes here, or a cluster."""

    @property
    def slots(self) -> int:
        """Most units that it takes at once."""

    def start(self, item: Trial | BaseTrial) -> None:
        """Begin a unit; return at once."""

    def next_ended(self) -> TrialEnded:
        """Wait until one of those begun ends."""


def run_jobs(
    jobs: Sequence[ScheduledTrial],
    executor: Executor,
    *,
    outcome: Callable[[Trial | BaseTrial], TrialOutcome | None],
    fail: Callable[[Trial | BaseTrial, str], None],
    ended: Callable[[Trial | BaseTrial], Any] = lambda item: None,
    retries: int = RETRIES,
) -> None:
    """Do all jobs, in their order as far as what they need is there.

    Parameters
    ----------
    jobs
        What is to be done.
    executor
        Where.
    outcome
        Reads how an item ended; None where it said nothing, because its process was killed or broke off.
    fail
        Writes down that an item will not be done, and why.
    ended
        Called after each that was done or failed.
    retries
        Times that one is begun again that said nothing.
    """
    waiting = list(jobs)
    running: set[Trial | BaseTrial] = set()
    by_item = {job.item: job for job in jobs}
    tries: Counter[Trial | BaseTrial] = Counter()
    states: dict[Trial | BaseTrial, bool] = {}  # of what came to an end: whether it is done

    def end(item: Trial | BaseTrial, done: bool) -> None:
        states[item] = done
        ended(item)

    while waiting or running:
        for job in list(waiting):
            needed = True if job.needs is None else states.get(job.needs)
            if needed is False:
                waiting.remove(job)
                fail(job.item, f"the base that it begins with failed ({job.needs})")
                end(job.item, done=False)
            elif needed and len(running) < executor.slots:
                waiting.remove(job)
                running.add(job.item)
                executor.start(job.item)
        if not running:
            continue
        item, how, again = executor.next_ended()
        running.discard(item)
        found = outcome(item)
        if found is not None:
            end(item, found.finished)
            continue
        tries[item] += 1
        if again and tries[item] <= retries:
            waiting.insert(0, by_item[item])
            continue
        fail(item, f"tried {tries[item]} times: {how}" if tries[item] > 1 else how)
        end(item, done=False)
