"""Peak memory of a training step: on a GPU as its allocator counts it, on a CPU as the system sees a fresh process."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import nn

from repmode_cl.perf.settings import PerfSettings
from repmode_cl.perf.timing_rounds import out_of_memory
from repmode_cl.perf.workloads import REFERENCE, Batch, Networks, Step, Variant, training_variants
from repmode_cl.training.activation_bytes import saved_bytes
from repmode_cl.training.precision import Precision
from repmode_cl.utils.memory import peak_memory, peak_tensor_bytes, reset_peak, resident_memory, tensor_bytes
from repmode_cl.utils.progress import task

__all__ = ["footprint_of", "measure_memory", "promise"]

#: Peaks that may be known of a variant, in the order in which they are believed.
PEAKS = ("gpu", "resident", "tensors")

#: Memory that is given back is given back to the system at once, so that a peak is one of use and not of hoarding.
_CHILD_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}


def measure_memory(settings: PerfSettings, source: Networks, precision: Precision) -> dict[str, Any]:
    """Measure the memory of a training step of each variant, above inputs and what Python and torch take.

    Parameters
    ----------
    settings
        Sizes.
    source
        Networks on the CPU to copy; the device is that of `precision`.
    precision
        In which number format.

    Returns
    -------
    dict
        ``rows``, one for each variant (see `footprint_of`), and ``promises``, see `promise`.
    """
    variants = training_variants(settings)
    rows: list[dict[str, Any]] = []
    with task(f"Memory, {precision.format}", len(variants)) as bar:
        if precision.device == "cpu" and settings.fresh_processes:
            # Two at a time: memory is no matter of time, but all at once might not fit.
            with ThreadPoolExecutor(2) as pool:
                for row in pool.map(lambda variant: _in_child(settings, variant, precision), variants):
                    rows.append(row)
                    bar.advance()
        else:
            for variant in variants:
                rows.append(footprint_of(settings, variant, precision, source))
                bar.advance()
    by_name = {row["name"]: row for row in rows}
    promises = []
    for peak in PEAKS:
        found = promise(by_name, peak, _added_bytes(source.joint()))
        if found is not None:
            promises.append(found)
    return {"rows": rows, "promises": promises}


def footprint_of(
    settings: PerfSettings,
    variant: Variant,
    precision: Precision,
    source: Networks | None = None,
    *,
    fresh: bool = False,
) -> dict[str, Any]:
    """Measure one variant in this process.

    Parameters
    ----------
    settings, variant, precision
        What is measured.
    source
        Networks to copy; None builds them, which belongs to what is measured in a fresh process.
    fresh
        Whether this process was started for it: then its resident memory says something.

    Returns
    -------
    dict
        ``name``, ``label``, ``failure``; bytes of ``parameters``, ``gradients`` and ``optimizer``; ``saved``, what
        autograd keeps for the backward pass besides parameters and inputs; and peaks during the second step, each above
        what was there before the network was built, or None: ``gpu`` (torch's allocator), ``resident`` (the
        system's), ``tensors`` (CPU tensors as torch's profiler counts them: the same on every machine).
    """
    row = _empty(variant)
    try:
        _measure(row, settings, variant, precision, source, fresh)
    except (RuntimeError, MemoryError) as error:
        row["failure"] = out_of_memory(error)
        if row["failure"] is None:
            raise
    gc.collect()
    if precision.device == "cuda":
        torch.cuda.empty_cache()
    return row


def _empty(variant: Variant) -> dict[str, Any]:
    figures = dict.fromkeys(("parameters", "gradients", "optimizer", "saved", *PEAKS))
    return {"name": variant.name, "label": variant.label, "failure": None, **figures}


def _measure(
    row: dict[str, Any],
    settings: PerfSettings,
    variant: Variant,
    precision: Precision,
    source: Networks | None,
    fresh: bool,
) -> None:
    """Fill `row`, so that what was found before memory ran out stays."""
    device = torch.device(settings.device if precision.device == "cuda" else "cpu")
    batch = Batch(settings, device)
    if fresh:
        _warm_up(precision)
    before = resident_memory() if fresh else None
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(device)
        allocated = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
    reset_peak()
    step = Step(Networks(settings, device, source), variant, batch, precision)
    step()
    step()
    if on_gpu:
        torch.cuda.synchronize(device)
        row["gpu"] = torch.cuda.max_memory_allocated(device) - allocated
    if before is not None:
        row["resident"] = peak_memory() - before
    row |= step.state_bytes()
    if not on_gpu:
        step.optimizer.zero_grad(set_to_none=True)
        grown = peak_tensor_bytes(step)
        standing = row["parameters"] + row["optimizer"] + tensor_bytes(step.network.buffers())
        row["tensors"] = None if grown is None else standing + grown
    step.optimizer.zero_grad(set_to_none=True)
    held = [*step.network.parameters(), *step.network.buffers(), batch.signal, batch.target]
    row["saved"] = saved_bytes(step.loss, held)


def _warm_up(precision: Precision) -> None:
    """Have torch load its libraries and start its threads: they are there whatever is computed."""
    layer = nn.Conv3d(8, 8, 3, padding=1)
    with precision.autocast():
        layer(torch.randn(1, 8, 8, 8, 8)).square().mean().backward()


def promise(rows: Mapping[str, Mapping[str, Any]], peak: str, added: int) -> dict[str, Any] | None:
    """Compare ours with one structure in the batch with the plain network.

    Parameters
    ----------
    rows
        By name.
    peak
        Which of `PEAKS`.
    added
        Bytes of experts and gates, their gradients and their optimiser's state.

    Returns
    -------
    dict or None
        ``peak``, ``above`` (bytes above the plain network's), ``limit`` (`added` plus 10%) and ``kept``; None where
        one of the two is not known.
    """
    ours, plain = rows["ours-1"].get(peak), rows[REFERENCE].get(peak)
    if ours is None or plain is None:
        return None
    limit = added + added // 10
    return {"peak": peak, "above": ours - plain, "limit": limit, "kept": ours - plain <= limit}


def _added_bytes(network: nn.Module) -> int:
    """Return the bytes of all experts and gates, their gradients, and Adam's two moments of them."""
    mine = [p for name, p in network.named_parameters() if ".experts." in name or ".gates." in name]
    return 4 * tensor_bytes(mine)


def _in_child(settings: PerfSettings, variant: Variant, precision: Precision) -> dict[str, Any]:
    """Measure in a separate process, whose memory nothing else has touched."""
    order = {
        "settings": settings.to_json(),
        "variant": variant.name,
        "precision": precision.format,
        "threads": torch.get_num_threads(),
    }
    done = subprocess.run(
        [sys.executable, "-m", "repmode_cl.perf.memory_child", json.dumps(order)],
        env={**os.environ, **_CHILD_ENVIRONMENT},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == -9:  # the system's way to end a process when memory runs out
        return {**_empty(variant), "failure": "out of memory (ended by the system)"}
    if done.returncode != 0:
        raise RuntimeError(f"measuring the memory of {variant.name} failed:\n{done.stderr.strip()}")
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row
