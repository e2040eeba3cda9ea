"""`Model`: a frozen base that grows by one file per structure, and never changes the structures it has.

    model.json        architecture, base structures, voxel size, normalisation, inference, digest of the base
    base.safetensors  everything that no addition owns
    structures/       one file per version of an addition, <name>-<first 8 digits of its digest>.safetensors
    registry.json     the structures of the model, with digests, proofs and the history; replaced last
    pending/          additions in training or waiting to be accepted; not part of the model

Every file is written under a temporary name, fsynced and put in place under a lock, the registry last: a process that
dies at any instant leaves the old model or the new one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from repmode_cl.data.split_record import SplitRecord, TrainingRecords, read_split_record
from repmode_cl.errors import ImageError, StructureError, UnknownStructureError
from repmode_cl.inference.sliding_window import sliding_window
from repmode_cl.nn import RepModeUNet
from repmode_cl.store.candidate import Candidate
from repmode_cl.store.commit import commit, store_network
from repmode_cl.store.create import write_base_model
from repmode_cl.store.history import Action, Change
from repmode_cl.store.pack_exchange import ImportResult, export_pack, import_pack
from repmode_cl.store.proof import on_cpu
from repmode_cl.store.registry import Entry, Registry, plain_json
from repmode_cl.store.reliability import Reliability
from repmode_cl.store.snapshot import ModelSnapshot
from repmode_cl.store.staging import PendingStructure, accept, discard
from repmode_cl.store.verify import verify_model
from repmode_cl.store.verify_report import Level, VerifyReport
from repmode_cl.store.versions import GarbageReport, collect_garbage, remove, roll_back

if TYPE_CHECKING:
    from repmode_cl.config import DataConfig

__all__ = ["Model", "check_prediction_request"]

#: Name of the base's record of images; its structures were trained jointly and share it.
BASE = "the base"


class Model(ModelSnapshot):
    """A model directory as it was when it was opened, or when this object last changed it.

    Make one with `Model.create`, or open one with `Model.open`. A change starts from the model on disk at that time.
    """

    # -- creating -------------------------------------------------------------------------------------------

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
        reliability: Mapping[str, Reliability] | None = None,
    ) -> Model:
        """Write a trained network as a new model directory; its additions are added one by one.

        Parameters
        ----------
        path
            A folder that does not exist, is empty, or holds an interrupted creation.
        network
            The trained network, on any device.
        voxel_size
            um (z, y, x) of the images that it was trained on; None if it is unknown.
        preprocessing
            How images were prepared: JSON.
        inference
            ``window`` in voxels (z, y, x), ``overlap`` in [0, 1), ``batch``: the defaults of predictions.
        provenance
            Where it comes from (data, configuration, versions): JSON, kept with each structure.
        metrics
            For each structure, how well it predicts: JSON.
        reliability
            For each structure, what says how far its predictions can be trusted.

        Raises
        ------
        ModelError
            If the folder holds anything else, a value is not JSON, or the network predicts non-finite numbers.
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
            reliability=dict(reliability or {}),
        )
        model = cls.open(path)
        for name in network.additions:
            model.add(
                name,
                network,
                provenance=origin,
                metrics=figures.get(name, {}),
                reliability=(reliability or {}).get(name),
            )
        return model

    # -- predicting and checking ----------------------------------------------------------------------

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
            If the model has no such structure, or `volume` is not an array of three axes and finite numbers.
        """
        check_prediction_request(volume, structure)
        settings = self.inference
        return sliding_window(
            self.fused(structure),
            volume,
            window=tuple(settings["window"]),
            overlap=settings["overlap"],
            batch_size=settings["batch"],
            weights=settings.get("weights", "floored"),
        )

    def verify(self, level: Level = "predictions", against: str | Path | None = None) -> VerifyReport:
        """Check the model on disk against its records, and with `against` also against a copy; see `verify_model`."""
        return verify_model(self.path, level, against)

    # -- what it was trained on ------------------------------------------------------------------------

    def data_settings(self) -> DataConfig:
        """Return how its base's images were split and prepared, as the section `data` of a configuration; no manifest.

        A model that does not record its split has the defaults.
        """
        # Commands that only show or predict do not wait for the schema.
        from repmode_cl.config import DataConfig, PreprocessingConfig
        from repmode_cl.data.preprocessing.recipe import PreprocessingRecipe

        recipe = PreprocessingRecipe.from_json(self.preprocessing)
        return DataConfig(
            **self._base_record.settings,
            preprocessing=PreprocessingConfig(voxel_size=self.voxel_size, **recipe.to_settings()),
        )

    @property
    def _base_record(self) -> SplitRecord:
        return read_split_record(self.entries[self.base_structures[0]].provenance)

    def training_records(self, learned_from: Iterable[str] = ()) -> TrainingRecords:
        """Return the records of the images that it learned from, for a training that builds on it.

        Parameters
        ----------
        learned_from
            Additions whose weights are used, in addition to the base: seen, started from, or measured. What these build
            on themselves counts with them. Names of base structures count as the base.
        """
        base = self.base_structures
        records = {BASE: self._base_record}
        for name, entry in self.entries.items():
            if name not in base:
                records[name] = read_split_record(entry.provenance)
        names = [other for name in learned_from for other in (name, *self._builds_on(name))]
        additions = [name for name in dict.fromkeys(names) if name not in base]
        return TrainingRecords(records, [BASE, *additions])

    def _builds_on(self, name: str) -> list[str]:
        """Return the structures whose images decided an addition's weights, too: seen, or started from."""
        found: list[str] = []
        queue = [name]
        while queue:
            entry = self.entries.get(queue.pop())
            if entry is None:
                continue
            init = entry.provenance.get("init")
            start = init.get("structure") if isinstance(init, Mapping) else None
            others = [*(need for need, _ in entry.needs), *([start] if isinstance(start, str) else [])]
            new = [other for other in others if other in self.entries and other not in found]
            found += new
            queue += new
        return found

    # -- changing ------------------------------------------------------------------------------------

    def add(
        self,
        name: str,
        network: RepModeUNet,
        *,
        provenance: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
        reliability: Reliability | None = None,
        replace: bool = False,
    ) -> Entry:
        """Store the addition `name` of a trained network; no stored file is written again.

        Parameters
        ----------
        name
            A structure that the model does not hold yet; with `replace`, an addition that it holds.
        network
            A network that was loaded from this model and trained for `name`: everything else that it shares with the
            model must be the same bits. Stored additions that `name` does not need may be absent.
        provenance, metrics
            JSON, kept in the registry.
        reliability
            What says how far its predictions can be trusted; kept in the registry.
        replace
            Store another version of an addition that no other structure needs; the present one is kept until `gc`.

        Raises
        ------
        ModelError
            If the model has it already, or it cannot be replaced, or the network differs from the model in one bit.
        """
        self._registry = store_network(
            self,
            name,
            network,
            replace=replace,
            provenance=provenance,
            metrics=metrics,
            reliability=reliability,
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
        """Make the structures active that were active after change `number`; None if they still are.

        Raises
        ------
        ModelError
            If there is no such change, or `gc` deleted a version that it needs.
        """
        self._registry, change = roll_back(self.path, number)
        return change

    def export_pack(self, name: str, file: str | Path) -> Path:
        """Write an addition as one file for models with the same base; see `repmode_cl.store.pack_exchange`."""
        return export_pack(self, name, file)

    def import_pack(self, file: str | Path) -> ImportResult:
        """Add a structure from its pack, after all checks; see `repmode_cl.store.pack_exchange`."""
        result = import_pack(self, file)
        self._registry = Registry.read(self.path)
        return result

    def accept(self, name: str) -> ImportResult:
        """Make a staged structure part of the model; see `repmode_cl.store.staging`."""
        result = accept(self, name)
        self._registry = Registry.read(self.path)
        return result

    def discard(self, name: str) -> PendingStructure:
        """Remove a pending structure; see `repmode_cl.store.staging`."""
        return discard(self, name)

    def gc(self, *, dry_run: bool = False) -> GarbageReport:
        """Delete kept versions and files that belong to no version; return what was deleted."""
        self._registry, garbage = collect_garbage(self.path, dry_run=dry_run)
        return garbage


def check_prediction_request(volume: object, structure: object) -> None:
    """Refuse arguments of `Model.predict` that are swapped, of a wrong type, or hold numbers that are not finite.

    Raises
    ------
    StructureError
        If `structure` is not a string.
    ImageError
        If `volume` is not an array of finite numbers.
    """
    usage = "call predict(volume, structure)"
    if not isinstance(volume, np.ndarray | Tensor):
        raise ImageError(f"volume is an array (Z, Y, X), not {_kind(volume)}: {usage}")
    if not isinstance(structure, str):
        raise StructureError(f"structure is a name, not {_kind(structure)}: {usage}, once for each structure")
    if isinstance(volume, np.ndarray) and volume.dtype.kind not in "buif":
        raise ImageError(f"volume is an array of numbers, not of {volume.dtype}")
    # Plane by plane: for a large volume or a memory map, no second array of its size is made.
    for z, plane in enumerate(volume if volume.ndim else ()):
        finite = torch.isfinite(plane) if isinstance(plane, Tensor) else np.isfinite(plane)
        if not bool(finite.all()):
            raise ImageError(
                f"volume has numbers that are not finite, first in plane {z}: mend or cut out that part"
            )


def _kind(value: object) -> str:
    return f"the text {value!r}" if isinstance(value, str) else f"a {type(value).__name__}"
