"""A small model directory that tests of the store share: a base of two structures and three additions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from repmode_cl.data.preprocessing.recipe import PreprocessingRecipe
from repmode_cl.model import Model
from repmode_cl.nn import AdditionSpec, Architecture, RepModeUNet

ARCHITECTURE = Architecture(width=2, depth=1, experts=("conv3", "conv1", "avg3"))
INFERENCE = {"window": (8, 8, 8), "overlap": 0.5, "batch": 2}
PARTS = {"voxel_size": (0.29, 0.29, 0.29), "preprocessing": {"order": 1}, "inference": INFERENCE}


def base_network() -> RepModeUNet:
    network = RepModeUNet(ARCHITECTURE, ("dna", "cell_membrane"), seed=0)
    liven(network)
    return network.eval()


def liven(network: RepModeUNet, part: str = "") -> None:
    """Give norms what a training would, so that a lost one shows, and that not every ReLU is dead."""
    generator = torch.Generator().manual_seed(len(part))
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if part not in name or ".norm." not in name or not tensor.is_floating_point():
                continue
            values = torch.rand(tensor.shape, generator=generator)
            if name.endswith("running_mean"):
                tensor.copy_(0.2 * values - 0.1)
            elif name.endswith("running_var"):
                tensor.copy_(0.1 * values + 0.05)
            else:
                tensor.copy_(values + 0.1)


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


def make_kinds(path: Path) -> Path:
    """Write a model of format 3: sigmoid gates, and one addition of each kind that earlier formats do not know."""
    shape = Architecture(width=2, depth=1, experts=("conv3", "conv1", "avg3"), gating="sigmoid")
    network = RepModeUNet(shape, ("dna", "cell_membrane"), seed=0)
    liven(network)
    model = Model.create(path, network.eval(), **PARTS)
    _add_kinds(
        model,
        {
            "nucleolus": AdditionSpec(expert="conv3", gate="outside", scale=True),
            "tight_junction": AdditionSpec(expert="lowrank:2,1", resampling="base"),
            "mitochondria": AdditionSpec(expert="conv1", blocks="decoder"),
        },
    )
    return path


def make_data_set(path: Path) -> Path:
    """Write a model of format 4: it prepares images by mean and deviation of all training images together."""
    recipe = PreprocessingRecipe(axes="xy", data_set=True, light=(1.5, 2.0))
    model = Model.create(path, base_network(), **{**PARTS, "preprocessing": recipe.to_json()})
    _add_kinds(model, {"nucleolus": AdditionSpec()})
    return path


def _add_kinds(model: Model, kinds: Mapping[str, AdditionSpec]) -> None:
    for name, spec in kinds.items():
        network = model.network()
        network.add_structure(name, spec, seed=3)
        liven(network, f".own.{name}.")
        with torch.no_grad():
            for key, tensor in network.state_dict().items():
                if f".own.{name}." in key and ".expert" in key and not tensor.any():
                    tensor.fill_(0.05)  # an expert outside the softmax starts at zero
        model.add(name, network)


def make_predictor(path: Path, voxel_size: tuple[float, ...], window: tuple[int, ...]) -> Model:
    """Write a model of two structures that predicts by small `window`s, for tests of what prediction writes."""
    network = RepModeUNet(
        Architecture(width=2, depth=1, experts=("conv3", "conv1")), ("dna", "golgi"), seed=0
    )
    return Model.create(
        path,
        network,
        voxel_size=voxel_size,
        preprocessing={"order": 1},
        inference={"window": window, "overlap": 0.5, "batch": 3},
    )


def grown(model: Model, name: str, spec: AdditionSpec | None = None) -> RepModeUNet:
    network = model.network()
    network.add_structure(name, spec)
    return network


def make_history(path: Path) -> Path:
    """Write that model and change it in every way but by what waits to be accepted."""
    model = Model.open(make_model(path))
    for version, replace in enumerate([False, True, False, True]):
        if version == 2:
            model.gc()
            pack = path.parent / "desmosome.safetensors"
            model.export_pack("desmosome", pack)
            model.remove("desmosome")
            model.import_pack(pack)
            pack.unlink()
            continue
        model.add("desmosome", another(model, "desmosome", version), replace=replace)
    model.rollback(len(model.history) - 1)
    return path


def another(model: Model, name: str, seed: int) -> RepModeUNet:
    """Return a network of the base and one more version of `name`."""
    network = model.network([])
    network.add_structure(name, AdditionSpec(expert="conv1"), seed=seed)
    liven(network, f".own.{name}.")
    return network
