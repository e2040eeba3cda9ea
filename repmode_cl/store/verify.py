"""Verification of a model directory against the records made when each structure was stored.

There are four levels, each including those before it: the files' bytes, the tensors' digests, the fused kernels, and
the prediction of a probe volume. Kernels and predictions are compared bit for bit in the recorded environment, and in
any other one with float64 references, within a stated tolerance; that is never called bit-identical. In addition to
the model's tensors, only one layer and the probe's activations are in memory.
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
from repmode_cl.store.load_network import check_structure_tensors, load_base, load_structure
from repmode_cl.store.probe import ComputedDigests
from repmode_cl.store.proof import compare_with_proof
from repmode_cl.store.registry import Entry, Registry
from repmode_cl.store.transaction import remove_leftovers_if_idle
from repmode_cl.store.verify_report import Level, Status, StructureResult, VerifyReport, compare_models
from repmode_cl.utils.atomic_files import sha256_file
from repmode_cl.utils.environment import with_threads
from repmode_cl.utils.progress import track

__all__ = ["verify_model"]


class _Failure(Exception):  # noqa: N818 - not an error to callers: it ends the checks of one structure
    """A failed check of one structure."""

    def __init__(self, detail: str, computed: ComputedDigests | None = None) -> None:
        super().__init__(detail)
        self.computed = computed


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
        Another model directory, such as a copy or an older backup: it is verified too, and the structures of both
        models are compared bit for bit, up to `level`, as computed here.

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
    registry, document = _read_model(path)
    # The other model is read first, so that a path that is no model is reported before the work.
    other = None if against is None else (Path(against), *_read_model(Path(against)))
    report = _verify(path, level, registry, document)
    if not report.ok and Registry.read(path) != registry:
        # Another process changed the model meanwhile: a file that it deleted is not missing.
        return verify_model(path, level, against)
    if other is None:
        return report
    other_path, other_registry, other_document = other
    # The same number of threads for both: a proof of the other model may have been made with another one.
    threads = {entry.name: _threads_of_proof(entry) for entry in registry.entries}
    other_report = _verify(other_path, level, other_registry, other_document, threads)
    comparison = compare_models(report, other_report, document, other_document)
    return dataclasses.replace(report, comparison=comparison)


def _read_model(path: Path) -> tuple[Registry, dict[str, Any]]:
    remove_leftovers_if_idle(path)
    try:
        registry = Registry.read(path)
    except ModelError as error:
        raise ModelError(
            f"{error}. Without it nothing is known of the structures of {path}: all are in doubt"
        ) from error
    try:
        return registry, records.read_model_document(path, registry)
    except ModelError as error:
        raise ModelError(f"{error}. All its structures are in doubt: {', '.join(registry.names)}") from error


def _verify(
    path: Path,
    level: Level,
    registry: Registry,
    document: Mapping[str, Any],
    threads: Mapping[str, int] | None = None,
) -> VerifyReport:
    check = _ModelCheck(path, level, registry, document, threads or {})
    results = tuple(check.run(entry) for entry in track(registry.entries, "verify", len(registry.entries)))
    earlier = tuple(check.check_earlier(entry) for entry in registry.kept)
    named = {entry.file for entry in registry.versions}
    notes = tuple(
        f"{file.relative_to(path).as_posix()} belongs to no version of the model; "
        + ("`gc` deletes it" if records.STRUCTURE_FILE.fullmatch(file.name) else "nor did a model name it so")
        for file in sorted((path / records.STRUCTURES).glob("*.safetensors"))
        if file.relative_to(path).as_posix() not in named
    )
    return VerifyReport(path, level, results, notes, earlier)


def _threads_of_proof(entry: Entry) -> int:
    return int(entry.proof.environment.get("threads", torch.get_num_threads()))


class _ModelCheck:
    """Checks of a model's structures in the registry's order, so that needed additions are checked first."""

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
        """Check one structure at every level up to the requested one."""
        status: Status
        try:
            status, detail, computed = self._check(entry)
        except (_Failure, ModelError) as error:
            status, detail = "failed", str(error)
            computed = error.computed if isinstance(error, _Failure) else None
            self.failed[entry.name] = entry.file
        finally:
            self._drop_after(entry)
        return StructureResult(entry.name, status, detail, entry.file, entry.digest, computed)

    def check_earlier(self, entry: Entry) -> StructureResult:
        """Check the file and, from the level ``tensors`` on, the tensors of a kept version."""
        status: Status = "unchanged"
        detail = f"earlier version {entry.digest[:8]}: {entry.file} is as recorded"
        try:
            self._check_file(entry)
            if self.depth > 0:
                check_structure_tensors(self.path, entry, self.base_digest)
                records.read_references(self.path, entry)
                detail = f"earlier version {entry.digest[:8]}: the tensors of {entry.file} are as recorded"
        except (_Failure, ModelError) as error:
            status = "failed"
            detail = f"earlier version {entry.digest[:8]}: {error}; or delete all earlier versions with `gc`"
        return StructureResult(entry.name, status, detail, entry.file, entry.digest)

    def _check(self, entry: Entry) -> tuple[Status, str, ComputedDigests | None]:
        # No addition works without the base: each one reports a damaged base.
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
        references = records.read_references(self.path, entry)
        if self.depth == 1:
            return "unchanged", f"the tensors of {entry.file} are as recorded", None
        with with_threads(self.threads.get(entry.name, _threads_of_proof(entry))):
            comparison = compare_with_proof(
                network, entry.name, entry.proof, references, prediction=self.depth == 3
            )
        if comparison.status == "failed":
            raise _Failure(f"{entry.file}: {comparison.detail}", comparison.computed)
        return comparison.status, comparison.detail, comparison.computed

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
        """Return a network with the structure, whose tensors are checked against their recorded digest."""
        if self.network is None:
            self.network = load_base(self.path, self.document)
        # Needed additions come earlier in the registry, and are loaded already.
        if entry.kind == "addition":
            load_structure(self.network, self.path, entry, self.base_digest)
        return self.network

    def _drop_after(self, entry: Entry) -> None:
        """Drop the additions that no later structure needs: fifty structures are checked in the memory of two."""
        if self.network is None:
            return
        later = self.registry.names[self.registry.names.index(entry.name) + 1 :]
        needed = {one.name for one in self.registry.with_needs(later)}
        for name in reversed(tuple(self.network.additions)):
            if name not in needed:
                self.network.drop_structure(name)
