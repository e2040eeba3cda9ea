"""Device settings, and what a device is good at, by one rule for training and prediction."""

from __future__ import annotations

import torch

from repmode_cl.errors import ConfigError

__all__ = ["multiplies_bfloat16", "resolve_device"]


def resolve_device(setting: str) -> torch.device:
    """Return the device of a setting; ``auto`` is cuda where there is a GPU, else cpu.

    Raises
    ------
    ConfigError
        If it is not a device, or this machine does not have it.
    """
    if setting == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(setting)
    except RuntimeError as error:
        raise ConfigError(f"device {setting!r} is unknown: give auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {setting!r} is not supported: give auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device {setting!r} is not there: torch sees {torch.cuda.device_count()} GPU(s); give auto or cpu"
        )
    return device


def multiplies_bfloat16(device: torch.device) -> bool:
    """Return whether a device multiplies matrices of bfloat16: CPUs with AMX tiles, GPUs from Ampere on.

    A CPU that has bfloat16 only as vector instructions (AVX-512 BF16) does not count: convolutions of a U-Net's first
    levels, with 8 or 16 channels, were measured 1.5 to 2.3 times *slower* there than in float32.
    """
    if device.type == "cuda":
        # Emulated bfloat16 does not count: older GPUs hold such tensors but convolve none.
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_amx_tile_supported())
