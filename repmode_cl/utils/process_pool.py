"""Worker processes: spawned, without the caller's script, and ended with their parent.

A spawned process imports the script that started its parent. Where that script imports Avalanche, each worker would
pay seconds and a gigabyte for it; where it has no ``if __name__ == "__main__":``, each would run it all again.
Workers run only functions of this package here, so they do not import the script.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from types import ModuleType
from typing import Protocol, TypeVar

from repmode_cl.errors import RepmodeError
from repmode_cl.utils import stop_signals

__all__ = ["run_jobs", "JobCluster", "starting_workers", "initialise_worker", "workers_here"]

J = TypeVar("J")
R = TypeVar("R")

#: Windows cannot wait for more processes at once.
_MAX_PROCESSES = 61


class JobCluster(Protocol):
    """Processes elsewhere that run jobs, and see the same folders."""

    def run(self, function: Callable[[J], R], jobs: Sequence[J], *, name: Callable[[J], str]) -> Iterator[R]:
        """Yield ``function(job)`` for each of `jobs`, in the order in which they end, as `run_jobs` does."""


def workers_here() -> int:
    """Return the number of processors that this process may use, and so of processes that may work at once."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_jobs(
    function: Callable[[J], R], jobs: Sequence[J], workers: int, *, name: Callable[[J], str]
) -> Iterator[R]:
    """Yield ``function(job)`` for each of `jobs`, in the order in which they end.

    Parameters
    ----------
    function
        A function of a module, so that a process can import it.
    jobs
        Its arguments, which are sent to the processes.
    workers
        Number of processes; 1 works in this process, in the order of `jobs`.
    name
        Returns the name of a job, for the message if its process dies.

    Raises
    ------
    RepmodeError
        If a process dies, as when memory runs out.
    Exception
        Any error of `function`. Then, and on Ctrl-C, no further job starts, and the running ones are waited for.
    """
    if workers <= 1 or len(jobs) <= 1:
        yield from map(function, jobs)
        return
    count = min(workers, len(jobs), _MAX_PROCESSES)
    # spawn on every platform: a fork would copy the threads' locks of whoever calls.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context, initializer=initialise_worker) as pool:
        with starting_workers():
            pending = {pool.submit(function, job): job for job in jobs}
        try:
            for done in as_completed(list(pending)):
                yield done.result()
                del pending[done]
        except BrokenProcessPool as error:
            # Jobs start in this order.
            started = ", ".join(name(job) for job in list(pending.values())[:count])
            raise RepmodeError(
                f"one of {count} processes was ended by the system, most likely because memory ran out, while they "
                f"worked on {started}; run the same command with fewer, such as --workers {max(1, count // 2)}: "
                "finished work is kept"
            ) from error
        finally:
            for future in pending:
                future.cancel()


@contextmanager
def starting_workers(*, hold_stop_signals: bool = False) -> Iterator[None]:
    """Start spawned processes within this context that do not import ``__main__`` and do not react to Ctrl-C.

    Ctrl-C reaches every process of a terminal. The parent ends its workers then; a worker that reacted would print a
    traceback into the parent's message. Where signals cannot be blocked (Windows), `initialise_worker` ignores them
    once the worker runs.

    Parameters
    ----------
    hold_stop_signals
        Whether they do not react to SIGTERM either, which SLURM sends to every process, where this process handles it
        (`stop_signals`): it needs them until its checkpoint is written, and they end with it.

    Notes
    -----
    Objects whose class is defined in the script cannot be sent to such a process at its start.
    """
    main = sys.modules["__main__"]
    can_block = hasattr(signal, "pthread_sigmask")
    if can_block:
        from multiprocessing import resource_tracker

        # Started with the first worker otherwise, and starting it unblocks the signal.
        resource_tracker.ensure_running()
        held = {signal.SIGTERM} if hold_stop_signals and stop_signals.handled() else set()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT} | held)
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        if can_block:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def initialise_worker(*_: object) -> None:
    """Initialise a worker: ignore Ctrl-C, and end when the parent ends, even if it was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # as the commands do
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)
