"""What verifying a model found, of each structure and of all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from repmode_cl.errors import ModelError
from repmode_cl.store.probe import ComputedDigests

__all__ = ["Level", "ModelComparison", "Status", "StructureResult", "VerifyReport", "compare_models"]


Level = Literal["files", "tensors", "kernels", "predictions"]
Status = Literal["unchanged", "bit-identical", "within tolerance", "failed"]


@dataclass(frozen=True)
class StructureResult:
    """What was found of one structure, or of an earlier version of one.

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
    digest
        The recorded digest of its tensors, of which at level ``files`` nothing more is known than that its file is
        as recorded.
    observed
        Digests of what it comes to, computed now and here; None at the levels ``files`` and ``tensors``, and where
        it failed before.
    """

    structure: str
    status: Status
    detail: str
    file: str
    digest: str = ""
    observed: ComputedDigests | None = None

    @property
    def ok(self) -> bool:
        """Whether it did not fail."""
        return self.status != "failed"

    def __str__(self) -> str:
        status = "FAILED" if self.status == "failed" else self.status
        return f"{self.structure}: {status} ({self.detail})"


@dataclass(frozen=True)
class ModelComparison:
    """What was found of the structures that two models share.

    Parameters
    ----------
    path
        The other model.
    same
        Structures that both hold, and that are the same bit for bit, with what was compared.
    different
        Structures that both hold and that are not, with how they differ.
    only_here, only_there
        Structures that one of both holds.
    """

    path: Path
    same: Mapping[str, str]
    different: Mapping[str, str]
    only_here: tuple[str, ...]
    only_there: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether no shared structure differs."""
        return not self.different


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
    earlier
        One for each earlier version that is kept. Only files and tensors of these are checked: what they predict
        follows from them, and is checked when they are active again.
    comparison
        With the other model, if one was given.
    """

    path: Path
    level: Level
    results: tuple[StructureResult, ...]
    notes: tuple[str, ...] = ()
    earlier: tuple[StructureResult, ...] = ()
    comparison: ModelComparison | None = field(default=None)

    @property
    def ok(self) -> bool:
        """Whether no structure and no earlier version failed, and nothing differs from the other model."""
        same = self.comparison is None or self.comparison.ok
        return same and all(result.ok for result in (*self.results, *self.earlier))

    @property
    def bit_identical(self) -> bool:
        """Whether the predictions of every structure were found bit-identical."""
        same = all(result.status == "bit-identical" for result in self.results)
        return self.level == "predictions" and same

    def same_as(self, before: VerifyReport) -> dict[str, bool]:
        """Say of each structure in both reports whether it is the same bit for bit.

        Tensors, fused kernels and predictions are compared as they were computed for both reports, in this
        environment: a structure that was stored elsewhere, and is verified within a tolerance alone, is the same
        here and now before and after a change, or it is not.

        Parameters
        ----------
        before
            Of the same or another model, made on this machine with the same installation.

        Raises
        ------
        ModelError
            If a report was made at a lower level than ``predictions``: it proves nothing of them.
        """
        if {self.level, before.level} != {"predictions"}:
            raise ModelError(
                f"reports of the levels {before.level} and {self.level} cannot be compared: verify both to the level "
                "predictions"
            )
        then = {result.structure: result for result in before.results}
        return {
            now.structure: now.ok
            and then[now.structure].ok
            and now.observed is not None
            and (now.digest, now.observed) == (then[now.structure].digest, then[now.structure].observed)
            for now in self.results
            if now.structure in then
        }


_SAME: dict[Level, str] = {
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
        Of the same level, computed in one environment with the same number of threads for each structure.
    document, other
        Their ``model.json``.
    """
    mine = {result.structure: result for result in here.results}
    theirs = {result.structure: result for result in there.results}
    same: dict[str, str] = {}
    different: dict[str, str] = {}
    for name in mine:
        if name not in theirs:
            continue
        if how := _difference(mine[name], theirs[name], document, other):
            different[name] = how
        else:
            same[name] = _SAME[here.level]
    return ModelComparison(
        there.path,
        same,
        different,
        tuple(name for name in mine if name not in theirs),
        tuple(name for name in theirs if name not in mine),
    )


def _difference(
    mine: StructureResult, theirs: StructureResult, document: Mapping[str, Any], other: Mapping[str, Any]
) -> str:
    """Say how a structure differs; empty if it does not."""
    if document["base"]["digest"] != other["base"]["digest"]:
        bases = [str(one["base"]["digest"])[:8] for one in (document, other)]
        return f"the models have different bases ({bases[0]} here, {bases[1]} there)"
    if not theirs.ok:
        return f"it fails there: {theirs.detail}"
    if not mine.ok:
        return f"it fails here: {mine.detail}"
    if mine.digest != theirs.digest:
        return f"another version: {mine.digest[:8]} here, {theirs.digest[:8]} there"
    if document["inference"] != other["inference"]:
        return f"other windows: {document['inference']} here, {other['inference']} there"
    if mine.observed == theirs.observed:
        return ""
    if mine.observed is None or theirs.observed is None or mine.observed.kernels != theirs.observed.kernels:
        return "its fused kernels differ"
    return "its prediction differs"
