"""Pictures of planes for the page: one channel of one plane as PNG, with the contrast of the whole volume."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from repmode_cl.data.readers import ImageReader, Region
from repmode_cl.errors import ImageError

__all__ = ["LIGHT_PERCENTILES", "PREDICTION_PERCENTILES", "display_limits", "plane_png"]

#: Percentiles that are black and white: of transmitted light, and of a prediction, half of whose voxels are dark so
#: that what lies below it is visible.
LIGHT_PERCENTILES, PREDICTION_PERCENTILES = (0.5, 99.5), (50.0, 99.9)

# Most pixels of a side of a picture, planes that contrast is measured in, and voxels of each.
_MOST_PIXELS, _PLANES, _VOXELS = 1024, 9, 1 << 18


def display_limits(
    reader: ImageReader, channel: int, percentiles: tuple[float, float], t: int | None = None
) -> tuple[float, float]:
    """Return the values of a channel that are shown black and white.

    Parameters
    ----------
    reader
        Open, of the right scene.
    channel
        Number of the channel.
    percentiles
        Of planes spread evenly over the volume.
    t
        Time point, where there are several.
    """
    depth = reader.shape[0]
    values = []
    for z in sorted({round(part) for part in np.linspace(0, depth - 1, _PLANES)}):
        plane = _read_plane(reader, channel, z, t)
        step = max(1, int(np.sqrt(plane.size / _VOXELS)))
        sample = plane[::step, ::step].astype(np.float64).ravel()
        values.append(sample[np.isfinite(sample)])
    sample = np.concatenate(values)
    if not sample.size:
        raise ImageError(f"{reader.path}: has no finite numbers")
    low, high = (float(limit) for limit in np.percentile(sample, percentiles))
    return (low, high) if low < high else (low, low + 1)


def plane_png(
    reader: ImageReader,
    channel: int,
    z: int,
    limits: tuple[float, float],
    colour: tuple[int, int, int] | None = None,
    t: int | None = None,
) -> bytes:
    """Return a plane as PNG of at most 1024 pixels a side.

    Parameters
    ----------
    reader
        Open, of the right scene.
    channel, z
        Which plane.
    limits
        Values that are black and white.
    colour
        Red, green and blue of the brightest; None is grey.
    t
        Time point, where there are several.

    Raises
    ------
    ImageError
        If there is no such plane.
    """
    low, high = limits
    plane = _read_plane(reader, channel, z, t)
    scaled = (plane.astype(np.float32) - low) * (255 / (high - low))
    grey = Image.fromarray(np.clip(np.nan_to_num(scaled), 0, 255).astype(np.uint8))
    factor = -(-max(grey.size) // _MOST_PIXELS)
    if factor > 1:
        grey = grey.reduce(factor)
    if colour is None:
        picture = grey
    else:
        table = [[round(value * part / 255) for value in range(256)] for part in colour]
        picture = Image.merge("RGB", [grey.point(values) for values in table])
    out = io.BytesIO()
    picture.save(out, "PNG", compress_level=1)
    return out.getvalue()


def _read_plane(reader: ImageReader, channel: int, z: int, t: int | None) -> NDArray[np.generic]:
    if not 0 <= z < reader.shape[0]:
        raise ImageError(f"{reader.path}: there is no plane {z}; there are 0 to {reader.shape[0] - 1}")
    plane: NDArray[np.generic] = reader.read(channel, Region((z, z + 1)), t=t)[0]
    return plane
