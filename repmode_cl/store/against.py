"""Compare two verified models: whether they hold and predict the structures that both have identically."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from repmode_cl.store.verified import Comparison, Level, StructureResult, VerifyReport

__all__ = ["compare_models"]

_SAME: dict[Level, str] = {
    "files": "the same by recorded digest; nothing was computed",
    "tensors": "the same tensors",
    "kernels": "the same tensors and kernels, bit for bit",
    "predictions": "the same tensors, kernels and prediction, bit for bit",
}


def compare_models(
    here: VerifyReport, there: VerifyReport, document: Mapping[str, Any], other: Mapping[str, Any]
) -> Comparison:
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
    return Comparison(
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
