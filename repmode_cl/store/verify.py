"""Checking a model directory against what was recorded when each structure was stored.

Four levels, each with those before it: the files' bytes, the tensors' digests, the fused kernels, the
prediction of a probe volume. Kernels and predictions are compared bit for bit where the environment is the
recorded one, and with float64 references, within a stated tolerance, where it is another: that is never
called bit-identical. Beside the model's tensors no more is held than one layer and the probe's activations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch

from repmode_cl.errors import ModelError
from repmode_cl.nn import RepModeUNet
from repmode_cl.store import record_files as records
from repmode_cl.store.load_network import check_structure, load_base, load_structure
from repmode_cl.store.probe import ComputedDigests
from repmode_cl.store.proof import compare_with_proof
from repmode_cl.store.registry import Entry, Registry
from repmode_cl.store.transaction import sweep_if_idle
from repmode_cl.store.verify_report import Level, Status, StructureResult, VerifyReport, compare_models
from repmode_cl.utils.atomic_files import sha256_file
from repmode_cl.utils.environment import with_threads
from repmode_cl.utils.progress import track

__all__ = ["verify_model"]


class _Failure(Exception):  # noqa: N818 - not an error to callers: it ends the checks of one structure
    """What is wrong with a structure."""

    def __init__(self, detail: str, observed: ComputedDigests | None = None) -> None:
        super().__init__(detail)
        self.observed = observed


def verify_model(
    path: str | Path, level: Level = "predictions", against: str | Path | None = None
) -> VerifyReport:
    """Check every structure of a model directory as it is on disk now, and the files of earlier versions.

    Parameters
    ----------
    path
        The model directory.
    level
        ``files``, ``tensors``, ``kernels`` or ``predictions``; each includes those before it.
    against
        Another model directory, a copy or an older backup: it is verified too, and the structures that both hold are
        compared bit for bit, up to `level`, as computed here.

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
    registry, document = _read(path)
    # Of the other first, so that a path that is no model is told before the work.
    other = None if against is None else (Path(against), *_read(Path(against)))
    report = _verify(path, level, registry, document)
    if not report.ok and Registry.read(path) != registry:
        # Another process changed the model meanwhile: what it deleted is not missing.
        return verify_model(path, level, against)
    if other is None:
        return report
    folder, others, their_document = other
    # The same arithmetic for both: a proof may have been made with another number of threads there.
    threads = {entry.name: _threads(entry) for entry in registry.entries}
    theirs = _verify(folder, level, others, their_document, threads)
    comparison = compare_models(report, theirs, document, their_document)
    return dataclasses.replace(report, comparison=comparison)


def _read(path: Path) -> tuple[Registry, dict[str, Any]]:
    sweep_if_idle(path)
    try:
        registry = Registry.read(path)
    except ModelError as error:
        raise ModelError(
            f"{error}. Without it nothing is known of the structures of {path}: all are in doubt"
        ) from error
    try:
        return registry, records.read_model(path, registry)
    except ModelError as error:
        raise ModelError(f"{error}. All its structures are in doubt: {', '.join(registry.names)}") from error


def _verify(
    path: Path,
    level: Level,
    registry: Registry,
    document: Mapping[str, Any],
    threads: Mapping[str, int] | None = None,
) -> VerifyReport:
    check = _Check(path, level, registry, document, threads or {})
    results = tuple(check.run(entry) for entry in track(registry.entries, "verify", len(registry.entries)))
    earlier = tuple(check.run_earlier(entry) for entry in registry.kept)
    named = {entry.file for entry in registry.versions}
    notes = tuple(
        f"{file.relative_to(path).as_posix()} belongs to no version of the model; "
        + ("`gc` deletes it" if records.STRUCTURE_FILE.fullmatch(file.name) else "nor did a model name it so")
        for file in sorted((path / records.STRUCTURES).glob("*.safetensors"))
        if file.relative_to(path).as_posix() not in named
    )
    return VerifyReport(path, level, results, notes, earlier)


def _threads(entry: Entry) -> int:
    return int(entry.proof.environment.get("threads", torch.get_num_threads()))


class _Check:
    """Checks structures in the registry's order; what they need was then checked before them."""

    def __init__(
        self,
        path: Path,
        level: Level,
        registry: Registry,
        document: Mapping[str, Any],
        threads: Mapping[str, int],
    ) -> None:
        self.path = path
        self.depth = get_args(Level).index(level)
        self.registry = registry
        self.document = document
        self.threads = threads
        self.failed: dict[str, str] = {}
        self.files: dict[str, str] = {}
        self.network: RepModeUNet | None = None
        self.base_digest = str(document["base"]["digest"])

    def run(self, entry: Entry) -> StructureResult:
        """Check one structure at every level up to the one asked for."""
        status: Status
        try:
            status, detail, observed = self._check(entry)
        except (_Failure, ModelError) as error:
            status, detail = "failed", str(error)
            observed = error.observed if isinstance(error, _Failure) else None
            self.failed[entry.name] = entry.file
        finally:
            self._drop_after(entry)
        return StructureResult(entry.name, status, detail, entry.file, entry.digest, observed)

    def run_earlier(self, entry: Entry) -> StructureResult:
        """Check the file, and the tensors if they are asked for, of a version that is kept."""
        status: Status = "unchanged"
        detail = f"earlier version {entry.digest[:8]}: {entry.file} is as recorded"
        try:
            self._check_file(entry)
            if self.depth > 0:
                check_structure(self.path, entry, self.base_digest)
                records.read_references(self.path, entry)
                detail = f"earlier version {entry.digest[:8]}: the tensors of {entry.file} are as recorded"
        except (_Failure, ModelError) as error:
            status = "failed"
            detail = f"earlier version {entry.digest[:8]}: {error}; or let go of all earlier versions: `gc` drops them"
        return StructureResult(entry.name, status, detail, entry.file, entry.digest)

    def _check(self, entry: Entry) -> tuple[Status, str, ComputedDigests | None]:
        # An addition is worth nothing without the base: a damaged base is said of each that stands on it.
        self._check_file(self.registry.entries[0])
        self._check_file(entry)
        for need, digest in entry.needs:
            if need in self.failed:
                raise _Failure(f"it needs {need}, which failed ({self.failed[need]})")
            if self.registry.entry(need).digest != digest:
                raise _Failure(f"it was made for another {need} than {self.registry.entry(need).file} holds")
        if self.depth == 0:
            return "unchanged", f"{entry.file} is as recorded", None
        network = self._load(entry)
        stored = records.read_references(self.path, entry)
        if self.depth == 1:
            return "unchanged", f"the tensors of {entry.file} are as recorded", None
        with with_threads(self.threads.get(entry.name, _threads(entry))):
            found = compare_with_proof(network, entry.name, entry.proof, stored, prediction=self.depth == 3)
        if found.status == "failed":
            raise _Failure(f"{entry.file}: {found.detail}", found.observed)
        return found.status, found.detail, found.observed

    def _check_file(self, entry: Entry) -> None:
        records.check_size(self.path, entry)
        file = self.path / entry.file
        # The base's file serves all its structures: it is read once.
        if entry.file not in self.files:
            try:
                self.files[entry.file] = sha256_file(file)
            except OSError as error:
                raise _Failure(f"{file} cannot be read ({error.strerror})") from error
        if self.files[entry.file] != entry.sha256:
            raise _Failure(f"{file} is damaged: its SHA-256 is not the one recorded")

    def _load(self, entry: Entry) -> RepModeUNet:
        """Return a network that knows the structure, its tensors found to be those recorded."""
        if self.network is None:
            self.network = load_base(self.path, self.document)
        # What is needed was loaded before, in the registry's order.
        if entry.kind == "addition":
            load_structure(self.network, self.path, entry, self.base_digest)
        return self.network

    def _drop_after(self, entry: Entry) -> None:
        """Forget the additions that no later structure needs: a model of fifty is checked in the memory of two."""
        if self.network is None:
            return
        later = self.registry.names[self.registry.names.index(entry.name) + 1 :]
        wanted = {one.name for one in self.registry.with_needs(later)}
        for name in reversed(tuple(self.network.additions)):
            if name not in wanted:
                self.network.drop_structure(name)
