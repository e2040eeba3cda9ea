"""Device settings, resolved by one rule for training and prediction."""

from __future__ import annotations

import torch

from repmode_cl.errors import ConfigError

__all__ = ["resolve_device"]


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
