"""Images to predict one by one, what became of each, and what several of them become together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from repmode_cl.data.readers.plate import Plate
from repmode_cl.inference.options import PredictedFile

__all__ = ["ImageTask", "ImageOutcome", "TimeSeries", "PlateOutput", "PredictionPlan"]


@dataclass(frozen=True)
class ImageTask:
    """One image to predict: one scene of a file at one time point.

    Attributes
    ----------
    source
        What the caller named.
    image
        What is opened: `source`, or a field of the plate that it is.
    output
        Name of its outputs, in which ``{structure}`` may stand for each structure.
    scene, t
        As of `PredictionOptions`.
    place
        Name of the scene or field, where several of `source` are predicted; else empty.
    number
        Number of the time point, where several of `source` are predicted; else None.
    """

    source: Path | str
    image: Path | str
    output: str
    scene: int | str | None = None
    t: int | None = None
    place: str = ""
    number: int | None = None


@dataclass(frozen=True)
class ImageOutcome:
    """Outcome of one image.

    Attributes
    ----------
    source
        The image.
    files
        Its predictions; empty if it failed.
    seconds
        Wall time.
    error
        Reason of its failure; None if it did not fail.
    place, t
        Scene (or field) and time point, where several of `source` are predicted.
    """

    source: Path | str
    files: tuple[PredictedFile, ...] = ()
    seconds: float = 0.0
    error: str | None = None
    place: str = ""
    t: int | None = None

    @property
    def label(self) -> str:
        """Name for people: the source, its scene and its time point."""
        return (
            f"{self.source}{f' {self.place}' if self.place else ''}{'' if self.t is None else f' t {self.t}'}"
        )


@dataclass(frozen=True)
class TimeSeries:
    """One output with an axis of time, made of the outputs of a task for each time point.

    Attributes
    ----------
    output
        Its name, in which ``{structure}`` may stand for each structure.
    tasks
        In the order of time.
    """

    output: str
    tasks: tuple[ImageTask, ...]


@dataclass(frozen=True)
class PlateOutput:
    """One plate, made of outputs of tasks or time series for each field.

    Attributes
    ----------
    output
        Its name, in which ``{structure}`` may stand for each structure.
    plate
        The plate that is predicted.
    fields
        For each of its fields (``row/column/field``): the name of its output until the plate is whole.
    tasks
        For each field: its tasks in the order of time.
    """

    output: str
    plate: Plate
    fields: Mapping[str, str]
    tasks: Mapping[str, tuple[ImageTask, ...]]


@dataclass(frozen=True)
class PredictionPlan:
    """All images to predict, in order, and what becomes of them together."""

    tasks: tuple[ImageTask, ...]
    series: tuple[TimeSeries, ...] = ()
    plates: tuple[PlateOutput, ...] = ()

    def outputs(self) -> tuple[tuple[str, Path | str], ...]:
        """Return the names that results will have, each with its source."""
        inner = {name for plate in self.plates for name in plate.fields.values()}
        inner |= {task.output for series in self.series for task in series.tasks}
        names: list[tuple[str, Path | str]] = [(plate.output, plate.plate.path) for plate in self.plates]
        names += [(one.output, one.tasks[0].source) for one in self.series if one.output not in inner]
        names += [(task.output, task.source) for task in self.tasks if task.output not in inner]
        return tuple(names)
