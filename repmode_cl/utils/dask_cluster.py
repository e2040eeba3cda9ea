"""Connection to a Dask cluster whose workers see the same folders as this machine."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

from repmode_cl.errors import RepmodeError
from repmode_cl.utils.extras import install_command
from repmode_cl.utils.process_pool import workers_here

__all__ = ["connect", "threads_each", "worker_slots", "DaskJobs"]

J = TypeVar("J")
R = TypeVar("R")


def connect(address: str) -> Any:
    """Return a client of a cluster; close it at the end.

    Parameters
    ----------
    address
        Address of its scheduler, such as ``tcp://host:8786``, or the path of a scheduler file.

    Raises
    ------
    RepmodeError
        If Dask is not installed, or no scheduler answers.
    """
    try:
        from distributed import Client
    except ImportError:
        raise RepmodeError(
            f"--scheduler needs Dask, which is not installed: {install_command('cluster')}, here and where "
            "the workers run"
        ) from None
    try:
        if Path(address).is_file():
            return Client(scheduler_file=address, set_as_default=False)
        return Client(address, set_as_default=False)
    except (OSError, ValueError) as error:
        raise RepmodeError(f"no Dask scheduler answers at {address}: {error}") from error


def worker_slots(client: Any) -> dict[str, int]:
    """Return the number of tasks that each worker runs at the same time, by its address."""
    workers = client.scheduler_info(n_workers=-1)["workers"]
    return {name: int(worker["nthreads"]) for name, worker in workers.items()}


def threads_each(client: Any) -> int:
    """Return how many threads a task may use: the fewest processors that a worker has for each of its tasks.

    Raises
    ------
    RepmodeError
        If the cluster has no worker yet.
    """
    tasks = worker_slots(client)
    if not tasks:
        raise RepmodeError(
            "the scheduler has no worker yet, so the number of threads is not known: give --threads, or start "
            "workers first"
        )
    cores = client.run(workers_here)
    return int(max(1, min(cores[name] // tasks[name] for name in cores)))


class DaskJobs(AbstractContextManager["DaskJobs"]):
    """A cluster that runs jobs as `repmode_cl.utils.process_pool.run_jobs` does; a context manager.

    Parameters
    ----------
    address
        As of `connect`.
    """

    def __init__(self, address: str) -> None:
        self._client = connect(address)

    def __exit__(self, *error: object) -> None:
        self._client.close()

    def run(self, function: Callable[[J], R], jobs: Sequence[J], *, name: Callable[[J], str]) -> Iterator[R]:
        """Yield ``function(job)`` for each of `jobs`, in the order in which they end.

        Raises
        ------
        RepmodeError
            If each worker that ran a job was killed.
        Exception
            Any error of `function`. Then no further job starts.
        """
        from distributed import KilledWorker, as_completed

        group = secrets.token_hex(8)
        pending = {
            self._client.submit(function, job, key=f"{group}-{number}", pure=False): job
            for number, job in enumerate(jobs)
        }
        try:
            for future in as_completed(list(pending), loop=self._client.loop):
                try:
                    result: R = future.result()
                except KilledWorker as error:
                    raise RepmodeError(
                        f"the workers that worked on {name(pending[future])} were killed; memory may have run out: "
                        "give them more, and the same command again, which keeps what is finished"
                    ) from error
                del pending[future]
                yield result
        finally:
            if pending:
                self._client.cancel(list(pending))
