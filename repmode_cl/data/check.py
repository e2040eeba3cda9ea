"""Everything wrong with a manifest in one list, before hours of training are built on it.

Each row is looked at by itself (files, channels, sizes, voxels) and against the others (duplicates, regions
and groups that straddle splits), and nothing stops at the first problem.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from repmode_cl.config.schema import PatchConfig
from repmode_cl.data.manifest import Problem, Row, parse_manifest
from repmode_cl.data.readers import ImageReader, Region, open_image
from repmode_cl.errors import ImageError
from repmode_cl.files import sha256_file
from repmode_cl.progress import track

__all__ = ["Problem", "check_manifest"]

Triple = tuple[float, float, float]

#: Voxel sizes of one row's files may differ by this much: rounding in metadata.
_SAME_VOXEL = 0.01


def check_manifest(
    path: str | Path,
    *,
    patch: tuple[int, int, int] | None = None,
    gap: int | tuple[int, int, int] | None = None,
    read_voxels: bool = True,
    depth: int = 4,
    voxel_size: Triple | None = (0.29, 0.29, 0.29),
    structures: Collection[str] | None = None,
) -> list[Problem]:
    """Return every problem of a manifest and of what it points to, in the order of its lines.

    Parameters
    ----------
    path
        The manifest.
    patch
        Training patch (z, y, x) in voxels after resampling; None takes the configuration's default.
    gap
        Fewest voxels of the file, along one axis at least, between regions of different splits; None takes
        half a patch, 0 asks only that they do not overlap.
    read_voxels
        Read all images, to find damaged files and voxels that are not finite or all alike. False reads
        headers.
    depth
        Depth of the network: what it cannot take is too small.
    voxel_size
        Voxel size (z, y, x) in um that images will be resampled to; None for their own.
    structures
        Look at the images of these alone; None looks at all. A line that cannot be understood is always told.

    Returns
    -------
    list[Problem]
        Empty where all is well.

    Raises
    ------
    ManifestError
        If the manifest itself cannot be read as a file.
    """
    rows, problems = parse_manifest(path)
    rows = [row for row in rows if structures is None or row.structure in structures]
    look = _Look(read_voxels, depth, voxel_size)
    images: list[tuple[Row, _Image | None]] = []
    try:
        for row in track(rows, "checking images", len(rows)):
            found, signal = look.row(row)
            problems += found
            images.append((row, signal))
    finally:
        look.close()
    half = tuple(math.ceil(size / 2) for size in patch or PatchConfig().size)
    needed = (gap, gap, gap) if isinstance(gap, int) else gap
    # Where a row's split is unknown already, comparing it with others would only repeat that.
    understood = {row.number for row in rows} - {
        problem.row for problem in problems if problem.column == "split"
    }
    images = [(row, image) for row, image in images if row.number in understood]
    problems += _check_regions(images, needed, half, voxel_size, read_voxels)
    problems += _check_groups(row for row, _ in images)
    return sorted(problems, key=lambda problem: problem.row)


@dataclass(frozen=True)
class _Image:
    """What the header of one column's file says."""

    channel: int
    shape: tuple[int, int, int]
    voxel_size: Triple | None


@dataclass
class _Look:
    """Looks at single rows; what several rows share is looked at once."""

    read_voxels: bool
    depth: int
    voxel_size: Triple | None
    _reader: tuple[tuple[Path, int | None], ImageReader] | None = None
    _seen: dict[object, str | None] = field(default_factory=dict)

    def close(self) -> None:
        if self._reader is not None:
            self._reader[1].close()
            self._reader = None

    def _open(self, path: Path, scene: int | None) -> ImageReader:
        """Return a reader; the last one stays open, as rows of one file stand together."""
        key = (path, scene)
        if self._reader is None or self._reader[0] != key:
            self.close()
            self._reader = (key, open_image(path, scene))
        return self._reader[1]

    def row(self, row: Row) -> tuple[list[Problem], _Image | None]:
        """Return the problems of a row by itself, and its signal if that could be opened."""
        problems: list[Problem] = []
        columns: list[tuple[str, Path, str | int | None]] = [
            ("signal", row.signal, row.signal_channel),
            ("target", row.target, row.target_channel),
        ]
        if row.mask is not None:
            columns.append(("mask", row.mask, row.mask_channel))
        found: dict[str, _Image] = {}
        for column, path, channel in columns:
            try:
                found[column] = self._image(column, path, channel, row)
            except ImageError as error:
                problems.append(Problem(row.number, column, str(error)))
        signal = found.get("signal")
        if signal is None:
            return problems, None
        for column in ("target", "mask"):
            other = found.get(column)
            if other is not None:
                problems += [
                    Problem(row.number, column, message) for message in _differences(signal, other, row)
                ]
        target = found.get("target")
        if target is not None and row.target == row.signal and target.channel == signal.channel:
            problems.append(
                Problem(row.number, "target", "is the same channel of the same file as the signal")
            )
        problems += self._size(row, signal)
        return problems, signal

    def _image(self, column: str, path: Path, channel: str | int | None, row: Row) -> _Image:
        # One mask may serve every scene and time point of an image.
        shared = column == "mask"
        reader = self._open(path, None if shared else row.scene)
        if shared and row.scene is not None and reader.n_scenes > 1:
            reader = self._open(path, row.scene)
        t = None if shared and reader.n_times == 1 else row.t
        image = _Image(reader.channel_index(channel), reader.shape, reader.voxel_size)
        if row.scene is None and reader.n_scenes > 1:
            reader.read(image.channel, Region((0, 1), (0, 1), (0, 1)))  # says which scenes there are
        if reader.n_times > 1 or t is not None:
            reader.read(image.channel, Region((0, 1), (0, 1), (0, 1)), t=t)
        (row.region or Region()).resolve(image.shape)
        key = (path, image.channel, row.region, row.scene, t, shared)
        if self.read_voxels and key not in self._seen:
            self._seen[key] = _look_at_voxels(reader, image.channel, row.region, t, shared)
        wrong = self._seen.get(key)
        if wrong is not None:
            raise ImageError(wrong)
        return image

    def _size(self, row: Row, signal: _Image) -> list[Problem]:
        shape = (row.region or Region()).shape_in(signal.shape)
        voxel = row.voxel_size or signal.voxel_size
        resampled = shape
        if voxel is not None and self.voxel_size is not None:
            z, y, x = (
                max(1, round(n * a / b)) for n, a, b in zip(shape, voxel, self.voxel_size, strict=True)
            )
            resampled = (z, y, x)
        # The fewest voxels that reflection can pad to a multiple of 2^depth: repmode_cl.nn.smallest_size.
        smallest = -(-((1 << self.depth) + 2) // 3)
        if min(resampled) >= smallest:
            return []
        after = "" if resampled == shape else f", after resampling {_times(resampled)}"
        return [
            Problem(
                row.number,
                "region" if row.region else "signal",
                f"the volume is too small: {_times(shape)} voxels (z, y, x){after}; a network of depth "
                f"{self.depth} takes no fewer than {smallest} along each axis",
            )
        ]


def _look_at_voxels(
    reader: ImageReader, channel: int, region: Region | None, t: int | None, mask: bool
) -> str | None:
    volume = reader.read(channel, region, t=t)
    # NaN survives both, so two passes without a copy tell everything.
    low, high = float(volume.min()), float(volume.max())
    place = f"{reader.path}, channel {reader.channel_names[channel]}" + (
        f", region {region}" if region else ""
    )
    if not (math.isfinite(low) and math.isfinite(high)):
        return f"{place}: voxels are not finite (NaN or infinite)"
    if mask:
        return f"{place}: the mask is zero everywhere, so that no voxel counts" if low == high == 0 else None
    return f"{place}: the volume is constant ({low:g} everywhere)" if low == high else None


def _differences(signal: _Image, other: _Image, row: Row) -> Iterable[str]:
    if other.shape != signal.shape:
        yield (
            f"{_times(other.shape)} voxels (z, y, x), but the signal has {_times(signal.shape)}; "
            "they must cover the same voxels"
        )
    if row.voxel_size is None and signal.voxel_size is not None and other.voxel_size is not None:
        pairs = zip(signal.voxel_size, other.voxel_size, strict=True)
        if any(abs(a - b) > _SAME_VOXEL * max(a, b) for a, b in pairs):
            yield (
                f"voxels of {other.voxel_size} um (z, y, x), but the signal's are {signal.voxel_size}; "
                "correct the file, or state the right size in voxel_size_zyx"
            )


def _check_groups(rows: Iterable[Row]) -> list[Problem]:
    problems = []
    first: dict[str, Row] = {}
    for row in rows:
        if row.group is None or row.split is None:
            continue
        other = first.setdefault(row.group, row)
        if other.split != row.split:
            message = (
                f"group {row.group!r} straddles splits: {row.split} here, {other.split} on line "
                f"{other.number}; a group stays in one"
            )
            problems.append(Problem(row.number, "group", message))
    return problems


def _check_regions(
    images: list[tuple[Row, _Image | None]],
    gap: tuple[int, int, int] | None,
    half_patch: tuple[int, ...],
    voxel_size: Triple | None,
    compare_content: bool,
) -> list[Problem]:
    """Compare the rows of each image with one another."""
    names = _same_files([row.signal for row, _ in images], compare_content)
    fields: dict[object, list[tuple[Row, _Image]]] = defaultdict(list)
    for row, image in images:
        if image is not None:
            fields[names[row.signal], row.scene, row.t].append((row, image))
    problems: list[Problem] = []
    for members in fields.values():
        needed: tuple[int, ...] | None = gap
        voxel = members[0][0].voxel_size or members[0][1].voxel_size
        if needed is None:
            needed = half_patch
            if voxel is not None and voxel_size is not None:  # half a patch, in voxels of the file
                needed = tuple(
                    math.ceil(n * b / a - 1e-6) for n, a, b in zip(half_patch, voxel, voxel_size, strict=True)
                )
        said: dict[tuple[int, str], list[int]] = defaultdict(list)
        for (first, a), (second, b) in itertools.combinations(members, 2):
            message = _compare(first, a, second, b, needed)
            if message is not None:
                said[second.number, message].append(first.number)
        for (number, message), lines in said.items():
            listed = ("line " if len(lines) == 1 else "lines ") + ", ".join(map(str, lines))
            problems.append(
                Problem(number, "region" if "region" in message else "", message.format(lines=listed))
            )
        splits = sorted({row.split for row, _ in members if row.split is not None})
        for row, _ in members:
            if row.split is None and row.group is None and len(splits) > 1:
                what = f"names no split, but other rows of this image are in {' and '.join(splits)}; name it"
                problems.append(Problem(row.number, "split", what))
    return problems


def _compare(first: Row, a: _Image, second: Row, b: _Image, needed: tuple[int, ...]) -> str | None:
    """Return what is wrong between two rows of one image, with ``{lines}`` for the first one's."""
    one, two = ((row.region or Region()).resolve(image.shape) for row, image in ((first, a), (second, b)))
    apart = [max(q.start - p.stop, p.start - q.stop) for p, q in zip(one, two, strict=True)]
    same_input = first.structure == second.structure and a.channel == b.channel
    if max(apart) < 0:
        same_target = first.target == second.target and first.target_channel == second.target_channel
        if same_input and same_target and one == two:
            return "is the same as {lines}: remove one"
        if same_input:
            return "the region overlaps that of {lines}, of the same structure"
        if first.split != second.split and first.split and second.split:
            return f"the region ({second.split}) overlaps that of {{lines}} ({first.split})"
        return None
    if first.split == second.split or not first.split or not second.split:
        return None
    if all(distance < least for distance, least in zip(apart, needed, strict=True)):
        return (
            f"the region ({second.split}) is only {max(apart)} voxels from {{lines}} ({first.split}); keep "
            f"{', '.join(map(str, needed))} voxels along z, y or x between splits (half a patch), or check "
            "with the patch that is trained with"
        )
    return None


def _same_files(paths: Iterable[Path], compare_content: bool) -> dict[Path, object]:
    """Return a name for each file that copies of it share; only files of one size can be copies."""
    names: dict[Path, object] = {path: path.absolute() for path in paths}
    if not compare_content:
        return names
    sizes: dict[int, list[Path]] = defaultdict(list)
    for path in names:
        if path.is_file():
            sizes[path.stat().st_size].append(path)
    for alike in sizes.values():
        if len(alike) > 1:
            names |= {path: sha256_file(path) for path in alike}
    return names


def _times(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape))
