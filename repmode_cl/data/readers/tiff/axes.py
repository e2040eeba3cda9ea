"""Meaning of the axes of a TIFF series, and refusal of those that cannot be used here.

tifffile names each axis by a letter; only time, channel, colour samples and the three of space have a meaning for
this project, and guessing at others would mix, say, lifetime bins with planes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tifffile

from repmode_cl.errors import ImageError

__all__ = ["list_series", "name_axes", "sample_names", "whole_axes"]

# What tifffile's codes for further axes stand for, for messages.
_AXIS_NAMES = {
    "S": "colour samples (RGB)", "H": "lifetime bins", "P": "phases", "A": "angles", "E": "wavelengths",
    "R": "regions or positions", "M": "mosaic tiles", "L": "positions", "V": "views",
    "I": "unnamed images", "F": "phases", "W": "lambda", "B": "blocks",
}  # fmt: skip
# Those that stand for nothing in particular.
_VAGUE = {"Q": "an unnamed axis", "K": "a further axis"}

_COLOURS = ("red", "green", "blue", "alpha")


def list_series(file: tifffile.TiffFile) -> list[Any]:
    """Return the series of `file`, from which `whole_axes` can tell axes of length 1 too."""
    # From tifffile 2026.5.2 (which needs Python 3.12) on, a series is asked for with or without them; before, each
    # series could tell both.
    series: Any = file.series
    return list(series(squeeze=False) if callable(series) else series)


def whole_axes(series: Any) -> tuple[str, tuple[int, ...]]:
    """Return the axes of one of `list_series`, a letter each, and their sizes, those of length 1 among them."""
    if hasattr(series, "get_axes"):
        axes, sizes = series.get_axes(False), series.get_shape(False)
    else:
        axes, sizes = series.axes, series.shape
    return str(axes), tuple(int(size) for size in sizes)


def name_axes(axes: str, sizes: Sequence[int], path: Path, positions: bool = False) -> str:
    """Return `axes` with the planes of an unnamed stack as Z, and ``_`` for other axes of length 1.

    Parameters
    ----------
    axes, sizes
        A letter and a length for each axis.
    path
        For messages.
    positions
        Whether R stands for stage positions, each of which is a scene.

    Raises
    ------
    ImageError
        If there are other axes, or unnamed ones that could mean more than one thing.
    """
    letters = [axis if axis in "ZYX" or n > 1 else "_" for axis, n in zip(axes, sizes, strict=True)]
    unnamed = [place for place, axis in enumerate(letters) if axis in "QI"]
    z = [place for place, axis in enumerate(letters) if axis == "Z"]
    if len(unnamed) == 1 and all(sizes[place] == 1 for place in z):
        for place in z:
            letters[place] = "_"
        letters[unnamed[0]] = "Z"
    wrong = [axis for axis in letters if axis not in ("TCZYXS_R" if positions else "TCZYXS_")]
    named = [axis for axis in letters if axis != "_"]
    if wrong or len(set(named)) < len(named) or not {"Y", "X"} <= set(named):
        held = ", ".join(
            f"{size} {_named(axis) if axis in wrong else axis}"
            for axis, size in zip(letters, sizes, strict=True)
            if size > 1
        )
        names = {**_AXIS_NAMES, **_VAGUE}
        what = " and ".join(dict.fromkeys(names.get(axis, axis) for axis in wrong)) or "such axes"
        raise ImageError(
            f"{path}: holds {held} (axes {axes}); {what} cannot be used: save "
            "an OME-TIFF with axes C, Z, Y, X (and T) only"
        )
    return "".join(letters)


def _named(axis: str) -> str:
    return _AXIS_NAMES.get(axis) or f"along {_VAGUE.get(axis, axis)}"


def sample_names(channels: Sequence[str], samples: int) -> tuple[str, ...]:
    """Return a name for each colour sample of each channel, which count as channels: ``red``, ``C1 red``."""
    if samples == 1:
        return tuple(channels)
    colours = _COLOURS[:samples] if samples in (3, 4) else [f"sample {number}" for number in range(samples)]
    if len(channels) == 1:
        return tuple(colours)
    return tuple(f"{channel} {colour}" for channel in channels for colour in colours)
