"""Does the device compute what the CPU computes? Timing a wrong result would be worth nothing."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from repmode_cl.errors import RepmodeError
from repmode_cl.perf.settings import PerfSettings
from repmode_cl.perf.workloads import Batch, Networks, Variant, forward_of
from repmode_cl.training.loss import masked_mse
from repmode_cl.training.precision import Precision

__all__ = ["TOLERANCES", "check_device"]

#: Largest difference that counts as rounding, relative to the norm of what is compared: of the output, and of all
#: gradients together. Gradients differ more, because a rounded sum near zero opens or closes a ReLU. Some four
#: times what was measured between number formats on a CPU. float32 is also computed as it will be timed, on
#: newer GPUs with the ten bits of TF32, as many as float16 has.
TOLERANCES = {
    "float32 without TF32": (1e-4, 2e-2),
    "float32": (1e-2, 0.25),
    "bfloat16": (6e-2, 0.6),
    "float16": (1e-2, 0.25),
}

_EXACT = "float32 without TF32"

_CHECKED = (
    Variant("plain-k5", "plain network, kernel 5", "plain", option="5"),
    Variant("ours-1", "ours, 1 structure", "ours", 1),
    Variant("ours-2", "ours, 2 structures", "ours", 2),
    Variant("addition-conv3", "ours, adding a structure (conv3)", "addition", option="conv3"),
)


def check_device(
    settings: PerfSettings, device: torch.device, precisions: Sequence[Precision]
) -> list[dict[str, Any]]:
    """Compare outputs and gradients of small networks on `device` with those of the CPU in float64.

    Parameters
    ----------
    settings
        The seed is used; sizes are small, fixed ones.
    device
        What is checked.
    precisions
        Number formats that will be timed.

    Returns
    -------
    list of dict
        For each precision and network: ``output`` and ``gradients``, the differences relative to the norms, and
        their tolerances.

    Raises
    ------
    RepmodeError
        If a difference is beyond its tolerance.
    """
    small = replace(settings, width=8, depth=1, patch=(8, 16, 16), batch=4)
    networks = Networks(small, torch.device("cpu"))
    formats = {_EXACT: Precision("float32", device.type)} | {one.format: one for one in precisions}
    found: list[dict[str, Any]] = []
    for variant in _CHECKED:
        network = networks.of(variant)
        exact = _results(copy.deepcopy(network).double(), variant, small, torch.device("cpu"), None)
        for name, precision in formats.items():
            with _tf32(allowed=name != _EXACT):
                here = _results(copy.deepcopy(network).to(device), variant, small, device, precision)
            output, gradients = (_difference(a, b) for a, b in zip(here, exact, strict=True))
            found.append(
                {
                    "name": variant.name,
                    "label": variant.label,
                    "precision": name,
                    "output": output,
                    "output_tolerance": TOLERANCES[name][0],
                    "gradients": gradients,
                    "gradients_tolerance": TOLERANCES[name][1],
                }
            )
    for one in found:
        for what in ("output", "gradients"):
            # Written so that NaN fails too.
            if not one[what] <= one[f"{what}_tolerance"]:
                raise RepmodeError(
                    f"{device} does not compute what the CPU computes: {one['label']} in {one['precision']}, {what} "
                    f"differ by {one[what]:.2g} of their norm (at most {one[f'{what}_tolerance']:g}); nothing was "
                    "timed. Update the GPU's driver or torch, or use another precision"
                )
    return found


def _results(
    network: nn.Module,
    variant: Variant,
    settings: PerfSettings,
    device: torch.device,
    precision: Precision | None,
) -> tuple[Tensor, Tensor]:
    """Return the output and all gradients, flat, in float64 on the CPU."""
    batch = Batch(settings, device)
    dtype = next(network.parameters()).dtype
    network.train()
    forward = forward_of(network, variant, settings.batch)
    if precision is None:
        output = forward(batch.signal.to(dtype))
        loss = masked_mse(output, batch.target.to(dtype))
    else:
        with precision.autocast():
            output = forward(batch.signal)
        loss = masked_mse(output, batch.target)
    # Half precision loses small gradients; training scales them too.
    scale = 1024.0
    torch.autograd.backward(loss * scale)
    gradients = [p.grad.flatten() for p in network.parameters() if p.grad is not None]
    flat = torch.cat([gradient.to("cpu", torch.float64) for gradient in gradients]) / scale
    return output.detach().to("cpu", torch.float64).flatten(), flat


@contextmanager
def _tf32(*, allowed: bool) -> Iterator[None]:
    """Within this, convolutions of a GPU round float32 to TF32 only if it is allowed now and here."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = before and allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _difference(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())
