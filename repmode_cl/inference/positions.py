"""All scenes and time points of images, the fields of plates among them, and the names of their outputs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from repmode_cl.data.readers import open_image
from repmode_cl.data.readers.plate import Plate, read_plate
from repmode_cl.errors import ImageError, RepmodeError, did_you_mean
from repmode_cl.inference.image_task import ImageTask, PlateOutput, PredictionPlan, TimeSeries
from repmode_cl.inference.provenance import input_title
from repmode_cl.inference.writers import SUFFIXES

__all__ = [
    "ALL",
    "PositionChoice",
    "chosen_parts",
    "fill_name",
    "plan_positions",
    "uses_positions",
    "parts_folder",
]

#: Choice of all scenes, or of all time points.
ALL = "all"

# Characters of a scene's name that stay in the name of a file.
_UNSAFE = re.compile(r"[^\w.+-]+")


@dataclass(frozen=True)
class PositionChoice:
    """The scenes and time points to predict.

    Attributes
    ----------
    scene
        `ALL`, the name or number of one (of a plate ``row/column/field``), or None where a file has one.
    t
        `ALL`, the number of one, or None where a file has one.
    """

    scene: int | str | None = None
    t: int | str | None = None

    @property
    def one_t(self) -> int | None:
        """The one time point; None for all, or where a file has one."""
        return None if self.t is None or self.t == ALL else int(self.t)


@dataclass(frozen=True)
class _Position:
    """One scene of a source: what to open, its name there and in files, and its time points."""

    image: Path | str
    scene: int | str | None
    place: str
    times: tuple[int | None, ...]


def parts_folder(output: Path) -> Path:
    """Return the folder in which the parts of an output lie until it is whole."""
    return output.with_name(f"{output.name}.parts")


#: What may stand in the name of an output, in braces.
_PLACEHOLDERS = ("input", "scene", "t", "structure")


def fill_name(name: str, source: Path | str, choice: PositionChoice, *, keep: Collection[str] = ()) -> str:
    """Return the name of an output with what is known of its image in it.

    Parameters
    ----------
    name
        In which ``{input}``, ``{scene}``, ``{t}`` and ``{structure}`` may stand; the last one stays.
    source
        The image.
    choice
        The scene and the time point that are predicted of it.
    keep
        Placeholders that the caller fills.

    Raises
    ------
    RepmodeError
        If something else stands in braces, or a scene or time point that was not chosen.
    """
    given = {
        "input": input_title(source),
        "scene": None if choice.scene is None else _labels([str(choice.scene)])[0],
        "t": choice.t,
    }
    for found in re.findall(r"\{(\w*)\}", name):
        if found not in _PLACEHOLDERS:
            raise RepmodeError(
                f"{name}: {{{found}}} stands for nothing{did_you_mean(found, _PLACEHOLDERS)}: there are "
                f"{', '.join(f'{{{one}}}' for one in _PLACEHOLDERS)}"
            )
        if found == "structure" or found in keep:
            continue
        if given[found] is None:
            raise RepmodeError(
                f"{name}: {{{found}}} stands for the {'scene' if found == 'scene' else 'time point'}, and none is "
                f"chosen: add --{found}, or leave {{{found}}} out"
            )
        name = name.replace(f"{{{found}}}", str(given[found]))
    return name


def chosen_parts(choice: PositionChoice) -> str:
    """Return what tells a chosen scene and time point apart in default names: ``_{scene}_t{t}``, as far as chosen."""
    scene = "_{scene}" if choice.scene not in (None, ALL) else ""
    return scene + ("_t{t}" if choice.one_t is not None else "")


def uses_positions(sources: Sequence[Path | str], choice: PositionChoice) -> bool:
    """Tell whether more than one scene and time point of each source may be meant, or a field of a plate."""
    if ALL in (choice.scene, choice.t):
        return True
    return choice.scene is not None and any(_plate_of(source) is not None for source in sources)


def plan_positions(
    sources: Sequence[Path | str],
    choice: PositionChoice,
    out: str,
    structures: Sequence[str],
    *,
    stack: bool,
    keep_going: bool = False,
) -> PredictionPlan:
    """Return the images to predict of `sources`, and the names of their outputs.

    Parameters
    ----------
    sources
        Files, folders and plates.
    choice
        Which of their scenes and time points.
    out
        A folder, or a name in which ``{input}``, ``{scene}``, ``{t}`` and ``{structure}`` may stand. Without ``{t}``
        the time points of a scene become one output with an axis of time. A plate whose name ends in .zarr and
        has no ``{scene}`` is a plate again.
    structures
        Names.
    stack
        Whether one file holds all of them.
    keep_going
        Leave a source that cannot be opened to its prediction, which then says why it failed.

    Raises
    ------
    ImageError
        If a source cannot be opened (unless `keep_going`), or has no such scene.
    RepmodeError
        If two images would be written to one file.
    """
    names = _Names(out, structures, choice, stack=stack, sources=len(sources))
    tasks: list[ImageTask] = []
    series: list[TimeSeries] = []
    plates: list[PlateOutput] = []
    for source in sources:
        try:
            plate = None if choice.scene is None else _plate_of(source)
            positions = _positions(source, plate, choice)
        except (RepmodeError, OSError):
            if not keep_going:
                raise
            plate, positions = None, [_Position(source, None, "", (choice.one_t,))]
        is_plate = plate is not None and choice.scene == ALL and names.takes_plate(source)
        final = names.of_plate(source) if is_plate else ""
        fields: dict[str, str] = {}
        of_fields: dict[str, tuple[ImageTask, ...]] = {}
        named = [position.place or str(position.scene or 0) for position in positions]
        labels = _labels(named)
        for position, label in zip(positions, labels, strict=True):
            if is_plate:
                output = f"{final}.parts/{label}.ome.zarr"
                fields[position.place] = output
            else:
                output = names.of_position(source, label, several=len(positions) > 1)
            mine = _tasks_of(source, position, output)
            tasks += mine
            of_fields[position.place] = tuple(mine)
            if mine[0].output.startswith(f"{output}.parts/"):
                series.append(TimeSeries(output, tuple(mine)))
        if is_plate:
            assert plate is not None
            plates.append(PlateOutput(final, plate, fields, of_fields))
    plan = PredictionPlan(tuple(tasks), tuple(series), tuple(plates))
    _refuse_collisions(plan)
    return plan


def _plate_of(source: Path | str) -> Plate | None:
    return read_plate(source) if isinstance(source, Path) and source.is_dir() else None


def _positions(source: Path | str, plate: Plate | None, choice: PositionChoice) -> list[_Position]:
    """Return the scenes of a source that are chosen, each with its time points."""
    if plate is not None:
        assert isinstance(source, Path)
        chosen = plate.fields if choice.scene == ALL else (_field(plate, str(choice.scene)),)
        return [
            _Position(source / field, None, field, _times(source / field, None, choice)) for field in chosen
        ]
    if choice.scene != ALL:
        return [_Position(source, choice.scene, "", _times(source, choice.scene, choice))]
    with open_image(source) as image:
        scenes = image.scenes
    if len(scenes) == 1:
        return [_Position(source, None, "", _times(source, None, choice))]
    return [
        _Position(source, number, name if name and scenes.count(name) == 1 else str(number),
                  _times(source, number, choice))
        for number, name in enumerate(scenes)
    ]  # fmt: skip


def _field(plate: Plate, name: str) -> str:
    if name not in plate.fields:
        listed = ", ".join(plate.fields[:8]) + (", ..." if len(plate.fields) > 8 else "")
        raise ImageError(
            f"{plate.path}: there is no field {name}{did_you_mean(name, plate.fields)}; the plate has {listed}; or "
            "give --scene all"
        )
    return name


def _times(image: Path | str, scene: int | str | None, choice: PositionChoice) -> tuple[int | None, ...]:
    if choice.t != ALL:
        return (choice.one_t,)
    try:
        with open_image(image, scene=scene) as opened:
            return tuple(range(opened.times)) if opened.times > 1 else (None,)
    except ImageError:
        return (None,)  # its prediction says why it failed, and others go on with --keep-going


def _tasks_of(source: Path | str, position: _Position, output: str) -> list[ImageTask]:
    """Return a task for each time point; without ``{t}`` in `output` these are parts of one output."""
    times = position.times
    width = len(str(len(times) - 1))
    tasks = []
    for t in times:
        name = output.replace("{t}", f"{t or 0:0{width}}")
        if len(times) > 1 and "{t}" not in output:
            if Path(output).suffix.lower() == ".npy":
                raise RepmodeError(
                    f"{output}: an array has no axis of time; put {{t}} into the name, or take .ome.tif or .ome.zarr"
                )
            name = f"{output}.parts/t{t:0{width}}.ome.zarr"
        tasks.append(ImageTask(source, position.image, name, position.scene, t, position.place, t))
    return tasks


def _labels(places: Sequence[str]) -> list[str]:
    """Return names for files, one for each place; where two would be the same, their numbers."""
    labels = [_UNSAFE.sub("-", place).strip(".-") for place in places]
    counts = Counter(label.casefold() for label in labels)
    return [
        label if label and counts[label.casefold()] == 1 else str(number)
        for number, label in enumerate(labels)
    ]


class _Names:
    """Names of outputs, from what the caller gave."""

    def __init__(
        self, out: str, structures: Sequence[str], choice: PositionChoice, *, stack: bool, sources: int
    ) -> None:
        self.out, self.choice = out, choice
        is_name = Path(out).suffix.lower() in SUFFIXES or "{" in out
        self._name = out if is_name else None
        self._what = "predicted" if stack else "{structure}"
        if self._name is None:
            return
        if sources > 1 and "{input}" not in out:
            raise RepmodeError(
                f"{out}: several images need a file each; give a folder, or a name with {{input}} in it such as "
                f"{Path(out).with_name('{input}_' + Path(out).name)}"
            )
        if len(structures) > 1 and not stack and "{structure}" not in out:
            raise RepmodeError(f"{out}: several structures need a file each; put {{structure}} into the name")

    def takes_plate(self, source: Path | str) -> bool:
        """Tell whether a plate becomes a plate again; refuse a name that is neither a plate's nor its fields'."""
        if self._name is None:
            return True
        if "{scene}" in self._name:
            return False
        if Path(self._name).suffix.lower() != ".zarr":
            raise RepmodeError(
                f"{self._name}: {source} is a plate; give a name that ends in .ome.zarr for a plate again, or one with "
                "{scene} in it for a file for each field"
            )
        return True

    def of_plate(self, source: Path | str) -> str:
        """Return the name of the plate that is made of a plate."""
        name = self._name or str(Path(self.out) / f"{{input}}_{self._what}.ome.zarr")
        if "{t}" in name:
            raise RepmodeError(f"{name}: a plate holds all time points; leave out {{t}}, or add {{scene}}")
        return fill_name(name, source, self.choice)

    def of_position(self, source: Path | str, label: str, *, several: bool) -> str:
        """Return the name of a scene's output; ``{t}`` stays in it."""
        name = self._name
        if name is None:
            middle = "_{scene}" if several and self.choice.scene == ALL else ""
            middle += chosen_parts(self.choice)
            name = str(Path(self.out) / f"{{input}}{middle}_{self._what}.ome.tif")
        elif several and "{scene}" not in name:
            raise RepmodeError(
                f"{name}: {source} holds several scenes, which need a file each; give a folder, or a name with "
                f"{{scene}} in it such as {Path(name).with_name('{scene}_' + Path(name).name)}"
            )
        return fill_name(name, source, self.choice, keep=("scene", "t")).replace("{scene}", label)


def _refuse_collisions(plan: PredictionPlan) -> None:
    seen: dict[str, Path | str] = {}
    for name, source in plan.outputs():
        if name in seen:
            raise RepmodeError(
                f"{seen[name]} and {source} would both be written to {name}: predict them in two calls, with another "
                "--out"
            )
        seen[name] = source
