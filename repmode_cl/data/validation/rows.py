"""Checks of each row by itself: its files, channels, sizes and regions, from headers only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from repmode_cl.data.geometry import VoxelSize, shape_text
from repmode_cl.data.manifest import Problem, Row, as_written
from repmode_cl.data.preprocessing.recipe import PreprocessingRecipe
from repmode_cl.data.readers import Region
from repmode_cl.data.readers.region import find_channel
from repmode_cl.data.validation.headers import HeaderTable, SceneHeader, Source, read_headers
from repmode_cl.errors import ImageError

__all__ = ["ChannelImage", "InspectedRow", "inspect_rows"]

#: Voxel sizes of one row's files may differ by this much: rounding in metadata.
_SAME_VOXEL = 0.01


@dataclass(frozen=True)
class ChannelImage:
    """Image that one column of a row names: a channel of a file at one scene and time point."""

    path: Path
    header: SceneHeader
    channel: int
    scene: str | None
    t: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels (Z, Y, X) of the file."""
        return self.header.shape


@dataclass
class InspectedRow:
    """A row of a manifest with its images, by column, and their problems."""

    row: Row
    images: dict[str, ChannelImage] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    @property
    def region(self) -> Region:
        """Part of the file that the row stands for."""
        return self.row.region or Region()

    @property
    def voxel_size(self) -> VoxelSize | None:
        """The row's voxel size: the manifest's, the signal's or the target's."""
        sizes = [self.row.voxel_size]
        sizes += [
            self.images[column].header.voxel_size for column in ("signal", "target") if column in self.images
        ]
        return next((size for size in sizes if size is not None), None)


def inspect_rows(
    rows: Sequence[Row],
    *,
    depth: int,
    voxel_size: VoxelSize | None,
    recipe: PreprocessingRecipe,
    workers: int = 1,
) -> list[InspectedRow]:
    """Read the headers of all rows and check each row by itself.

    Parameters
    ----------
    rows
        Rows of a manifest.
    depth
        Depth of the network: what it cannot take is too small.
    voxel_size
        (z, y, x) in um that images will be resampled to; None for their own.
    recipe
        Decides which axes are resampled.
    workers
        Processes that read headers.

    Returns
    -------
    list of InspectedRow
        One for each row, in order.
    """
    headers: HeaderTable = {}
    wanted: list[Source] = []
    for row in rows:
        wanted += [(row.signal, as_written(row.scene)), (row.target, as_written(row.scene))]
        if row.mask is not None:
            wanted.append((row.mask, None))
    read_headers(wanted, headers, workers)
    # One mask may serve every scene and time point of an image: a row's scene is the mask's where that has several.
    with_scene = [
        (row.mask, as_written(row.scene))
        for row in rows
        if row.mask is not None and row.scene is not None and _has_several(headers[row.mask, None])
    ]
    read_headers(with_scene, headers, workers)
    return [_inspect(row, headers, depth, voxel_size, recipe) for row in rows]


def _has_several(header: SceneHeader | str) -> bool:
    # A first scene that cannot be read may hide others that can.
    return isinstance(header, str) or len(header.scenes) > 1


def _inspect(
    row: Row, headers: HeaderTable, depth: int, voxel_size: VoxelSize | None, recipe: PreprocessingRecipe
) -> InspectedRow:
    inspected = InspectedRow(row)

    def report(column: str, message: str) -> None:
        inspected.problems.append(Problem(row.number, column, message, kind="image"))

    columns: list[tuple[str, Path, str | None]] = [
        ("signal", row.signal, as_written(row.signal_channel)),
        ("target", row.target, as_written(row.target_channel)),
    ]
    if row.mask is not None:
        columns.append(("mask", row.mask, as_written(row.mask_channel)))
    for column, path, channel in columns:
        try:
            inspected.images[column] = _image(column, path, channel, row, headers)
        except ImageError as error:
            report(column, str(error))
    signal, target = inspected.images.get("signal"), inspected.images.get("target")
    if signal is None:
        return inspected
    for column in ("target", "mask"):
        if column in inspected.images:
            for message in _differences(signal, inspected.images[column], row):
                report(column, message)
    if target is not None and row.target == row.signal and target.channel == signal.channel:
        report("target", "is the same channel of the same file as the signal")
    try:
        too_small = _too_small(inspected, signal, depth, voxel_size, recipe)
        if too_small:
            report("region" if row.region else "signal", too_small)
    except ImageError as error:
        report("voxel_size_zyx" if row.voxel_size else "signal", str(error))
    return inspected


def _image(column: str, path: Path, channel: str | None, row: Row, headers: HeaderTable) -> ChannelImage:
    scene, t = as_written(row.scene), row.t
    header = headers[path, None if column == "mask" else scene]
    if column == "mask":
        if scene is not None and _has_several(header):
            header = headers[path, scene]
        else:
            scene = None
    if isinstance(header, str):
        raise ImageError(header)
    if column == "mask" and header.times == 1:
        t = None
    time = header.time_point(path, t)
    if column != "mask" and header.dtype == "bool":
        raise ImageError(f"{path}: its voxels are true or false: this is a mask, not an image of intensities")
    image = ChannelImage(path, header, find_channel(channel, header.channel_names, path), scene, time)
    try:
        (row.region or Region()).resolve(image.shape)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None
    return image


def _differences(signal: ChannelImage, other: ChannelImage, row: Row) -> Iterable[str]:
    if other.shape != signal.shape:
        yield (
            f"{shape_text(other.shape)} voxels (z, y, x), but the signal has {shape_text(signal.shape)}; "
            "they must cover the same voxels"
        )
    expected, stated = signal.header.voxel_size, other.header.voxel_size
    if row.voxel_size is not None or expected is None or stated is None:
        return
    if any(abs(a - b) > _SAME_VOXEL * max(a, b) for a, b in zip(expected, stated, strict=True)):
        yield (
            f"voxels of {stated} um (z, y, x), but the signal's are {expected}; "
            "correct the file, or state the right size in voxel_size_zyx"
        )


def _too_small(
    inspected: InspectedRow,
    signal: ChannelImage,
    depth: int,
    voxel_size: VoxelSize | None,
    recipe: PreprocessingRecipe,
) -> str:
    shape = inspected.region.shape_in(signal.shape)
    resampled = recipe.grid(shape, inspected.voxel_size, voxel_size)
    # The fewest voxels that reflection can pad to a multiple of 2^depth: repmode_cl.nn.smallest_size.
    smallest = -(-((1 << depth) + 2) // 3)
    if min(resampled) >= smallest:
        return ""
    after = "" if resampled == shape else f", after resampling {shape_text(resampled)}"
    return (
        f"the volume is too small: {shape_text(shape)} voxels (z, y, x){after}; a network of depth "
        f"{depth} takes no fewer than {smallest} along each axis"
    )
