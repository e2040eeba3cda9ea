"""Appearance of each structure: its density on the grid, its refractive index, and how its label glows.

Densities are 1 where a structure fills a voxel as densely as it does in life. Refractive indices are excesses
over the cytosol at density 1, from quantitative phase imaging of living cells where there is a measurement,
else the protein's or lipid's own excess times the part of a 0.29 um voxel that the structure fills. Thin or
sparse structures (a microtubule is 25 nm wide) are therefore faint in transmitted light and dense ones are
not.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

import numpy as np

from repmode_cl.data.phantom.cells import Colony
from repmode_cl.data.phantom.filaments import (
    Space,
    WalkShape,
    blurred,
    random_directions,
    sample_voxels,
    splat,
    walk,
)
from repmode_cl.data.phantom.optics import Emission
from repmode_cl.data.phantom.randomness import Floats, Streams, smooth_noise
from repmode_cl.structures import TWELVE_STRUCTURES

__all__ = ["CYTOSOL_INDEX", "EMISSIONS", "INDEX_EXCESS", "Anatomy", "refractive_index"]

#: Excess of the cytosol's refractive index over the medium's (1.337): 1.360.
CYTOSOL_INDEX = 0.023

#: Excess over the cytosol at density 1.
INDEX_EXCESS = MappingProxyType(
    {
        # A nucleus is less dense than the cytosol around it (1.355); chromatin modulates it. See
        # `refractive_index`.
        "dna": 0.012,
        # Dense ribonucleoprotein: 1.378, between 1.375 and 1.385 as measured.
        "nucleolus": 0.027,
        # Two bilayers and the lamina: 60 nm of a voxel.
        "nuclear_envelope": 0.006,
        # Two bilayers of neighbours (16 nm, excess 0.1) and the cortex under them.
        "cell_membrane": 0.007,
        # Dense with membranes and protein: 1.39.
        "mitochondria": 0.028,
        # Tubules of 80 nm.
        "endoplasmic_reticulum": 0.006,
        # Stacks of cisternae.
        "golgi_apparatus": 0.008,
        # Bundles and belts of filaments, a quarter protein.
        "actin_filament": 0.012,
        "actomyosin_bundle": 0.004,
        # Plaques of protein.
        "tight_junction": 0.008,
        "desmosome": 0.008,
        # One tube of 25 nm in a voxel: 0.6 % of its section at an excess of 0.1, a few side by side.
        "microtubule": 0.002,
    }
)

#: Dyes for DNA (blue) and membrane (far red) are bright; the others are proteins at natural expression with
#: EGFP, tens of photons a voxel at the exposures that living cells bear.
EMISSIONS = MappingProxyType(
    {
        "dna": Emission(0.460, 60.0, 0.02, 0.12),
        "cell_membrane": Emission(0.670, 90.0, 0.04, 0.05),
        "nucleolus": Emission(0.510, 60.0, 0.05, 0.15),
        "nuclear_envelope": Emission(0.510, 70.0, 0.03, 0.15),
        "mitochondria": Emission(0.510, 60.0, 0.04, 0.15),
        "endoplasmic_reticulum": Emission(0.510, 45.0, 0.08, 0.15),
        "golgi_apparatus": Emission(0.510, 60.0, 0.05, 0.25),
        "actin_filament": Emission(0.510, 50.0, 0.15, 0.15),
        "actomyosin_bundle": Emission(0.510, 45.0, 0.08, 0.20),
        "tight_junction": Emission(0.510, 60.0, 0.04, 0.15),
        "desmosome": Emission(0.510, 60.0, 0.03, 0.20),
        "microtubule": Emission(0.510, 50.0, 0.20, 0.15),
    }
)


def _shell(distance: Floats, width: float) -> Floats:
    """Lay a layer around distance 0, `width` um in standard deviation."""
    return np.asarray(np.exp(-0.5 * (distance / np.float32(width)) ** 2), dtype=np.float32)


def _step(distance: Floats, width: float = 0.12) -> Floats:
    """Give a voxel's share of the inside, where `distance` is positive: from 0 to 1 over `width` um."""
    return np.asarray(1 / (1 + np.exp(np.clip(-distance / np.float32(width), -30, 30))), dtype=np.float32)


class Anatomy:
    """The densities of one colony, each made once and kept.

    Parameters
    ----------
    colony
        Where the cells are.
    streams
        Random streams of the field: each structure draws from the one of its name.
    """

    def __init__(self, colony: Colony, streams: Streams) -> None:
        self.colony = colony
        self.streams = streams
        self._made: dict[str, Floats] = {}
        self._space: Space | None = None
        self._inside = _step(colony.depth)

    def density(self, name: str) -> Floats:
        """Return the density of structure `name`, or of the helper ``stress_fibres``, float32 (Z, Y, X)."""
        if name not in self._made:
            self._made[name] = np.asarray(_MAKERS[name](self, self.streams(name)), dtype=np.float32)
        return self._made[name]

    @property
    def inside(self) -> Floats:
        """Share of each voxel that lies inside a cell."""
        return self._inside

    @property
    def space(self) -> Space:
        """The cytoplasm, for walks."""
        if self._space is None:
            self._space = Space(self.colony, self.colony.cytoplasm)
        return self._space

    def noise(self, rng: np.random.Generator, scale: float) -> Floats:
        """Return a random field of `scale` um on the colony's grid."""
        return smooth_noise(rng, self.colony.shape, self.colony.voxel, scale)


def _dna(body: Anatomy, rng: np.random.Generator) -> Floats:
    colony = body.colony
    nucleus = _step(colony.nucleus)
    texture = 1 + 0.28 * body.noise(rng, 0.25) + 0.12 * body.noise(rng, 0.9)
    # Heterochromatin lines the envelope; nucleoli hold little DNA.
    rim = 1 + 0.35 * _shell(colony.nucleus - 0.25, 0.25)
    chromatin = 0.5 * nucleus * np.maximum(texture, 0.1) * rim * (1 - 0.65 * body.density("nucleolus"))
    return np.asarray(chromatin + 1.6 * _step(colony.plate) * np.maximum(texture, 0.4))


def _nucleolus(body: Anatomy, rng: np.random.Generator) -> Floats:
    colony = body.colony
    total = np.full(colony.shape, -20, np.float32)
    z, y, x = (
        np.arange(n, dtype=np.float32) * np.float32(s)
        for n, s in zip(colony.shape, colony.voxel, strict=True)
    )
    for cell in colony.cells:
        lobes = []
        for _ in range(int(rng.integers(1, 4))):
            place = rng.uniform(-0.4, 0.4, 3) * cell.axes
            radius = float(rng.uniform(1.0, 1.7))
            # A nucleolus is a few lobes that have flowed together.
            lobes += [
                (place + rng.normal(0, 0.5, 3) * [0.5, 1, 1], radius * float(rng.uniform(0.7, 1.0)))
                for _ in range(int(rng.integers(1, 4)))
            ]
        if cell.mitotic:  # nucleoli dissolve
            continue
        along = np.array([np.cos(cell.angle), np.sin(cell.angle)])
        for place, radius in lobes:
            turned = place[1] * along + place[2] * np.array([-along[1], along[0]])
            middle = cell.centre + np.concatenate([place[:1], turned])
            low = [max(int((m - radius - 1) / s), 0) for m, s in zip(middle, colony.voxel, strict=True)]
            high = [
                min(int((m + radius + 1) / s) + 2, n)
                for m, s, n in zip(middle, colony.voxel, colony.shape, strict=True)
            ]
            if any(a >= b for a, b in zip(low, high, strict=True)):
                continue
            box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
            away = np.sqrt(
                (z[box[0], None, None] - middle[0]) ** 2
                + (y[box[1], None] - middle[1]) ** 2
                + (x[box[2]] - middle[2]) ** 2
            )
            total[box] = np.maximum(total[box], radius - away)
    return np.asarray(_step(np.minimum(total, colony.nucleus - 0.3)))


def _nuclear_envelope(body: Anatomy, rng: np.random.Generator) -> Floats:
    patches = 1 + 0.15 * body.noise(rng, 0.5)
    return np.asarray(_shell(body.colony.nucleus, 0.14) * np.maximum(patches, 0.2))


def _cell_membrane(body: Anatomy, rng: np.random.Generator) -> Floats:
    colony = body.colony
    patches = np.maximum(1 + 0.15 * body.noise(rng, 0.5), 0.2)
    height = np.minimum(colony.apical, colony.basal)
    walls = _shell(colony.lateral, 0.14) * _step(height)
    # Microvilli fold the apical membrane.
    cover = 0.7 * _shell(colony.apical, 0.18) + 0.5 * _shell(colony.basal, 0.14)
    vesicles = splat(
        colony, sample_voxels(rng, colony, (colony.cytoplasm > 0.3).astype(np.float32), 0.08), 1.2
    )
    return np.asarray((walls + cover) * patches + blurred(colony, vesicles, 0.15))


def _belt(colony: Colony, width: float, height: float) -> Floats:
    """Lay the belt where neighbours meet below the apical surface."""
    return np.asarray(_shell(colony.lateral, width) * _shell(colony.apical - 0.7, height))


def _tight_junction(body: Anatomy, rng: np.random.Generator) -> Floats:
    patches = np.maximum(1 + 0.25 * body.noise(rng, 0.5), 0.1)
    return np.asarray(_belt(body.colony, 0.16, 0.30) * patches * 1.3)


def _desmosome(body: Anatomy, rng: np.random.Generator) -> Floats:
    colony = body.colony
    high = np.exp(-np.abs(colony.apical - 1.2) / 1.8) * (colony.apical > 0.5) * (colony.basal > 0.3)
    walls = (np.abs(colony.lateral) < 0.18) * high
    points = sample_voxels(rng, colony, walls.astype(np.float32), 4.0)
    size = rng.lognormal(0, 0.5, len(points))
    return np.asarray(np.minimum(blurred(colony, splat(colony, points, size), 0.16) * 5.0, 2.0))


def _stress_fibres(body: Anatomy, rng: np.random.Generator) -> Floats:
    """Straight bundles along the base; actin and myosin share them."""
    colony = body.colony
    base = ((colony.basal > 0.2) & (colony.basal < 0.5) & (colony.lateral > 0.4)).astype(np.float32)
    starts = sample_voxels(rng, colony, base, 0.18)
    heading = rng.uniform(0, np.pi, len(colony.cells))[colony.label[body.space.index(starts)]]
    heading = heading + rng.normal(0, 0.2, len(starts)) + np.pi * rng.integers(0, 2, len(starts))
    directions = np.stack([np.zeros(len(starts)), np.cos(heading), np.sin(heading)], axis=1)
    lengths = rng.uniform(3.0, 9.0, len(starts))
    points, _, _ = walk(
        rng, body.space, starts, directions, lengths, WalkShape(step=0.15, bend=0.02, keep=0.2, flat=0.0)
    )
    return np.asarray(np.minimum(blurred(colony, splat(colony, points, 0.15), 0.12) / 0.2, 1.5))


def _actin_filament(body: Anatomy, rng: np.random.Generator) -> Floats:
    colony = body.colony
    patches = np.maximum(1 + 0.3 * body.noise(rng, 0.35), 0.05)
    cortex = 0.35 * _shell(colony.lateral - 0.15, 0.18) * body.inside
    villi = 0.6 * _shell(colony.apical - 0.1, 0.25) * np.maximum(body.noise(rng, 0.22), 0)
    return np.asarray(
        (cortex + 0.9 * _belt(colony, 0.28, 0.45)) * patches + villi + body.density("stress_fibres")
    )


def _actomyosin_bundle(body: Anatomy, rng: np.random.Generator) -> Floats:
    colony = body.colony
    beads = np.maximum(0.35 + 0.8 * body.noise(rng, 0.22), 0)
    expression = np.maximum(1 + 0.5 * body.noise(rng, 2.5), 0.1)
    return np.asarray(
        (0.9 * _belt(colony, 0.3, 0.4) + 0.9 * body.density("stress_fibres")) * beads * expression
    )


def _microtubule(body: Anatomy, rng: np.random.Generator) -> Floats:
    colony = body.colony
    starts, directions = [], []
    for cell in colony.cells:
        for pole in cell.poles:
            count = 90 if cell.mitotic else 40
            heading = random_directions(rng, count, 0.7)
            if cell.mitotic:
                inward = (cell.centre - pole) / np.linalg.norm(cell.centre - pole)
                heading[: count // 2] = inward + 0.35 * heading[: count // 2]
                heading /= np.linalg.norm(heading, axis=1, keepdims=True)
            starts.append(pole + 0.1 * random_directions(rng, count))
            directions.append(heading)
    # In epithelia most begin elsewhere in the cytoplasm, many of them upright.
    free = sample_voxels(rng, colony, (colony.cytoplasm > 0.3).astype(np.float32), 0.25)
    starts.append(free)
    directions.append(random_directions(rng, len(free), 1.5))
    origins = np.concatenate(starts)
    lengths = rng.uniform(4.0, 14.0, len(origins))
    points, _, _ = walk(
        rng,
        body.space,
        origins,
        np.concatenate(directions),
        lengths,
        WalkShape(step=0.2, bend=0.07, keep=0.5),
    )
    return np.asarray(np.minimum(splat(colony, points, 0.2) / 0.3, 4.0))


def _mitochondria(body: Anatomy, rng: np.random.Generator) -> Floats:
    colony = body.colony
    # They gather around the nucleus.
    weight = (colony.cytoplasm > 0.35) * np.exp(-np.maximum(-colony.nucleus, 0) / 3.0)
    starts = sample_voxels(rng, colony, weight.astype(np.float32), 0.5)
    lengths = rng.lognormal(np.log(2.6), 0.5, len(starts))
    points, _, _ = walk(
        rng,
        body.space,
        starts,
        random_directions(rng, len(starts), 0.5),
        np.minimum(lengths, 9.0),
        WalkShape(step=0.12, bend=0.15, keep=0.25, flat=0.5),
    )
    filled = blurred(colony, splat(colony, points, 0.12), 0.17)
    return np.asarray(1 - np.exp(-filled / 0.08))


def _endoplasmic_reticulum(body: Anatomy, rng: np.random.Generator) -> Floats:
    colony = body.colony
    first, second = body.noise(rng, 0.40), body.noise(rng, 0.40)
    tubules = np.exp(-(first**2 + second**2) / 0.30)
    away = np.maximum(-colony.nucleus, 0)
    sheets = 0.8 * np.exp(-(first**2) / 0.15) * np.exp(-away / 1.2)
    network = np.maximum(tubules, sheets) * (0.55 + 0.6 * np.exp(-away / 2.5))
    return np.asarray(network * _step(colony.cytoplasm - 0.15) + 0.7 * _shell(colony.nucleus, 0.14))


def _golgi_apparatus(body: Anatomy, rng: np.random.Generator) -> Floats:
    colony = body.colony
    starts = []
    for cell in colony.cells:
        place = cell.poles[0]
        # A ribbon beside the centrosome; scattered through the cell in division.
        count, width = (60, 2.5) if cell.mitotic else (int(rng.integers(30, 60)), 1.1)
        starts.append(place + rng.normal(0, width, (count, 3)))
    seeds = np.concatenate(starts)
    points, _, _ = walk(
        rng,
        body.space,
        seeds,
        random_directions(rng, len(seeds)),
        rng.uniform(0.6, 2.2, len(seeds)),
        WalkShape(step=0.12, bend=0.3, keep=0.3),
    )
    return np.asarray(np.minimum(blurred(colony, splat(colony, points, 0.12), 0.13) / 0.15, 2.0))


_MAKERS: MappingProxyType[str, Callable[[Anatomy, np.random.Generator], Floats]] = MappingProxyType(
    {
        "dna": _dna,
        "nucleolus": _nucleolus,
        "nuclear_envelope": _nuclear_envelope,
        "cell_membrane": _cell_membrane,
        "tight_junction": _tight_junction,
        "desmosome": _desmosome,
        "stress_fibres": _stress_fibres,
        "actin_filament": _actin_filament,
        "actomyosin_bundle": _actomyosin_bundle,
        "microtubule": _microtubule,
        "mitochondria": _mitochondria,
        "endoplasmic_reticulum": _endoplasmic_reticulum,
        "golgi_apparatus": _golgi_apparatus,
    }
)


def refractive_index(body: Anatomy) -> Floats:
    """Return the refractive index minus the medium's, (Z, Y, X): all structures, whichever are asked for.

    Besides the twelve it holds what no channel shows: granular cytoplasm, and droplets and lysosomes, the
    strongest scatterers of a real cell.
    """
    colony, rng = body.colony, body.streams("unlabelled")
    # Ribosomes, vesicles and what else crowds the cytoplasm; a nucleus is smoother.
    grain = 0.4 + 0.6 * _step(colony.cytoplasm, 0.2)
    cytosol = body.inside * (np.float32(CYTOSOL_INDEX) + np.float32(0.004) * grain * body.noise(rng, 0.16))
    total = cytosol - np.float32(0.011) * _step(colony.nucleus)
    for name in TWELVE_STRUCTURES:
        total += np.float32(INDEX_EXCESS[name]) * body.density(name)
    allowed = (colony.cytoplasm > 0.3) * (0.4 + np.exp(-np.maximum(-colony.nucleus, 0) / 2.0))
    clusters = np.exp(0.9 * body.noise(rng, 1.5) - 0.4)
    for sigma, per_volume in ((0.16, 0.15), (0.26, 0.018), (0.40, 0.002)):
        points = sample_voxels(rng, colony, (allowed * clusters).astype(np.float32), per_volume)
        # A droplet is a Gaussian of lipid with an excess of 0.08 at its centre; laid down by what it sums to.
        amount = 0.08 * (2 * np.pi) ** 1.5 * sigma**3 / float(np.prod(colony.voxel))
        total += blurred(colony, splat(colony, points, amount), sigma)
    return np.asarray(total, dtype=np.float32)
