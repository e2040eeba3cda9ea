"""Predictions of the server: one after the other on the device, in the order in which they came.

They run in one thread, so that the page, uploads and pictures go on meanwhile. A prediction is cancelled between two
batches of windows.
"""

from __future__ import annotations

import dataclasses
import secrets
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from repmode_cl.errors import RepmodeError, counted
from repmode_cl.inference.options import PredictionOptions
from repmode_cl.inference.predict_file import FilePrediction
from repmode_cl.inference.trust_channels import extra_channels
from repmode_cl.inference.window_batches import Network
from repmode_cl.serve.images import ImageStore, StoredImage, without_folder
from repmode_cl.serve.settings import RequestError
from repmode_cl.store.snapshot import ModelSnapshot

__all__ = ["Job", "JobQueue", "JobState"]

# Predictions of one image that are kept after their end.
_MOST_ENDED = 20


class JobState(StrEnum):
    """State of a prediction."""

    waiting = "waiting"
    running = "running"
    finished = "finished"
    failed = "failed"
    cancelled = "cancelled"


class _Cancelled(Exception):  # noqa: N818 - nothing went wrong
    pass


@dataclass(eq=False)
class Job:
    """One prediction of one image.

    Attributes
    ----------
    image
        What is predicted.
    model
        By which model.
    structures
        Names of its structures.
    options
        Channel, scene, time point, voxel size, further channels.
    notes
        Remarks for the visitor.
    likeness
        For each predicted structure, how unlike its training images the image is, in words.
    result_bytes
        Bytes that the result and what is computed on the way take, about.
    identifier
        Not to be guessed.
    state, stage
        How far it is, in one word and in a few.
    done, total
        Windows.
    error
        Why it failed.
    seconds
        Wall time of a finished prediction.
    result
        The finished file.
    """

    image: StoredImage
    model: ModelSnapshot
    structures: tuple[str, ...]
    options: PredictionOptions
    notes: tuple[str, ...] = ()
    likeness: dict[str, str] = field(default_factory=dict)
    result_bytes: int = 0
    identifier: str = field(default_factory=lambda: secrets.token_urlsafe(18))
    state: JobState = JobState.waiting
    stage: str = ""
    done: int = 0
    total: int = 0
    error: str | None = None
    seconds: float = 0.0
    result: Path | None = None

    @property
    def folder(self) -> Path:
        """Folder of its files, in that of its image."""
        return self.image.folder / self.identifier

    @property
    def out_path(self) -> Path:
        """Name of its result."""
        stem = self.image.name
        for suffix in (".gz", ".tiff", ".tif", ".ome", ".czi", ".npy", ".nd2", ".lif"):
            stem = stem[: -len(suffix)] if stem.lower().endswith(suffix) else stem
        return self.folder / f"{stem or 'image'}-predicted.ome.tif"

    @property
    def further_channels(self) -> tuple[str, ...]:
        """Names of the result's channels after those of the structures."""
        return tuple(
            channel.metadata.name
            for name in self.structures
            for channel in extra_channels(self.model, name, self.options)
        )

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in (JobState.finished, JobState.failed, JobState.cancelled)


class JobQueue:
    """Queue of predictions and the thread that works on it.

    Parameters
    ----------
    store
        Of the images.
    networks
        The fused networks of a model on the server's device, kept from one prediction to the next.
    max_waiting
        Most predictions that wait at once.
    """

    def __init__(
        self,
        store: ImageStore,
        networks: Callable[[ModelSnapshot], Mapping[str, Network]],
        max_waiting: int,
    ) -> None:
        self._store, self._networks, self._max_waiting = store, networks, max_waiting
        self._jobs: dict[str, Job] = {}
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._changed = threading.Condition()
        self._stopping = False
        # A daemon: a batch of windows that takes minutes does not keep the process from ending.
        self._thread = threading.Thread(target=self._work, name="predictions", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self, timeout: float = 30.0) -> None:
        """Cancel everything and end the thread, after its present batch of windows."""
        with self._changed:
            self._stopping = True
            for job in self._waiting:
                job.state = JobState.cancelled
            self._waiting.clear()
            if self._running is not None:
                self._running.state = JobState.cancelled
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def submit(self, job: Job) -> None:
        """Add a prediction at the end; of those of its image that have ended only the newest are kept.

        Raises
        ------
        RequestError
            If too many wait.
        """
        with self._changed:
            if len(self._waiting) >= self._max_waiting:
                raise RequestError(
                    503, f"{counted(len(self._waiting), 'prediction')} wait already; try again in a while"
                )
            self._jobs[job.identifier] = job
            self._waiting.append(job)
            ended = [
                one
                for one in self._jobs.values()
                if one.image is job.image and one.ended and one is not self._running
            ]
            for one in ended[:-_MOST_ENDED]:
                self._drop(one)
            self._changed.notify_all()

    def find(self, identifier: str) -> Job:
        """Return a prediction.

        Raises
        ------
        RequestError
            If there is none of that name, or it was deleted with its image.
        """
        job = self._jobs.get(identifier)
        if job is None:
            raise RequestError(404, "this prediction is no longer on the server; predict the image again")
        return job

    def cancel(self, job: Job) -> None:
        """Cancel a prediction that waits or runs; one that has ended stays as it is."""
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
            if not job.ended:
                job.state = JobState.cancelled

    def forget(self, image: StoredImage) -> None:
        """Cancel and drop the predictions of an image that is deleted."""
        for job in [job for job in list(self._jobs.values()) if job.image is image]:
            self.cancel(job)
            self._jobs.pop(job.identifier, None)

    def is_waiting_for(self, image: StoredImage) -> bool:
        """Return whether a prediction of an image waits or runs."""
        with self._changed:
            return any(job.image is image and not job.ended for job in self._jobs.values())

    def describe(self, job: Job) -> dict[str, Any]:
        """Return what the page shows of a prediction, as JSON values."""
        with self._changed:
            ahead = (
                list(self._waiting).index(job) + (self._running is not None) if job in self._waiting else 0
            )
        return {
            "id": job.identifier,
            "state": job.state.value,
            "stage": job.stage,
            "done": job.done,
            "total": job.total,
            "ahead": ahead,
            "error": job.error,
            "notes": list(job.notes),
            "likeness": dict(job.likeness),
            "seconds": job.seconds,
            "structures": list(job.structures),
            "further": list(job.further_channels),
            "file": None if job.result is None else job.result.name,
            "bytes": None if job.result is None or not job.result.exists() else job.result.stat().st_size,
        }

    def _drop(self, job: Job) -> None:
        """Forget a prediction that has ended, and delete its result."""
        del self._jobs[job.identifier]
        if job.result is not None:
            job.image.bytes -= job.result.stat().st_size if job.result.exists() else 0
            self._store.remove_folder(job.folder)
        for key in [key for key in list(job.image.limits) if key[0] == job.identifier]:
            job.image.limits.pop(key, None)

    # -- the thread -------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._stopping:
                    self._changed.wait()
                if self._stopping:
                    return
                job = self._running = self._waiting.popleft()
                job.state = JobState.running
            try:
                with self._store.using(job.image):
                    self._predict(job)
            finally:
                with self._changed:
                    self._running = None

    def _predict(self, job: Job) -> None:
        """Predict, and leave the outcome in the job; whatever happens, the next one has its turn."""

        def check(*_: object) -> None:
            if job.state is JobState.cancelled:
                raise _Cancelled

        def report(done: int, total: int) -> None:
            check()
            job.done, job.total = done, total

        def enter(stage: str) -> None:
            check()
            job.stage = stage

        began = time.monotonic()
        try:
            check()
            self._store.check_room(job.result_bytes)
            job.folder.mkdir()
            files = job_prediction(
                job, networks=self._networks(job.model), progress=report, status=enter
            ).run()
            check()
        except _Cancelled:
            pass
        except RepmodeError as error:
            self._fail(job, without_folder(str(error), job.image))
        except Exception:
            # A defect: the page says that it is not the visitor's, and its traceback goes to the server's log.
            traceback.print_exc(file=sys.stderr)
            self._fail(
                job, "the prediction failed by a defect of this program; the server's log has the details"
            )
        else:
            found = (*files[0].notes, *(note for file in files for note in file.trust_notes))
            notes = (without_folder(note, job.image) for note in found)
            job.notes = tuple(dict.fromkeys((*job.notes, *notes)))
            job.likeness = {file.structure: file.unlike_text for file in files}
            job.result = files[0].path
            job.seconds = time.monotonic() - began
            with self._changed:
                if job.state is JobState.running:
                    job.state = JobState.finished
                    job.image.bytes += job.result.stat().st_size
        if job.state is not JobState.finished:
            self._store.remove_folder(job.folder)

    def _fail(self, job: Job, message: str) -> None:
        with self._changed:
            if job.state is JobState.running:
                job.state, job.error = JobState.failed, message


def job_prediction(job: Job, **keywords: Any) -> FilePrediction:
    """Return the prediction of a job as `predict --stack` makes it; `keywords` are further options."""
    options = dataclasses.replace(job.options, stack=True, **keywords)
    return FilePrediction(job.model, list(job.structures), job.image.path, job.out_path, options)
