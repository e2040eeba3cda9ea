"""The model directory: a frozen base that grows by one file per structure, and never changes what it holds.

    model.json        architecture, base structures, voxel size, normalisation, inference, digest of the base
    base.safetensors  everything that no addition owns
    structures/       one file per addition, <name>-<first 8 digits of its digest>.safetensors
    registry.json     what counts, with digests and proofs; replaced last
    pending/          training of additions under way; not part of the model

Every write goes beside, is fsynced and put in place under a lock, the registry last: a process that dies at
any instant leaves the old model or the new one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from repmode_cl.errors import ModelError, UnknownStructureError
from repmode_cl.files import sha256_file, write_json
from repmode_cl.nn import Architecture, FoldedUNet, RepModeUNet, fold_norms
from repmode_cl.store import records
from repmode_cl.store.digests import tensor_digest
from repmode_cl.store.proof import on_cpu, prove
from repmode_cl.store.registry import VERSION, Entry, Registry, plain_json
from repmode_cl.store.verify import Level, VerifyReport, verify_model
from repmode_cl.store.writing import check_inference, check_vacant, writing
from repmode_cl.structures import check_structure_name

__all__ = ["Model"]


class Model:
    """A model directory, opened for reading; `add` is the only thing that changes it.

    Make one with `Model.create`, or open one with `Model.open`.
    """

    def __init__(self, path: Path, document: Mapping[str, Any], registry: Registry) -> None:
        self.path = path
        self._document = dict(document)
        self._registry = registry
        self._fused: tuple[tuple[str, str], FoldedUNet] | None = None

    # -- making and opening --------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        path: str | Path,
        network: RepModeUNet,
        *,
        voxel_size: Sequence[float] | None,
        preprocessing: Mapping[str, Any],
        inference: Mapping[str, Any],
        provenance: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Model:
        """Write a trained network as a new model directory; additions that it has are added one by one.

        Parameters
        ----------
        path
            A folder that does not exist, is empty, or holds an interrupted creation.
        network
            On any device.
        voxel_size
            um (z, y, x) of the images that it was trained on; None where that was never known.
        preprocessing
            How images were prepared: JSON.
        inference
            ``window`` in voxels (z, y, x), ``overlap`` in [0, 1), ``batch``: what predictions use by default.
        provenance
            Where it comes from (data, configuration, versions): JSON, kept with each structure.
        metrics
            For each structure, how well it predicts: JSON.

        Raises
        ------
        ModelError
            If the folder holds anything else, a value is no JSON, or the network predicts non-finite numbers.
        """
        path = Path(path)
        metrics = dict(metrics or {})
        for name in metrics:
            if name not in network.structures:
                raise UnknownStructureError(name, network.structures, "metrics name it, and the network")
        document: dict[str, Any] = {
            "format": records.MODEL_FORMAT,
            "version": VERSION,
            "architecture": network.architecture.to_json(),
            "base_structures": list(network.base_structures),
            "voxel_size": [float(size) for size in voxel_size] if voxel_size is not None else None,
            "preprocessing": plain_json(preprocessing, "preprocessing"),
            "inference": check_inference(inference),
        }
        origin = plain_json(provenance or {}, "provenance")
        figures = {name: plain_json(values, f"metrics of {name!r}") for name, values in metrics.items()}
        network = on_cpu(network)
        facts = records.base_facts(document)
        base = network.base_state()
        document["base"] = {"file": records.BASE, "digest": tensor_digest(base, facts)}
        proofs = {name: prove(network, name) for name in network.base_structures}
        with writing(path):
            check_vacant(path)
            record = {"facts": facts, "digest": document["base"]["digest"]}
            file = records.write_record(path, records.BASE, base, record, proofs)
            write_json(path / records.MODEL, document)
            entries = tuple(
                Entry(
                    name=name,
                    kind="base",
                    **file,
                    digest=document["base"]["digest"],
                    spec=None,
                    needs=(),
                    parameters=_count(base),
                    proof=proofs[name],
                    provenance=origin,
                    metrics=figures.get(name, {}),
                    created=_now(),
                )
                for name in network.base_structures
            )
            Registry(sha256_file(path / records.MODEL), entries).write(path)
        model = cls.open(path)
        for name in network.additions:
            model.add(name, network, provenance=origin, metrics=figures.get(name, {}))
        return model

    @classmethod
    def open(cls, path: str | Path) -> Model:
        """Open a model directory; its tensors are read, and checked, when they are asked for.

        Raises
        ------
        ModelError
            If it is no model, of an unknown version, or a file of it is missing, cut short or damaged.
        """
        path = Path(path)
        registry = Registry.read(path)
        document = records.read_model(path, registry)
        for entry in registry.entries:
            records.check_size(path, entry)
        return cls(path, document, registry)

    # -- what is here ---------------------------------------------------------------------------------

    @property
    def structures(self) -> tuple[str, ...]:
        """Structures that it predicts, the base's first, then the additions in the order they came."""
        return self._registry.names

    @property
    def base_structures(self) -> tuple[str, ...]:
        """Structures that were trained jointly with the base."""
        return tuple(self._document["base_structures"])

    @property
    def entries(self) -> dict[str, Entry]:
        """What is recorded of each structure, in order."""
        return {entry.name: entry for entry in self._registry.entries}

    @property
    def architecture(self) -> Architecture:
        """Shape of the network."""
        return Architecture.from_json(self._document["architecture"])

    @property
    def voxel_size(self) -> tuple[float, float, float] | None:
        """Voxel size in um (z, y, x) of the grid that it predicts on; None if images kept their own."""
        size = self._document["voxel_size"]
        return None if size is None else (size[0], size[1], size[2])

    @property
    def preprocessing(self) -> dict[str, Any]:
        """How images were prepared for training."""
        return dict(self._document["preprocessing"])

    @property
    def inference(self) -> dict[str, Any]:
        """``window`` in voxels (z, y, x), ``overlap`` and ``batch`` of predictions."""
        return dict(self._document["inference"])

    @property
    def base_digest(self) -> str:
        """Digest of the base: what additions were made for."""
        return str(self._document["base"]["digest"])

    def pending(self, name: str) -> Path:
        """Return the folder for the training of an addition under way; not made here."""
        return self.path / "pending" / check_structure_name(name)

    # -- reading -------------------------------------------------------------------------------------

    def network(self, structures: Sequence[str] | None = None) -> RepModeUNet:
        """Load the network in evaluation mode, on the CPU.

        Parameters
        ----------
        structures
            Additions to load (those that they need come too); base structures are always there. None is all.

        Raises
        ------
        UnknownStructureError
            If one is not in the model.
        ModelError
            If a file's tensors are not those that were stored.
        """
        names = self.structures if structures is None else tuple(structures)
        for name in names:
            self._check(name)
        network = RepModeUNet(self.architecture, self.base_structures)
        network.load_base_state(records.read_base(self.path, self._document))
        for entry in self._registry.with_needs(names):
            if entry.kind == "addition":
                network.add_structure(entry.name, entry.spec)
                network.load_structure_state(
                    entry.name, records.read_structure(self.path, entry, self.base_digest)
                )
        return network.eval()

    def fused(self, structure: str) -> FoldedUNet:
        """Return the plain network that predicts `structure`, on the CPU; the last one asked for is kept."""
        self._check(structure)
        key = (structure, self.entries[structure].digest)
        if self._fused is None or self._fused[0] != key:
            self._fused = (key, fold_norms(self.network([structure]).fuse(structure)))
        return self._fused[1]

    def predict(self, volume: NDArray[np.generic] | Tensor, structure: str) -> NDArray[np.float32]:
        """Predict one structure of a volume by the model's Gaussian sliding window, on the CPU.

        Parameters
        ----------
        volume
            Transmitted light (Z, Y, X), on the model's voxel size and z-scored.
        structure
            One of `structures`; there is no fallback.

        Returns
        -------
        ndarray
            float32 (Z, Y, X), z-score units.
        """
        from repmode_cl.inference.predict import sliding_window

        settings = self.inference
        return sliding_window(
            self.fused(structure),
            volume,
            window=tuple(settings["window"]),
            overlap=settings["overlap"],
            batch_size=settings["batch"],
        )

    def verify(self, level: Level = "predictions") -> VerifyReport:
        """Check what is on disk now against what was recorded; see `verify_model`."""
        return verify_model(self.path, level)

    def _check(self, name: str) -> None:
        if name not in self.structures:
            raise UnknownStructureError(name, self.structures, f"the model {self.path}")

    # -- adding --------------------------------------------------------------------------------------

    def add(
        self,
        name: str,
        network: RepModeUNet,
        *,
        provenance: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
    ) -> Entry:
        """Store the addition `name` of a trained network; nothing that is stored is written again.

        Parameters
        ----------
        name
            A structure that the model does not hold yet.
        network
            One that was loaded from this model and learned `name`: all it shares with the model must be the
            same bits. Stored additions that `name` does not need may be absent.
        provenance, metrics
            JSON, kept in the registry.

        Raises
        ------
        ModelError
            If the model has it already, or the network differs from the model in one bit.
        """
        if name not in network.additions:
            raise UnknownStructureError(name, network.additions, "the additions of the network to store")
        origin = plain_json(provenance or {}, "provenance")
        figures = plain_json(metrics or {}, f"metrics of {name!r}")
        spec = network.additions[name]
        network = on_cpu(network)
        proof = prove(network, name)
        with writing(self.path):
            # Another process may have added since this model was opened: what is on disk now is what counts.
            registry = Registry.read(self.path)
            records.read_model(self.path, registry)
            if name in registry.names:
                raise ModelError(f"the model {self.path} has {name!r} already: structures are never replaced")
            self._check_unchanged(network, registry)
            for need in spec.needs:
                if need not in registry.names:
                    raise ModelError(f"{name!r} needs {need!r}, which {self.path} lacks: add that first")
            needs = tuple((need, registry.entry(need).digest) for need in spec.needs)
            facts = records.structure_facts(name, spec, self.base_digest, needs)
            state = network.structure_state(name)
            digest = tensor_digest(state, facts)
            file = records.write_record(
                self.path,
                f"{records.STRUCTURES}/{name}-{digest[:8]}.safetensors",
                state,
                {"facts": facts, "digest": digest},
                {name: proof},
            )
            entry = Entry(
                name=name,
                kind="addition",
                **file,
                digest=digest,
                spec=spec,
                needs=needs,
                parameters=_count(state),
                proof=proof,
                provenance=origin,
                metrics=figures,
                created=_now(),
            )
            registry = Registry(registry.model_sha256, (*registry.entries, entry))
            registry.write(self.path)
        self._registry = registry
        return entry

    def _check_unchanged(self, network: RepModeUNet, registry: Registry) -> None:
        """Refuse a network that differs from what is stored, in one bit or in its making."""
        what = f"the network differs from the model {self.path}"
        todo = "nothing was stored; train on a network loaded from this model, with all else frozen"
        if network.architecture != self.architecture or network.base_structures != self.base_structures:
            raise ModelError(f"{what} in its architecture or its base structures: {todo}")
        if tensor_digest(network.base_state(), records.base_facts(self._document)) != self.base_digest:
            raise ModelError(f"{what} in the base (weights, gate rows or norm statistics): {todo}")
        for other, spec in network.additions.items():
            if other not in registry.names:
                continue
            entry = registry.entry(other)
            facts = records.structure_facts(other, spec, self.base_digest, entry.needs)
            if spec != entry.spec or tensor_digest(network.structure_state(other), facts) != entry.digest:
                raise ModelError(f"{what} in the structure {other!r}: {todo}")


def _count(state: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in state.values() if torch.is_floating_point(tensor))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
