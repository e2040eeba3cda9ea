"""``compare.json`` and ``compare.csv``: the figures of three methods of learning one structure.

The terminal and the page show these figures.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from repmode_cl.errors import RepmodeError
from repmode_cl.utils.atomic_files import write_json, write_text
from repmode_cl.verdict import EVIDENCE, Verdict, structure_verdict

__all__ = [
    "Comparison",
    "MethodResult",
    "PredictionChange",
    "read_comparison",
    "write_comparison",
    "similarity",
    "METHODS",
    "ADDING",
    "FINE_TUNING",
    "OWN_NETWORK",
    "COMPARISON",
]

#: The three methods, in the order of tables and charts.
ADDING, FINE_TUNING, OWN_NETWORK = "adding", "fine_tuning", "own_network"
METHODS = (ADDING, FINE_TUNING, OWN_NETWORK)

#: File in a comparison's folder: everything that the page shows, except the images.
COMPARISON = "compare.json"
_FORMAT, _VERSION = "repmode-cl comparison", 2
#: Version 1 had no `MethodResult.evidence`.
_VERSIONS_READ = (1, 2)


def similarity(r2: float | None, max_difference: float | None) -> float:
    """Return what orders changes of predictions: the lowest changed most.

    It is the R2 against the prediction before. A prediction that is no longer finite changed most of all; one that
    was constant before comes last, because there was nothing to lose.
    """
    if max_difference is None:
        return float("-inf")
    return float("inf") if r2 is None else r2


@dataclass(frozen=True)
class PredictionChange:
    """Change of the predictions of one structure of the model, by one method.

    Attributes
    ----------
    structure
        Its name.
    images
        Number of held-out images that it was predicted on, before and after.
    identical
        Whether all these predictions are the same bits as before.
    r2
        R2 of the prediction after against the one before, mean over images: 1 is unchanged, 0 is as far from it as
        a constant. ``None`` where it is undefined: predictions are not finite, or one before was constant or nearly
        so, in an untrained structure.
    max_difference
        Largest absolute difference of a voxel, in z-score units; ``None`` where predictions are not finite.
    truth_images
        How many of the images have the structure's fluorescence.
    truth_before, truth_after
        R2 on those images, mean over them; ``None`` where there are none or it is undefined.
    """

    structure: str
    images: int
    identical: bool
    r2: float | None
    max_difference: float | None
    truth_images: int = 0
    truth_before: float | None = None
    truth_after: float | None = None

    @property
    def lost(self) -> float | None:
        """R2 lost on images with the structure's fluorescence; positive is worse."""
        if self.truth_before is None or self.truth_after is None:
            return None
        return self.truth_before - self.truth_after


@dataclass(frozen=True)
class MethodResult:
    """Result of one method of learning the structure.

    Attributes
    ----------
    key
        ``adding``, ``fine_tuning`` or ``own_network``.
    title
        Its name in tables.
    metrics
        Mean figures (``r2``, ``pearson``, ``mse``, ``mae``) of the new structure on the held-out images; one that
        is not finite is left out.
    changes
        Change of each structure of the model; empty for a separate network, which shares nothing with it.
    steps, selected_step
        Optimiser steps, and the one with the best validation figure; 0 where nothing was validated.
    learning_rate
        Peak of its learning-rate schedule.
    seconds
        Seconds of training, without validation.
    parameters
        Number of parameters that have to be stored in addition to the model.
    bytes
        Their bytes on a disk: the file that the model would get, with its proof and its record; of a fine-tuned copy
        the files of a second model; of a separate network one file of its tensors.
    curve
        Validation R2 while it was learned: (step, value).
    began
        The structure of the model that it was initialised from; None where its weights were random (or, for
        fine-tuning, those of the whole model).
    evidence
        What its verdict needs besides `metrics` (`repmode_cl.verdict.EVIDENCE`).
    """

    key: str
    title: str
    metrics: dict[str, float]
    changes: tuple[PredictionChange, ...]
    steps: int
    selected_step: int
    learning_rate: float
    seconds: float
    parameters: int
    bytes: int
    curve: tuple[tuple[int, float], ...] = ()
    began: str | None = None
    evidence: dict[str, float] = field(default_factory=dict)

    @property
    def identical(self) -> bool:
        """True if every structure of the model is predicted bit for bit as before."""
        return all(change.identical for change in self.changes)

    @property
    def damage(self) -> float:
        """Largest absolute change of a prediction, in z-score units; infinite where some are not finite."""
        return max(
            (float("inf") if c.max_difference is None else c.max_difference for c in self.changes),
            default=0.0,
        )

    @property
    def worst(self) -> PredictionChange | None:
        """The structure that changed most, by R2 against the prediction before; None where nothing changed."""
        changed = [change for change in self.changes if not change.identical]
        return min(changed, key=lambda change: similarity(change.r2, change.max_difference), default=None)

    @property
    def lost(self) -> float | None:
        """Mean R2 lost by the model's structures on images with their fluorescence; None where there are none."""
        lost = [change.lost for change in self.changes if change.lost is not None]
        return sum(lost) / len(lost) if lost else None

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> MethodResult:
        """Return the result that `to_json` wrote."""
        changes = tuple(PredictionChange(**change) for change in value["changes"])
        curve = tuple((int(step), float(r2)) for step, r2 in value["curve"])
        return cls(**{**value, "changes": changes, "curve": curve})


@dataclass(frozen=True)
class Comparison:
    """Three methods of learning one structure on the same images.

    Attributes
    ----------
    structure
        The structure that was learned.
    known
        The structures of the model.
    held_out, images
        Split of the images that the figures are of (``test`` or ``val``), and their number.
    training_images
        Number of images that it was learned from.
    methods
        Results of the methods, in the order `METHODS`.
    settings
        Settings as the page shows them: (name, value).
    notes
        Sentences on the split that a person should know.
    folder
        Its folder.
    """

    structure: str
    known: tuple[str, ...]
    held_out: str
    images: int
    training_images: int
    methods: tuple[MethodResult, ...]
    settings: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    folder: Path = field(default=Path(), compare=False)

    def __getitem__(self, key: str) -> MethodResult:
        """Return one method's result by its key."""
        for method in self.methods:
            if method.key == key:
                return method
        raise KeyError(key)

    def verdict(self, method: MethodResult) -> Verdict:
        """Return what the held-out figures of a method say: learned nothing, weak or useful."""
        evidence = {self.structure: {"images": self.images, **method.evidence}}
        learned = {"held_out": self.held_out, "steps": method.steps, EVIDENCE: evidence}
        return structure_verdict(self.structure, method.metrics, learned)

    @property
    def report(self) -> Path:
        """File of the page."""
        return self.folder / "report.html"


def write_comparison(comparison: Comparison) -> None:
    """Write ``compare.json`` and ``compare.csv`` into its folder."""
    value = {
        "format": _FORMAT,
        "version": _VERSION,
        **{
            "ways" if key == "methods" else key: item
            for key, item in asdict(comparison).items()
            if key != "folder"
        },
        "verdicts": {method.key: comparison.verdict(method).to_json() for method in comparison.methods},
    }
    write_json(comparison.folder / COMPARISON, value)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("way", "structure", "metric", "value"))
    for method in comparison.methods:
        writer.writerows((method.key, *row) for row in _rows(method, comparison.structure))
        verdict = comparison.verdict(method)
        # Numbers only, as everything in this table: the level is in compare.json.
        judged = {"r2_low": verdict.low, "r2_high": verdict.high, "useful": float(verdict.useful)}
        writer.writerows(
            (method.key, comparison.structure, key, repr(value))
            for key, value in judged.items()
            if value is not None
        )
    write_text(comparison.folder / "compare.csv", text.getvalue())


def _rows(method: MethodResult, structure: str) -> list[tuple[str, str, str]]:
    costs = {key: getattr(method, key) for key in ("seconds", "steps", "parameters", "bytes")}
    rows = [(structure, key, repr(value)) for key, value in {**method.metrics, **costs}.items()]
    for change in method.changes:
        figures = {
            "r2_to_before": change.r2,
            "max_difference": change.max_difference,
            "r2_before": change.truth_before,
            "r2_after": change.truth_after,
        }
        rows += [(change.structure, key, repr(value)) for key, value in figures.items() if value is not None]
    return rows


def _from_json(value: dict[str, Any], folder: Path) -> Comparison:
    if value.pop("format") != _FORMAT or value.pop("version") not in _VERSIONS_READ:
        raise ValueError(f"this is no {_FORMAT} of version {' or '.join(map(str, _VERSIONS_READ))}")
    value.pop("verdicts", None)  # they follow from the figures
    methods = tuple(MethodResult.from_json(method) for method in value.pop("ways"))
    return Comparison(
        **{
            **value,
            "known": tuple(value["known"]),
            "methods": methods,
            "settings": tuple((name, text) for name, text in value["settings"]),
            "notes": tuple(value["notes"]),
            "folder": folder,
        }
    )


def read_comparison(folder: str | Path) -> Comparison:
    """Read a comparison's folder.

    Raises
    ------
    RepmodeError
        If it holds none, or one of another version.
    """
    path = Path(folder) / COMPARISON
    try:
        return _from_json(json.loads(path.read_text(encoding="utf-8")), Path(folder))
    except FileNotFoundError:
        raise RepmodeError(f"{folder}: holds no finished comparison ({COMPARISON} is missing)") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RepmodeError(
            f"{path}: cannot be read as a comparison ({type(error).__name__}: {error}); `repmode-cl compare` "
            "with --restart makes it again"
        ) from error
