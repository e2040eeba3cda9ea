"""Prediction on a Dask cluster: many images at once, or the windows of a large one.

Each image is a task that works as a process by itself would: when its worker is killed, Dask gives it to another,
which continues from the journal beside the output. Where there are fewer images than workers, batches of windows are
the tasks; their sums are made here in the order of the windows, so that the result has the same bits.
"""

from __future__ import annotations

import math
import secrets
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from repmode_cl.errors import RepmodeError
from repmode_cl.inference.cluster_worker import (
    ModelOnWorkers,
    memory_of_worker,
    predict_image_on_worker,
    predict_windows_on_worker,
    stop_on_worker,
)
from repmode_cl.inference.image_task import ImageTask
from repmode_cl.inference.options import PredictedFile, PredictionOptions
from repmode_cl.inference.window_batches import WindowOutputs, WindowsSource
from repmode_cl.store.snapshot import ModelSnapshot
from repmode_cl.utils.dask_cluster import connect, threads_each, worker_slots

__all__ = ["PredictionCluster"]

#: Tasks that wait or are computed for each worker: their outputs are in memory, on the way.
_TASKS_EACH = 2

#: Most bytes of the outputs of a task, unless a single batch has more. A batch of small windows takes milliseconds,
#: less than a task costs Dask: several of them are one task.
_TASK_BYTES = 2 << 20


class PredictionCluster(AbstractContextManager["PredictionCluster"]):
    """A Dask cluster that predicts; a context manager.

    Parameters
    ----------
    address
        Address of its scheduler, or path of a scheduler file.
    threads
        Threads of each prediction; None takes the fewest processors that a worker has for each of its tasks.

    Raises
    ------
    RepmodeError
        If Dask is not installed, no scheduler answers, or it has no worker.
    """

    def __init__(self, address: str, threads: int | None = None) -> None:
        self._client = connect(address)
        try:
            self.workers = _count_workers(self._client, address)
            self.threads = threads_each(self._client) if threads is None else threads
        except BaseException:
            self._client.close()
            raise
        self._group = secrets.token_hex(8)
        self._futures: set[Any] = set()

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """Withdraw what waits, and leave the cluster; after an error, end what is at work, which keeps its journals."""
        try:
            if self._futures:
                self._client.cancel(list(self._futures))
            if kind is not None:
                # One that was killed meanwhile has nothing to end.
                self._client.run(stop_on_worker, self._group, on_error="ignore")
        finally:
            self._client.close()

    def model(self, model: ModelSnapshot, structures: Sequence[str], precision: str) -> ModelOnWorkers:
        """Describe a model for the workers."""
        digests = tuple((name, model.entries[name].digest) for name in structures)
        return ModelOnWorkers(str(Path(model.path).absolute()), digests, self.threads, self._group, precision)

    def _limits(self) -> tuple[int | None, int]:
        """Return the least memory of a worker (None if one has no limit), and most workers on one machine."""
        workers = self._client.scheduler_info(n_workers=-1)["workers"].values()
        limits = [int(worker["memory_limit"] or 0) for worker in workers]
        hosts = [worker["host"] for worker in workers]
        return (min(limits) if all(limits) else None), max((hosts.count(host) for host in hosts), default=1)

    # -- images -------------------------------------------------------------------------------------------------

    def images(
        self,
        model: ModelOnWorkers,
        structure: str | list[str] | tuple[str, ...],
        work: Sequence[tuple[ImageTask, PredictionOptions]],
    ) -> Iterator[tuple[ImageTask, list[PredictedFile] | RepmodeError | OSError]]:
        """Yield each image's task with its files, or the reason of its failure, in the order in which they end.

        Parameters
        ----------
        model
            Of `model`.
        structure
            As of `predict_file`.
        work
            Images, each with its options.
        """
        from distributed import KilledWorker, as_completed

        limit, neighbours = self._limits()
        names = structure if isinstance(structure, str) else tuple(structure)
        tasks: dict[Any, ImageTask] = {}
        for task, options in work:
            future = self._client.submit(
                predict_image_on_worker,
                model,
                names,
                _absolute(task),
                _portable(options),
                limit,
                neighbours,
                key=f"{self._group}-{secrets.token_hex(4)}-{Path(str(task.image)).name}",
                pure=False,
            )
            tasks[future] = task
            self._futures.add(future)
        for future in as_completed(list(tasks), loop=self._client.loop):
            task = tasks.pop(future)
            self._futures.discard(future)
            if future.status == "finished":
                yield task, _as_named(future.result(), task)
                continue
            error = future.exception()
            if isinstance(error, KilledWorker):
                # Dask has already started it again on other workers.
                error = RepmodeError(
                    f"{task.image}: its worker was killed, and so was each that tried it again; memory may have run "
                    "out: give --memory, or the workers more"
                )
            if not isinstance(error, RepmodeError | OSError):
                raise RepmodeError(f"a worker could not predict {task.image}: {error!r}") from error
            yield task, error

    # -- windows of one volume ----------------------------------------------------------------------------------

    def memory(self) -> int:
        """Return the bytes that a prediction may take on each worker."""
        limit, neighbours = self._limits()
        return memory_of_worker(limit, neighbours)

    def windows(
        self,
        model: ModelSnapshot,
        structures: Sequence[str],
        device: torch.device,
        source: WindowsSource,
        batches: Iterator[range],
        *,
        precision: str,
        confidence: bool,
    ) -> Iterator[WindowOutputs]:
        """Yield what the networks make of each batch of windows, in order, a few batches ahead.

        Raises
        ------
        RepmodeError
            If a worker cannot compute a batch.
        """
        on_workers = self.model(model, structures, precision)
        waiting: deque[Any] = deque()
        window_bytes = math.prod(source.window) * 4 * len(structures) * (2 if confidence else 1)
        try:
            for task in _tasks(list(batches), window_bytes, self.workers):
                future = self._client.submit(
                    predict_windows_on_worker,
                    on_workers,
                    tuple(structures),
                    str(device),
                    source,
                    task,
                    confidence,
                    key=f"{self._group}-{secrets.token_hex(4)}-windows-{task[0].start}",
                    pure=False,
                )
                waiting.append(future)
                self._futures.add(future)
                if len(waiting) >= _TASKS_EACH * self.workers:
                    yield from self._outputs(waiting.popleft())
            while waiting:
                yield from self._outputs(waiting.popleft())
        finally:
            if waiting:
                self._client.cancel(list(waiting))
                self._futures.difference_update(waiting)

    def _outputs(self, future: Any) -> list[WindowOutputs]:
        from distributed import KilledWorker

        try:
            outputs: list[WindowOutputs] = future.result()
        except KilledWorker as error:
            raise RepmodeError(
                "the workers that computed a batch of windows were killed; memory may have run out: give --memory, a "
                "smaller --window, or the workers more"
            ) from error
        self._futures.discard(future)
        return outputs


def _tasks(batches: Sequence[range], window_bytes: int, workers: int) -> Iterator[Sequence[range]]:
    """Yield the batches of each task: as many as their outputs' bytes allow, but enough tasks for all workers."""
    if not batches:
        return
    by_bytes = _TASK_BYTES // (window_bytes * max(len(batch) for batch in batches))
    count = max(1, min(by_bytes, len(batches) // (_TASKS_EACH * workers)))
    for first in range(0, len(batches), count):
        yield batches[first : first + count]


def _count_workers(client: Any, address: str) -> int:
    count = len(worker_slots(client))
    if not count:
        raise RepmodeError(f"the scheduler at {address} has no worker yet; start workers first")
    return count


def _absolute(task: ImageTask) -> ImageTask:
    """Return a task whose paths mean the same in every folder."""
    image = task.image if isinstance(task.image, str) else task.image.absolute()
    return replace(task, image=image, output=str(Path(task.output).absolute()))


def _portable(options: PredictionOptions) -> PredictionOptions:
    """Return options without what belongs to this process."""
    return replace(options, networks=None, progress=None, status=None, cluster=None, preview=None)


def _as_named(files: list[PredictedFile], task: ImageTask) -> list[PredictedFile]:
    """Return records whose paths are named as in the task."""
    base: Mapping[Path, Path] = {
        Path(task.output.replace("{structure}", file.structure)).absolute(): Path(
            task.output.replace("{structure}", file.structure)
        )
        for file in files
    }
    return [replace(file, path=base.get(file.path, file.path)) for file in files]
