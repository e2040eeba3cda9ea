"""Overlay of two pictures: transmitted light in grey, a structure in its colour."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["overlay"]

#: Brightness of the light in an overlay, so that colour is seen on it.
_LIGHT_SHARE = 0.6
#: Percentile of the structure's picture up to which it has no colour: background would tint the whole picture.
_BACKGROUND = 25


def overlay(
    light: NDArray[np.uint8], structure: NDArray[np.uint8], colour: tuple[int, int, int]
) -> NDArray[np.uint8]:
    """Return the light in grey with the structure in colour, (Y, X, 3) uint8.

    Parameters
    ----------
    light, structure
        (Y, X) of one size.
    colour
        Red, green and blue, 0 to 255.
    """
    grey = _LIGHT_SHARE * light[..., None].astype(np.float64) / 255
    bright = structure.astype(np.float64)
    background = float(np.percentile(bright, _BACKGROUND))
    bright = np.clip((bright - background) / max(255 - background, 1.0), 0, 1)
    coloured = bright[..., None] * np.asarray(colour, np.float64) / 255
    mixed: NDArray[np.uint8] = (255 * (1 - (1 - grey) * (1 - coloured)) + 0.5).astype(np.uint8)
    return mixed
