"""Order in which trials run where several run at the same time.

Bases come first, a trial whose process was killed is started again, and one that fails stops no other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from repmode_cl.benchmark.trials import BaseTrial
from repmode_cl.results.trial_record import LOG, Trial, TrialOutcome

__all__ = ["run_trials", "ScheduledTrial", "Executor", "TrialEnded", "RETRIES"]

#: Times that a trial is started again whose process was killed.
RETRIES = 3


@dataclass(frozen=True)
class ScheduledTrial:
    """A trial, or the training of a base, and the base that must be trained first."""

    trial: Trial | BaseTrial
    needs: BaseTrial | None = None


class TrialEnded(NamedTuple):
    """A trial whose process has ended, as the executor sees it."""

    trial: Trial | BaseTrial
    message: str
    """Reason, for people, where the process recorded no outcome: ``its process was killed (signal 9)``."""
    retry: bool = True
    """True if it may be tried again."""


class Executor(Protocol):
    """Runs trials: in processes here, or on a cluster."""

    @property
    def slots(self) -> int:
        """Most trials that it runs at the same time."""

    def start(self, trial: Trial | BaseTrial) -> None:
        """Start a trial; return at once."""

    def next_ended(self) -> TrialEnded:
        """Wait until a started trial ends."""


def run_trials(
    jobs: Sequence[ScheduledTrial],
    executor: Executor,
    *,
    outcome: Callable[[Trial | BaseTrial], TrialOutcome | None],
    fail: Callable[[Trial | BaseTrial, str], None],
    ended: Callable[[Trial | BaseTrial], Any] = lambda trial: None,
    retries: int = RETRIES,
) -> None:
    """Run all jobs, in their order, except that a job waits for the base that it needs.

    Parameters
    ----------
    jobs
        Trials and bases to run.
    executor
        Runs them.
    outcome
        Reads how a trial ended; None where it recorded nothing, because its process was killed or broke off.
    fail
        Records that a trial failed, and why.
    ended
        Called after each that finished or failed.
    retries
        Times that a trial is started again that recorded nothing.
    """
    waiting = list(jobs)
    running: set[Trial | BaseTrial] = set()
    job_of = {job.trial: job for job in jobs}
    tries: Counter[Trial | BaseTrial] = Counter()
    finished: dict[Trial | BaseTrial, bool] = {}  # of those that ended: whether they finished or failed

    def end(trial: Trial | BaseTrial, success: bool) -> None:
        finished[trial] = success
        ended(trial)

    while waiting or running:
        for job in list(waiting):
            base_ready = job.needs is None or finished.get(job.needs)
            if job.needs is not None and base_ready is False:
                waiting.remove(job)
                log = job.needs.folder / LOG
                fail(
                    job.trial,
                    f"the base that it starts from failed ({job.needs}): {log} in the run's folder says why",
                )
                end(job.trial, success=False)
            elif base_ready and len(running) < executor.slots:
                waiting.remove(job)
                running.add(job.trial)
                executor.start(job.trial)
        if not running:
            continue
        trial, message, retry = executor.next_ended()
        running.discard(trial)
        result = outcome(trial)
        if result is not None:
            end(trial, result.finished)
            continue
        tries[trial] += 1
        if retry and tries[trial] <= retries:
            waiting.insert(0, job_of[trial])
            continue
        fail(trial, f"tried {tries[trial]} times: {message}" if tries[trial] > 1 else message)
        end(trial, success=False)
