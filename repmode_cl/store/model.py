"""The model directory: a frozen base that grows by one file per structure, and never changes what it holds.

    model.json        architecture, base structures, voxel size, normalisation, inference, digest of the base
    base.safetensors  everything that no addition owns
    structures/       one file per version of an addition, <name>-<first 8 digits of its digest>.safetensors
    registry.json     what counts, with digests, proofs and the history; replaced last
    pending/          additions under way or waiting to be accepted; not part of the model

Every write goes beside, is fsynced and put in place under a lock, the registry last: a process that dies at
any instant leaves the old model or the new one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from repmode_cl.errors import UnknownStructureError
from repmode_cl.nn import Architecture, FoldedUNet, PlainUNet, RepModeUNet, fold_structure
from repmode_cl.store import records
from repmode_cl.store.asked import check_asked
from repmode_cl.store.candidates import Candidate
from repmode_cl.store.changes import Collected, collect, remove, roll_back
from repmode_cl.store.commit import commit, store_network
from repmode_cl.store.creation import write_base_model
from repmode_cl.store.exchange import Taken, export_pack, import_pack
from repmode_cl.store.history import Action, Change
from repmode_cl.store.loading import load_base, load_structure
from repmode_cl.store.proof import on_cpu
from repmode_cl.store.registry import Entry, Registry, plain_json
from repmode_cl.store.staging import Pending, accept, discard
from repmode_cl.store.verify import Level, VerifyReport, verify_model
from repmode_cl.store.writing import sweep_if_idle
from repmode_cl.structures import check_structure_name

__all__ = ["Model"]


class Model:
    """A model directory as it was when it was opened, or when this object last changed it.

    Make one with `Model.create`, or open one with `Model.open`. Every change is of what is on disk by then.
    """

    def __init__(self, path: Path, document: Mapping[str, Any], registry: Registry) -> None:
        self.path = path
        self._document = dict(document)
        self._registry = registry
        self._fused: tuple[tuple[str, str], FoldedUNet | PlainUNet] | None = None

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
        origin = plain_json(provenance or {}, "provenance")
        figures = {name: plain_json(values, f"metrics of {name!r}") for name, values in metrics.items()}
        network = on_cpu(network)
        write_base_model(
            path,
            network,
            voxel_size=voxel_size,
            preprocessing=preprocessing,
            inference=inference,
            provenance=origin,
            metrics=figures,
        )
        model = cls.open(path)
        for name in network.additions:
            model.add(name, network, provenance=origin, metrics=figures.get(name, {}))
        return model

    @classmethod
    def open(cls, path: str | Path) -> Model:
        """Open a model directory; its tensors are read, and checked, when they are asked for.

        A structure whose file is missing or damaged keeps nobody from the others, nor from repairing it.

        Raises
        ------
        ModelError
            If it is no model, of an unknown version, or ``registry.json`` or ``model.json`` is missing or damaged.
        """
        path = Path(path)
        registry = Registry.read(path)
        document = records.read_model(path, registry)
        sweep_if_idle(path)
        gone = any(not (path / entry.file).is_file() for entry in registry.entries)
        if gone and Registry.read(path) != registry:
            # Another process changed the model since the registry was read, and deleted what it named.
            return cls.open(path)
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
    def kept(self) -> tuple[Entry, ...]:
        """Earlier versions that can be rolled back to, until `gc`."""
        return self._registry.kept

    @property
    def history(self) -> tuple[Change, ...]:
        """Every change of the model, from its creation on."""
        return self._registry.history

    def state_after(self, number: int) -> tuple[tuple[str, str], ...]:
        """Return name and digest of each structure that was active after a change of the history."""
        return self._registry.state_after(number)

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
            If a file that is needed for it is missing or cut short, or its tensors are not those that were stored.
        """
        names = self.structures if structures is None else tuple(structures)
        for name in names:
            self._check(name)
        entries = self._registry.with_needs(names)
        # All before the first is read: what is missing is told at once.
        for entry in (self._registry.entries[0], *entries):
            records.check_size(self.path, entry)
        network = load_base(self.path, self._document)
        for entry in entries:
            if entry.kind == "addition":
                load_structure(network, self.path, entry, self.base_digest)
        return network.eval()

    def fuse(self, structure: str) -> FoldedUNet | PlainUNet:
        """Return the plain network that predicts `structure`, on the CPU; the last one asked for is kept.

        Its batch norms are folded into its kernels (float32), unless that changes the probe's prediction by more
        than `FOLDING_TOLERANCE`: then they are left as they are. Which, the structure's proof says.
        """
        self._check(structure)
        entry = self.entries[structure]
        key = (structure, entry.digest)
        if self._fused is None or self._fused[0] != key:
            network = self.network([structure])
            fold = fold_structure if entry.proof.folded else RepModeUNet.fuse
            self._fused = (key, fold(network, structure))
        return self._fused[1]

    fused = fuse

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

        Raises
        ------
        StructureError, ImageError
            If `structure` is not there, or `volume` is no array of three axes and finite numbers.
        """
        from repmode_cl.inference.predict import sliding_window

        check_asked(volume, structure)
        settings = self.inference
        return sliding_window(
            self.fused(structure),
            volume,
            window=tuple(settings["window"]),
            overlap=settings["overlap"],
            batch_size=settings["batch"],
        )

    def verify(self, level: Level = "predictions", against: str | Path | None = None) -> VerifyReport:
        """Check what is on disk now against what was recorded, or against a copy too; see `verify_model`."""
        return verify_model(self.path, level, against)

    def _check(self, name: str) -> None:
        if name not in self.structures:
            raise UnknownStructureError(name, self.structures, f"the model {self.path}")

    # -- changing ------------------------------------------------------------------------------------

    def add(
        self,
        name: str,
        network: RepModeUNet,
        *,
        provenance: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
        replace: bool = False,
    ) -> Entry:
        """Store the addition `name` of a trained network; nothing that is stored is written again.

        Parameters
        ----------
        name
            A structure that the model does not hold yet; with `replace`, an addition that it holds.
        network
            One that was loaded from this model and learned `name`: all else that it shares with the model must be
            the same bits. Stored additions that `name` does not need may be absent.
        provenance, metrics
            JSON, kept in the registry.
        replace
            Store another version of an addition that no other structure needs; the one so far is kept until `gc`.

        Raises
        ------
        ModelError
            If the model has it already, or it cannot be replaced, or the network differs from the model in one bit.
        """
        self._registry = store_network(
            self, name, network, replace=replace, provenance=provenance, metrics=metrics
        )
        return self.entries[name]

    def commit(self, candidate: Candidate, *, action: Action = "add", replace: bool = False) -> Entry:
        """Make a candidate part of the model; see `repmode_cl.store.commit`."""
        self._registry = commit(self.path, candidate, action=action, replace=replace)
        return self.entries[candidate.entry.name]

    def remove(self, name: str) -> Change:
        """Take an addition out of the model; its version is kept until `gc`.

        Raises
        ------
        ModelError
            If it is part of the base, or another structure needs its experts.
        """
        self._registry = remove(self.path, name)
        return self.history[-1]

    def rollback(self, number: int) -> Change | None:
        """Make active what was active after change `number`; None if it still is.

        Raises
        ------
        ModelError
            If there is no such change, or `gc` deleted a version that it needs.
        """
        self._registry, change = roll_back(self.path, number)
        return change

    def export_pack(self, name: str, file: str | Path) -> Path:
        """Write an addition as one file for models with the same base; see `repmode_cl.store.exchange`."""
        return export_pack(self, name, file)

    def import_pack(self, file: str | Path) -> Taken:
        """Add a structure from its pack, after every check there is; see `repmode_cl.store.exchange`."""
        taken = import_pack(self, file)
        self._registry = Registry.read(self.path)
        return taken

    def accept(self, name: str) -> Taken:
        """Make a staged structure part of the model; see `repmode_cl.store.staging`."""
        taken = accept(self, name)
        self._registry = Registry.read(self.path)
        return taken

    def discard(self, name: str) -> Pending:
        """Remove what is pending of a structure; see `repmode_cl.store.staging`."""
        return discard(self, name)

    def gc(self, *, dry_run: bool = False) -> Collected:
        """Delete all that is kept but not active, and files that no version has; tell what went and its bytes."""
        self._registry, collected = collect(self.path, dry_run=dry_run)
        return collected
