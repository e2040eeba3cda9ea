"""A model directory as it is on disk: structures, entries, history, the network, and fused networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from repmode_cl.errors import ModelError, UnknownStructureError
from repmode_cl.nn import Architecture, FoldedUNet, PlainUNet, RepModeUNet, fold_structure
from repmode_cl.store import record_files as records
from repmode_cl.store.history import Change
from repmode_cl.store.hub import local_model
from repmode_cl.store.hub_copy import hub_title, refuse_hub_copy
from repmode_cl.store.load_network import load_base, load_structure
from repmode_cl.store.registry import Entry, Registry
from repmode_cl.store.transaction import remove_leftovers_if_idle
from repmode_cl.structures import check_structure_name

__all__ = ["ModelSnapshot"]


class ModelSnapshot:
    """A model directory as it was when it was opened; reads it, and never writes.

    Open one with `ModelSnapshot.open`. `repmode_cl.model.Model` adds predictions and changes.
    """

    def __init__(self, path: Path, document: Mapping[str, Any], registry: Registry) -> None:
        self.path = path
        self._document = dict(document)
        self._registry = registry
        self._staged: frozenset[str] = frozenset()
        self._fused: tuple[tuple[str, str], FoldedUNet | PlainUNet] | None = None

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open a model directory, or a copy of the one at ``hf://owner/name@revision`` (`repmode_cl.store.hub`).

        Tensors are read, and checked, when they are needed. A structure whose file is missing or damaged does not keep
        the others from being used, nor from being repaired.

        Raises
        ------
        ModelError
            If it is no model, of an unknown version, or ``registry.json`` or ``model.json`` is missing or damaged.
        """
        path = local_model(path)
        registry = Registry.read(path)
        document = records.read_model_document(path, registry)
        remove_leftovers_if_idle(path)
        missing = any(not (path / entry.file).is_file() for entry in registry.entries)
        if missing and Registry.read(path) != registry:
            # Another process changed the model since the registry was read, and deleted what it named.
            return cls.open(path)
        return cls(path, document, registry)

    # -- contents ---------------------------------------------------------------------------------

    @property
    def structures(self) -> tuple[str, ...]:
        """Structures that it predicts: the base's first, then the additions in the order in which they were added."""
        return self._registry.names

    @property
    def base_structures(self) -> tuple[str, ...]:
        """Structures that were trained jointly with the base."""
        return tuple(self._document["base_structures"])

    @property
    def entries(self) -> dict[str, Entry]:
        """Registry entries by structure, in order."""
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
    def title(self) -> str:
        """Name of its folder; of a copy from the hub ``owner/name@commit``."""
        return hub_title(self.path) or self.path.resolve().name

    @property
    def architecture(self) -> Architecture:
        """Shape of the network."""
        return Architecture.from_json(self._document["architecture"])

    @property
    def voxel_size(self) -> tuple[float, float, float] | None:
        """Voxel size in um (z, y, x) of the grid that it predicts on; None if each image keeps its own."""
        size = self._document["voxel_size"]
        return None if size is None else (size[0], size[1], size[2])

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Preparation of the images that it was trained on."""
        return dict(self._document["preprocessing"])

    @property
    def inference(self) -> dict[str, Any]:
        """``window`` in voxels (z, y, x), ``overlap`` and ``batch`` of predictions."""
        return dict(self._document["inference"])

    @property
    def base_digest(self) -> str:
        """Digest of the base that additions are made for."""
        return str(self._document["base"]["digest"])

    def pending(self, name: str) -> Path:
        """Return the folder of an addition that is being trained or staged; it is not created."""
        refuse_hub_copy(self.path)
        return self.path / "pending" / check_structure_name(name)

    @property
    def staged(self) -> frozenset[str]:
        """Names that stand for a staged structure here (`repmode_cl.store.staging.open_with_staged`)."""
        return self._staged

    def with_entry(self, entry: Entry) -> ModelSnapshot:
        """Return this model with a staged structure, in place of one of its name; it is only to be read."""
        registry = self._registry
        # Last, where a commit puts it too: after the additions whose experts it sees.
        entries = (*(one for one in registry.entries if one.name != entry.name), entry)
        model = ModelSnapshot(self.path, self._document, replace(registry, entries=entries))
        model._staged = self._staged | {entry.name}
        return model

    def unknown_structure(self, name: str) -> UnknownStructureError:
        """Return the error for a structure that is not part of the model; it says where one is pending."""
        folder = self.path / "pending"
        pending = [one.name for one in folder.iterdir() if one.is_dir()] if folder.is_dir() else []
        hint = (
            f"; {name!r} is pending and not part of the model: `repmode-cl pending` says what it waits for, "
            f"`repmode-cl predict --pending {name}` predicts what is staged, `repmode-cl accept` takes it"
            if name in pending
            else ""
        )
        return UnknownStructureError(name, self.structures, f"the model {self.path}", hint=hint)

    # -- reading -------------------------------------------------------------------------------------

    def network(self, structures: Sequence[str] | None = None) -> RepModeUNet:
        """Load the network in evaluation mode, on the CPU.

        Parameters
        ----------
        structures
            Additions to load (those that they need are loaded too); base structures are always there. None is all.

        Raises
        ------
        UnknownStructureError
            If one is not in the model.
        ModelError
            If a file that is needed for it is missing or cut short, its tensors are not those that were stored, or it
            needs another version of a structure than this one.
        """
        names = self.structures if structures is None else tuple(structures)
        for name in names:
            self._check(name)
        entries = self._registry.with_needs(names)
        for entry in entries:
            self._check_needs(entry)
        # All before the first is read, so that a missing file is reported at once.
        for entry in (self._registry.entries[0], *entries):
            records.check_size(self.path, entry)
        network = load_base(self.path, self._document)
        for entry in entries:
            if entry.kind == "addition":
                load_structure(network, self.path, entry, self.base_digest)
        return network.eval()

    def fuse(self, structure: str) -> FoldedUNet | PlainUNet:
        """Return the plain network that predicts `structure`, on the CPU; the last one is cached.

        Its batch norms are folded into its kernels (float32), unless that changes the probe's prediction by more
        than `FOLDING_TOLERANCE`; the structure's proof records whether it does.
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

    def _check_needs(self, entry: Entry) -> None:
        """Refuse a structure whose experts of others are not here as it was learned with them."""
        for need, digest in entry.needs:
            found = self._registry.entry(need).digest
            if found != digest:
                staged = ", which is staged and not accepted" if need in self._staged else ""
                raise ModelError(
                    f"{entry.name!r} was learned with version {digest[:8]} of {need!r}, and {self.path} has version "
                    f"{found[:8]} here{staged}: predict {entry.name!r} without that one, or put the model back from a "
                    "copy"
                )

    def _check(self, name: str) -> None:
        if name not in self.structures:
            raise self.unknown_structure(name)
