"""The three ways to get a structure that a model lacks, each as a strategy to be trained, with their sizes on disk."""

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
from repmode_cl.store.reliability import Reliability
from repmode_cl.strategies.base import StructureStrategy
from repmode_cl.strategies.experts_frozen import ExpertsFrozen, training_options
from repmode_cl.strategies.fine_tuning import FineTuning
from repmode_cl.strategies.multi_net import MultiNet, PlainNetworks
from repmode_cl.training import Precision
from repmode_cl.utils.memory import parameter_bytes, tensor_bytes
from repmode_cl.utils.safetensors_io import write_tensors
from repmode_cl.workflows.addition_dry_run import addition_file_bytes

__all__ = ["ComparisonMethods", "addition_bytes", "network_bytes", "second_model_bytes"]


@dataclass(frozen=True)
class ComparisonMethods:
    """Factory of the strategies of one comparison: same stream, steps, patches and settings, except for the rate.

    Attributes
    ----------
    network
        The model's, with the structures that it knows; read, never trained.
    structure
        The structure to learn.
    config
        Training, patch and inference of all three.
    rates
        Method -> peak learning rate.
    spec, init_from
        What the addition gets, and what it starts from, as of `add_structure`.
    kernel
        Edge of the separate network's kernels, 3 or 5.
    """

    network: RepModeUNet
    structure: str
    config: Config
    rates: Mapping[str, float]
    spec: AdditionSpec
    init_from: str
    kernel: int

    def title(self, method: str) -> str:
        """Return the name of a method in tables."""
        return {
            ADDING: "adding",
            FINE_TUNING: "fine-tuning a copy",
            OWN_NETWORK: "a separate network",
        }[method]

    def new_network(self, method: str) -> RepModeUNet | PlainNetworks:
        """Return the network that a method trains, on the CPU: a copy, or a plain one; `network` stays as it is."""
        if method == ADDING:
            network = self._copy(self.network)
            network.add_structure(self.structure, self.spec, seed=self.config.seeds[0])
            return network
        if method == FINE_TUNING:
            # Without additions: the network refuses to train a base that others depend on.
            return self._copy(self.network, additions=False)
        return PlainNetworks(self.network.architecture, self.kernel)

    def strategy(
        self, method: str, network: RepModeUNet | PlainNetworks, stream: StructureStream, precision: Precision
    ) -> StructureStrategy:
        """Return the strategy of a method, to train its network of `new_network`."""
        options: dict[str, Any] = {
            "model": network,
            "stream": stream,
            "training": self.config.training.model_copy(update={"learning_rate": self.rates[method]}),
            "patch": self.config.patch.size,
            "inference": self.config.inference,
            "seed": self.config.seeds[0],
            "precision": precision,
        }
        if method == ADDING:
            return ExpertsFrozen(spec=self.spec, **options, **training_options(self.config.strategies[0]))
        return FineTuning(**options) if method == FINE_TUNING else MultiNet(**options)

    def network_after(self, method: str, strategy: StructureStrategy) -> RepModeUNet | None:
        """Return the network that predicts the model's structures after `strategy` was trained.

        Of a fine-tuned copy, that is the model with the copy's base below the additions as they are stored: the
        result for a user who changes the base and keeps the additions. A separate network changes none: None.
        """
        if method == OWN_NETWORK:
            return None
        trained: RepModeUNet = strategy.network
        if method == ADDING:
            return trained
        gate_row = f".gates.{self.structure}"
        base = {
            name: tensor.cpu() for name, tensor in trained.base_state().items() if not name.endswith(gate_row)
        }
        return self._copy(self.network, base=base)

    def stored_parameters(self, method: str, strategy: StructureStrategy) -> int:
        """Return how many numbers a method stores: those owned, a whole copy, or the whole separate network."""
        if method == ADDING:
            return parameter_bytes(strategy.network, list(strategy.network.owned_names(self.structure)))[0]
        numbers = parameter_bytes(strategy.network, list(strategy.network.state_dict()))[0]
        if method == FINE_TUNING:  # the additions go with their copy of the base
            for name in self.network.additions:
                numbers += parameter_bytes(self.network, list(self.network.owned_names(name)))[0]
        return numbers

    def stored_bytes(
        self,
        method: str,
        strategy: StructureStrategy,
        model: Model,
        folder: Path,
        *,
        provenance: Mapping[str, Any],
        metrics: Mapping[str, Any],
        reliability: Reliability | None,
    ) -> int:
        """Return the bytes that a method takes on disk in addition to the model; `folder` gets temporary files."""
        network = strategy.network
        if method == ADDING:
            return addition_bytes(
                model,
                self.structure,
                network,
                folder,
                provenance=provenance,
                metrics=metrics,
                reliability=reliability,
            )
        state = network.state_dict()
        if method == OWN_NETWORK:
            return network_bytes(state, folder)
        gate_rows = [tensor for name, tensor in state.items() if name.endswith(f".gates.{self.structure}")]
        return second_model_bytes(model, self.network.structures, gate_rows)

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
    reliability: Reliability | None = None,
) -> int:
    """Return the size of the file that the model would get: it is written to `folder`, and removed.

    It holds tensors, the references of its proof, and its records. Of an addition that can get no file, because its
    training diverged, the size is estimated.
    """
    with _scratch_folder(folder) as scratch:
        try:
            candidate = make_candidate(
                model,
                structure,
                network,
                scratch,
                provenance=provenance,
                metrics=metrics,
                reliability=reliability,
            )
        except ModelError:
            return addition_file_bytes(network, structure)
        return candidate.entry.bytes


def network_bytes(state: Mapping[str, Tensor], folder: Path) -> int:
    """Return the size of one safetensors file of a network's tensors: it is written to `folder`, and removed."""
    with _scratch_folder(folder) as scratch:
        file = scratch / "network.safetensors"
        write_tensors(file, state, {})
        return file.stat().st_size


def second_model_bytes(model: Model, known: Sequence[str], gate_rows: Sequence[Tensor]) -> int:
    """Return the size of a second model: the files of base and additions as `model` has them, and new gate rows."""
    files = {model.entries[name].file: model.entries[name].bytes for name in known}
    return sum(files.values()) + tensor_bytes(gate_rows)


@contextmanager
def _scratch_folder(folder: Path) -> Iterator[Path]:
    # Always the same name, so that the files of a killed process are removed by the next.
    scratch = folder / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
