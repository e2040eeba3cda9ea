"""A small model directory that tests of the store share: a base of two structures and three additions."""

from __future__ import annotations

from pathlib import Path

import torch

from repmode_cl.nn import AdditionSpec, Architecture, RepModeUNet
from repmode_cl.store import Model

ARCHITECTURE = Architecture(width=2, depth=1, experts=("conv3", "conv1", "avg3"))
INFERENCE = {"window": (8, 8, 8), "overlap": 0.5, "batch": 2}
PARTS = {"voxel_size": (0.29, 0.29, 0.29), "preprocessing": {"order": 1}, "inference": INFERENCE}


def base_network() -> RepModeUNet:
    network = RepModeUNet(ARCHITECTURE, ("dna", "cell_membrane"), seed=0)
    liven(network)
    return network.eval()


def liven(network: RepModeUNet, part: str = "") -> None:
    """Give norm statistics that a training would have, so that a lost one shows."""
    generator = torch.Generator().manual_seed(len(part))
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if part in name and (name.endswith("running_mean") or name.endswith("running_var")):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)


def make_model(path: Path) -> Path:
    """Write a model with a base of two and three additions, of which the last sees the first."""
    notes = {"provenance": {"run": "test"}, "metrics": {"dna": {"r2": 0.7}}}
    model = Model.create(path, base_network(), **PARTS, **notes)
    for name, spec in {
        "nucleolus": AdditionSpec(),
        "tight_junction": AdditionSpec(expert="lowrank:2", norm="base", resampling="base"),
        "mitochondria": AdditionSpec(expert="conv1", sees="all"),
    }.items():
        network = model.network()
        network.add_structure(name, spec, seed=3)
        liven(network, f".own.{name}.")
        model.add(name, network, metrics={"r2": 0.5})
    return path


def grown(model: Model, name: str, spec: AdditionSpec | None = None) -> RepModeUNet:
    network = model.network()
    network.add_structure(name, spec)
    return network
