"""Files of an unfinished addition in ``pending/<structure>`` of a model, and the checks for resuming it.

Request, images and checkpoints are there while it is trained; the outcome from just before its commit until the
folder is removed, so that an addition whose process died after the commit is recognised.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from repmode_cl.data.manifest import Manifest
from repmode_cl.data.sample import Sample, digest_of
from repmode_cl.errors import ConfigError, ModelError
from repmode_cl.model import Model
from repmode_cl.store.staging import OUTCOME, REQUEST
from repmode_cl.training import has_checkpoint
from repmode_cl.utils.atomic_files import read_json, write_json
from repmode_cl.utils.command_text import command
from repmode_cl.utils.progress import report_line

__all__ = [
    "CHECKPOINT",
    "IMAGES",
    "INITIALISATION",
    "PendingOutcome",
    "committed_outcome",
    "read_request",
    "rows_digest",
    "record_images",
]

#: Folder of the checkpoints: a training has learned something when it has one.
CHECKPOINT = "checkpoint"
#: File with the digests of the images that a training started with.
IMAGES = "images.json"
#: File with what the structure was initialised from.
INITIALISATION = "beginning.json"

#: Images that a message names at most.
_LISTED = 5


@dataclass(frozen=True)
class PendingOutcome:
    """Result of a finished training: figures, and the version that they belong to.

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
        """Return whether the R2 is at least `min_r2`; one that could not be computed is below any."""
        return min_r2 is None or self.metrics.get("r2", -math.inf) >= min_r2

    def to_json(self) -> dict[str, Any]:
        """Return JSON-able values: the fields."""
        return asdict(self)


def committed_outcome(model: Model, structure: str) -> PendingOutcome | None:
    """Return the outcome of a training that was committed before its process died; None if there is none.

    The version is not enough to know: the model may have had the very same one before.
    """
    path, remedy = model.pending(structure) / OUTCOME, _remedy(model, structure)
    try:
        values = read_json(path, remedy)
    except FileNotFoundError:
        return None
    try:
        outcome = PendingOutcome(**values)
    except TypeError as error:
        raise ModelError(f"{path}: is no outcome of a training ({error}): {remedy}") from error
    for change in model.history:
        committed = change.number > outcome.after and change.action in ("add", "replace")
        if committed and (change.structure, change.digest) == (structure, outcome.digest):
            return outcome
    return None


def _remedy(model: Model, structure: str) -> str:
    return f"{command('discard', model.path, structure)} removes the interrupted training"


def read_request(model: Model, structure: str) -> dict[str, Any] | None:
    """Return the request of an interrupted training of `structure`; None if there is nothing to resume."""
    work = model.pending(structure)
    path = work / REQUEST
    # Without a checkpoint there is nothing to resume: the next request takes its place.
    if not path.is_file() or not (has_checkpoint(work / CHECKPOINT) or (work / OUTCOME).is_file()):
        return None
    request = read_json(path, _remedy(model, structure))
    # One that an early version of this program wrote has no needs in it: it is not resumed.
    return request if "needs" in request else None


def rows_digest(manifest: Manifest, structures: Sequence[str]) -> str:
    """Return a digest of the manifest's rows of `structures`: a training is resumed only with the same rows."""
    return digest_of(*(str(row) for row in manifest.rows if row.structure in structures)).hex()


def record_images(
    path: Path, samples: Sequence[Sample], title: str, restart_hint: str, *, started: bool
) -> None:
    """Write digests of the images to `path`; refuse to resume a training whose images have changed.

    Rows name files: the content of these, and the split that they belong to, may change while the rows do not.
    A training of an earlier version may have no such file: a line says so, and it continues.

    Parameters
    ----------
    path
        File of the digests.
    samples
        The prepared images.
    title, restart_hint
        For the message: name of the interrupted training, and how to start again.
    started
        Whether something was learned from the images already; if not, the file is replaced.

    Raises
    ------
    ConfigError
        Naming the images that differ.
    """
    digests = {}
    for index, sample in enumerate(samples):
        line = f"line {sample.row}" if sample.row else f"image {index + 1}"
        digests[f"{sample.structure}, {line}"] = digest_of(*sample.content, sample.split).hex()
    if started and path.is_file():
        earlier = read_json(path, f"{restart_hint} to start again")
        differing = [name for name in {**digests, **earlier} if earlier.get(name) != digests.get(name)]
        if not differing:
            return
        more = f" and {len(differing) - _LISTED} more" if len(differing) > _LISTED else ""
        raise ConfigError(
            f"{path.parent} holds an interrupted {title}, and since then the content or the split of "
            f"{len(differing)} of its images changed ({'; '.join(differing[:_LISTED])}{more}): put the images back to "
            f"resume it, or {restart_hint} to start again"
        )
    if started:
        report_line(
            f"{title}: {path.parent} has no record of its images, as one that an earlier version of this software "
            "began; it continues with those that are there now",
            always=True,
        )
    write_json(path, digests)
