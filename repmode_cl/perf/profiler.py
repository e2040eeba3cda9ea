"""Profile of a training step by torch: ours next to the plain network."""

from __future__ import annotations

from typing import Any

import torch

from repmode_cl.perf.settings import PerfSettings
from repmode_cl.perf.workloads import Batch, Networks, Step, training_variants
from repmode_cl.training.precision import Precision
from repmode_cl.training.timing import synchronise
from repmode_cl.utils.memory import quiet_profiler
from repmode_cl.utils.progress import task

__all__ = ["measure_profile"]

_COMPARED = ("plain-k5", "ours-1", "ours-8")
_STEPS = 3
_TOP = 20


def measure_profile(settings: PerfSettings, networks: Networks, precision: Precision) -> dict[str, Any]:
    """Profile training steps and return the operators that take longest.

    Returns
    -------
    dict
        ``variants`` that are compared, the ``rows`` of the operators with most time of their own, in milliseconds
        for each step by variant, and the ``total`` of all operators by variant.

    Notes
    -----
    The time of an operator is that of the device: on a GPU its kernels', on a CPU its own without what it calls. A
    profiler slows what it watches: shares are to be read, not sums.
    """
    batch = Batch(settings, networks.device)
    chosen = [variant for variant in training_variants(settings) if variant.name in _COMPARED]
    times: dict[str, dict[str, float]] = {}
    with task(f"Profile, {precision.format}", len(chosen)) as bar:
        for variant in chosen:
            times[variant.name] = _operators(Step(networks, variant, batch, precision), networks.device)
            bar.advance()
    names = {name for found in times.values() for name in found}
    order = sorted(names, key=lambda name: -max(found.get(name, 0.0) for found in times.values()))
    return {
        "variants": {variant.name: variant.label for variant in chosen},
        "rows": [
            {"operator": name, **{variant: found.get(name, 0.0) for variant, found in times.items()}}
            for name in order[:_TOP]
        ],
        "total": {variant: sum(found.values()) for variant, found in times.items()},
    }


def _operators(step: Step, device: torch.device) -> dict[str, float]:
    """Return the milliseconds of each operator for one step."""
    quiet_profiler()
    on_gpu = device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU]
    if on_gpu:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    step()
    synchronise(device)
    with torch.profiler.profile(activities=activities, acc_events=True) as profiler:
        for _ in range(_STEPS):
            step()
        synchronise(device)
    found: dict[str, float] = {}
    for event in profiler.key_averages():
        if event.device_type.name != "CPU":  # a kernel, counted with its operator already
            continue
        microseconds = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if microseconds > 0:
            found[str(event.key)] = float(microseconds) / 1000 / _STEPS
    return found
