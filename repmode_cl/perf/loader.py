"""Patches per second of the loader, from a cache on disk, against what a training step consumes."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from repmode_cl.data.patches.dataset import PatchDataset
from repmode_cl.data.preprocessing.storage_dtype import to_storage_dtype
from repmode_cl.data.preprocessing.volume_cache import VolumeCache
from repmode_cl.data.sample import Sample
from repmode_cl.perf.settings import PerfSettings
from repmode_cl.structures import TWELVE_STRUCTURES
from repmode_cl.training.patch_loader import patch_loader
from repmode_cl.utils.progress import task

__all__ = ["measure_loading"]

#: Images in the simulated cache, and their size in patches along z, y, x.
_IMAGES, _PATCHES = 6, (1.5, 3, 3)

#: A rate is counted over at least so many seconds and batches.
_LEAST_SECONDS, _LEAST_BATCHES = 0.3, 2


def measure_loading(settings: PerfSettings, step_seconds: float) -> dict[str, Any]:
    """Measure how many patches a second come from a cache of random volumes, with each number of workers.

    Parameters
    ----------
    settings
        Sizes and numbers of workers.
    step_seconds
        Time of a training step: it consumes a batch of patches.

    Returns
    -------
    dict
        ``appetite`` (patches a second), ``volume`` (voxels of an image) and ``rows``: of each number of workers the
        ``rates`` (patches a second), their ``median``, the ``ratio`` to the appetite (at least 1: training
        never waits) and the seconds ``until_first_batch``, the start of the workers included.

    Notes
    -----
    The volumes were just written, so that the system has them in memory: what is measured is the work of
    cutting and turning, not the disk's.
    """
    appetite = settings.batch / step_seconds
    with tempfile.TemporaryDirectory(prefix="repmode-cl-perf-") as folder:
        samples = _simulated(Path(folder), settings)
        dataset = PatchDataset(
            samples, patch=settings.patch, seed=settings.seed, length=settings.batch * 1_000_000
        )
        rows = []
        with task("Loading", len(settings.loader_workers)) as bar:
            for workers in settings.loader_workers:
                rows.append(_rates(dataset, settings, workers, appetite))
                bar.advance()
        del dataset  # on Windows a mapped file cannot be removed
    return {"appetite": appetite, "volume": list(samples[0].shape), "rows": rows}


def _simulated(folder: Path, settings: PerfSettings) -> list[Sample]:
    shape = tuple(int(size * times) for size, times in zip(settings.patch, _PATCHES, strict=True))
    generator = np.random.default_rng(settings.seed)
    cache = VolumeCache(folder)
    samples = []
    for number in range(_IMAGES):
        paths = []
        for role in ("signal", "target"):
            volume = to_storage_dtype(generator.standard_normal(shape, np.float32))
            paths.append(cache.store(cache.key({"image": number, "role": role}), volume, {}))
        samples.append(
            Sample(
                structure=TWELVE_STRUCTURES[number % 2],
                split="train",
                row=number + 2,
                image_id=f"{number:064x}",
                signal=paths[0],
                target=paths[1],
                mask=None,
                shape=(shape[0], shape[1], shape[2]),
                group=str(number),
            )
        )
    return samples


def _rates(dataset: PatchDataset, settings: PerfSettings, workers: int, appetite: float) -> dict[str, Any]:
    loader = patch_loader(dataset, batch_size=settings.batch, workers=workers)
    try:
        began = time.perf_counter()
        batches = iter(loader)
        next(batches)
        first = time.perf_counter() - began
        for _ in range(2 * workers):  # what the workers cut ahead while the first was waited for
            next(batches)
        rates = [_rate(batches, settings.batch) for _ in range(min(settings.repeats, 5))]
    finally:
        loader.close()
    return {
        "workers": workers,
        "until_first_batch": first,
        "rates": rates,
        "median": median(rates),
        "ratio": median(rates) / appetite,
    }


def _rate(batches: Iterator[object], batch: int) -> float:
    began = time.perf_counter()
    count, took = 0, 0.0
    while took < _LEAST_SECONDS or count < _LEAST_BATCHES:
        next(batches)
        count += 1
        took = time.perf_counter() - began
    return count * batch / took
