"""What a training came to, kept from just before its commit until all is cleared up: by it a done addition is known."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

from repmode_cl.store import Model

__all__ = ["OUTCOME", "Outcome", "was_committed"]

#: File beside the request that holds an `Outcome`.
OUTCOME = "outcome.json"


@dataclass(frozen=True)
class Outcome:
    """What a training came to: figures, and the version that they are of.

    Attributes
    ----------
    digest
        Of the version; empty before there is one.
    metrics, held_out, seconds, notes, stopped
        As of `AddResult`.
    after
        Number of the last change of the model before the commit.
    """

    digest: str
    metrics: dict[str, float]
    held_out: str
    seconds: float
    notes: list[str]
    stopped: str
    after: int = 0

    def reaches(self, min_r2: float | None) -> bool:
        """Tell whether its R2 is at least what is demanded; one that could not be computed reaches nothing."""
        return min_r2 is None or self.metrics.get("r2", -math.inf) >= min_r2

    def to_json(self) -> dict[str, Any]:
        """Return JSON-able values: the fields."""
        return asdict(self)


def was_committed(model: Model, structure: str) -> Outcome | None:
    """Return the outcome of a training that was committed before its process died; None if there is none such.

    The version alone does not tell: the model may have had the very same one before.
    """
    try:
        text = (model.pending(structure) / OUTCOME).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    outcome = Outcome(**json.loads(text))
    for change in model.history:
        made = change.number > outcome.after and change.action in ("add", "replace")
        if made and (change.structure, change.digest) == (structure, outcome.digest):
            return outcome
    return None
