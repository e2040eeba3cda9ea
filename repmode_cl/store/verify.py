"""Checking a model directory against what was recorded when each structure was stored.

Four levels, each with those before it: the files' bytes, the tensors' digests, the fused kernels, the
prediction of a probe volume. Kernels and predictions are compared bit for bit where the environment is the
recorded one, and with float64 references, within a stated tolerance, where it is another: that is never
called bit-identical.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from repmode_cl.errors import ModelError
from repmode_cl.files import sha256_file
from repmode_cl.nn import Architecture, RepModeUNet
from repmode_cl.progress import track
from repmode_cl.store import records
from repmode_cl.store.environment import describe_difference, environment_fingerprint, with_threads
from repmode_cl.store.proof import (
    FLOAT32_TOLERANCE,
    FLOAT64_TOLERANCE,
    kernel_digest,
    prediction_digest,
    probe_shape,
    references,
    relative_difference,
)
from repmode_cl.store.registry import Entry, Registry

__all__ = ["Level", "StructureResult", "VerifyReport", "verify_model"]

Level = Literal["files", "tensors", "kernels", "predictions"]
Status = Literal["unchanged", "bit-identical", "within tolerance", "failed"]


@dataclass(frozen=True)
class StructureResult:
    """What was found of one structure.

    Parameters
    ----------
    structure
        Its name.
    status
        ``unchanged``: files or tensors are as recorded, nothing was computed. ``bit-identical``: kernels, or
        predictions too, are the recorded ones in the recorded environment. ``within tolerance``: in another
        environment, and no further from the references than that explains. ``failed``.
    detail
        In words: what was compared, how the environment differs, or what is wrong.
    file
        File of the model that holds it.
    """

    structure: str
    status: Status
    detail: str
    file: str

    @property
    def ok(self) -> bool:
        """Whether it did not fail."""
        return self.status != "failed"

    def __str__(self) -> str:
        status = "FAILED" if self.status == "failed" else self.status
        return f"{self.structure}: {status} ({self.detail})"


@dataclass(frozen=True)
class VerifyReport:
    """What `verify_model` found.

    Parameters
    ----------
    path
        The model.
    level
        What was checked.
    results
        One for each structure, in the model's order.
    notes
        What is odd but harms nothing, such as files that the registry does not name.
    """

    path: Path
    level: Level
    results: tuple[StructureResult, ...]
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether no structure failed."""
        return all(result.ok for result in self.results)

    @property
    def bit_identical(self) -> bool:
        """Whether the predictions of every structure were found bit-identical."""
        same = all(result.status == "bit-identical" for result in self.results)
        return self.level == "predictions" and same


class _Failure(Exception):  # noqa: N818 - not an error to callers: it ends the checks of one structure
    """What is wrong with a structure."""


def verify_model(path: str | Path, level: Level = "predictions") -> VerifyReport:
    """Check every structure of a model directory as it is on disk now.

    Parameters
    ----------
    path
        The model directory.
    level
        ``files``, ``tensors``, ``kernels`` or ``predictions``; each includes those before it.

    Returns
    -------
    VerifyReport
        A damaged structure is reported with its file, and does not keep the others from being checked.

    Raises
    ------
    ModelError
        If ``registry.json`` or ``model.json`` is missing or damaged: nothing can be compared then.
    """
    path = Path(path)
    if level not in get_args(Level):
        raise ModelError(f"level {level!r} is none of {', '.join(get_args(Level))}")
    registry = Registry.read(path)
    document = records.read_model(path, registry)
    check = _Check(path, level, registry, document)
    results = tuple(check.run(entry) for entry in track(registry.entries, "verify", len(registry.entries)))
    named = {entry.file for entry in registry.entries}
    notes = tuple(
        f"{file.relative_to(path).as_posix()} is not in the registry: an interrupted addition left it, unused"
        for file in sorted((path / records.STRUCTURES).glob("*.safetensors"))
        if file.relative_to(path).as_posix() not in named
    )
    return VerifyReport(path, level, results, notes)


class _Check:
    """Checks structures in the registry's order; what they need was then checked before them."""

    def __init__(self, path: Path, level: Level, registry: Registry, document: Mapping[str, Any]) -> None:
        self.path = path
        self.depth = get_args(Level).index(level)
        self.registry = registry
        self.document = document
        self.failed: dict[str, str] = {}
        self.files: dict[str, str] = {}
        self.base: RepModeUNet | None = None

    def run(self, entry: Entry) -> StructureResult:
        """Check one structure at every level up to the one asked for."""
        try:
            status, detail = self._check(entry)
        except (_Failure, ModelError) as error:
            status, detail = "failed", str(error)
            self.failed[entry.name] = entry.file
        return StructureResult(entry.name, status, detail, entry.file)

    def _check(self, entry: Entry) -> tuple[Status, str]:
        # An addition is worth nothing without the base: a damaged base is said of each that stands on it.
        self._check_file(self.registry.entries[0])
        self._check_file(entry)
        for need, digest in entry.needs:
            if need in self.failed:
                raise _Failure(f"it needs {need}, which failed ({self.failed[need]})")
            if self.registry.entry(need).digest != digest:
                raise _Failure(f"it was made for another {need} than {self.registry.entry(need).file} holds")
        if self.depth == 0:
            return "unchanged", f"{entry.file} is as recorded"
        network = self._load(entry)
        stored = records.read_references(self.path, entry)
        if self.depth == 1:
            return "unchanged", f"the tensors of {entry.file} are as recorded"
        with with_threads(int(entry.proof.environment.get("threads", torch.get_num_threads()))):
            return self._compute(entry, network, stored)

    def _check_file(self, entry: Entry) -> None:
        records.check_size(self.path, entry)
        # The base's file serves all its structures: it is read once.
        if entry.file not in self.files:
            self.files[entry.file] = sha256_file(self.path / entry.file)
        if self.files[entry.file] != entry.sha256:
            raise _Failure(f"{self.path / entry.file} is damaged: its SHA-256 is not the one recorded")

    def _load_base(self) -> RepModeUNet:
        if self.base is None:
            network = RepModeUNet(
                Architecture.from_json(self.document["architecture"]), self.document["base_structures"]
            )
            network.load_base_state(records.read_base(self.path, self.document))
            self.base = network.eval()
        return self.base

    def _load(self, entry: Entry) -> RepModeUNet:
        """Return a network that knows the structure, its tensors found to be those recorded."""
        network = self._load_base()
        # What is needed was loaded before, in the registry's order.
        if entry.kind == "addition":
            state = records.read_structure(self.path, entry, str(self.document["base"]["digest"]))
            network.add_structure(entry.name, entry.spec)
            network.load_structure_state(entry.name, state)
        return network

    def _compute(
        self, entry: Entry, network: RepModeUNet, stored: Mapping[str, Tensor]
    ) -> tuple[Status, str]:
        predictions = self.depth == 3
        now = environment_fingerprint(
            device="cpu", dtype=torch.float32, window=probe_shape(network.architecture), batch=1
        )
        what = "kernels and prediction" if predictions else "kernels"
        if now == entry.proof.environment:
            if kernel_digest(network, entry.name) != entry.proof.kernel_digest:
                raise _Failure(f"its fused kernels are not those recorded ({entry.file}, same environment)")
            if predictions and prediction_digest(network, entry.name)[0] != entry.proof.prediction_digest:
                raise _Failure(f"its prediction is not the one recorded ({entry.file}, same environment)")
            return "bit-identical", f"{what}, {now['threads']} thread{'s' if now['threads'] > 1 else ''}"
        computed = references(network, entry.name, prediction=predictions)
        worst = max(
            relative_difference(value, stored[key]) if key in stored else float("inf")
            for key, value in computed.items()
        )
        difference = describe_difference(entry.proof.environment, now)
        if not worst <= FLOAT64_TOLERANCE:
            raise _Failure(
                f"{what} differ by {worst:.1e} from the references in {entry.file}, allowed in another "
                f"environment is {FLOAT64_TOLERANCE:.0e}: {difference}"
            )
        if predictions:
            single = relative_difference(prediction_digest(network, entry.name)[1], stored["prediction"])
            if not single <= FLOAT32_TOLERANCE:
                raise _Failure(
                    f"its float32 prediction differs by {single:.1e} from the reference in {entry.file}, "
                    f"allowed in another environment is {FLOAT32_TOLERANCE:.0e}: {difference}"
                )
            what += f", float32 to {single:.1e} of {FLOAT32_TOLERANCE:.0e}"
        return "within tolerance", f"other environment: {difference}; {what}"
