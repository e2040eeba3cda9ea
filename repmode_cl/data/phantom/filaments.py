"""Threads that grow step by step, and points laid onto the voxel grid.

Microtubules, mitochondria, stress fibres and the Golgi's ribbons are all walks: a direction that turns a
little at each step and is pushed away from surfaces. All walks of a field advance together, as arrays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from repmode_cl.data.phantom.cells import Colony
from repmode_cl.data.phantom.randomness import Floats

__all__ = ["Space", "WalkShape", "blurred", "random_directions", "sample_voxels", "splat", "walk"]

Points = NDArray[np.float64]


class Space:
    """Space that walks may enter: a distance field in um, positive where allowed, and its gradient.

    Parameters
    ----------
    colony
        Its labels keep a walk within its cell.
    allowed
        Distance in um inside the region, (Z, Y, X).
    """

    def __init__(self, colony: Colony, allowed: Floats) -> None:
        self.colony = colony
        self.allowed = allowed
        # Smoothed, since a distance to the nearest of several surfaces has creases.
        smooth = ndimage.gaussian_filter(allowed, [0.35 / step for step in colony.voxel], truncate=2.5)
        self.gradient: list[Floats] = list(np.gradient(smooth, *colony.voxel))

    def index(self, points: Points) -> tuple[NDArray[np.intp], ...]:
        """Return the voxels that `points` (n, 3) in um lie in, clipped to the field."""
        sizes = self.colony.shape
        return tuple(
            np.clip(np.rint(points[:, axis] / self.colony.voxel[axis]).astype(np.intp), 0, sizes[axis] - 1)
            for axis in range(3)
        )


def random_directions(rng: np.random.Generator, count: int, flat: float = 1.0) -> Points:
    """Draw unit vectors (count, 3); `flat` below 1 shrinks their z part."""
    vectors = rng.standard_normal((count, 3)) * [flat, 1.0, 1.0]
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9))


@dataclass(frozen=True)
class WalkShape:
    """Shape of walks of one kind: their step, their stiffness and their distance from surfaces.

    Attributes
    ----------
    step
        Distance between points in um.
    bend
        Standard deviation of the turn at each step (radians, roughly): step / bend**2 is the persistence
        length in um.
    keep
        Distance in um to keep from the region's surface: nearer, a walk is turned away.
    flat
        Factor of the turns out of the plane.
    """

    step: float
    bend: float
    keep: float
    flat: float = 1.0


def walk(
    rng: np.random.Generator,
    space: Space,
    starts: Points,
    directions: Points,
    lengths: NDArray[np.float64],
    shape: WalkShape,
) -> tuple[Points, NDArray[np.intp], NDArray[np.float64]]:
    """Grow walks through `space`; return points (n, 3) um, the walk each belongs to and its arc length in um.

    Parameters
    ----------
    starts, directions
        First points in um and unit vectors, (count, 3).
    lengths
        Length of each walk in um. A walk that leaves its cell or the allowed region for good ends there.
    shape
        Shape that all of them have.
    """
    position, direction = starts.copy(), directions.copy()
    owner = space.colony.label[space.index(position)]
    alive = np.ones(len(starts), dtype=bool)
    steps = int(np.ceil(lengths.max() / shape.step)) if len(lengths) else 0
    points, owners, arcs = [], [], []
    who = np.arange(len(starts))
    for number in range(steps):
        # Every walk draws at every step, ended or not, so that one walk's fate never changes another's turns.
        turn = rng.standard_normal(direction.shape) * [shape.flat, 1.0, 1.0] * shape.bend
        where = space.index(position)
        room = space.allowed[where]
        push = np.clip((shape.keep - room) / shape.keep, 0, 1.5)[:, None] * np.stack(
            [g[where] for g in space.gradient], axis=1
        )
        direction = direction + turn + push
        direction /= np.maximum(np.linalg.norm(direction, axis=1, keepdims=True), 1e-9)
        alive &= (space.colony.label[where] == owner) & (room > -0.8) & (number * shape.step < lengths)
        if not alive.any():
            break
        shown = alive & (room > 0)
        points.append(position[shown])
        owners.append(who[shown])
        arcs.append(np.full(int(shown.sum()), number * shape.step))
        position = position + shape.step * direction
    if not points:
        return np.zeros((0, 3)), np.zeros(0, np.intp), np.zeros(0)
    return np.concatenate(points), np.concatenate(owners), np.concatenate(arcs)


def sample_voxels(rng: np.random.Generator, colony: Colony, weights: Floats, per_volume: float) -> Points:
    """Draw points in um, (n, 3), with a density of `per_volume` a cubic um times `weights` (Z, Y, X)."""
    chance = weights * np.float32(per_volume * np.prod(colony.voxel))
    chosen = np.argwhere(rng.random(weights.shape, dtype=np.float32) < chance)
    jitter = rng.uniform(-0.5, 0.5, chosen.shape)
    return np.asarray((chosen + jitter) * np.asarray(colony.voxel))


def splat(colony: Colony, points: Points, weights: NDArray[np.float64] | float = 1.0) -> Floats:
    """Share each point (n, 3), in um, among its eight nearest voxels; those outside are dropped."""
    shape = colony.shape
    total = np.zeros(int(np.prod(shape)))
    if not len(points):
        return total.reshape(shape).astype(np.float32)
    place = points / np.asarray(colony.voxel)
    base = np.floor(place).astype(np.intp)
    part = place - base
    amount = np.broadcast_to(np.asarray(weights, dtype=np.float64), (len(points),))
    for corner in np.ndindex(2, 2, 2):
        voxel = base + corner
        share = np.prod(np.where(np.asarray(corner) == 1, part, 1 - part), axis=1) * amount
        inside = np.all((voxel >= 0) & (voxel < shape), axis=1)
        flat = np.ravel_multi_index(tuple(voxel[inside].T), shape)
        total += np.bincount(flat, share[inside], minlength=total.size)
    return total.reshape(shape).astype(np.float32)


def blurred(colony: Colony, volume: Floats, sigma: float) -> Floats:
    """Blur by a Gaussian of `sigma` um, in place of an object's own width."""
    return np.asarray(
        ndimage.gaussian_filter(volume, [sigma / s for s in colony.voxel], truncate=3.0, mode="constant")
    )
