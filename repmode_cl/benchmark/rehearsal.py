"""Rehearsal of a strategy before a benchmark: on noise, steps of the base and of the first addition, and what follows.

A trial is run as the benchmark runs it, in a folder that is removed: growing, steps, validation, evaluation by the
fused network, checkpoint and predictions. What only the images decide is not rehearsed.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from repmode_cl.benchmark.trial_run import TrialRun
from repmode_cl.benchmark.worker_context import WorkerContext
from repmode_cl.config import Config, StrategyConfig
from repmode_cl.data.sample import Sample
from repmode_cl.results.trial_record import Trial
from repmode_cl.scenarios import StreamVariant
from repmode_cl.training import resolve_precision
from repmode_cl.utils.devices import resolve_device
from repmode_cl.utils.progress import task

__all__ = ["rehearse"]

#: Channels of the first level of a network of the package: the course of a trial does not depend on them.
_WIDTH = 4


def rehearse(config: Config, options: StrategyConfig, variant: StreamVariant) -> None:
    """Run a trial of a step or two in each of the first two experiences, on images of noise.

    A strategy from elsewhere has the network and the patches of the configuration; the package's have small ones.

    Parameters
    ----------
    config
        The benchmark's configuration.
    options
        The strategy's section.
    variant
        The stream.

    Raises
    ------
    Exception
        Whatever the trial raises.
    """
    config = config.of_strategy(options)
    depth = config.network.depth
    # Two voxels along an axis on the lowest level, so that batch norm has more than one value.
    patch = config.patch.size if options.is_external else (1 << depth, 2 << depth, 2 << depth)
    width = config.network.width if options.is_external else min(_WIDTH, config.network.width)
    short: dict[str, Any] = {
        "batch_size": max(2, config.training.accumulate),
        "epochs": None,
        "last_batch": "continuous",
        # Two, because some prune between them.
        "steps": 2,
        "base_steps": 2,
        "validate_every": 1,
        "validate_every_epochs": None,
        "patience": None,
        # However many steps a class from elsewhere makes of it, training ends after the first.
        "time_limit": 1e-9 if options.is_external else None,
        "loader_workers": 0,
    }
    changes: dict[str, Any] = {
        "seeds": (0,),
        "loggers": (),
        "strategies": (options.model_copy(update={"label": options.title, "steps": None, "network": None}),),
        "training": config.training.model_copy(update=short),
        "network": config.network.model_copy(update={"width": width}),
        "patch": config.patch.model_copy(update={"size": patch}),
        "inference": config.inference.model_copy(update={"window": None}),
    }
    rehearsed = StreamVariant(variant.experiences[:2])
    device = resolve_device(config.training.device)
    with tempfile.TemporaryDirectory(prefix="repmode-rehearsal-", ignore_cleanup_errors=True) as folder:
        context = WorkerContext(
            folder=Path(folder),
            config=config.model_copy(update=changes),
            streams={"": rehearsed},
            samples=_noise(Path(folder), rehearsed, patch),
            precision=resolve_precision(config.training.precision, device),
            threads=torch.get_num_threads(),
        )
        with task(f"rehearsing {options.title}"):  # so that the trial's own progress stays silent
            TrialRun(context, Trial(options.title, "", 0)).run()


def _noise(folder: Path, variant: StreamVariant, shape: tuple[int, int, int]) -> list[Sample]:
    """Return images for training, one more where a structure comes again, validation and test."""
    random, paths = np.random.default_rng(0), (folder / "signal.npy", folder / "target.npy")
    for path in paths:
        np.save(path, random.normal(size=shape).astype(np.float32))
    times = Counter(name for names in variant.experiences for name in names)
    samples: list[Sample] = []
    for name, count in times.items():
        for split in (*["train"] * count, "val", "test"):
            row = len(samples) + 2
            samples.append(Sample(name, split, row, f"noise {row}", *paths, None, shape, f"noise {row}"))
    return samples
