"""Whole test volumes that a browser can step through: for each volume one JPEG, a mosaic of its slices.

Truth and predictions of a structure share one scale of 8-bit levels, so that the page's script can show them with
one contrast and subtract them. Together the pictures of a page stay below a budget: first the quality gives way,
then slices and pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from repmode_cl.errors import RepmodeError
from repmode_cl.metrics import image_metrics
from repmode_cl.report.page.slices import LONGEST, busiest, jpeg_data_uri
from repmode_cl.results.predictions import Prediction, contrast, read_prediction
from repmode_cl.utils.number_format import number

__all__ = ["BUDGET", "volume_mosaics"]

#: Characters that the pictures of one page may take.
BUDGET = 7_000_000

#: Of JPEG, best first. Below the last of them pictures get fewer pixels instead.
_QUALITIES = (92, 85, 75, 65, 55)

#: Voxels of all volumes of a page with which the first attempt is made, and slices of one volume.
_VOXELS, _SLICES = 32_000_000, 64

#: Longest side of a slice that is still made smaller to keep all slices.
_SMALLEST = 64

#: JPEG's blocks: slices that begin on one do not run into each other.
_BLOCK = 8


@dataclass(frozen=True)
class _Stack:
    """A structure's test image, as 8-bit levels.

    Attributes
    ----------
    levels
        "signal", "truth" and titles of strategies -> (Z, Y, X) uint8.
    facts
        What the page's script needs besides, ready for JSON.
    """

    levels: Mapping[str, NDArray[np.uint8]]
    facts: Mapping[str, Any]


def volume_mosaics(
    files: Mapping[str, Mapping[str, Path]], notes: list[str], *, budget: int = BUDGET
) -> dict[str, dict[str, Any]]:
    """Return the volumes of each structure, ready for JSON.

    Parameters
    ----------
    files
        Structure -> strategy -> file that a benchmark wrote, strategies in the order in which they are shown.
    notes
        Gets a line for each file that cannot be read or shows another image.
    budget
        Characters that all pictures together may take.

    Returns
    -------
    dict
        Structure -> its volumes. `panels` holds for each volume its ``key`` ("signal", "truth", or the title of
        a strategy), a ``note`` with its figures and ``uri``, the mosaic. `size` is (Z, Y, X) as shown, `tile`
        the rows and columns that a slice takes in the mosaic, `across` the slices side by side. Level 0 is
        `levels`[0] and 255 `levels`[1] z-score units; `window` are those shown as black and white, `range` the
        difference shown in the strongest colour. `step` are the voxels (z, y, x) between two that are shown.
    """
    count = sum(len(of) + 2 for of in files.values() if of)
    limit = _VOXELS / max(count, 1)
    while True:
        messages: list[str] = []
        read = {name: _read(name, of, limit, messages) for name, of in files.items()}
        stacks = {name: stack for name, stack in read.items() if stack is not None}
        mosaics: dict[str, dict[str, Any]] = {}
        size = 0
        for quality in _QUALITIES:
            mosaics = {name: _encoded(stack, quality) for name, stack in stacks.items()}
            size = sum(len(panel["uri"]) for one in mosaics.values() for panel in one["panels"])
            if size <= budget:
                break
        if size <= budget or limit < 1000:
            notes += messages
            return mosaics
        limit *= 0.85 * budget / size


def _read(structure: str, files: Mapping[str, Path], limit: float, notes: list[str]) -> _Stack | None:
    predictions: dict[str, Prediction] = {}
    for title, path in files.items():
        try:
            predictions[title] = read_prediction(path)
        except RepmodeError as error:
            notes.append(str(error))
    if not predictions:
        return None
    first = next(iter(predictions.values()))
    for title in [title for title, one in predictions.items() if one.target.shape != first.target.shape]:
        notes.append(f"{title} kept another test image of {structure}, so its pictures are not shown")
        del predictions[title]
    target = first.target
    size = _size(target.shape, limit)
    truth = _reduced(target, size)
    predicted = {title: _reduced(one.prediction, size) for title, one in predictions.items()}
    low, high = _ends([truth, *predicted.values()])
    signal = _reduced(first.signal, size)
    dark, bright = contrast(signal, 0.5, 99.5)
    window = contrast(target, 0.5, 99.7)
    errors = np.concatenate([np.abs(one - truth).ravel() for one in predicted.values()])
    errors = errors[np.isfinite(errors)]
    metrics = {title: image_metrics(one.prediction, one.target) for title, one in predictions.items()}
    return _Stack(
        {
            "signal": _levels(signal, dark, bright),
            "truth": _levels(truth, low, high),
            **{title: _levels(one, low, high) for title, one in predicted.items()},
        },
        {
            "voxels": list(target.shape),
            "size": list(truth.shape),
            "step": [round(a / b, 4) for a, b in zip(target.shape, size, strict=True)],
            "levels": [round(low, 4), round(high, 4)],
            "window": [round(end, 2) for end in window],
            "range": _round_up(float(np.percentile(errors, 98)) if errors.size else 1.0),
            "start": [busiest(truth.std(axis=(1, 2))), busiest(truth.std(axis=(0, 2)))],
            "notes": {
                title: f"R² {number(of['r2'], 3)}, r {number(of['pearson'], 3)}"
                for title, of in metrics.items()
            },
        },
    )


def _size(shape: Sequence[int], limit: float) -> tuple[int, int, int]:
    """Return the voxels (z, y, x) that are shown of a volume: at most `limit` in all."""
    depth, height, width = shape
    slices = min(depth, _SLICES)
    # As many pixels as the limit leaves, but first fewer slices than pictures that show nothing.
    smallest = min(1.0, _SMALLEST / max(height, width))
    scale = max(
        min(1.0, LONGEST / max(height, width), math.sqrt(limit / (slices * height * width))), smallest
    )
    rows, columns = max(1, math.floor(height * scale)), max(1, math.floor(width * scale))
    return max(1, min(slices, int(limit / (rows * columns)))), rows, columns


def _reduced(volume: NDArray[np.float32], size: tuple[int, int, int]) -> NDArray[np.float32]:
    """Take slices at equal distances, and means of pixels."""
    depth, rows, columns = size
    chosen = volume[[k * len(volume) // depth for k in range(depth)]]
    if chosen.shape[1:] == (rows, columns):
        return chosen
    box = Image.Resampling.BOX
    return np.stack([np.asarray(Image.fromarray(one).resize((columns, rows), box)) for one in chosen])


def _ends(volumes: Sequence[NDArray[np.float32]]) -> tuple[float, float]:
    """Return the range that the levels cover: nearly all that the truth or any prediction holds."""
    ends = [contrast(volume, 0.05, 99.95) for volume in volumes]
    return min(low for low, _ in ends), max(high for _, high in ends)


def _levels(volume: NDArray[np.float32], low: float, high: float) -> NDArray[np.uint8]:
    scaled = np.nan_to_num((volume - low) / (high - low), nan=0.0, posinf=1.0, neginf=0.0)
    levels: NDArray[np.uint8] = (255.0 * np.clip(scaled, 0.0, 1.0) + 0.5).astype(np.uint8)
    return levels


def _round_up(value: float) -> float:
    """Return the next of 1, 1.5, 2, 3, 5, 7 times a power of ten."""
    if not value > 0.0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return float(
        f"{next(m for m in (1, 1.5, 2, 3, 5, 7, 10) if m * power >= value * (1 - 1e-9)) * power:.3g}"
    )


def _encoded(stack: _Stack, quality: int) -> dict[str, Any]:
    depth, height, width = next(iter(stack.levels.values())).shape
    tile = [-(-side // _BLOCK) * _BLOCK for side in (height, width)]
    across = max(1, min(depth, round(math.sqrt(depth * tile[0] / tile[1]))))
    notes = stack.facts["notes"]
    return {
        **{key: value for key, value in stack.facts.items() if key != "notes"},
        "tile": tile,
        "across": across,
        "quality": quality,
        "panels": [
            {
                "key": key,
                "note": notes.get(key, ""),
                "uri": jpeg_data_uri(_mosaic(levels, tile, across), quality),
            }
            for key, levels in stack.levels.items()
        ],
    }


def _mosaic(levels: NDArray[np.uint8], tile: Sequence[int], across: int) -> NDArray[np.uint8]:
    depth, height, width = levels.shape
    down = -(-depth // across)
    margins = ((0, down * across - depth), (0, tile[0] - height), (0, tile[1] - width))
    padded = np.pad(levels, margins, mode="edge")
    return padded.reshape(down, across, *tile).swapaxes(1, 2).reshape(down * tile[0], across * tile[1])
