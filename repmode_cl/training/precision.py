"""Mixed precision: `auto` is resolved once, by a fixed rule, and the result is stored with the run."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from typing import Literal, cast

import torch

from repmode_cl.errors import ConfigError
from repmode_cl.utils.devices import multiplies_bfloat16

__all__ = ["Precision", "inherit_precision", "recall_precision", "resolve_precision"]

Format = Literal["float32", "bfloat16", "float16"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Precision:
    """Number format of a training step; weights, loss and metrics stay float32.

    Attributes
    ----------
    format
        float32, bfloat16 or float16.
    device
        Kind of device: cpu or cuda.
    """

    format: Format
    device: str

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Return the context in which the network computes."""
        if self.format == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device, dtype=getattr(torch, self.format))

    def scaler(self) -> torch.amp.GradScaler | None:
        """Return a gradient scaler where the format needs one (float16's small range)."""
        return torch.amp.GradScaler(self.device) if self.format == "float16" else None

    @property
    def possible(self) -> bool:
        """True if the device computes in the format at all; a CPU does in every format, if need be by emulation."""
        return self.device == "cpu" or self.native

    @property
    def native(self) -> bool:
        """True if the device has instructions for the format."""
        if self.format == "float32":
            return True
        if self.device == "cuda":
            # Emulated bfloat16 does not count: older GPUs hold such tensors but convolve none.
            return self.format == "float16" or torch.cuda.is_bf16_supported(including_emulation=False)
        if self.format == "float16":
            return bool(getattr(torch.cpu, "_is_amx_fp16_supported", lambda: False)())  # newer than torch 2.6
        return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def resolve_precision(setting: str, device: torch.device) -> Precision:
    """Return the precision of `setting` on `device`.

    ``auto`` is bfloat16 where the hardware multiplies matrices of it (`multiplies_bfloat16`). GPUs without it use
    float16 with scaling, other CPUs float32.

    Raises
    ------
    ConfigError
        If a format is named that the device cannot compute in.
    """
    if setting == "auto":
        if multiplies_bfloat16(device):
            return Precision("bfloat16", device.type)
        return Precision("float16" if device.type == "cuda" else "float32", device.type)
    precision = Precision(cast(Format, setting), device.type)
    if not precision.possible:
        raise ConfigError(
            f"training.precision is {setting}, which {_name(device)} does not compute in: set auto or float16"
        )
    return precision


def recall_precision(stored: str, device: torch.device, what: str) -> Precision:
    """Return the precision that an interrupted training was started with, whatever the rule would give now.

    Parameters
    ----------
    stored
        The recorded format.
    device
        Device that the training resumes on.
    what
        Name of the training, for messages: ``the run runs/quickstart``.

    Raises
    ------
    ConfigError
        If the device cannot compute in it: half a training in another format would be a third thing.
    """
    precision = Precision(cast(Format, stored), device.type)
    if not precision.possible:
        raise ConfigError(
            f"{what} was started in {stored}, which {_name(device)} does not compute in: resume it on a device that "
            "does, or start it again"
        )
    if not precision.native:
        _log.warning(
            "%s was started in %s and continues in it, but %s has no instructions for it: this will be slow",
            what,
            stored,
            _name(device),
        )
    return precision


def inherit_precision(setting: str, device: torch.device, base: str | None) -> Precision:
    """Return the precision of an addition to a base that was trained in the format `base`.

    ``auto`` is the base's format where `device` has instructions for it, and follows the rule of `resolve_precision`
    elsewhere, or where the base's format is not known (``None``).
    """
    if setting == "auto" and base is not None:
        same = Precision(cast(Format, base), device.type)
        if same.native:
            return same
    return resolve_precision(setting, device)


def _name(device: torch.device) -> str:
    return f"the GPU {torch.cuda.get_device_name(device)}" if device.type == "cuda" else "this processor"
