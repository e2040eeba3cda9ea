"""Small pictures of a row's images, for a person to see at a glance whether they are what they should be."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Picture

__all__ = ["thumbnail"]

#: Longest side in pixels.
LONGEST = 112


def thumbnail(volume: NDArray[Any], plane: int) -> bytes:
    """Return one plane of a volume (Z, Y, X) as a PNG of grey levels, from the 0.5th to the 99.5th percentile."""
    image = np.asarray(volume[plane], np.float32)
    factor = -(-max(image.shape) // LONGEST)
    fy, fx = (min(factor, size) for size in image.shape)
    rows, columns = image.shape[0] // fy, image.shape[1] // fx
    image = image[: rows * fy, : columns * fx].reshape(rows, fy, columns, fx).mean(axis=(1, 3))
    low, high = (float(value) for value in np.percentile(image, (0.5, 99.5)))
    grey = np.clip((image - low) / max(high - low, 1e-30), 0, 1)
    out = io.BytesIO()
    Picture.fromarray((255 * grey + 0.5).astype(np.uint8)).save(out, "PNG", optimize=True)
    return out.getvalue()
