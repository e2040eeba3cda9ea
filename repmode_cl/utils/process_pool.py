"""Starting worker processes: spawned, knowing nothing of the caller's script, and ending with their parent.

A spawned process imports the script that started its parent. Where that script imports Avalanche, each worker would
pay seconds and a gigabyte for it; where it has no ``if __name__ == "__main__":``, each would run it all again.
The functions that workers run here are the package's own, so the script is kept from them.
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
from typing import TypeVar

from repmode_cl.errors import RepmodeError

__all__ = ["run_jobs", "starting_workers", "within_worker", "workers_here"]

J = TypeVar("J")
R = TypeVar("R")

#: Windows waits for no more processes at once.
_MOST = 61


def workers_here() -> int:
    """Return how many processes may work at once: the processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_jobs(
    function: Callable[[J], R], jobs: Sequence[J], workers: int, *, name: Callable[[J], str]
) -> Iterator[R]:
    """Yield ``function(job)`` for each of `jobs`, as they end.

    Parameters
    ----------
    function
        Of a module, so that a process can import it.
    jobs
        What it is called with; sent to the processes.
    workers
        Processes at work at once; 1 works in this one, in the order of `jobs`.
    name
        Says what a job is at, for the message if it dies.

    Raises
    ------
    RepmodeError
        If a process dies, as when memory runs out.
    Exception
        Whatever `function` raises. Then, and on Ctrl-C, no further job begins, and those under way are waited for.
    """
    if workers <= 1 or len(jobs) <= 1:
        yield from map(function, jobs)
        return
    count = min(workers, len(jobs), _MOST)
    # spawn on every platform: a fork would copy the threads' locks of whoever calls.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context, initializer=within_worker) as pool:
        with starting_workers():
            pending = {pool.submit(function, job): job for job in jobs}
        try:
            for done in as_completed(list(pending)):
                yield done.result()
                del pending[done]
        except BrokenProcessPool as error:
            # They are begun in this order.
            begun = ", ".join(name(job) for job in list(pending.values())[:count])
            raise RepmodeError(
                f"one of {count} processes was ended by the system, most likely because memory ran out, while they "
                f"were at {begun}; run the same command with fewer, such as --workers {max(1, count // 2)}: what is "
                "done is kept"
            ) from error
        finally:
            for future in pending:
                future.cancel()


@contextmanager
def starting_workers() -> Iterator[None]:
    """Within this, start spawned processes that do not import ``__main__`` and are deaf to Ctrl-C.

    Ctrl-C reaches every process of a terminal. It is the parent that ends its workers then; a worker that heard it
    would print a traceback into the parent's message. Where signals cannot be blocked (Windows), `within_worker`
    has them ignored once the worker runs.

    Notes
    -----
    Objects whose class the script itself defines cannot be sent to such a process while it is started.
    """
    main = sys.modules["__main__"]
    blocks = hasattr(signal, "pthread_sigmask")
    if blocks:
        from multiprocessing import resource_tracker

        # Started with the first worker otherwise, and starting it unblocks the signal.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        if blocks:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def within_worker(*_: object) -> None:
    """Run first in every worker: ignore Ctrl-C, and end when the parent is gone, even if it was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # as of the command itself
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)
