"""Prediction of many images with one model: names of their outputs, outcome of each, and a CSV table."""

from __future__ import annotations

import glob
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue

from repmode_cl.data.preprocessing.intensity_scales import pooled_scale
from repmode_cl.data.readers.location import as_location, is_url
from repmode_cl.errors import ImageError, RepmodeError
from repmode_cl.inference.cluster import PredictionCluster
from repmode_cl.inference.image_task import ImageOutcome, ImageTask, PredictionPlan
from repmode_cl.inference.options import PredictedFile, PredictionOptions, network_precision
from repmode_cl.inference.plan_outputs import PlanOutputs
from repmode_cl.inference.positions import PositionChoice, chosen_parts, fill_name
from repmode_cl.inference.predict_file import ComputedPrediction, FilePrediction, FusedNetworks
from repmode_cl.inference.prediction_table import (
    EarlierRows,
    check_prediction_table,
    read_prediction_table,
    write_prediction_table,
)
from repmode_cl.inference.streaming.run import WritingBeside
from repmode_cl.inference.writers import SUFFIXES
from repmode_cl.store.snapshot import ModelSnapshot
from repmode_cl.utils.background import working_behind
from repmode_cl.utils.devices import resolve_device

__all__ = [
    "measure_light",
    "predict_files",
    "predict_plan",
    "expand_inputs",
    "output_names",
]


#: Files of an image, or the reason of its failure.
_Result = list[PredictedFile] | RepmodeError | OSError
#: An image that is computed, and when it began.
_Waiting = tuple[ImageTask, ComputedPrediction, float]


def expand_inputs(inputs: Sequence[str | Path]) -> list[Path | str]:
    """Return the images that paths, patterns (``*``, ``?``, ``[...]``, ``**``) and URLs stand for, each once.

    Raises
    ------
    ImageError
        If a pattern fits no file.
    """
    images: dict[str, Path | str] = {}
    for pattern in inputs:
        text = str(pattern)
        # An existing file is no pattern, whatever its name looks like.
        if is_url(text) or Path(text).exists() or not glob.has_magic(text):
            images.setdefault(text, as_location(text))
            continue
        matches = sorted(glob.glob(text, recursive=True))  # noqa: PTH207 - a pattern may be absolute
        if not matches:
            raise ImageError(f"{text}: no file fits this pattern")
        for path in matches:
            images.setdefault(path, Path(path))
    return list(images.values())


def output_names(
    inputs: Sequence[Path | str],
    out: str | Path,
    structures: Sequence[str],
    *,
    stack: bool,
    imagej: bool = False,
    choice: PositionChoice | None = None,
) -> list[str]:
    """Return for each image the name of its outputs, in which ``{structure}`` may stand for each structure.

    Parameters
    ----------
    inputs
        Images.
    out
        A folder, whose files are ``<input>_<structure>.ome.tif`` (of a stack ``<input>_predicted.ome.tif``), with a
        chosen scene and time point in between; or a name with ``{input}`` in it.
    structures
        Names.
    stack
        Whether one file holds all of them.
    imagej
        Whether files are ImageJ hyperstacks, whose names end in ``.tif``.
    choice
        The scene and the time point that are predicted of each.

    Raises
    ------
    RepmodeError
        If two images would be written to one file, or the name is that of a file and there are several images.
    """
    text, choice = str(out), choice or PositionChoice()
    if "{input}" not in text:
        if Path(text).suffix.lower() in SUFFIXES:
            raise RepmodeError(
                f"{text}: several images need a file each; give a folder, or a name with {{input}} in it such as "
                f"{Path(text).with_name('{input}_' + Path(text).name)}"
            )
        suffix = ".tif" if imagej else ".ome.tif"
        what = "predicted" if stack else "{structure}"
        text = str(Path(text) / f"{{input}}{chosen_parts(choice)}_{what}{suffix}")
    if len(structures) > 1 and not stack and "{structure}" not in text:
        raise RepmodeError(f"{text}: several structures need a file each; put {{structure}} into the name")
    names = [fill_name(text, image, choice) for image in inputs]
    images: dict[str, Path | str] = {}
    for name, image in zip(names, inputs, strict=True):
        if name in images:
            raise RepmodeError(
                f"{images[name]} and {image} would both be written to {name}: predict them in two calls, with another "
                "--out"
            )
        images[name] = image
    return names


def predict_files(
    model: ModelSnapshot,
    structure: str | list[str] | tuple[str, ...],
    inputs: Sequence[Path | str],
    outputs: Sequence[str | Path],
    options: PredictionOptions,
    *,
    keep_going: bool = False,
    table: Path | None = None,
    done: Callable[[ImageOutcome], None] | None = None,
) -> list[ImageOutcome]:
    """Predict images one after another with networks that are made once, and write each while the next is computed.

    With `options.keep`, images that an earlier call predicted with the same settings are not predicted again (unless
    `options.restart` is given, or metrics are wanted that `table` does not have): the same call continues where one
    ended.

    Parameters
    ----------
    model
        The model.
    structure
        Name of one of its structures, or several: `outputs` are then folders, or have ``{structure}`` in them.
    inputs, outputs
        Images, and the name of each one's outputs (`output_names`).
    options
        How to predict.
    keep_going
        Continue with the others after an image that cannot be predicted.
    table
        A CSV file for the results (`TABLE_COLUMNS`), written again after each image; None writes none.
    done
        Called after each image.

    Returns
    -------
    list[ImageOutcome]
        One for each image.

    Raises
    ------
    RepmodeError
        That of the first image that cannot be predicted, unless `keep_going`; if `table` would replace something
        else (`check_prediction_table`).
    """
    tasks = [
        ImageTask(source, source, str(output), options.scene, options.t)
        for source, output in zip(inputs, outputs, strict=True)
    ]
    plan = PredictionPlan(tuple(tasks))
    return predict_plan(model, structure, plan, options, keep_going=keep_going, table=table, done=done)


def predict_plan(
    model: ModelSnapshot,
    structure: str | list[str] | tuple[str, ...],
    plan: PredictionPlan,
    options: PredictionOptions,
    *,
    keep_going: bool = False,
    table: Path | None = None,
    done: Callable[[ImageOutcome], None] | None = None,
    collected: Callable[[Path], None] | None = None,
    begins: Callable[[ImageTask], None] | None = None,
    cluster: PredictionCluster | None = None,
) -> list[ImageOutcome]:
    """Predict the images of a plan, and make time series and plates of them (`plan_positions`).

    Parameters
    ----------
    model, structure, options, keep_going, table, done
        As of `predict_files`; the tasks name scenes and time points, not `options`.
    plan
        The images.
    collected
        Called with the name of each series or plate when it is whole.
    begins
        Called before each image that this process computes; the one before may not be written yet.
    cluster
        Predicts images at once, or the windows of each where there are fewer images than workers; the same bits.

    Returns
    -------
    list[ImageOutcome]
        One for each image. A series or plate of which an image failed is not written; what was predicted of it is
        kept for the next call.

    Raises
    ------
    RepmodeError
        As `predict_files`; or if another process is making the same plate.
    """
    names = [structure] if isinstance(structure, str) else list(structure)
    for name in names:
        if name not in model.structures:
            raise model.unknown_structure(name)
    device = resolve_device(options.device)
    # Once for all images, wherever they are computed.
    options = replace(options, precision=network_precision(options.precision, device))
    networks = FusedNetworks(model, device, options.precision)
    keep = options.keep and not options.restart
    earlier = EarlierRows()
    if table is not None:
        check_prediction_table(table)
        earlier = read_prediction_table(table)
    outcomes: dict[ImageTask, ImageOutcome] = {}

    targets = options.targets or {}
    measured = earlier.measured(targets)

    def at_hand(files: Sequence[PredictedFile]) -> bool:
        return all((file.uuid, file.structure) in measured for file in files if file.structure in targets)

    def options_of(task: ImageTask) -> PredictionOptions:
        return replace(options, scene=task.scene, t=task.t, networks=networks, keep=keep, measured=measured)

    def record(outcome: ImageOutcome, task: ImageTask) -> None:
        outcomes[task] = outcome
        save()
        if done is not None:
            done(outcome)
        for made in together.collect(task, outcomes):
            for member, files in made.files.items():
                outcomes[member] = replace(outcomes[member], files=files)
            save()
            if collected is not None and made.is_final:
                collected(made.path)

    def save() -> None:
        if table is not None:
            rows = [outcomes[task] for task in plan.tasks if task in outcomes]
            later = [_blank(task) for task in plan.tasks if task not in outcomes]
            write_prediction_table(table, rows, names, earlier, targets, later)

    with PlanOutputs(model, structure, plan, options, keep=keep) as together:
        known = together.already_there(at_hand)
        waiting = [task for task in plan.tasks if task not in known]
        for task, files in known.items():
            record(replace(_blank(task), files=files), task)

        def settle(task: ImageTask, result: _Result, seconds: float) -> None:
            if not isinstance(result, Exception):
                outcome = replace(_blank(task), files=tuple(result), seconds=result[0].seconds)
            elif keep_going:
                outcome = replace(_blank(task), error=_message(result), seconds=seconds)
            else:
                raise result
            record(outcome, task)

        if cluster is not None and len(waiting) >= cluster.workers:
            work = [(task, options_of(task)) for task in waiting]
            started = time.perf_counter()
            for task, result in cluster.images(
                cluster.model(model, names, options.precision), structure, work
            ):
                settle(task, result, time.perf_counter() - started)
                started = time.perf_counter()
        else:

            def compute(
                task: ImageTask, progress: Callable[[], None], beside: WritingBeside | None
            ) -> ComputedPrediction:
                if begins is not None:
                    begins(task)
                mine = options_of(task)
                mine = replace(mine, cluster=cluster, progress=_both(progress, mine.progress))
                return FilePrediction(model, structure, task.image, task.output, mine).compute(beside)

            _one_by_one(waiting, compute, settle, options.status)
    return [outcomes[task] for task in plan.tasks]


def measure_light(
    model: ModelSnapshot,
    structure: str | list[str] | tuple[str, ...],
    plan: PredictionPlan,
    options: PredictionOptions,
    *,
    keep_going: bool = False,
    measured: Callable[[], None] | None = None,
) -> tuple[float, float]:
    """Return mean and deviation of the light of all images of a plan together, such as those of a plate.

    Parameters
    ----------
    model, structure, plan, options
        As of `predict_plan`; ``PredictionOptions.light`` takes the result.
    keep_going
        Leave out images that cannot be predicted.
    measured
        Called after each image.

    Raises
    ------
    RepmodeError
        That of the first image that cannot be predicted, unless `keep_going`; or if no voxel differs from the others.
    """
    moments = []
    for task in plan.tasks:
        mine = replace(options, scene=task.scene, t=task.t, light=None)
        try:
            moments.append(FilePrediction(model, structure, task.image, task.output, mine).light_moments())
        except RepmodeError:
            if not keep_going:
                raise
        if measured is not None:
            measured()
    scale = pooled_scale(moments) if moments else (0.0, 0.0)
    if not scale[1] > 0:
        raise RepmodeError(
            "no image has light that differs from voxel to voxel: there is nothing to z-score by"
        )
    return scale


def _blank(task: ImageTask) -> ImageOutcome:
    return ImageOutcome(task.source, place=task.place, t=task.number)


class _Ended(Exception):  # noqa: N818 - carries the error
    """The computation of an image was ended by an error of an earlier one."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


def _one_by_one(
    tasks: Sequence[ImageTask],
    compute: Callable[[ImageTask, Callable[[], None], WritingBeside | None], ComputedPrediction],
    settle: Callable[[ImageTask, _Result, float], None],
    status: Callable[[str], None] | None,
) -> None:
    """Compute images one after the other; a thread writes the files of one while the next is computed.

    Parameters
    ----------
    tasks
        The images.
    compute
        Computes one. It calls its second argument now and then; the third is what is written meanwhile.
    settle
        Called with each task, its files or the reason of its failure, and the seconds since it began: in the order of
        the tasks, soon after each is written, and in the caller's thread.
    status
        Called with a few words while the last is written.
    """
    written: SimpleQueue[tuple[ImageTask, _Result, float]] = SimpleQueue()

    def write(item: _Waiting) -> None:
        task, computed, started = item
        with computed:
            result = _written(computed, stopped=lambda: behind.stopping)
        written.put((task, result, started))

    def settle_written() -> None:
        while not written.empty():
            task, result, started = written.get()
            settle(task, result, time.perf_counter() - started)

    def settle_meanwhile() -> None:
        try:
            settle_written()
        except Exception as error:
            # Not as an error of the image that is computed now.
            raise _Ended(error) from error

    def settle_all() -> None:
        behind.wait()
        settle_written()

    beside: WritingBeside | None = None
    with working_behind(write, drop=_close) as behind:
        for number, task in enumerate(tasks):
            started = time.perf_counter()
            try:
                computed = compute(task, settle_meanwhile, beside)
            except _Ended as ended:
                raise ended.error from ended.error.__cause__
            except (RepmodeError, OSError) as error:
                settle_all()
                beside = None
                settle(task, error, time.perf_counter() - started)
                continue
            with ExitStack() as held:
                held.enter_context(computed)
                settle_all()
                if number < len(tasks) - 1:
                    behind.put((task, computed, started))
                    held.pop_all()
                    beside = WritingBeside(computed.memory, computed.disk, behind.wait)
                    continue
                result = _written(computed, status)
            settle(task, result, time.perf_counter() - started)
        settle_all()


def _written(
    computed: ComputedPrediction,
    status: Callable[[str], None] | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> _Result:
    try:
        return computed.write(status, stopped)
    except (RepmodeError, OSError) as error:
        return error


def _close(item: _Waiting) -> None:
    _, computed, _ = item
    with computed:
        pass


def _both(first: Callable[[], None], second: Callable[[int, int], None] | None) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        first()
        if second is not None:
            second(done, total)

    return progress


def _message(error: RepmodeError | OSError) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)
