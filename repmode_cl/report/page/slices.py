"""Slices of volumes as PNG data URIs: transmitted light, and truth and predictions with one contrast."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from repmode_cl.errors import ImageError, RepmodeError
from repmode_cl.metrics import image_metrics
from repmode_cl.report.page.chart_data import readable
from repmode_cl.results.predictions import Prediction, contrast, read_prediction
from repmode_cl.results.run_folder import Run
from repmode_cl.utils.number_format import number, r2_text

__all__ = [
    "Panel",
    "Slices",
    "first_slices",
    "slices_of",
    "busiest",
    "grey_levels",
    "jpeg_data_uri",
    "png_data_uri",
    "LONGEST",
]


#: Longest side of a picture in the page, in pixels: larger slices are reduced by whole factors.
LONGEST = 512


@dataclass(frozen=True)
class Panel:
    """One column of a structure's pictures.

    Attributes
    ----------
    title, note
        What stands above it, and the line below that.
    xy, xz
        Data URIs of the two slices.
    """

    title: str
    note: str
    xy: str
    xz: str


@dataclass(frozen=True)
class Slices:
    """The pictures of one structure's image.

    Attributes
    ----------
    heading
        What stands above them.
    panels
        Transmitted light, truth, then each strategy.
    caption
        Which slices, and the grey levels.
    """

    heading: str
    panels: tuple[Panel, ...]
    caption: str


def first_slices(run: Run) -> Slices | None:
    """Return the pictures of the first structure whose predictions can be read; None without any."""
    for structure, files in run.predictions.items():
        try:
            predictions = {title: read_prediction(path) for title, path in files.items()}
            return slices_of(predictions, readable(structure))
        except (ImageError, RepmodeError):
            continue  # reported where all volumes are read
    return None


def slices_of(
    predictions: Mapping[str, Prediction],
    heading: str = "",
    *,
    truth: tuple[str, str] = ("truth", "fluorescence"),
    others: str = "predictions",
) -> Slices:
    """Return the pictures of one image.

    Parameters
    ----------
    predictions
        Strategy -> its volumes; signal and truth are those of the first. A strategy whose image has another
        shape shows that image.
    heading
        What stands above the pictures.
    truth
        What stands above the volume that the others are compared with, and the line below that.
    others
        What the caption calls the others.
    """
    first = next(iter(predictions.values()))
    target = first.target
    # The plane and the row of most contrast in the truth, away from the borders.
    z = busiest(target.std(axis=(1, 2)))
    y = busiest(target.std(axis=(0, 2)))
    low, high = contrast(target, 0.5, 99.7)
    panels = [
        _panel("transmitted light", "input", first.signal, (z, y), contrast(first.signal, 0.5, 99.5)),
        _panel(*truth, target, (z, y), (low, high)),
    ]
    for title, volumes in predictions.items():
        metrics = image_metrics(volumes.prediction, volumes.target)
        note = f"R² {r2_text(metrics['r2'])}, r {number(metrics['pearson'], 3)}"
        panels.append(_panel(title, note, volumes.prediction, (z, y), (low, high)))
    depth, height, width = target.shape
    times = "\N{MULTIPLICATION SIGN}"
    caption = (
        f"{width} {times} {height} {times} {depth} voxels (x, y, z); xy at z = {z}, xz at y = {y}; "
        f"{truth[0]} and {others}: black {number(low, 1)}, white {number(high, 1)} z-score units"
    )
    return Slices(heading, tuple(panels), caption)


def busiest(spread: NDArray[np.float32]) -> int:
    """Return the index of the largest of `spread`, (N,), away from the borders."""
    edge = len(spread) // 4
    return edge + int(np.argmax(spread[edge : len(spread) - edge]))


def _panel(
    title: str, note: str, volume: NDArray[np.float32], at: tuple[int, int], window: tuple[float, float]
) -> Panel:
    """Return the slices (z, y) of a volume, from black to white of the window."""
    (z, y), (depth, height, _) = at, volume.shape
    xy = volume[min(z, depth - 1)]
    xz = volume[:, min(y, height - 1)]
    return Panel(title, note, *(png_data_uri(grey_levels(image, *window)) for image in (xy, xz)))


def grey_levels(image: NDArray[np.float32], low: float, high: float) -> NDArray[np.uint8]:
    """Return a slice (Y, X) as 8-bit levels from black at `low` to white at `high`, reduced to `LONGEST`."""
    factor = -(-max(image.shape) // LONGEST)
    if factor > 1:
        rows, columns = (max(1, size // factor) for size in image.shape)
        fy, fx = (min(factor, size) for size in image.shape)
        image = image[: rows * fy, : columns * fx].reshape(rows, fy, columns, fx).mean(axis=(1, 3))
    scaled = np.nan_to_num((image.astype(np.float64) - low) / (high - low), nan=0.0, posinf=1.0, neginf=0.0)
    return (255.0 * np.clip(scaled, 0.0, 1.0) + 0.5).astype(np.uint8)


def png_data_uri(image: NDArray[np.uint8]) -> str:
    """Encode an (Y, X) image of 8-bit grey levels as PNG in a data URI."""
    png = io.BytesIO()
    Image.fromarray(image).save(png, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(png.getvalue()).decode("ascii")


def jpeg_data_uri(image: NDArray[np.uint8], quality: int) -> str:
    """Encode an image of 8-bit grey levels (Y, X) or colours (Y, X, 3) as JPEG in a data URI."""
    data = io.BytesIO()
    Image.fromarray(image).save(data, "JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode("ascii")
