"""The machine that figures were measured on: a figure without it says nothing."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch

from repmode_cl.utils.memory import total_memory
from repmode_cl.utils.process_pool import workers_here
from repmode_cl.version import __version__

__all__ = ["cpu_name", "describe", "machine"]


def machine(device: torch.device) -> dict[str, Any]:
    """Return processor, memory, system, versions and the settings that decide speed, as JSON values."""
    found: dict[str, Any] = {
        "repmode_cl": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.release()}",
        "cpu": cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_bfloat16": torch.cpu._is_avx512_bf16_supported(),
        "cpu_amx": torch.cpu._is_amx_tile_supported(),
        "processors": workers_here(),
        "memory_bytes": total_memory(),
        "threads": torch.get_num_threads(),
        "device": str(device),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        cudnn = torch.backends.cudnn
        found |= {
            "gpu": properties.name,
            "gpu_memory_bytes": properties.total_memory,
            "gpu_capability": [properties.major, properties.minor],
            "cuda": torch.version.cuda,
            "cudnn": cudnn.version(),  # type: ignore[no-untyped-call]
            "cudnn_benchmark": cudnn.benchmark,
            "cudnn_allow_tf32": cudnn.allow_tf32,
        }
    return found


def describe(found: dict[str, Any]) -> str:
    """Return one line for a reader: what computes, how many threads, which torch."""
    what = found["gpu"] if "gpu" in found else found["cpu"]
    threads = "" if "gpu" in found else f", {found['threads']} of {found['processors']} processors"
    return f"{what}{threads}, torch {found['torch']}, {found['system']}"


def cpu_name() -> str:
    """Return the processor's name as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
