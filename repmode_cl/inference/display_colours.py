"""Display colours of the structures, the same in every file and viewer."""

from __future__ import annotations

import colorsys
import hashlib
from types import MappingProxyType

__all__ = ["colour_of", "STRUCTURE_COLOURS", "TRANSMITTED_LIGHT_COLOUR", "hexadecimal"]

Colour = tuple[int, int, int]

#: Grey.
TRANSMITTED_LIGHT_COLOUR: Colour = (255, 255, 255)

#: The twelve of the paper: bright enough on black, and different for neighbours in a cell (DNA blue and membranes red,
#: as in the field's figures).
STRUCTURE_COLOURS = MappingProxyType(
    {
        "microtubule": (0, 255, 0),
        "actin_filament": (255, 128, 0),
        "desmosome": (255, 255, 0),
        "dna": (64, 128, 255),
        "nucleolus": (255, 0, 255),
        "nuclear_envelope": (0, 255, 255),
        "cell_membrane": (255, 64, 64),
        "actomyosin_bundle": (255, 176, 80),
        "endoplasmic_reticulum": (160, 255, 96),
        "golgi_apparatus": (255, 112, 200),
        "mitochondria": (96, 255, 176),
        "tight_junction": (192, 128, 255),
    }
)


def colour_of(structure: str) -> Colour:
    """Return red, green and blue (0 to 255) of a structure; beyond the twelve the name decides."""
    if structure in STRUCTURE_COLOURS:
        return STRUCTURE_COLOURS[structure]
    hue = int.from_bytes(hashlib.sha256(structure.encode()).digest()[:2], "big") / 65536
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.75, 1.0))
    return red, green, blue


def hexadecimal(colour: Colour) -> str:
    """Return a colour as ``RRGGBB``."""
    return "".join(f"{part:02X}" for part in colour)
