"""Cells of an epithelial colony: the cell of each voxel, and the distances of each voxel from the surfaces.

A monolayer of stem cells as the public label-free collection shows it: columns about 11 um wide that touch
each other, a domed apical surface, a flattened nucleus that fills most of the column, one cell in fifteen
dividing. Everything is in um; arrays are (Z, Y, X) and z grows from the cover glass upwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from repmode_cl.data.phantom.randomness import Floats, Streams, smooth_noise

__all__ = ["Cell", "Colony", "grow_colony"]

#: Distance in um between neighbouring cells: human stem cells in a dense colony.
SPACING = 11.0
#: Height in um of the monolayer where the field is thick enough.
HEIGHT = 7.6
#: Part of the cells that divide, as in cultures that double in a day and divide for an hour and a half.
MITOTIC = 0.07


@dataclass(frozen=True)
class Cell:
    """One cell: positions in um (z, y, x)."""

    centre: NDArray[np.float64]
    """Of the nucleus, or of the metaphase plate."""
    axes: NDArray[np.float64]
    """Semi-axes in um: z, long, short; of a plate: z, width, thickness."""
    angle: float
    """Direction of the long axis in the plane of the glass, in radians."""
    mitotic: bool
    poles: NDArray[np.float64]
    """(1 or 2, 3): the centrosome, or the two poles of the spindle."""


@dataclass(frozen=True)
class Colony:
    """Distances in um from the surfaces of cells; arrays are float32 (Z, Y, X) unless said otherwise."""

    voxel: tuple[float, float, float]
    cells: tuple[Cell, ...]
    label: NDArray[np.int16]
    """Number of the cell whose column a voxel lies in, above and below the cell too."""
    lateral: Floats
    """Distance from the wall to the nearest neighbour."""
    apical: Floats
    """Distance below the apical surface, negative above it."""
    basal: Floats
    """Distance above the basal surface, negative below it."""
    depth: Floats
    """Distance inside the cell, negative outside."""
    nucleus: Floats
    """Distance inside the nuclear envelope, negative outside; far outside in dividing cells."""
    plate: Floats
    """Distance inside the metaphase plate of a dividing cell."""
    cytoplasm: Floats
    """Distance inside the cytoplasm: from the cell's surface and from nucleus or plate."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels (z, y, x)."""
        z, y, x = self.label.shape
        return z, y, x


def _lattice(rng: np.random.Generator, extent: tuple[float, float]) -> NDArray[np.float64]:
    """Jittered hexagonal lattice that covers the field and one cell around it; (n, 2) um."""
    rows = int(np.ceil(extent[0] / (SPACING * 0.866))) + 3
    columns = int(np.ceil(extent[1] / SPACING)) + 3
    row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    y = (row - 1) * SPACING * 0.866
    x = (column - 1 + 0.5 * (row % 2)) * SPACING
    points = np.stack([y.ravel(), x.ravel()], axis=1)
    points += rng.uniform(-0.5, 0.5, 2) * SPACING
    points += rng.uniform(-0.22, 0.22, points.shape) * SPACING
    # A little turn: a large one would move the lattice off the corners of an oblong field.
    turn = 0.15 * np.sin(rng.uniform(0, 2 * np.pi))
    middle = np.asarray(extent) / 2
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return np.asarray((points - middle) @ rotation.T + middle)


def _box(
    place: NDArray[np.float64], reach: float, shape: tuple[int, int, int], voxel: tuple[float, float, float]
) -> tuple[slice, slice, slice] | None:
    """Return the voxels within `reach` um of `place` (y, x) on both axes, at every z, if there are any."""
    parts = []
    for axis in (1, 2):
        low = max(int(np.floor((place[axis - 1] - reach) / voxel[axis])), 0)
        high = min(int(np.ceil((place[axis - 1] + reach) / voxel[axis])) + 1, shape[axis])
        if low >= high:
            return None
        parts.append(slice(low, high))
    return slice(None), parts[0], parts[1]


def _walls(
    streams: Streams, shape: tuple[int, int, int], voxel: tuple[float, float, float], level: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int16], Floats]:
    """Divide space among cells, which lean about the plane at `level` um; return seeds, leans (n, 2), labels, walls."""
    rng = streams("cells")
    seeds = _lattice(rng, (shape[1] * voxel[1], shape[2] * voxel[2]))
    leans = rng.normal(0, 0.12, seeds.shape)
    weights = rng.normal(0, 0.08 * SPACING**2, len(seeds))
    warp = [0.55 * smooth_noise(rng, shape, voxel, 1.7) for _ in range(2)]
    z = (np.arange(shape[0], dtype=np.float32) * voxel[0] - level).reshape(-1, 1, 1)
    y = np.arange(shape[1], dtype=np.float32).reshape(1, -1, 1) * np.float32(voxel[1]) + warp[0]
    x = np.arange(shape[2], dtype=np.float32).reshape(1, 1, -1) * np.float32(voxel[2]) + warp[1]
    first = np.full(shape, 1e9, np.float32)
    second = np.full(shape, 1e9, np.float32)
    label = np.zeros(shape, np.int16)
    runner_up = np.zeros(shape, np.int16)
    # The two nearest cells are never further away than this, so a large field costs what its area does.
    reach = 2.6 * SPACING
    for number, (seed, lean, weight) in enumerate(zip(seeds, leans, weights, strict=True)):
        box = _box(seed, reach, shape, voxel)
        if box is None:
            continue
        distance = (y[box] - np.float32(seed[0]) - np.float32(lean[0]) * z) ** 2
        distance += (x[box] - np.float32(seed[1]) - np.float32(lean[1]) * z) ** 2
        distance -= np.float32(weight)
        nearest = distance < first[box]
        between = ~nearest & (distance < second[box])
        np.copyto(second[box], distance, where=between)
        np.copyto(runner_up[box], np.int16(number), where=between)
        np.copyto(second[box], first[box], where=nearest)
        np.copyto(runner_up[box], label[box], where=nearest)
        np.copyto(first[box], distance, where=nearest)
        np.copyto(label[box], np.int16(number), where=nearest)
    apart = np.linalg.norm(seeds[:, None] - seeds[None], axis=-1).astype(np.float32)
    np.fill_diagonal(apart, SPACING)
    lateral = (second - first) / (2 * np.maximum(apart[label, runner_up], 0.3 * SPACING))
    return seeds, leans, label, lateral.astype(np.float32)


def _middles(
    label: NDArray[np.int16], seeds: NDArray[np.float64], voxel: tuple[float, float, float]
) -> NDArray[np.float64]:
    """Return the middles (n, 2) in um of the cells of one plane; the seed of those partly outside it."""
    middles = seeds.copy()
    whole = set(range(len(seeds))) - set(
        np.concatenate([label[0], label[-1], label[:, 0], label[:, -1]]).tolist()
    )
    present = sorted(whole & set(np.unique(label).tolist()))
    if present:
        found = ndimage.center_of_mass(np.ones(label.shape), label, present)
        middles[present] = np.asarray(found) * voxel[1:]
    return middles


def _ellipsoid(offsets: tuple[Floats, Floats, Floats], axes: NDArray[np.float64], angle: float) -> Floats:
    """Approximate the distance inside an ellipsoid; offsets are from its centre, the long axis lies flat."""
    z, y, x = offsets
    along = np.float32(np.cos(angle)) * y + np.float32(np.sin(angle)) * x
    across = -np.float32(np.sin(angle)) * y + np.float32(np.cos(angle)) * x
    scaled = [part / np.float32(axis) for part, axis in zip((z, along, across), axes, strict=True)]
    radius = np.sqrt(scaled[0] ** 2 + scaled[1] ** 2 + scaled[2] ** 2) + np.float32(1e-6)
    slope = np.sqrt(sum((part / np.float32(axis)) ** 2 for part, axis in zip(scaled, axes, strict=True)))
    return np.asarray(radius * (1 - radius) / (slope + np.float32(1e-6)), dtype=np.float32)


def _soft_minimum(first: Floats, second: Floats, width: float = 1.0) -> Floats:
    """Return the smaller of two distances, rounded where they cross within `width` um."""
    near = np.maximum(1 - np.abs(first - second) / np.float32(width), 0)
    return np.asarray(np.minimum(first, second) - near * near * np.float32(width / 4), dtype=np.float32)


def grow_colony(
    streams: Streams, shape: tuple[int, int, int], voxel: tuple[float, float, float], spare: int = 0
) -> Colony:
    """Return the colony of one field.

    Parameters
    ----------
    streams
        Random streams of the field.
    shape
        Voxels (z, y, x), the margin included.
    voxel
        Voxel size in um (z, y, x).
    spare
        Planes below and above that the field does not show: cells are as tall as the others have room for.
    """
    below = spare * voxel[0]
    thickness = shape[0] * voxel[0] - 2 * below
    # Thin fields get flat cells rather than cells without a top: contrast comes from surfaces.
    height = min(HEIGHT, 0.82 * thickness)
    floor = below + min(1.0, 0.09 * thickness)
    seeds, leans, label, lateral = _walls(streams, shape, voxel, below + 0.5 * height)

    rng = streams("surfaces")
    middle = min(shape[0] - 1, round((floor + 0.5 * height) / voxel[0]))
    sigma = [0.8 / voxel[1], 0.8 / voxel[2]]
    tall = (height * (1 + 0.06 * rng.standard_normal(len(seeds)))).astype(np.float32)[label[middle]]
    dome = 1 - 0.2 * np.exp(-np.maximum(lateral[middle], 0) / 1.6)
    undulation = smooth_noise(rng, shape[1:], voxel[1:], 2.5)
    top = ndimage.gaussian_filter(tall * dome, sigma) + 0.03 * height * undulation
    bottom = floor + 0.12 * smooth_noise(rng, shape[1:], voxel[1:], 2.0)
    z = (np.arange(shape[0], dtype=np.float32) * np.float32(voxel[0])).reshape(-1, 1, 1)
    apical = ((floor + top)[None] - z).astype(np.float32)
    basal = (z - bottom[None]).astype(np.float32)
    depth = np.minimum(np.minimum(lateral, apical), basal)

    nucleus = np.full(shape, -20, np.float32)
    plate = np.full(shape, -20, np.float32)
    rng = streams("nuclei")
    wobble = np.float32(0.22) * smooth_noise(rng, shape, voxel, 1.4)
    cells = []
    centres = _middles(label[middle], seeds, voxel)
    for number, centre in enumerate(centres):
        cell = _cell(rng, centre, leans[number], height, floor)
        cells.append(cell)
        window = _box(cell.centre[1:], float(cell.axes[1:].max()) + 1.5, shape, voxel)
        if window is None:
            continue
        y = (np.arange(window[1].start, window[1].stop) * voxel[1] - cell.centre[1]).astype(np.float32)
        x = (np.arange(window[2].start, window[2].stop) * voxel[2] - cell.centre[2]).astype(np.float32)
        offsets = (z - np.float32(cell.centre[0]), y.reshape(1, -1, 1), x.reshape(1, 1, -1))
        inside = _ellipsoid(offsets, cell.axes, cell.angle) + wobble[window]
        # A nucleus never leaves its cell: the envelope keeps its distance from the cell's surface.
        inside = _soft_minimum(inside, depth[window] - np.float32(0.08 * height))
        target = plate if cell.mitotic else nucleus
        own = (label[window] == number) & (inside > target[window])
        np.copyto(target[window], inside, where=own)
    cytoplasm = np.minimum(depth, -np.maximum(nucleus, plate))
    return Colony(voxel, tuple(cells), label, lateral, apical, basal, depth, nucleus, plate, cytoplasm)


def _cell(
    rng: np.random.Generator,
    seed: NDArray[np.float64],
    lean: NDArray[np.float64],
    height: float,
    floor: float,
) -> Cell:
    """Draw one cell's nucleus, or spindle, and centrosomes."""
    angle = float(rng.uniform(0, np.pi))
    mitotic = bool(rng.random() < MITOTIC)
    shape = rng.uniform([0.35, 4.8, 3.7], [0.41, 6.0, 4.8])
    rise, shift, bearing = (
        float(rng.uniform(0.40, 0.52)),
        rng.normal(0, 0.3, 2),
        float(rng.uniform(0, 2 * np.pi)),
    )
    centre_z = rise * height
    centre = np.array([floor + centre_z, *(seed + shift + lean * (centre_z - 0.5 * height))])
    if mitotic:
        axes = np.array([0.34 * height, 3.6, 0.75])
        # The plate's normal is its short axis; the poles lie on it, 4 um to either side.
        normal = np.array([0.0, -np.sin(angle), np.cos(angle)])
        poles = np.stack([centre + 4.0 * normal, centre - 4.0 * normal])
        return Cell(centre, axes, angle, True, poles)
    axes = np.array([shape[0] * height, shape[1], shape[2]])
    along, across = np.cos(bearing - angle) / axes[1], np.sin(bearing - angle) / axes[2]
    radius = 1 / np.hypot(along, across) + 0.7
    pole = centre + np.array([0.18 * height, radius * np.cos(bearing), radius * np.sin(bearing)])
    return Cell(centre, axes, angle, False, pole[None])
