"""Time series and plates of a prediction plan: which are whole already, and when one can be made."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from repmode_cl.errors import RepmodeError
from repmode_cl.inference.collect import combined_uuid, take_plate_apart, write_plate, write_time_series
from repmode_cl.inference.identity import are_predicted
from repmode_cl.inference.image_task import ImageOutcome, ImageTask, PlateOutput, PredictionPlan, TimeSeries
from repmode_cl.inference.options import PredictedFile, PredictionOptions
from repmode_cl.inference.positions import parts_folder
from repmode_cl.inference.predict_file import FilePrediction
from repmode_cl.inference.writers import check_output
from repmode_cl.store.snapshot import ModelSnapshot
from repmode_cl.utils.locks import exclusive

__all__ = ["Collected", "PlanOutputs"]

_Files = dict[ImageTask, tuple[PredictedFile, ...]]


@dataclass(frozen=True)
class Collected:
    """A series or plate that was made.

    Attributes
    ----------
    path
        Its name.
    files
        For each of its tasks the records of its files, which are parts of `path` now.
    is_final
        False of a series that becomes a field of a plate.
    """

    path: Path
    files: _Files
    is_final: bool


@dataclass(frozen=True)
class _Survey:
    """UUIDs of a task's outputs, in the order of the outputs, and their records."""

    uuids: tuple[str, ...]
    files: tuple[PredictedFile, ...]


class PlanOutputs(AbstractContextManager["PlanOutputs"]):
    """The series and plates of a plan; a context manager that holds the locks of the plates.

    Parameters
    ----------
    model, structure, options
        As of `predict_file`.
    plan
        The images.
    keep
        Use what an earlier call predicted.

    Raises
    ------
    ImageError
        If something else is at the name of an output.
    RepmodeError
        If another process is making a plate.
    """

    def __init__(
        self,
        model: ModelSnapshot,
        structure: str | list[str] | tuple[str, ...],
        plan: PredictionPlan,
        options: PredictionOptions,
        *,
        keep: bool,
    ) -> None:
        self._model, self._structure, self._plan, self._options = model, structure, plan, options
        self._names = (structure,) if isinstance(structure, str) else tuple(structure)
        self._keep = keep
        self._series = {task: series for series in plan.series for task in series.tasks}
        self._plates = {
            task: plate for plate in plan.plates for tasks in plate.tasks.values() for task in tasks
        }
        # Tasks that a series or plate waits for.
        self._waiting = {series.output: set(series.tasks) for series in plan.series}
        self._waiting |= {
            plate.output: {task for tasks in plate.tasks.values() for task in tasks} for plate in plan.plates
        }
        self._locks = ExitStack()

    def __enter__(self) -> PlanOutputs:
        """Lock the plates, and find what an interrupted call left of them."""
        with ExitStack() as stack:
            finals = [series.output for series in self._plan.series]
            finals += [plate.output for plate in self._plan.plates]
            for final in finals:
                for path in self._paths(final):
                    check_output(path)
            for plate in self._plan.plates:
                paths = self._paths(plate.output)
                busy = (
                    f"{paths[0]}: another process is predicting this plate; wait for it, or give another name"
                )
                lock = parts_folder(paths[0]) / "lock"
                stack.enter_context(exclusive(lock, busy, error=RepmodeError))
                for number, path in enumerate(paths):
                    take_plate_apart(path, self._fields(plate, number))
            self._locks = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._locks.close()
        for plate in self._plan.plates:
            folder = parts_folder(self._paths(plate.output)[0])
            if folder.is_dir() and not any(path.name != "lock" for path in folder.iterdir()):
                shutil.rmtree(folder, ignore_errors=True)

    def _paths(self, output: str) -> tuple[Path, ...]:
        """Return the paths of an output: one for each structure, or one for all in a stack."""
        if self._options.stack or "{structure}" not in output:
            return (Path(output),)
        return tuple(Path(output.replace("{structure}", name)) for name in self._names)

    def _fields(self, plate: PlateOutput, number: int) -> dict[str, Path]:
        return {field: self._paths(output)[number] for field, output in plate.fields.items()}

    # -- what is there ----------------------------------------------------------------------------------------

    def already_there(self, at_hand: Callable[[Sequence[PredictedFile]], bool]) -> _Files:
        """Return the records of the tasks of series and plates that an earlier call finished.

        Parameters
        ----------
        at_hand
            Tells whether the figures of a task's files are known; where those of one are not, its series or plate is
            made again.
        """
        if not self._keep:
            return {}
        known: _Files = {}
        surveys: dict[ImageTask, _Survey | None] = {}
        for plate in self._plan.plates:
            tasks = [task for tasks in plate.tasks.values() for task in tasks]
            if any(path.exists() for path in self._paths(plate.output)):
                uuids = [self._uuids(tasks, surveys) for tasks in plate.tasks.values()]
                if self._all_at_hand(tasks, surveys, at_hand):
                    known |= self._if_whole(plate, uuids, surveys)
        for series in self._plan.series:
            if not known.keys() & set(series.tasks) and any(
                path.exists() for path in self._paths(series.output)
            ):
                uuids = [self._task_uuids(task, surveys) for task in series.tasks]
                if self._all_at_hand(series.tasks, surveys, at_hand):
                    known |= self._if_whole(series, uuids, surveys)
        return known

    @staticmethod
    def _all_at_hand(
        tasks: Iterable[ImageTask],
        surveys: Mapping[ImageTask, _Survey | None],
        at_hand: Callable[[Sequence[PredictedFile]], bool],
    ) -> bool:
        found = [surveys[task] for task in tasks]
        return all(one is not None and at_hand(one.files) for one in found)

    def _if_whole(
        self,
        output: PlateOutput | TimeSeries,
        parts: list[tuple[str, ...] | None],
        surveys: Mapping[ImageTask, _Survey | None],
    ) -> _Files:
        """Return the records of an output's tasks, if each of its files holds what the tasks would predict."""
        tasks = [task for task, one in self._owners(output)]
        source = tasks[0].source
        whole = [uuids for uuids in parts if uuids is not None]
        paths = self._paths(output.output)
        if len(whole) < len(parts):
            return {}
        combined = {
            path: combined_uuid([uuids[number] for uuids in whole]) for number, path in enumerate(paths)
        }
        if not are_predicted(combined, source):
            return {}
        self._waiting.pop(output.output)
        for path in paths:
            if isinstance(output, TimeSeries):
                shutil.rmtree(parts_folder(path), ignore_errors=True)
        if isinstance(output, PlateOutput):
            for task in tasks:
                if task in self._series:
                    self._waiting.pop(self._series[task].output, None)
        found = {task: surveys[task] for task in tasks}
        return {
            task: self._moved(survey.files, output.output)
            for task, survey in found.items()
            if survey is not None
        }

    def _owners(self, output: PlateOutput | TimeSeries) -> Iterator[tuple[ImageTask, str]]:
        if isinstance(output, TimeSeries):
            yield from ((task, output.output) for task in output.tasks)
        else:
            yield from ((task, output.output) for tasks in output.tasks.values() for task in tasks)

    def _uuids(
        self, tasks: tuple[ImageTask, ...], surveys: dict[ImageTask, _Survey | None]
    ) -> tuple[str, ...] | None:
        """Return the UUIDs of a field: its only task's, or those of its series."""
        each = [self._task_uuids(task, surveys) for task in tasks]
        if len(each) == 1:
            return each[0]
        known = [uuids for uuids in each if uuids is not None]
        if len(known) < len(each):
            return None
        return tuple(combined_uuid(uuids) for uuids in zip(*known, strict=True))

    def _task_uuids(
        self, task: ImageTask, surveys: dict[ImageTask, _Survey | None]
    ) -> tuple[str, ...] | None:
        """Return the UUIDs of a task's outputs; None where its image cannot be predicted, which its turn will show."""
        if task not in surveys:
            options = replace(self._options, scene=task.scene, t=task.t)
            try:
                uuids, files = FilePrediction(
                    self._model, self._structure, task.image, task.output, options
                ).survey()
                surveys[task] = _Survey(tuple(uuids.values()), tuple(files))
            except (RepmodeError, OSError):
                surveys[task] = None
        survey = surveys[task]
        return None if survey is None else survey.uuids

    def _moved(self, files: tuple[PredictedFile, ...], output: str) -> tuple[PredictedFile, ...]:
        """Return the records of files that are parts of `output` now."""
        paths = self._paths(output)
        by_name = dict(zip(self._names, paths, strict=True)) if len(paths) > 1 else {}
        return tuple(replace(file, path=by_name.get(file.structure, paths[0])) for file in files)

    # -- what can be made -------------------------------------------------------------------------------------

    def collect(self, task: ImageTask, outcomes: Mapping[ImageTask, ImageOutcome]) -> Iterator[Collected]:
        """Make the series and the plate of which `task`, just done, was the last."""
        if outcomes[task].error is not None:
            return
        if self._is_last(task, self._series.get(task)):
            series = self._series[task]
            for number, path in enumerate(self._paths(series.output)):
                write_time_series(path, [self._paths(one.output)[number] for one in series.tasks])
            files = {one: self._moved(outcomes[one].files, series.output) for one in series.tasks}
            for path in self._paths(series.output):
                yield Collected(path, files, task not in self._plates)
        if self._is_last(task, self._plates.get(task)):
            plate = self._plates[task]
            tasks = [one for members in plate.tasks.values() for one in members]
            for number, path in enumerate(self._paths(plate.output)):
                write_plate(path, plate.plate, self._fields(plate, number))
            files = {one: self._moved(outcomes[one].files, plate.output) for one in tasks}
            for path in self._paths(plate.output):
                yield Collected(path, files, True)

    def _is_last(self, task: ImageTask, output: TimeSeries | PlateOutput | None) -> bool:
        if output is None or output.output not in self._waiting:
            return False
        waiting = self._waiting[output.output]
        waiting.discard(task)
        return not waiting
