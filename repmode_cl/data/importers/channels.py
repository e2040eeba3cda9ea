"""A manifest of multi-channel files: a row for every channel but the transmitted light, of every scene."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from repmode_cl.data.importers.common import ImportedRows, check_targets, structure_from_channel
from repmode_cl.data.manifest import Row
from repmode_cl.data.readers import ImageReader, open_image
from repmode_cl.errors import ImageError, ManifestError
from repmode_cl.utils.progress import track

__all__ = ["import_channels"]

#: What a file or folder that holds an image is called.
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
        Name or number of a channel by structure; None takes all channels but the signal, each a structure of its
        name.
    scenes, times
        ``all``, or numbers such as ``0,2``, for files that hold several; without, such a file is an error.
    voxel_size
        (z, y, x) in um, written into every row; None takes what the files say.

    Returns
    -------
    Imported
        `left` holds files that cannot be read or lack a channel.
    """
    structures = {_channel(channel): structure for channel, structure in check_targets(targets).items()}
    found = ImportedRows()
    files = list(dict.fromkeys(file for path in paths for file in _files(Path(path))))
    if not files:
        raise ManifestError(f"no image file ({', '.join(_SUFFIXES)}) was found")
    said: dict[str, str] = {}
    for path in track(files, "reading headers", len(files)):
        try:
            found.rows += _rows(path, signal, structures, scenes, times, voxel_size, said)
        except ImageError as error:
            found.left.append(str(error))
    found.notes += [f"channel {channel!r}: structure {name}" for channel, name in said.items()]
    return found


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
    said: dict[str, str],
) -> list[Row]:
    with open_image(path) as image:
        numbers = _chosen(scenes, len(image.scenes), image.scenes, path, "scene")
    rows: list[Row] = []
    for number in numbers:
        with open_image(path, scene=number) as image:
            light = image.channel_index(signal)
            if structures:
                shown = {image.channel_index(channel): name for channel, name in structures.items()}
            else:
                shown = _named(image, light, said)
            if light in shown:
                raise ImageError(f"{path}: the channel of {shown[light]} is the signal's")
            if not shown:
                raise ImageError(f"{path}: there is no channel but the signal")
            for time in _chosen(times, image.times, (), path, "time point"):
                for channel, structure in shown.items():
                    rows.append(
                        Row(
                            0, structure, path, light, path, channel, scene=number, t=time, voxel_size=voxel_size
                        )
                    )  # fmt: skip
    return rows


def _named(image: ImageReader, light: int, said: dict[str, str]) -> dict[int, str]:
    """Return the structures that channels are named after."""
    shown: dict[int, str] = {}
    for channel, name in enumerate(image.channel_names):
        if channel == light:
            continue
        if name == f"C{channel}":
            raise ImageError(
                f"{image.path}: channel {channel} has no name to call a structure by: name it, such as "
                f"--target dna={channel}"
            )
        structure = structure_from_channel(name)
        if structure in shown.values():
            raise ImageError(f"{image.path}: two channels would be the structure {structure}: use --target")
        shown[channel] = said[name] = structure
    return shown


def _chosen(text: str | None, count: int, names: Sequence[str], path: Path, what: str) -> list[int | None]:
    """Return the numbers that a choice means; [None] where there is one and nothing is to be chosen."""
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
