"""Mean and deviation of the intensities of many images, by which `normalise: data_set` z-scores each of them.

The light's are part of a model's recipe, because every prediction needs them. A target's are kept in the provenance of
its structure: only a comparison with the truth needs them, or whoever wants intensities back.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

__all__ = [
    "IntensityScale",
    "Moments",
    "as_scale",
    "pooled_scale",
    "recorded_light",
    "recorded_target",
    "scales_record",
]

#: Mean and standard deviation of voxels, in the images' own units.
IntensityScale = tuple[float, float]

#: Key of the provenance.
_KEY = "intensities"


class Moments(NamedTuple):
    """What is known of the voxels of one prepared volume before its z-score."""

    voxels: int
    mean: float
    deviation: float


class _Scaled(Protocol):
    """A sample, as far as it is used here."""

    @property
    def structure(self) -> str: ...
    @property
    def light_scale(self) -> IntensityScale | None: ...
    @property
    def target_scale(self) -> IntensityScale | None: ...


def pooled_scale(parts: Sequence[Moments]) -> IntensityScale:
    """Return mean and deviation of the voxels of all volumes together: a voxel counts the same wherever it is.

    Parameters
    ----------
    parts
        Of at least one volume.
    """
    total = sum(part.voxels for part in parts)
    mean = math.fsum(part.voxels * part.mean for part in parts) / total
    squares = math.fsum(part.voxels * (part.deviation**2 + (part.mean - mean) ** 2) for part in parts)
    return mean, math.sqrt(squares / total)


def as_scale(value: Any) -> IntensityScale | None:
    """Return a pair of JSON numbers as mean and deviation; None where it is none."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        return None
    if not all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in value):
        return None
    mean, deviation = float(value[0]), float(value[1])
    return (mean, deviation) if math.isfinite(mean) and 0 < deviation < math.inf else None


def scales_record(samples: Iterable[_Scaled]) -> dict[str, Any]:
    """Return the record of samples' scales for the provenance, as JSON values; empty where each image has its own."""
    light: IntensityScale | None = None
    targets: dict[str, list[float]] = {}
    for sample in samples:
        if sample.light_scale is not None and sample.target_scale is not None:
            light = sample.light_scale
            targets[sample.structure] = list(sample.target_scale)
    return {} if light is None else {_KEY: {"light": list(light), "targets": targets}}


def recorded_light(provenance: Mapping[str, Any]) -> IntensityScale | None:
    """Return the light's mean and deviation of `scales_record`; None where there are none."""
    record = provenance.get(_KEY)
    return as_scale(record.get("light")) if isinstance(record, Mapping) else None


def recorded_target(provenance: Mapping[str, Any], structure: str) -> IntensityScale | None:
    """Return a target's mean and deviation of `scales_record`; None where there are none that can be understood."""
    record = provenance.get(_KEY)
    targets = record.get("targets") if isinstance(record, Mapping) else None
    return as_scale(targets.get(structure)) if isinstance(targets, Mapping) else None
