"""Reports of `verify_model`: the result of each structure, of the model, and the comparison of two models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from repmode_cl.errors import ModelError
from repmode_cl.store.probe import ComputedDigests

__all__ = ["VerifyReport", "StructureResult", "ModelComparison", "compare_models", "Level", "Status"]

Level = Literal["files", "tensors", "kernels", "predictions"]
Status = Literal["unchanged", "bit-identical", "within tolerance", "failed"]


@dataclass(frozen=True)
class StructureResult:
    """Result of one structure, or of an earlier version of one.

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
        The file that holds it, relative to the model.
    digest
        The recorded digest of its tensors; at level ``files`` only the bytes of its file are compared.
    computed
        Digests of its kernels and prediction, computed now and here; None at the levels ``files`` and ``tensors``, and
        where an earlier check failed.
    """

    structure: str
    status: Status
    detail: str
    file: str
    digest: str = ""
    computed: ComputedDigests | None = None

    @property
    def observed(self) -> ComputedDigests | None:
        """The former name of `computed`, deprecated: it is removed after the next release."""
        return self.computed

    @property
    def ok(self) -> bool:
        """True if it did not fail."""
        return self.status != "failed"

    def __str__(self) -> str:
        status = "FAILED" if self.status == "failed" else self.status
        return f"{self.structure}: {status} ({self.detail})"


@dataclass(frozen=True)
class ModelComparison:
    """Comparison of the structures that two models share.

    Parameters
    ----------
    path
        The other model.
    same
        Structures of both that are the same bit for bit, with what was compared.
    different
        Structures of both that differ, with how they differ.
    only_here, only_there
        Structures that only one of the models holds.
    """

    path: Path
    same: Mapping[str, str]
    different: Mapping[str, str]
    only_here: tuple[str, ...]
    only_there: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """True if no shared structure differs."""
        return not self.different


@dataclass(frozen=True)
class VerifyReport:
    """Report of `verify_model`.

    Parameters
    ----------
    path
        The model.
    level
        Level to which the model was checked.
    results
        One for each structure, in the model's order.
    notes
        Harmless oddities, such as files that the registry does not name.
    earlier
        One for each earlier version that is kept. Only files and tensors of these are checked: what they predict
        follows from them, and is checked when they are active again.
    comparison
        Comparison with the other model, if one was given.
    """

    path: Path
    level: Level
    results: tuple[StructureResult, ...]
    notes: tuple[str, ...] = ()
    earlier: tuple[StructureResult, ...] = ()
    comparison: ModelComparison | None = field(default=None)

    @property
    def ok(self) -> bool:
        """True if no structure and no earlier version failed, and nothing differs from the other model."""
        same = self.comparison is None or self.comparison.ok
        return same and all(result.ok for result in (*self.results, *self.earlier))

    @property
    def bit_identical(self) -> bool:
        """True if the predictions of every structure were found bit-identical."""
        same = all(result.status == "bit-identical" for result in self.results)
        return self.level == "predictions" and same

    def same_as(self, before: VerifyReport) -> dict[str, bool]:
        """Return, for each structure in both reports, whether it is the same bit for bit.

        Tensors, fused kernels and predictions are compared as they were computed for both reports, in this
        environment: a structure that was stored elsewhere, and is verified only within a tolerance, can still be
        compared bit for bit before and after a change.

        Parameters
        ----------
        before
            A report of the same or another model, made on this machine with the same installation.

        Raises
        ------
        ModelError
            If a report was made at a lower level than ``predictions``: it proves nothing about predictions.
        """
        if {self.level, before.level} != {"predictions"}:
            raise ModelError(
                f"reports of the levels {before.level} and {self.level} cannot be compared: verify both to the level "
                "predictions"
            )
        earlier = {result.structure: result for result in before.results}
        return {
            result.structure: _is_same(result, earlier[result.structure])
            for result in self.results
            if result.structure in earlier
        }


def _is_same(first: StructureResult, second: StructureResult) -> bool:
    """Return whether both results are of the same tensors, kernels and prediction, bit for bit."""
    same = (first.digest, first.computed) == (second.digest, second.computed)
    return first.ok and second.ok and first.computed is not None and same


_SAME_TEXTS: dict[Level, str] = {
    "files": "the same by recorded digest; nothing was computed",
    "tensors": "the same tensors",
    "kernels": "the same tensors and kernels, bit for bit",
    "predictions": "the same tensors, kernels and prediction, bit for bit",
}


def compare_models(
    here: VerifyReport, there: VerifyReport, document: Mapping[str, Any], other: Mapping[str, Any]
) -> ModelComparison:
    """Compare the structures that two models share, as far as they were verified.

    Parameters
    ----------
    here, there
        Reports of the same level, computed in one environment with the same number of threads for each structure.
    document, other
        Their ``model.json``.
    """
    results = {result.structure: result for result in here.results}
    other_results = {result.structure: result for result in there.results}
    same: dict[str, str] = {}
    different: dict[str, str] = {}
    for name in results:
        if name not in other_results:
            continue
        if difference := _describe_difference(results[name], other_results[name], document, other):
            different[name] = difference
        else:
            same[name] = _SAME_TEXTS[here.level]
    return ModelComparison(
        there.path,
        same,
        different,
        tuple(name for name in results if name not in other_results),
        tuple(name for name in other_results if name not in results),
    )


def _describe_difference(
    here: StructureResult, there: StructureResult, document: Mapping[str, Any], other: Mapping[str, Any]
) -> str:
    """Return how a structure differs, in words; empty if it does not."""
    if document["base"]["digest"] != other["base"]["digest"]:
        bases = [str(one["base"]["digest"])[:8] for one in (document, other)]
        return f"the models have different bases ({bases[0]} here, {bases[1]} there)"
    if not there.ok:
        return f"it fails there: {there.detail}"
    if not here.ok:
        return f"it fails here: {here.detail}"
    if here.digest != there.digest:
        return f"another version: {here.digest[:8]} here, {there.digest[:8]} there"
    if document["inference"] != other["inference"]:
        return f"other windows: {document['inference']} here, {other['inference']} there"
    if here.computed == there.computed:
        return ""
    if here.computed is None or there.computed is None or here.computed.kernels != there.computed.kernels:
        return "its fused kernels differ"
    return "its prediction differs"
