"""Rough duration of a measurement, stated before it begins."""

from __future__ import annotations

from collections.abc import Sequence

from repmode_cl.perf.settings import PerfSettings
from repmode_cl.perf.workloads import (
    REFERENCE,
    Batch,
    Networks,
    Step,
    kernel3_variants,
    timed_variants,
    training_variants,
)
from repmode_cl.training.precision import Precision
from repmode_cl.training.timing import median_seconds

__all__ = ["expected_seconds"]

#: Seconds that a process takes to import torch, and a command to print its help; rough.
_PROCESS, _HELP = 4.0, 0.5

#: Windows of all volumes of the scaling section, each predicted twice, and of the whole volume next to MONAI.
_SCALING_WINDOWS, _VOLUME_WINDOWS = 2 * 1858, 27

#: Time of a prediction relative to a training step of the same batch.
_FORWARD = 0.3


def expected_seconds(
    settings: PerfSettings, networks: Networks, precisions: Sequence[Precision], commands: int
) -> float:
    """Return about how long the sections will take: a step of the plain network is timed, the rest are rough factors.

    Parameters
    ----------
    settings
        What will be measured.
    networks
        Where the networks are; the plain one is built.
    precisions
        Number formats that will be measured.
    commands
        Number of commands whose start-up will be.
    """
    variants = training_variants(settings)
    [plain] = [variant for variant in variants if variant.name == REFERENCE]
    step = Step(networks, plain, Batch(settings, networks.device), precisions[0])
    one = median_seconds(step, networks.device, repeats=1)
    window = _FORWARD * one / settings.batch
    effort = sum(variant.effort for variant in variants)
    timed = sum(variant.effort for variant in timed_variants(settings))
    narrow = sum(variant.effort for variant in kernel3_variants(settings))
    process = _PROCESS if settings.fresh_processes and networks.device.type == "cpu" else 0.0
    formats = len(precisions)
    seconds = {
        "check": 5.0,
        "training": formats * (settings.repeats + 1) * timed * one,
        "inference": formats * (settings.repeats + 1) * effort * one * _FORWARD
        + 2 * (min(settings.repeats, 5) + 1) * _VOLUME_WINDOWS * window,
        "kernel3": formats * (settings.repeats + 1) * narrow * one * (1 + _FORWARD),
        "memory": formats * (4 * effort * one + process * len(variants) / 2),
        "loading": len(settings.loader_workers) * (_PROCESS + min(settings.repeats, 5) * 0.3),
        "scaling": min(settings.repeats, 3) * _SCALING_WINDOWS * window,
        "startup": (min(settings.repeats, 5) + 1) * (commands * _HELP + _PROCESS),
        "profile": formats * 20 * one,
    }
    total = sum(seconds[name] for name in settings.sections)
    return total if settings.minutes is None else min(total, 60 * settings.minutes)
