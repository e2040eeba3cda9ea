"""The networks of a prediction, ready on their device: made once for however many images."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from repmode_cl.inference.batches import Network

if TYPE_CHECKING:
    from repmode_cl.store import Model

__all__ = ["ready_networks"]


def ready_networks(model: Model, names: Sequence[str], device: torch.device) -> dict[str, Network]:
    """Return the fused network of each structure on `device`.

    Raises
    ------
    ModelError
        If a file of the model is missing or damaged.
    """
    networks: dict[str, Network] = {}
    for name in names:
        network = model.fused(name)
        if device.type != "cpu":
            # The model keeps what it fused, on the CPU.
            network = copy.deepcopy(network).to(device)
        networks[name] = network
        # Loads what a first convolution loads, so that memory is counted with it.
        with torch.no_grad():
            network(torch.zeros((1, 1, *(1 << model.architecture.depth,) * 3), device=device))
    return networks
