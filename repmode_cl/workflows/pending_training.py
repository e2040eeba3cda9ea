"""What a training came to, kept from just before its commit until all is cleared up: by it a done addition is known."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from repmode_cl.data.manifest import Manifest
from repmode_cl.data.sample import Sample, digest_of
from repmode_cl.errors import (
    ConfigError,
)
from repmode_cl.model import Model
from repmode_cl.training import has_checkpoint
from repmode_cl.utils.atomic_files import write_json

__all__ = [
    "CHECKPOINT",
    "IMAGES",
    "OUTCOME",
    "REQUEST",
    "PendingOutcome",
    "read_request",
    "rows_digest",
    "same_images",
    "was_committed",
]

#: File beside the request that holds an `PendingOutcome`.
OUTCOME = "outcome.json"


@dataclass(frozen=True)
class PendingOutcome:
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


def was_committed(model: Model, structure: str) -> PendingOutcome | None:
    """Return the outcome of a training that was committed before its process died; None if there is none such.

    The version alone does not tell: the model may have had the very same one before.
    """
    try:
        text = (model.pending(structure) / OUTCOME).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    outcome = PendingOutcome(**json.loads(text))
    for change in model.history:
        made = change.number > outcome.after and change.action in ("add", "replace")
        if made and (change.structure, change.digest) == (structure, outcome.digest):
            return outcome
    return None


#: File that holds what an interrupted addition was asked for.
REQUEST = "request.json"


#: File beside it that holds which images a training began with.
IMAGES = "images.json"


#: Folder beside both, of the checkpoints: a training has begun when it has one.
CHECKPOINT = "checkpoint"


def read_request(model: Model, structure: str) -> dict[str, Any] | None:
    """Return what an interrupted training of `structure` was asked for, or None where there is nothing to resume."""
    work = model.pending(structure)
    path = work / REQUEST
    # Without a checkpoint there is nothing to go on with: whatever is asked for next takes its place.
    if not path.is_file() or not (has_checkpoint(work / CHECKPOINT) or (work / OUTCOME).is_file()):
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    # One that an earlier version of this program began has no needs in it: it is not gone on with.
    return found if "needs" in found else None


#: Images that a message names at most.
_NAMED = 5


def rows_digest(manifest: Manifest, structures: Sequence[str]) -> str:
    """Return a digest of the manifest's rows of `structures`: a training goes on with the same rows alone."""
    return digest_of(*(str(row) for row in manifest.rows if row.structure in structures)).hex()


def same_images(path: Path, samples: Sequence[Sample], what: str, anew: str, *, begun: bool) -> None:
    """Write down what the images are; refuse to go on with a training whose images became others.

    Rows name files: what these hold, and which split they came into, may have changed while they did not.

    Parameters
    ----------
    path
        File that they are written to.
    samples
        The prepared images.
    what, anew
        For the message: what would be gone on with, and what to do to begin anew.
    begun
        Whether something was learned from the images already; if not, what was written is replaced.

    Raises
    ------
    ConfigError
        Naming the images that differ.
    """
    now = {}
    for place, sample in enumerate(samples):
        line = f"line {sample.row}" if sample.row else f"image {place + 1}"
        now[f"{sample.structure}, {line}"] = digest_of(*sample.content, sample.split).hex()
    if begun and path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        differing = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        if not differing:
            return
        more = f" and {len(differing) - _NAMED} more" if len(differing) > _NAMED else ""
        raise ConfigError(
            f"{path.parent} holds an interrupted {what}, and since then the content or the split of "
            f"{len(differing)} of its images changed ({'; '.join(differing[:_NAMED])}{more}): put the images back to "
            f"go on with it, or {anew} to begin anew"
        )
    write_json(path, now)
