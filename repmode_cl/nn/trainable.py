"""The one place that decides what is trained, and so what may change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from repmode_cl.errors import StructureError, UnknownStructureError

if TYPE_CHECKING:
    from repmode_cl.nn.repmode import RepModeUNet

__all__ = ["trainable_names"]


def trainable_names(network: RepModeUNet, structures: Sequence[str]) -> frozenset[str]:
    """Return the names of the parameters that training `structures` together may change.

    For one added structure: what it owns, and nothing else (paper, section 4.4: "experts frozen"). For base
    structures: the shared experts, the base's resampling layers and norms, and the gate rows of these structures.

    Raises
    ------
    UnknownStructureError
        If the network does not know one of them.
    StructureError
        If there are none, if an addition is mixed with others, or if the base is to be trained although additions
        depend on it.
    """
    for name in structures:
        if name not in network.structures:
            raise UnknownStructureError(name, network.structures)
    chosen = set(structures)
    if not chosen:
        raise StructureError("nothing to train: name at least one structure")
    added = chosen & set(network.additions)
    if added:
        if len(chosen) > 1:
            raise StructureError(
                f"{', '.join(sorted(added))} cannot be trained together with others: an added structure has "
                "norms of its own and is trained alone"
            )
        return frozenset(network.owned_names(*added)) & {name for name, _ in network.named_parameters()}
    if network.additions:
        raise StructureError(
            f"the base cannot be trained any more: {', '.join(network.additions)} depend on it; make another base"
        )
    rows = {
        f"{block}.gates.{name}" for block, _ in network.named_mode_blocks() for name in network.structures
    }
    kept = {f"{block}.gates.{name}" for block, _ in network.named_mode_blocks() for name in chosen}
    return frozenset(name for name, _ in network.named_parameters() if name not in rows or name in kept)
