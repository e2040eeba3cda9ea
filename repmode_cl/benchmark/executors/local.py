"""Executor that runs each trial of a benchmark in its own process on this machine."""

from __future__ import annotations

import secrets
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self

from repmode_cl.benchmark.executors.child_process import kill_group, run_in_child, stop_group
from repmode_cl.benchmark.executors.scheduling import TrialEnded
from repmode_cl.benchmark.trials import BaseTrial
from repmode_cl.results.trial_record import LOG, Trial

__all__ = ["LocalProcesses", "order_for", "exit_text", "MODULE"]

#: Module of the child processes, which read an order.
MODULE = "repmode_cl.benchmark.executors.worker_main"


def order_for(folder: Path, trial: Trial | BaseTrial) -> dict[str, Any]:
    """Return the order to run a trial of the run in `folder`."""
    kind = "base" if isinstance(trial, BaseTrial) else "trial"
    return {"run": str(folder.absolute()), "kind": kind, "item": list(trial)}


def exit_text(status: int) -> str:
    """Return the message on a process that ended without an outcome of its trial."""
    if status < 0:
        return f"its process was killed (signal {-status}); memory may have run out"
    return f"its process ended by itself, with exit status {status}, and recorded no outcome of its trial"


class LocalProcesses:
    """Processes on this machine.

    Parameters
    ----------
    folder
        The run's folder.
    jobs
        Most processes that run at the same time.
    threads
        Threads of each.
    module
        Module of the processes, which read an order.

    Notes
    -----
    Each trial has its own process, so that its memory can be measured, and nothing that happens to it affects another
    trial. Starting a process takes some seconds, most of them for Avalanche's import.
    """

    def __init__(self, folder: Path, jobs: int, threads: int, module: str = MODULE) -> None:
        self.folder, self.slots, self.threads, self.module = folder, jobs, threads, module
        self._group = secrets.token_hex(8)
        self._pool = ThreadPoolExecutor(jobs)
        self._ended: SimpleQueue[TrialEnded | BaseException] = SimpleQueue()

    def __enter__(self) -> Self:
        """Return this executor."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the processes that are still at work: after an interruption they save their steps first."""
        if isinstance(error, KeyboardInterrupt):
            stop_group(self._group)
        else:
            kill_group(self._group)
        try:
            self._pool.shutdown()
        finally:
            kill_group(self._group)  # interrupted again

    def start(self, trial: Trial | BaseTrial) -> None:
        """Start a trial; return at once."""
        self._pool.submit(self._run, trial)

    def next_ended(self) -> TrialEnded:
        """Wait until a started trial ends."""
        ended = self._ended.get()
        if isinstance(ended, BaseException):
            raise ended
        return ended

    def _run(self, trial: Trial | BaseTrial) -> None:
        folder = self.folder / trial.folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            status = run_in_child(
                self.module,
                order_for(self.folder, trial),
                folder / LOG,
                group=self._group,
                threads=self.threads,
                folder=str(Path.cwd()),
            )
            self._ended.put(TrialEnded(trial, exit_text(status)))
        except BaseException as error:
            self._ended.put(error)
