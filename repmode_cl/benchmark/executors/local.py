"""Units of a benchmark in processes on this machine, each in one of its own."""

from __future__ import annotations

import secrets
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self

from repmode_cl.benchmark.executors.child_process import end_all, run_in_child
from repmode_cl.benchmark.executors.scheduling import TrialEnded
from repmode_cl.benchmark.trials import BaseTrial
from repmode_cl.results.trial_record import Trial

__all__ = ["MODULE", "LocalProcesses", "how_ended", "order_for"]

#: What takes the orders.
MODULE = "repmode_cl.benchmark.executors.worker_main"


def order_for(folder: Path, item: Trial | BaseTrial) -> dict[str, Any]:
    """Return the order to do `item` of the run in `folder`."""
    return {"run": str(folder.absolute()), "kind": type(item).__name__.lower(), "item": list(item)}


def how_ended(status: int) -> str:
    """Say how a process ended that left no word."""
    if status < 0:
        return f"its process was killed (signal {-status}); memory may have run out"
    return f"its process ended by itself, with exit status {status}, and left no word of its unit"


class LocalProcesses:
    """Processes here.

    Parameters
    ----------
    folder
        The run's.
    jobs
        How many at once.
    threads
        Of each.
    module
        What takes the orders.

    Notes
    -----
    A unit is given a process, and not a process many units: its memory can be measured then, and whatever becomes of
    it concerns no other. Starting one takes some seconds, most of them Avalanche's import.
    """

    def __init__(self, folder: Path, jobs: int, threads: int, module: str = MODULE) -> None:
        self.folder, self.slots, self.threads, self.module = folder, jobs, threads, module
        self._group = secrets.token_hex(8)
        self._pool = ThreadPoolExecutor(jobs)
        self._ended: SimpleQueue[TrialEnded | BaseException] = SimpleQueue()

    def __enter__(self) -> Self:
        """Return it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End what is still at work: it goes on from its last checkpoint."""
        end_all(self._group)
        self._pool.shutdown()

    def start(self, item: Trial | BaseTrial) -> None:
        """Begin a unit; return at once."""
        self._pool.submit(self._run, item)

    def next_ended(self) -> TrialEnded:
        """Wait until one of those begun ends."""
        ended = self._ended.get()
        if isinstance(ended, BaseException):
            raise ended
        return ended

    def _run(self, item: Trial | BaseTrial) -> None:
        folder = self.folder / item.folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            status = run_in_child(
                self.module,
                order_for(self.folder, item),
                folder / "log.txt",
                group=self._group,
                threads=self.threads,
                folder=str(Path.cwd()),
            )
            self._ended.put(TrialEnded(item, how_ended(status)))
        except BaseException as error:
            self._ended.put(error)
