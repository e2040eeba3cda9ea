"""Executor that runs the trials of a benchmark on a Dask cluster whose workers see the same folders as this machine.

A task starts a new process for its trial, as on one machine: nothing of a worker (threads, other tasks, loaded
libraries) changes a figure. When a worker dies its process ends too, and Dask gives the task to another worker, which
resumes from the last checkpoint.
"""

from __future__ import annotations

import secrets
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from repmode_cl.benchmark.executors.child_process import (
    kill_group,
    run_in_child,
    running_in_group,
    stop_group,
)
from repmode_cl.benchmark.executors.local import MODULE, exit_text, order_for
from repmode_cl.benchmark.executors.scheduling import TrialEnded
from repmode_cl.benchmark.trials import BaseTrial
from repmode_cl.errors import RepmodeError
from repmode_cl.results.trial_record import LOG, Trial
from repmode_cl.utils.dask_cluster import connect, threads_each

__all__ = ["DaskCluster"]

#: More than any cluster has; Dask queues the tasks that wait.
_SLOTS = 100_000
#: Seconds between looks at processes that are asked to stop.
_POLL = 0.2


class DaskCluster:
    """An existing cluster.

    Parameters
    ----------
    address
        Address of its scheduler, such as ``tcp://host:8786``, or the path of a scheduler file.
    folder
        The run's folder; at the same path on every worker.
    module
        Module of the processes, which read an order.

    Raises
    ------
    RepmodeError
        If Dask is not installed, or no scheduler answers.
    """

    slots = _SLOTS

    def __init__(self, address: str, folder: Path, module: str = MODULE) -> None:
        self._client = connect(address)
        from distributed import as_completed  # an optional library: `connect` says so where it is missing

        self.folder, self.module, self.threads = folder, module, 1
        self._group = secrets.token_hex(8)
        self._futures: dict[Any, Trial | BaseTrial] = {}
        self._ended = as_completed(loop=self._client.loop)

    def threads_each(self) -> int:
        """Return how many threads a trial may use: the fewest processors that a worker has for each of its tasks.

        Raises
        ------
        RepmodeError
            If the cluster has no worker yet.
        """
        return threads_each(self._client)

    def __enter__(self) -> Self:
        """Return this executor."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Cancel the tasks that wait, end the processes that are at work, and leave the cluster.

        After an interruption the processes save their steps first.
        """
        try:
            if self._futures:
                self._client.cancel(list(self._futures))
                if isinstance(error, KeyboardInterrupt):
                    self._client.run(stop_group, self._group)
                    while any(self._client.run(running_in_group, self._group).values()):
                        time.sleep(_POLL)
                self._client.run(kill_group, self._group)
        finally:
            self._client.close()

    def start(self, trial: Trial | BaseTrial) -> None:
        """Start a trial; return at once."""
        folder = (self.folder / trial.folder).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        future = self._client.submit(
            run_in_child,
            self.module,
            order_for(self.folder, trial),
            str(folder / LOG),
            group=self._group,
            threads=self.threads,
            folder=str(Path.cwd()),
            key=f"{self._group}-{secrets.token_hex(4)}-{trial}",
            pure=False,
        )
        self._futures[future] = trial
        self._ended.add(future)

    def next_ended(self) -> TrialEnded:
        """Wait until a started trial ends."""
        from distributed import KilledWorker  # an optional library: `__init__` says so where it is missing

        future = next(self._ended)
        trial = self._futures.pop(future)
        if future.status == "finished":
            return TrialEnded(trial, exit_text(future.result()))
        error = future.exception()
        if isinstance(error, KilledWorker):
            # Dask has already started it again on other workers.
            return TrialEnded(
                trial, "its process was killed, and so was each worker that ran it", retry=False
            )
        raise RepmodeError(f"a worker could not start {trial}: {error!r}") from error
