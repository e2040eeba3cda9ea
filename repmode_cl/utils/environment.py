"""The environment of a computation: everything that its last bits depend on besides its inputs.

The same network gives other last bits with another torch build, instruction set, device, thread count, dtype,
window or batch, because sums are then computed in another order. A proof is compared bit for bit only where all
of these are the same; then the fingerprints are equal.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

__all__ = ["describe_difference", "environment_fingerprint", "with_threads"]

#: Part of every fingerprint: raise it when the same tensors and inputs come to other bits by a change of this
#: package (1: unfolded norms; 2: norms folded into kernels, experts summed from large to small).
ARITHMETIC = 2


def environment_fingerprint(
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    window: Sequence[int],
    batch: int,
) -> dict[str, Any]:
    """Return the environment of a computation as a JSON object; equal objects mean comparable bit for bit.

    Parameters
    ----------
    device
        Device of the computation.
    dtype
        Of the network's parameters and input.
    window
        Size (Z, Y, X) in voxels of the network's input.
    batch
        Number of windows computed at once.
    """
    device = torch.device(device)
    fingerprint: dict[str, Any] = {
        "arithmetic": ARITHMETIC,
        "torch": torch.__version__,
        "torch_build": _text_digest(torch.__config__.show()),
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu": _cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        # Both variables lower the instruction set that the convolutions use.
        "onednn_isa": os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "default",
        "mkldnn": _mkldnn(),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "threads": torch.get_num_threads(),
        "device": device.type,
        "dtype": str(dtype).removeprefix("torch."),
        "window": [int(size) for size in window],
        "batch": int(batch),
    }
    if device.type == "cuda":
        cudnn = torch.backends.cudnn
        fingerprint |= {
            "gpu": torch.cuda.get_device_name(device),
            "gpu_capability": list(torch.cuda.get_device_capability(device)),
            "cuda": torch.version.cuda,
            "cudnn": cudnn.version(),  # type: ignore[no-untyped-call]
            "cudnn_settings": [cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32],
        }
    return fingerprint


def describe_difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Describe how two fingerprints differ: ``threads 1 -> 2, torch 2.6.0 -> 2.7.1``; empty if they do not."""
    parts = []
    for key in sorted(set(then) | set(now)):
        before, after = then.get(key, "unknown"), now.get(key, "unknown")
        if before == after:
            continue
        # Two digests tell a reader only that they differ.
        parts.append("another torch build" if key == "torch_build" else f"{key} {before} -> {after}")
    return ", ".join(parts)


@contextmanager
def with_threads(count: int) -> Iterator[None]:
    """Compute with `count` threads of torch within this context, and with the number of before after it.

    The number of threads is the only part of an environment that can be set at will: a proof made with one thread is
    checked with one thread, even on a machine whose default is sixteen.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _mkldnn() -> str:
    """Describe whether convolutions run in oneDNN, and in which internal precision they may."""
    backend = torch.backends.mkldnn
    if not backend.is_available():  # type: ignore[no-untyped-call]
        return "absent"
    precision = getattr(getattr(backend, "conv", None), "fp32_precision", "unknown")
    return f"{'on' if backend.enabled else 'off'}, precision {precision}"


def _text_digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


@lru_cache(maxsize=1)
def _cpu_name() -> str:
    """Return the name of the processor, with a digest of its instruction flags where the system lists them."""
    info = Path("/proc/cpuinfo")
    fields: dict[str, str] = {}
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    name = fields.get("model name") or platform.processor() or platform.machine()
    flags = fields.get("flags") or fields.get("Features")
    return f"{name} [{_text_digest(' '.join(sorted(flags.split())))}]" if flags else name
