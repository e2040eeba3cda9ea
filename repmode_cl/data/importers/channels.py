"""Import of multi-channel files: a row for every channel except the transmitted light, of every scene."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from repmode_cl.data.importers.common import (
    ImportedRows,
    Skipped,
    check_targets,
    listed_names,
    structure_from_channel,
)
from repmode_cl.data.manifest import Row
from repmode_cl.data.readers import ImageReader, open_image
from repmode_cl.data.readers.region import number_of
from repmode_cl.errors import ImageError, ManifestError
from repmode_cl.utils.progress import track

__all__ = ["import_channels"]

#: Suffixes of files and folders that hold an image.
_SUFFIXES = (".tif", ".tiff", ".czi", ".lif", ".nd2", ".zarr", ".npy")
#: Suffixes of further image files: some are TIFFs by another name, the others are reported as not readable.
_OTHER_SUFFIXES = (
    ".btf", ".lsm", ".stk", ".tf2", ".tf8",
    ".bmp", ".dv", ".gif", ".h5", ".hdf5", ".ims", ".jp2", ".jpeg", ".jpg", ".mrc", ".nii", ".npz",
    ".nrrd", ".oib", ".oif", ".oir", ".png", ".sld", ".svs", ".vsi", ".zvi",
)  # fmt: skip


def import_channels(
    paths: Iterable[str | Path],
    *,
    signal: str | int,
    targets: Mapping[str, str] | None = None,
    scenes: str | None = None,
    times: str | None = None,
    voxel_size: tuple[float, float, float] | None = None,
) -> ImportedRows:
    """Return a row for each target channel of each file; headers are read, no voxels.

    Parameters
    ----------
    paths
        Files, or folders whose image files are taken.
    signal
        Name or number of the transmitted light's channel: a text is a name first.
    targets
        Name or number of a channel by structure; None uses all channels except the signal, each as a structure of its
        name.
    scenes, times
        ``all``, or numbers such as ``0,2``, for files that hold several; without, such a file is an error. Of a file
        that holds one, the numbers must include 0.
    voxel_size
        (z, y, x) in um, written into every row; None takes what the files say.

    Returns
    -------
    ImportedRows
        `skipped` holds files that cannot be read or lack a channel.
    """
    structures = check_targets(targets)
    imported = ImportedRows()
    files = list(dict.fromkeys(file for path in paths for file in _files(Path(path), imported.notes)))
    if not files:
        others = "".join(f"; {note}" for note in imported.notes)
        raise ManifestError(f"no image file ({', '.join(_SUFFIXES)}) was found{others}")
    names: dict[str, str] = {}
    left: dict[str, None] = {}
    for path in track(files, "reading headers", len(files)):
        try:
            imported.rows += _rows(path, signal, structures, scenes, times, voxel_size, names, left)
        except ImageError as error:
            imported.skipped.append(Skipped.of(path, error))
    imported.notes += [f"channel {channel!r}: structure {name}" for channel, name in names.items()]
    if left:
        imported.notes.append(f"left out, as no target names them: {listed_names(list(left), 'channel')}")
    return imported


def _files(path: Path, notes: list[str]) -> list[Path]:
    """Return a file, or the image files of a folder; a note names what else the folder holds."""
    if not path.is_dir() or path.suffix == ".zarr":
        return [path]
    images: list[Path] = []
    others: list[str] = []
    folders: list[str] = []
    for entry in sorted(path.iterdir()):
        suffix = entry.suffix.lower()
        if suffix in _SUFFIXES or (suffix in _OTHER_SUFFIXES and entry.is_file()):
            images.append(entry)
        elif not entry.name.startswith("."):
            (folders if entry.is_dir() else others).append(entry.name)
    if others:
        notes.append(f"{path}: not taken as images: {listed_names(others, 'file')}")
    if folders:
        notes.append(f"{path}: folders in it are not searched: {listed_names(folders, 'folder')}")
    return images


def _rows(
    path: Path,
    signal: str | int,
    structures: Mapping[str, str],
    scenes: str | None,
    times: str | None,
    voxel_size: tuple[float, float, float] | None,
    names: dict[str, str],
    left: dict[str, None],
) -> list[Row]:
    """Return the rows of a file; `names` gets structures of channels, `left` the channels that no target names."""
    with open_image(path) as image:
        names_of_scenes = image.scenes
        numbers = _parse_numbers(scenes, len(names_of_scenes), names_of_scenes, path, "scene")
    rows: list[Row] = []
    for number in numbers:
        with open_image(path, scene=number) as image:
            light = image.channel_index(signal)
            given: dict[int, str] = {}
            if structures:
                for target in structures:
                    channel = image.channel_index(target)
                    if channel in given:
                        raise ImageError(
                            f"{path}: the targets {structures[given[channel]]}={given[channel]} and "
                            f"{structures[target]}={target} are one channel ({channel} "
                            f"{image.channel_names[channel]!r}): leave out one of them"
                        )
                    given[channel] = target
                structures_by_channel = {channel: structures[by_user] for channel, by_user in given.items()}
                taken = {light, *given}
                left |= dict.fromkeys(n for c, n in enumerate(image.channel_names) if c not in taken)
            else:
                structures_by_channel = _name_channels(image, light, names)
                given = {channel: image.channel_names[channel] for channel in structures_by_channel}
            if light in structures_by_channel:
                raise ImageError(f"{path}: the channel of {structures_by_channel[light]} is the signal's")
            if not structures_by_channel:
                raise ImageError(f"{path}: there is no channel but the signal")
            light_cell = _cell(image.channel_names, light, signal, path, "channel")
            scene_cell = None if number is None else _cell(names_of_scenes, number, number, path, "scene")
            for time in _parse_numbers(times, image.times, (), path, "time point"):
                for channel, structure in structures_by_channel.items():
                    target_cell = _cell(image.channel_names, channel, given[channel], path, "channel")
                    rows.append(
                        Row(
                            0, structure, path, light_cell, path, target_cell,
                            scene=scene_cell, t=time, voxel_size=voxel_size,
                        )
                    )  # fmt: skip
    return rows


def _cell(names: Sequence[str], number: int, given: str | int, path: Path, what: str) -> str | int:
    """Return what a manifest calls a channel or scene: what is read back as this one, first the name that was given."""
    for cell in (given if given in names else number, number, names[number]):
        # A manifest's cells are stripped.
        if number_of(str(cell).strip(), names) == number:
            return cell
    raise ImageError(
        f"{path}: {what} {number} {names[number]!r} cannot be named in a manifest: its number is the name of another "
        f"{what}, and its name is not its own; rename the {what}s of the file"
    )


def _name_channels(image: ImageReader, light: int, names: dict[str, str]) -> dict[int, str]:
    """Return the structures that channels are named after."""
    structures_by_channel: dict[int, str] = {}
    for channel, name in enumerate(image.channel_names):
        if channel == light:
            continue
        if name == f"C{channel}":
            raise ImageError(
                f"{image.path}: channel {channel} has no name to call a structure by: name it, such as "
                f"--target dna={channel if number_of(str(channel), image.channel_names) == channel else name}"
            )
        structure = structure_from_channel(name)
        if structure in structures_by_channel.values():
            raise ImageError(f"{image.path}: two channels would be the structure {structure}: use --target")
        structures_by_channel[channel] = names[name] = structure
    return structures_by_channel


def _parse_numbers(
    text: str | None, count: int, names: Sequence[str], path: Path, what: str
) -> list[int | None]:
    """Parse a choice of scenes or time points into numbers; [None] where there is only one."""
    option = "--scene" if what == "scene" else "--t"
    if count == 1:
        if text is not None and text != "all" and 0 not in _numbers(text):
            raise ImageError(f"{path}: {option} {text!r}: give all, or 0: the file holds 1 {what}")
        return [None]
    if text is None:
        listed = ": " + ", ".join(f"{number} {name!r}" for number, name in enumerate(names)) if names else ""
        raise ImageError(
            f"{path}: holds {count} {what}s{listed}; say which with {option} all, or numbers such as {option} 0,1"
        )
    if text == "all":
        return list(range(count))
    numbers = _numbers(text)
    if not numbers or max(numbers) >= count:
        raise ImageError(f"{path}: {option} {text!r}: give all, or numbers from 0 to {count - 1}")
    return list(dict.fromkeys(numbers))


def _numbers(text: str) -> list[int]:
    """Read ``0,2``; nothing if any part is no whole number."""
    parts = [part.strip() for part in text.split(",")]
    return [int(part) for part in parts] if all(part.isascii() and part.isdigit() for part in parts) else []
