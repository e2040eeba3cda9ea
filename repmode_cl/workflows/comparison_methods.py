"""The three ways in which a facility can come by a structure that its model lacks, each as a strategy to be trained."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from repmode_cl.config import Config
from repmode_cl.errors import ModelError
from repmode_cl.model import Model
from repmode_cl.nn import AdditionSpec, RepModeUNet
from repmode_cl.results.comparison import ADDING, FINE_TUNING, OWN_NETWORK
from repmode_cl.scenarios import StructureStream
from repmode_cl.store import make_candidate
from repmode_cl.strategies.base import StructureStrategy
from repmode_cl.strategies.experts_frozen import ExpertsFrozen
from repmode_cl.strategies.fine_tuning import FineTuning
from repmode_cl.strategies.multi_net import MultiNet, PlainNetworks
from repmode_cl.training import Precision
from repmode_cl.utils.memory import parameter_bytes
from repmode_cl.utils.safetensors_io import write_tensors
from repmode_cl.workflows.addition_dry_run import file_bytes

__all__ = ["ComparisonMethods", "addition_bytes", "network_bytes", "second_model_bytes"]


@dataclass(frozen=True)
class ComparisonMethods:
    """Makes the strategies of one comparison: same stream, same steps and patches, same settings but the rate.

    Attributes
    ----------
    network
        The model's, with the structures that it knows; read, never trained.
    structure
        What is learned.
    config
        Training, patch and inference of all three.
    rates
        Way -> peak learning rate.
    spec, init_from
        What the addition gets, and what it starts from, as `add_structure` takes it.
    kernel
        Edge of the own network's kernels, 3 or 5.
    """

    network: RepModeUNet
    structure: str
    config: Config
    rates: Mapping[str, float]
    spec: AdditionSpec
    init_from: str
    kernel: int

    def title(self, key: str) -> str:
        """Return how tables call a way."""
        return {
            ADDING: "adding",
            FINE_TUNING: "fine-tuning a copy",
            OWN_NETWORK: "a network of its own",
        }[key]

    def fresh(self, key: str) -> RepModeUNet | PlainNetworks:
        """Return the network that a way trains, on the CPU: a copy, or one of its own; `network` stays as it is."""
        if key == ADDING:
            network = self._copy(self.network)
            network.add_structure(self.structure, self.spec, seed=self.config.seeds[0])
            return network
        if key == FINE_TUNING:
            # Without additions: the network refuses to train a base that others depend on.
            return self._copy(self.network, additions=False)
        return PlainNetworks(self.network.architecture, self.kernel)

    def strategy(
        self, key: str, network: RepModeUNet | PlainNetworks, stream: StructureStream, precision: Precision
    ) -> StructureStrategy:
        """Return the strategy of a way, to train its network of `fresh`."""
        options: dict[str, Any] = {
            "network": network,
            "stream": stream,
            "training": self.config.training.model_copy(update={"learning_rate": self.rates[key]}),
            "patch": self.config.patch.size,
            "inference": self.config.inference,
            "seed": self.config.seeds[0],
            "precision": precision,
        }
        if key == ADDING:
            return ExpertsFrozen(spec=self.spec, **options)
        return FineTuning(**options) if key == FINE_TUNING else MultiNet(**options)

    def known(self, key: str, strategy: StructureStrategy) -> RepModeUNet | None:
        """Return the network that predicts the model's structures after `strategy` was trained.

        Of a fine-tuned copy, that is the model with the copy's base below the additions as they are stored: what a
        user gets who changes the base and keeps the additions. A network of its own changes none: None.
        """
        if key == OWN_NETWORK:
            return None
        trained: RepModeUNet = strategy.network
        if key == ADDING:
            return trained
        base = {name: tensor.cpu() for name, tensor in trained.base_state().items()}
        row = f".gates.{self.structure}"
        base = {name: tensor for name, tensor in base.items() if not name.endswith(row)}
        return self._copy(self.network, base=base)

    def parameters(self, key: str, strategy: StructureStrategy) -> int:
        """Return how many numbers a way stores: what is owned, a whole copy, or the whole network."""
        if key == ADDING:
            return parameter_bytes(strategy.network, list(strategy.network.owned_names(self.structure)))[0]
        numbers = parameter_bytes(strategy.network, list(strategy.network.state_dict()))[0]
        if key == FINE_TUNING:  # the additions go with their copy of the base
            for name in self.network.additions:
                numbers += parameter_bytes(self.network, list(self.network.owned_names(name)))[0]
        return numbers

    def size(
        self,
        key: str,
        strategy: StructureStrategy,
        model: Model,
        folder: Path,
        *,
        provenance: Mapping[str, Any],
        metrics: Mapping[str, Any],
    ) -> int:
        """Return the bytes that a way takes on a disk besides the model; files are written to `folder` for a while."""
        network = strategy.network
        if key == ADDING:
            return addition_bytes(
                model, self.structure, network, folder, provenance=provenance, metrics=metrics
            )
        state = network.state_dict()
        if key == OWN_NETWORK:
            return network_bytes(state, folder)
        rows = [tensor for name, tensor in state.items() if name.endswith(f".gates.{self.structure}")]
        return second_model_bytes(model, self.network.structures, rows)

    @staticmethod
    def _copy(
        network: RepModeUNet, *, additions: bool = True, base: Mapping[str, Any] | None = None
    ) -> RepModeUNet:
        copy = RepModeUNet(network.architecture, network.base_structures)
        copy.load_base_state(network.base_state() if base is None else base)
        for name, spec in network.additions.items() if additions else ():
            copy.add_structure(name, spec)
            copy.load_structure_state(name, network.structure_state(name))
        return copy.eval()


def addition_bytes(
    model: Model,
    structure: str,
    network: RepModeUNet,
    folder: Path,
    *,
    provenance: Mapping[str, Any],
    metrics: Mapping[str, Any],
) -> int:
    """Return the size of the file that the model would get: it is written to `folder`, and removed.

    Tensors, the references of its proof, and its record. Of one that can get no file, because its training diverged,
    the size is estimated.
    """
    with _scratch(folder) as place:
        try:
            made = make_candidate(model, structure, network, place, provenance=provenance, metrics=metrics)
        except ModelError:
            return file_bytes(network, structure)
        return made.entry.bytes


def network_bytes(state: Mapping[str, Tensor], folder: Path) -> int:
    """Return the size of one safetensors file of a network's tensors: it is written to `folder`, and removed."""
    with _scratch(folder) as place:
        file = place / "network.safetensors"
        write_tensors(file, state, {})
        return file.stat().st_size


def second_model_bytes(model: Model, known: Sequence[str], rows: Sequence[Tensor]) -> int:
    """Return what a second model takes: the files of base and additions as `model` has them, and new gate rows."""
    files = {model.entries[name].file: model.entries[name].bytes for name in known}
    return sum(files.values()) + sum(row.numel() * row.element_size() for row in rows)


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    # Always the same: what a killed process left is found again.
    place = folder / "scratch"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
