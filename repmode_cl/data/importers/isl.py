"""Import of a sample of the public in-silico-labeling collection: one stack of its PNGs, and rows for three stains.

A sample is one field: thirteen planes of phase contrast, and confocal stains projected over z (Christiansen et al.,
Cell 2018; the repository google/in-silico-labeling holds one below ``isl/testdata``). A projection is repeated over the
planes, so that each plane has a target. Parts of the field train, validate and test, with a gap between them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from repmode_cl.data.importers.common import ImportedRows, Skipped, listed_names
from repmode_cl.data.manifest import SPLITS, Row
from repmode_cl.data.readers.region import Region
from repmode_cl.errors import ImageError, ManifestError, counted
from repmode_cl.utils.atomic_files import replacing

__all__ = ["PLANES", "SIGNAL", "STAINS", "IslSample", "read_isl", "split_rows"]

#: Planes of phase contrast of each field of the collection.
PLANES = 13
#: Channel of transmitted light, as the stack calls it.
SIGNAL = "phase_contrast"
#: Structure by stain: DAPI binds DNA, MAP2 is found in dendrites, NFH (neurofilament) in axons.
STAINS: Mapping[str, str] = {
    "DAPI_CONFOCAL": "nuclei",
    "MAP2_CONFOCAL": "dendrites",
    "NFH_CONFOCAL": "axons",
}

_LIGHT = "PHASE_CONTRAST"
_NAME = re.compile(
    r"(?P<field>.+),(?:z_depth-(?P<plane>\d+)|depth_computation-(?P<projection>\w+)),"
    r"channel-(?P<channel>\w+),is_mask-(?P<mask>true|false)\.png"
)
_EXAMPLE = "...,z_depth-0,channel-PHASE_CONTRAST,is_mask-false.png"
#: Part of the rows that tests, and of the rest, that validates.
_TEST, _VAL = 0.25, 0.1


@dataclass
class IslSample:
    """A field as one stack.

    Attributes
    ----------
    channels
        Names of the channels: `SIGNAL`, then structures.
    stack
        Array of uint16, shape (channels, 13, Y, X).
    skipped
        What cannot be imported.
    notes
        Remarks for the user.
    """

    channels: list[str]
    stack: NDArray[np.uint16]
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def write(self, path: str | Path) -> None:
        """Write an OME-TIFF, whole or not at all."""
        with replacing(path) as temporary:
            tifffile.imwrite(
                temporary, self.stack, ome=True, photometric="minisblack",
                metadata={"axes": "CZYX", "Channel": {"Name": self.channels}},
            )  # fmt: skip

    def rows(
        self,
        stack_file: str | Path,
        *,
        gap: int = 32,
        voxel_size: tuple[float, float, float] | None = None,
    ) -> ImportedRows:
        """Return a row for each structure and split.

        Parameters
        ----------
        stack_file
            Where `write` put the stack.
        gap
            Rows of pixels between splits.
        voxel_size
            (z, y, x) in um of the stack; None where it is not known.

        Raises
        ------
        ManifestError
            If the field is too small for the gaps.
        """
        imported = ImportedRows(skipped=list(self.skipped), notes=list(self.notes))
        path = Path(stack_file)
        for structure in self.channels[1:]:
            for split, span in split_rows(self.stack.shape[2], gap).items():
                imported.rows.append(
                    Row(
                        0, structure, path, SIGNAL, path, structure, split,
                        region=Region(y=span), voxel_size=voxel_size,
                    )
                )  # fmt: skip
        return imported


def read_isl(folder: str | Path, *, bin_pixels: int = 1, columns: int | None = None) -> IslSample:
    """Read the planes and the stains of one field.

    Parameters
    ----------
    folder
        Holds the PNGs under their original names.
    bin_pixels
        Each square of so many pixels becomes one, their mean.
    columns
        Use the first so many columns of pixels; None uses all.

    Returns
    -------
    IslSample
        `skipped` holds stains that are missing and PNGs that are not used, such as masks.

    Raises
    ------
    ManifestError
        If there is no such folder, files of several fields, or a plane is missing.
    ImageError
        If a file cannot be read, is not 16-bit greyscale, or has another size than the first plane.
    """
    folder = Path(folder)
    files, skipped, notes = _files(folder)
    planes = _planes(folder, files.pop(_LIGHT, {}))
    reader = _PlaneReader(bin_pixels, columns)
    light = [reader.read(path) for path in planes]
    targets: dict[str, NDArray[np.uint16]] = {}
    for stain, structure in STAINS.items():
        found = files.pop(stain, {})
        path = found.pop(None, None)
        skipped += [Skipped(str(one), "a stain is one projection, without z_depth") for one in found.values()]
        if path is None:
            skipped.append(Skipped(str(folder), f"there is no {stain}, the target of {structure}"))
        else:
            targets[structure] = reader.read(path)
    for channel, others in files.items():
        known = ", ".join([_LIGHT, *STAINS])
        skipped += [
            Skipped(str(path), f"the channel {channel} is unknown; known are {known}")
            for path in others.values()
        ]
    repeated = [np.broadcast_to(target, (PLANES, *target.shape)) for target in targets.values()]
    notes.append("targets are projections, repeated over the planes")
    return IslSample([SIGNAL, *targets], np.stack([np.stack(light), *repeated]), skipped, notes)


def split_rows(count: int, gap: int) -> dict[str, tuple[int, int]]:
    """Divide rows of pixels into spans that train, validate and test, a gap apart; the last quarter tests.

    Raises
    ------
    ManifestError
        If there are too few.
    """
    usable = count - 2 * gap
    test = round(_TEST * usable)
    val = round(_VAL * (usable - test))
    train = usable - test - val
    if min(test, val, train) < 1:
        raise ManifestError(
            f"{counted(count, 'row')} of pixels are too few for three parts that are {gap} apart: make --gap smaller"
        )
    spans = (0, train), (train + gap, train + gap + val), (count - test, count)
    return dict(zip(SPLITS, spans, strict=True))


#: Channel -> plane (None for a projection) -> file.
_Files = dict[str, dict[int | None, Path]]


def _files(folder: Path) -> tuple[_Files, list[Skipped], list[str]]:
    """Sort the files of a folder by channel and plane."""
    if not folder.is_dir():
        raise ManifestError(f"{folder}: there is no such folder")
    matches: dict[Path, re.Match[str]] = {}
    fields: dict[str, str] = {}
    skipped: list[Skipped] = []
    others: list[str] = []
    for path in sorted(folder.iterdir()):
        match = _NAME.fullmatch(path.name)
        if path.suffix.lower() != ".png":
            others.append(path.name)
        elif match is None:
            skipped.append(Skipped(str(path), f"the name is not such as {_EXAMPLE}"))
        elif match["mask"] == "true":
            skipped.append(Skipped(str(path), "masks are not used"))
        else:
            fields.setdefault(match["field"], path.name)
            matches[path] = match
    if not matches:
        raise ManifestError(f"{folder}: there is no PNG with a name such as {_EXAMPLE}")
    if len(fields) > 1:
        raise ManifestError(
            f"{folder}: files of {len(fields)} fields, such as {' and '.join(list(fields.values())[:2])}; put each "
            "field into its own folder"
        )
    files: _Files = defaultdict(dict)
    for path, match in matches.items():
        plane = None if match["plane"] is None else int(match["plane"])
        other = files[match["channel"]].setdefault(plane, path)
        if other != path:
            raise ManifestError(f"{path}: the same channel and plane as {other.name}; keep one")
    notes = [f"{folder}: not taken as images: {listed_names(others, 'file')}"] if others else []
    return files, skipped, notes


def _planes(folder: Path, files: Mapping[int | None, Path]) -> list[Path]:
    """Return the files of the planes in order."""
    if None in files:
        raise ManifestError(f"{files[None]}: a plane of phase contrast has a z_depth")
    numbers = {number for number in files if number is not None}
    missing = sorted(set(range(PLANES)) - numbers)
    if missing:
        listed = ", ".join(map(str, missing))
        raise ManifestError(
            f"{folder}: of the {PLANES} planes of {_LIGHT} (z_depth-0 to z_depth-{PLANES - 1}) z_depth {listed} "
            f"{'is' if len(missing) == 1 else 'are'} missing"
        )
    beyond = sorted(numbers - set(range(PLANES)))
    if beyond:
        raise ManifestError(
            f"{files[beyond[0]]}: a field of the collection has {PLANES} planes, numbered from 0 to {PLANES - 1}"
        )
    return [files[number] for number in range(PLANES)]


class _PlaneReader:
    """Reads PNGs, which must all be as large as the first."""

    def __init__(self, bin_pixels: int, columns: int | None) -> None:
        self._bin = bin_pixels
        self._columns = columns
        self._first: tuple[Path, tuple[int, ...]] | None = None

    def read(self, path: Path) -> NDArray[np.uint16]:
        pixels = _read_png(path)
        if self._first is None:
            self._first = path, pixels.shape
            self._check_cut(path, pixels)
        first, shape = self._first
        if pixels.shape != shape:
            raise ImageError(
                f"{path}: {pixels.shape[0]} x {pixels.shape[1]} pixels (y, x), but {first.name} has "
                f"{shape[0]} x {shape[1]}: planes and stains of a field are of one size"
            )
        return _binned(pixels[:, : self._columns], self._bin)

    def _check_cut(self, path: Path, pixels: NDArray[np.uint16]) -> None:
        rows, columns = pixels.shape
        if self._columns is not None and self._columns > columns:
            raise ImageError(f"{path}: --columns {self._columns}, but there are {columns}")
        for count, what in ((rows, "rows"), (self._columns or columns, "columns")):
            if count % self._bin:
                raise ImageError(
                    f"{path}: {count} {what} of pixels are no multiple of --bin {self._bin}"
                    + ("; --columns N uses the first N" if what == "columns" else "")
                )


def _read_png(path: Path) -> NDArray[np.uint16]:
    try:
        with Image.open(path, formats=["PNG"]) as image:
            mode = image.mode
            # Modes of greyscale with 16 bits: which one depends on the version of Pillow.
            if not mode.startswith("I"):
                raise ImageError(f"{path}: the mode is {mode}; needed is greyscale with 16 bits")
            pixels: NDArray[Any] = np.asarray(image)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImageError(f"{path}: not readable as PNG ({error})") from None
    levels: NDArray[np.uint16] = pixels.astype(np.uint16)
    return levels


def _binned(pixels: NDArray[np.uint16], size: int) -> NDArray[np.uint16]:
    if size == 1:
        return pixels
    rows, columns = pixels.shape
    squares = pixels.reshape(rows // size, size, columns // size, size)
    means: NDArray[np.uint16] = np.rint(squares.mean((1, 3))).astype(np.uint16)
    return means
