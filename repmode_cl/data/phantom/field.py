"""One simulated field of view: a colony, its anatomy, and what the microscope records of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from repmode_cl.data.phantom.cells import grow_colony
from repmode_cl.data.phantom.optics import fluorescence_image, light_image
from repmode_cl.data.phantom.randomness import Streams
from repmode_cl.data.phantom.structures import EMISSIONS, Anatomy, refractive_index
from repmode_cl.errors import ConfigError, UnknownStructureError
from repmode_cl.structures import TWELVE_STRUCTURES

__all__ = ["SIMULATED_VOXEL", "LIGHT_CHANNEL", "SMALLEST_SHAPE", "check_request", "simulate_field"]

#: Default edges of a voxel (z, y, x) in um: those of the paper's data, resampled.
SIMULATED_VOXEL = (0.29, 0.29, 0.29)

#: Name of the channel of transmitted light.
LIGHT_CHANNEL = "transmitted_light"
#: Fewest voxels (z, y, x) of a field: two um high and half a cell wide.
SMALLEST_SHAPE = (8, 16, 16)
#: Voxels on each side that are computed and cut off, so that no surface or wrap-round shows at the border.
MARGIN = 8
#: Largest error of the stage's height, as part of the field's depth. Nobody focuses every field alike; and
#: where all fields lay at one height, a network could score by the height, without looking at the image.
DRIFT = 0.25


def check_request(
    structures: Sequence[str], shape: Sequence[int], voxel_size: Sequence[float], seed: int
) -> tuple[tuple[str, ...], tuple[int, int, int], tuple[float, float, float]]:
    """Return structures, shape and voxel size if they can be simulated.

    Raises
    ------
    UnknownStructureError
        If a structure is none of the twelve.
    ConfigError
        If there is none or one twice, or a number is out of range.
    """
    for name in structures:
        if name not in TWELVE_STRUCTURES:
            raise UnknownStructureError(name, TWELVE_STRUCTURES, "the simulator")
    twice = sorted({name for name in structures if list(structures).count(name) > 1})
    if not structures or twice:
        found = f"{', '.join(twice)} named twice" if twice else "no structure named"
        raise ConfigError(
            f"structures: {found}; name each of those wanted once, of {', '.join(TWELVE_STRUCTURES)}"
        )
    if len(shape) != 3 or any(size < least for size, least in zip(shape, SMALLEST_SHAPE, strict=True)):
        least = "x".join(map(str, SMALLEST_SHAPE))
        raise ConfigError(
            f"shape: found {'x'.join(map(str, shape))} voxels; at least {least} (z, y, x) are needed"
        )
    if len(voxel_size) != 3 or not all(0.05 <= step <= 1.0 for step in voxel_size):
        raise ConfigError(f"voxel_size: found {tuple(voxel_size)} um; each of z, y, x must be 0.05 to 1")
    if seed < 0:
        raise ConfigError(f"seed: found {seed}; it must be 0 or larger")
    z, y, x = (int(size) for size in shape)
    dz, dy, dx = (float(step) for step in voxel_size)
    return tuple(structures), (z, y, x), (dz, dy, dx)


def simulate_field(
    seed: int,
    index: int,
    structures: Sequence[str] = TWELVE_STRUCTURES,
    shape: Sequence[int] = (32, 128, 128),
    voxel_size: Sequence[float] = SIMULATED_VOXEL,
) -> dict[str, NDArray[np.uint16]]:
    """Simulate one field of view.

    Parameters
    ----------
    seed, index
        Seed of the simulation and number of the field; the same pair gives the same images, whatever else is
        requested.
    structures
        Structures whose fluorescence is recorded. The transmitted light shows all twelve in any case.
    shape
        Voxels (z, y, x).
    voxel_size
        Voxel size in um (z, y, x).

    Returns
    -------
    dict
        ``transmitted_light`` and each structure: camera counts, uint16 (Z, Y, X).

    Raises
    ------
    UnknownStructureError, ConfigError
        If the request cannot be simulated.
    """
    names, (planes, height, width), voxel = check_request(structures, shape, voxel_size, seed)
    # A little more than the margin where a fast transform's length lies there.
    rows, columns = (int(fft.next_fast_len(size + 2 * MARGIN, real=True)) for size in (height, width))
    spare = round(DRIFT * planes)
    padded = (planes + 2 * spare, rows, columns)
    streams = Streams(seed, index)
    lowest = int(streams("stage").integers(0, 2 * spare, endpoint=True))
    colony = grow_colony(streams, padded, voxel, spare)
    body = Anatomy(colony, streams)

    def recorded(image: NDArray[np.float32]) -> NDArray[np.uint16]:
        cut = image[lowest : lowest + planes, MARGIN : MARGIN + height, MARGIN : MARGIN + width]
        return np.clip(np.rint(cut), 0, 65535).astype(np.uint16)

    images = {LIGHT_CHANNEL: recorded(light_image(streams("camera/light"), refractive_index(body), voxel))}
    for name in names:
        emission = EMISSIONS[name]
        rng = streams(f"camera/{name}")
        # Cells express a label to different degrees, in the structure and untethered in the cytoplasm alike.
        expression = np.exp(rng.normal(0, emission.variation, len(colony.cells))).astype(np.float32)
        label = expression[colony.label] * (body.density(name) + np.float32(emission.soluble) * body.inside)
        images[name] = recorded(fluorescence_image(rng, label, voxel, emission))
    return images
