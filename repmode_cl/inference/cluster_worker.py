"""Work of one worker of a Dask cluster: an image, or some windows of a large one.

A worker predicts one thing at a time, whatever the number of its threads, so that its memory is bounded, and keeps the
networks of the model that it used last.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from repmode_cl.data.preprocessing.normalisation import ZScore
from repmode_cl.data.readers import open_image
from repmode_cl.errors import ModelError
from repmode_cl.inference.image_task import ImageTask
from repmode_cl.inference.options import PredictedFile, PredictionOptions
from repmode_cl.inference.predict_file import FilePrediction, FusedNetworks
from repmode_cl.inference.raw_volume import RawVolume
from repmode_cl.inference.streaming.run import PredictionStopped
from repmode_cl.inference.trust_channels import window_networks
from repmode_cl.inference.volume_source import FileSource, VolumeSource, read_z_scored
from repmode_cl.inference.window_batches import WindowOutputs, WindowsSource, predict_batches
from repmode_cl.inference.windows import WindowGrid
from repmode_cl.store.snapshot import ModelSnapshot
from repmode_cl.utils.devices import resolve_device
from repmode_cl.utils.memory import available_memory, resident_memory

__all__ = [
    "ModelOnWorkers",
    "predict_image_on_worker",
    "predict_windows_on_worker",
    "stop_on_worker",
    "memory_of_worker",
]

#: Part of a worker's memory that a prediction may take: beyond 0.7 Dask begins to write to disk, at 0.95 it kills.
_MEMORY_SHARE = 0.6

_one_at_a_time = threading.Lock()
_stopped: set[str] = set()


@dataclass(frozen=True)
class ModelOnWorkers:
    """A model as workers open it.

    Attributes
    ----------
    path
        Its folder, the same on all machines.
    digests
        For each structure that is predicted: its digest, so that no worker predicts with another model.
    threads
        Threads of torch.
    group
        Name by which `stop_on_worker` finds this call's work.
    precision
        ``float32`` or ``bfloat16``.
    """

    path: str
    digests: tuple[tuple[str, str], ...]
    threads: int
    group: str
    precision: str = "float32"


@lru_cache(maxsize=1)
def _networks(model: ModelOnWorkers, device: str) -> tuple[ModelSnapshot, FusedNetworks]:
    opened = ModelSnapshot.open(model.path)
    for name, digest in model.digests:
        entry = opened.entries.get(name)
        if entry is None or entry.digest != digest:
            raise ModelError(
                f"{model.path}: {name} is another one on this worker than where the command was given; workers must "
                "see the same folders"
            )
    return opened, FusedNetworks(opened, resolve_device(device), model.precision)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Work with so many threads: their number decides last bits."""
    with _one_at_a_time:
        before = torch.get_num_threads()
        torch.set_num_threads(count)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def memory_of_worker(limit: int | None, neighbours: int) -> int:
    """Return the bytes that a prediction on this worker may take.

    Parameters
    ----------
    limit
        Of the worker; None if it has none.
    neighbours
        Workers on this machine, which share its memory.
    """
    if limit:
        return int(limit * _MEMORY_SHARE)
    return resident_memory() + available_memory() // (2 * max(1, neighbours))


def stop_on_worker(group: str) -> None:
    """End the predictions of a call that was interrupted; what they did is kept."""
    _stopped.add(group)


def predict_image_on_worker(
    model: ModelOnWorkers,
    structure: str | tuple[str, ...],
    task: ImageTask,
    options: PredictionOptions,
    limit: int | None,
    neighbours: int,
) -> list[PredictedFile]:
    """Predict one image, as `FilePrediction` does in the process of the command.

    Parameters
    ----------
    model
        The model.
    structure
        As of `predict_file`.
    task
        The image; its paths are absolute.
    options
        How to predict.
    limit, neighbours
        As of `memory_of_worker`.
    """

    def watch(done: int, total: int) -> None:
        if model.group in _stopped:
            raise PredictionStopped("the command was interrupted")

    with _threads(model.threads):
        watch(0, 0)
        opened, networks = _networks(model, options.device)
        memory = memory_of_worker(limit, neighbours) if options.memory is None else options.memory
        mine = replace(options, scene=task.scene, t=task.t, networks=networks, memory=memory, progress=watch)
        names = structure if isinstance(structure, str) else list(structure)
        return FilePrediction(opened, names, task.image, task.output, mine).run()


def predict_windows_on_worker(
    model: ModelOnWorkers,
    structures: tuple[str, ...],
    device: str,
    source: WindowsSource,
    batches: Sequence[range],
    confidence: bool,
) -> list[WindowOutputs]:
    """Return what the networks of the structures make of batches of windows.

    Parameters
    ----------
    model
        The model.
    structures
        Names.
    device
        As of `PredictionOptions`.
    source
        The volume.
    batches
        Numbers of the windows, those of a batch computed at once.
    confidence
        Whether spreads are computed too, as of `PredictionOptions`.
    """
    with _threads(model.threads), _opened(source) as volume:
        opened, networks = _networks(model, device)
        grid = WindowGrid(source.grid, source.window, source.overlap)
        score = ZScore(*source.z_score)
        chosen = {name: networks[name] for name in structures}
        windowed = window_networks(opened, chosen, resolve_device(device), confidence=confidence)

        def cut() -> Iterator[Tensor]:
            for windows in batches:
                batch = np.empty((len(windows), 1, *grid.size), np.float32)
                for index, number in enumerate(windows):
                    batch[index, 0] = read_z_scored(volume, score, grid[number].slices)
                yield torch.from_numpy(batch)

        return [
            WindowOutputs(
                # Copies, in case a network returned a part of something larger.
                [np.ascontiguousarray(values) for values in outputs],
                {name: network.take() for name, network in windowed.scores.items()},
            )
            for outputs in predict_batches(list(windowed.networks.values()), cut(), resolve_device(device))
        ]


@contextmanager
def _opened(source: WindowsSource) -> Iterator[VolumeSource]:
    if source.shape is not None:
        with RawVolume(source.path, source.shape, np.dtype(str(source.dtype)), new=False) as volume:
            yield volume
        return
    dtype = None if source.dtype is None else np.float32
    with open_image(source.path, scene=source.scene, t=source.t) as image:
        yield FileSource(image, source.channel, source.scene, source.t, dtype)
