"""Import of multi-channel files: a row for every channel except the transmitted light, of every scene."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from repmode_cl.data.importers.common import ImportedRows, check_targets, structure_from_channel
from repmode_cl.data.manifest import Row
from repmode_cl.data.readers import ImageReader, open_image
from repmode_cl.errors import ImageError, ManifestError
from repmode_cl.utils.progress import track

__all__ = ["import_channels"]

#: Suffixes of files and folders that hold an image.
_SUFFIXES = (".tif", ".tiff", ".czi", ".zarr", ".npy")


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
        Name or number of the transmitted light's channel.
    targets
        Name or number of a channel by structure; None uses all channels except the signal, each as a structure of its
        name.
    scenes, times
        ``all``, or numbers such as ``0,2``, for files that hold several; without, such a file is an error.
    voxel_size
        (z, y, x) in um, written into every row; None takes what the files say.

    Returns
    -------
    ImportedRows
        `skipped` holds files that cannot be read or lack a channel.
    """
    structures = {_channel(channel): structure for channel, structure in check_targets(targets).items()}
    imported = ImportedRows()
    files = list(dict.fromkeys(file for path in paths for file in _files(Path(path))))
    if not files:
        raise ManifestError(f"no image file ({', '.join(_SUFFIXES)}) was found")
    names: dict[str, str] = {}
    for path in track(files, "reading headers", len(files)):
        try:
            imported.rows += _rows(path, signal, structures, scenes, times, voxel_size, names)
        except ImageError as error:
            imported.skipped.append(str(error))
    imported.notes += [f"channel {channel!r}: structure {name}" for channel, name in names.items()]
    return imported


def _channel(text: str) -> str | int:
    return int(text) if text.isascii() and text.isdigit() else text


def _files(path: Path) -> list[Path]:
    if path.is_dir() and path.suffix != ".zarr":
        return sorted(file for file in path.iterdir() if file.suffix.lower() in _SUFFIXES)
    return [path]


def _rows(
    path: Path,
    signal: str | int,
    structures: Mapping[str | int, str],
    scenes: str | None,
    times: str | None,
    voxel_size: tuple[float, float, float] | None,
    names: dict[str, str],
) -> list[Row]:
    with open_image(path) as image:
        numbers = _parse_numbers(scenes, len(image.scenes), image.scenes, path, "scene")
    rows: list[Row] = []
    for number in numbers:
        with open_image(path, scene=number) as image:
            light = image.channel_index(signal)
            if structures:
                structures_by_channel = {
                    image.channel_index(channel): name for channel, name in structures.items()
                }
            else:
                structures_by_channel = _name_channels(image, light, names)
            if light in structures_by_channel:
                raise ImageError(f"{path}: the channel of {structures_by_channel[light]} is the signal's")
            if not structures_by_channel:
                raise ImageError(f"{path}: there is no channel but the signal")
            for time in _parse_numbers(times, image.times, (), path, "time point"):
                for channel, structure in structures_by_channel.items():
                    rows.append(
                        Row(
                            0, structure, path, light, path, channel, scene=number, t=time, voxel_size=voxel_size
                        )
                    )  # fmt: skip
    return rows


def _name_channels(image: ImageReader, light: int, names: dict[str, str]) -> dict[int, str]:
    """Return the structures that channels are named after."""
    structures_by_channel: dict[int, str] = {}
    for channel, name in enumerate(image.channel_names):
        if channel == light:
            continue
        if name == f"C{channel}":
            raise ImageError(
                f"{image.path}: channel {channel} has no name to call a structure by: name it, such as "
                f"--target dna={channel}"
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
        return [None]
    if text is None:
        listed = ": " + ", ".join(f"{number} {name!r}" for number, name in enumerate(names)) if names else ""
        raise ImageError(
            f"{path}: holds {count} {what}s{listed}; say which with {option} all, or numbers such as {option} 0,1"
        )
    if text == "all":
        return list(range(count))
    parts = [part.strip() for part in text.split(",")]
    numbers = [int(part) for part in parts if part.isascii() and part.isdigit()]
    if len(numbers) < len(parts) or max(numbers) >= count:
        raise ImageError(f"{path}: {option} {text!r}: give all, or numbers from 0 to {count - 1}")
    return list(dict.fromkeys(numbers))
